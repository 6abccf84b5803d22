//! Files of the machine: what they are, changes to the tree, and what others change in it.
//!
//! Paths are below [`WORKSPACE`](crate::WORKSPACE) unless they are absolute. A symbolic link at the end of a path is followed only to list
//! or to watch a directory.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::bounded::{self, MAX_COUNT, MAX_TEXT_BYTES};

/// Maximum number of entries of a listing.
pub const MAX_LISTED: u64 = 100_000;
/// Maximum number of directories that one [`Watch`] covers.
pub const MAX_WATCHED_DIRS: usize = 8192;
/// Longest line of a listing or of a watch, in bytes: two paths whose every byte is escaped, and numbers.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// Describe one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stat {
    /// The file.
    pub path: String,
}

/// Describe the entries of a directory, each as far as its file system answers, in [`Frame::Output`](crate::Frame::Output) frames of the standard output: for each a line with a
/// [`FileInfo`] as JSON. Entries of one directory are in the order of the bytes of their names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct List {
    /// The directory.
    pub path: String,
    /// Also describe what is below it, each directory before its entries.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recursive: bool,
    /// Maximum number of entries to send, at most [`MAX_LISTED`].
    pub max_entries: u64,
}

/// Give a file or a directory another path. On another file system, it is copied, and removed when the copy is complete; the copy stops when the
/// host closes the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Move {
    /// Its path.
    pub from: String,
    /// Its new path, in an existing directory.
    pub to: String,
    /// Replace a file, or an empty directory by a directory, that has the new path.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
}

/// Remove a file or a directory. The removal of a tree stops when the host closes the stream, and at a directory where another file
/// system is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Remove {
    /// What to remove.
    pub path: String,
    /// If it is a directory, remove what is in it too. Otherwise it must be empty.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recursive: bool,
}

/// Make a directory and its missing parents. One that exists stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MakeDirectory {
    /// The directory.
    pub path: String,
}

/// Report what changes in a directory, or with one file name, until the host closes the stream. What is mounted below the directory is
/// not watched. In
/// [`Frame::Output`](crate::Frame::Output) frames of the standard output: first a line with [`FileChange::Watching`], then one for each change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Watch {
    /// The directory or file. A symbolic link at its end is followed once, when the watch begins.
    pub path: String,
    /// Also report what changes below the directory's directories, at most [`MAX_WATCHED_DIRS`] together.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recursive: bool,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileInfo {
    /// Its path: of a [`Stat`], that of the request; of a [`List`], below the directory. Bytes that are not UTF-8 are replaced by
    /// U+FFFD.
    #[serde(deserialize_with = "bounded::text")]
    #[schemars(length(max = MAX_TEXT_BYTES))]
    pub path: String,
    /// What kind of file it is.
    pub kind: FileKind,
    /// Its size, in bytes.
    #[serde(deserialize_with = "bounded::count")]
    #[schemars(range(max = MAX_COUNT))]
    pub size: u64,
    /// Its permissions, with set-user-ID, set-group-ID, and sticky bit: the lower twelve bits of `st_mode`.
    #[serde(deserialize_with = "bounded::mode")]
    pub mode: u32,
    /// Number of its owner.
    pub uid: u32,
    /// Number of its group.
    pub gid: u32,
    /// Time of the latest change of its contents, in milliseconds since the epoch.
    #[serde(deserialize_with = "bounded::time")]
    pub modified_ms: i64,
    /// What a symbolic link contains.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "bounded::optional_text")]
    #[schemars(length(max = MAX_TEXT_BYTES))]
    pub target: Option<String>,
}

/// Kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO, a socket or a device.
    Special,
}

/// What changed. Paths are below the watched directory; a watched file, and the watched directory itself, have an empty path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileChange {
    /// Every change from now on is reported.
    Watching,
    /// A file or directory was made, or moved there from elsewhere.
    Created(#[serde(deserialize_with = "bounded::text")] String),
    /// The contents of a file were changed.
    Modified(#[serde(deserialize_with = "bounded::text")] String),
    /// The mode, the owner or the times of a file were changed.
    Attributes(#[serde(deserialize_with = "bounded::text")] String),
    /// A file or directory was removed, or moved elsewhere.
    Removed(#[serde(deserialize_with = "bounded::text")] String),
    /// A file or directory was moved.
    Moved {
        /// Its path before.
        #[serde(deserialize_with = "bounded::text")]
        from: String,
        /// Its path now.
        #[serde(deserialize_with = "bounded::text")]
        to: String,
    },
    /// There were more changes than the kernel keeps, or a directory cannot be watched; some are not reported.
    Lost,
}

/// Answer to [`Stat`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StatReply {
    /// What it is.
    Found(FileInfo),
    /// It cannot be described.
    Failed(Failure),
}

/// Answer to [`List`], after the entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ListReply {
    /// The entries were sent.
    Listed {
        /// There are more than were asked for, or some could not be read. Of a directory with more, the entries are not the first ones.
        truncated: bool,
    },
    /// The directory cannot be listed.
    Failed(Failure),
}

/// Answer to [`Move`], [`Remove`] and [`MakeDirectory`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeReply {
    /// It is done.
    Done,
    /// It was not done; of a directory to remove, part may be gone. The failure says so if it was copied to another file system, and the
    /// original is not removed completely.
    Failed(Failure),
}

