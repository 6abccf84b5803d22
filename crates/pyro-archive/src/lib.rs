//! Files and directories as a stream of tar, both ways, never outside the given place.
//!
//! A stream holds one item, a regular file or a directory with everything below it. Its entries are called
//! `item` and `item/…`, so that the receiver alone decides what it is called. The format is the part of
//! GNU tar that this needs: files, with their holes and in parts, directories, symlinks and long names. Directories come before what they
//! hold, and the entries of a directory in the byte order of their names. [`unpack()`] enforces that
//! order, so it has to remember only the open directories, and no entry can contradict an earlier one.
//!
//! Both ends work on open directories and one name at a time, never on paths, and follow no symlink below the
//! given place. Neither keeps more than [`MAX_DEPTH`] directories open. Unpacking needs little
//! memory, regardless of the stream; packing holds the names in the open directories.

mod contents;
mod error;
mod input;
mod kernel;
mod name;
mod output;
mod pack;
mod place;
mod report;
mod sparse;
mod transfer;
mod unpack;

pub use contents::{read_contents, write_contents, write_contents_to};
pub use error::ArchiveError;
pub use kernel::owns as is_of_kernel;
pub use pack::pack;
pub use report::Report;
pub use transfer::{
    contents_from, contents_into, contents_through, destination, exact_destination, followed_destination,
    pack_into, pieces_into, unpack_from,
};
pub use unpack::{Links, Rules, unpack};

/// Maximum length of the name of an entry, `item` included, and of the target of a symlink, in bytes.
pub const MAX_NAME: usize = 4096;

/// Maximum depth of nested directories, the item included. As many are open at once.
pub const MAX_DEPTH: usize = 128;

/// Limits of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of files, directories and symlinks, with those that are left out.
    pub max_entries: u64,
    /// Maximum total size of all files, in bytes.
    pub max_bytes: u64,
}
