//! Errors of packing and unpacking.

use std::io;

use crate::report::rename;
use crate::{MAX_DEPTH, MAX_NAME};

/// Why an item was not packed or unpacked. Names are made printable and cut to a bounded length.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file or directory could not be used.
    #[error("cannot {action} {name}")]
    Io {
        /// The operation.
        action: &'static str,
        /// The path or entry.
        name: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The stream could not be read or written.
    #[error("cannot {action} the stream of files")]
    Stream {
        /// The operation.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The item to pack is neither a file nor a directory.
    #[error("{name} is neither a regular file nor a directory")]
    NotAnItem {
        /// Its path.
        name: String,
    },
    /// The directory to pack is in a file system that the kernel makes up.
    #[error("{name} belongs to the kernel: only single files of it can be copied")]
    OfTheKernel {
        /// Its path.
        name: String,
    },
    /// The stream holds something other than the expected regular file.
    #[error("not a regular file")]
    NotAFile,
    /// The name for the item is not a single name.
    #[error("invalid file name: expected a single name, got {name:?}")]
    NotOneName {
        /// The name.
        name: String,
    },
    /// A file changed while it was packed, so that it cannot be stored.
    #[error("{name} {how} while it was read")]
    Changed {
        /// Its entry.
        name: String,
        /// What happened to it.
        how: &'static str,
    },
    /// The stream ends before the archive does.
    #[error("the stream of files is truncated")]
    Truncated,
    /// The stream is not what this crate writes.
    #[error("the stream of files is malformed: {what}")]
    Malformed {
        /// What is wrong with it.
        what: &'static str,
    },
    /// An entry has a name that is not allowed.
    #[error("the entry {name} {why}")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An entry whose directory is not the open one, or that comes after a later name.
    #[error("the entry {name} is out of order")]
    OutOfOrder {
        /// Its name.
        name: String,
    },
    /// An entry is of a kind that no stream may hold.
    #[error("the entry {name} is {kind}; only files, directories and symlinks are accepted")]
    Unsupported {
        /// Its name.
        name: String,
        /// What it is, with an article.
        kind: &'static str,
    },
    /// A name, or a symlink's target, is too long to be stored.
    #[error("the name or target of {name} is too long: the maximum is {MAX_NAME} bytes")]
    NameTooLong {
        /// Its entry.
        name: String,
    },
    /// Directories are nested too deeply.
    #[error("{name} is nested too deeply: the maximum is {MAX_DEPTH} directories")]
    TooDeep {
        /// The first entry that is.
        name: String,
    },
    /// There are more entries than the limit.
    #[error("too many files, directories and symlinks: the maximum is {limit}")]
    TooManyEntries {
        /// The maximum.
        limit: u64,
    },
    /// The files hold more bytes than the limit.
    #[error("the files are too large: the maximum is {limit} bytes in total")]
    TooLarge {
        /// The maximum.
        limit: u64,
    },
    /// An entry would replace something that it must not replace.
    #[error("cannot create {name}: {there} exists in its place")]
    InTheWay {
        /// The entry.
        name: String,
        /// What is there, with an article.
        there: &'static str,
    },
}

impl ArchiveError {
    /// Names the item after the path that the user knows instead of its entry in the stream.
    #[must_use]
    pub fn named(mut self, item: &str) -> Self {
        match &mut self {
            Self::Io { name, .. }
            | Self::Changed { name, .. }
            | Self::NameTooLong { name }
            | Self::TooDeep { name }
            | Self::Unsupported { name, .. }
            | Self::InTheWay { name, .. } => rename(name, item),
            Self::Stream { .. }
            | Self::NotAnItem { .. }
            | Self::OfTheKernel { .. }
            | Self::NotAFile
            | Self::NotOneName { .. }
            | Self::Truncated
            | Self::Malformed { .. }
            | Self::BadName { .. }
            | Self::OutOfOrder { .. }
            | Self::TooManyEntries { .. }
            | Self::TooLarge { .. } => {}
        }
        self
    }

    pub(crate) fn io<E: Into<io::Error>>(
        action: &'static str,
        name: impl ToString,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { action, name: name.to_string(), source: source.into() }
    }
}