/// Answer to [`Watch`], when there is nothing more to report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WatchReply {
    /// The directory, or that of the file, is gone.
    Gone,
    /// It cannot be watched.
    Failed(Failure),
}

/// Adds a line of a listing or a watch to `bytes`.
pub fn append_line(bytes: &mut Vec<u8>, value: &impl Serialize) {
    let start = bytes.len();
    match serde_json::to_writer(&mut *bytes, value) {
        Ok(()) => bytes.push(b'\n'),
        // The types of this module can all be written.
        Err(_) => bytes.truncate(start),
    }
}

/// Reads the lines of a listing or a watch from pieces that are cut anywhere.
#[derive(Debug, Default)]
pub struct LineDecoder {
    rest: Vec<u8>,
}

/// A guest sent something else than such lines.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// A line is longer than [`MAX_LINE_BYTES`].
    #[error("a line is longer than {MAX_LINE_BYTES} bytes")]
    TooLong,
    /// A line has another form.
    #[error("a line is malformed")]
    Malformed(#[source] serde_json::Error),
    /// The last line has no end.
    #[error("the last line is incomplete")]
    Incomplete,
}

impl LineDecoder {
    /// Returns the values of the lines that `piece` completes.
    ///
    /// # Errors
    /// [`LineError::TooLong`], [`LineError::Malformed`].
    pub fn take<T: DeserializeOwned>(&mut self, piece: &[u8]) -> Result<Vec<T>, LineError> {
        let mut values = Vec::new();
        let mut lines = piece.split_inclusive(|byte| *byte == b'\n');
        if !self.rest.is_empty() {
            if let Some(first) = lines.next() {
                self.rest.extend_from_slice(first);
            }
            if self.rest.last() != Some(&b'\n') {
                return self.check().map(|()| values);
            }
            values.push(read_line(&self.rest)?);
            self.rest.clear();
        }
        for line in lines {
            match line.last() {
                Some(b'\n') => values.push(read_line(line)?),
                _ => self.rest = line.to_vec(),
            }
        }
        self.check().map(|()| values)
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// [`LineError::Incomplete`].
    pub fn finish(self) -> Result<(), LineError> {
        if self.rest.is_empty() { Ok(()) } else { Err(LineError::Incomplete) }
    }

    fn check(&self) -> Result<(), LineError> {
        if self.rest.len() <= MAX_LINE_BYTES { Ok(()) } else { Err(LineError::TooLong) }
    }
}

fn read_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, LineError> {
    if line.len() > MAX_LINE_BYTES {
        return Err(LineError::TooLong);
    }
    serde_json::from_slice(line).map_err(LineError::Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_bounded_and_have_one_form() {
        let long = vec![b' '; MAX_LINE_BYTES + 1];
        assert!(matches!(LineDecoder::default().take::<FileChange>(&long), Err(LineError::TooLong)));
        let mut long = long;
        long.extend_from_slice(b"\"lost\"\n");
        assert!(matches!(LineDecoder::default().take::<FileChange>(&long), Err(LineError::TooLong)));
        let malformed = LineDecoder::default().take::<FileChange>(b"\"lost\"\n\"found\"\n");
        assert!(matches!(malformed, Err(LineError::Malformed(_))));
        let mut decoder = LineDecoder::default();
        assert_eq!(decoder.take::<FileChange>(b"\"lo").unwrap(), []);
        assert!(matches!(decoder.finish(), Err(LineError::Incomplete)));
    }

    proptest! {
        #[test]
        fn lines_are_read_however_they_are_cut(names in prop::collection::vec("\\PC{0,8}", 0..6), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
            let sent: Vec<_> = names.into_iter().map(FileChange::Created).collect();
            let mut bytes = Vec::new();
            sent.iter().for_each(|change| append_line(&mut bytes, change));
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut decoder = LineDecoder::default();
            let mut received = Vec::new();
            for cut in cuts.windows(2) {
                received.extend(decoder.take::<FileChange>(&bytes[cut[0]..cut[1]]).unwrap());
            }
            decoder.finish().unwrap();
            prop_assert_eq!(received, sent);
        }
    }
}
