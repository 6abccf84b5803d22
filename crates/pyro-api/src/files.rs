//! Files of a task: what they are, changes to the tree, and reports of what changes.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, VmId};

/// Maximum number of entries of a listing.
pub const MAX_LISTED: u64 = 100_000;
/// Maximum number of changes that one watch returns.
pub const MAX_CHANGES: u64 = 100_000;
/// Maximum time to watch for changes, in seconds: the longest lifetime of a task.
const MAX_WATCH_SECONDS: f64 = 3600.0;

/// A file or directory by its path.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct FilePath {
    /// Path in the task; below `/workspace` unless it is absolute.
    pub path: String,
}

/// What to list.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Listing {
    /// Directory in the task; below `/workspace` unless it is absolute.
    #[serde(default = "workspace")]
    pub path: String,
    /// Also list what is in its directories, except in those where another file system is mounted.
    #[serde(default)]
    pub recursive: bool,
    /// Maximum number of entries to return, 1 to 100000. Their paths have at most 16 MiB together.
    #[serde(default = "default_max_entries")]
    pub max_entries: u64,
}

/// What to move.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct FileMove {
    /// File or directory in the task; below `/workspace` unless it is absolute.
    pub source: String,
    /// Its new path, in an existing directory.
    pub destination: String,
    /// Replace a file, or an empty directory by a directory, that has the new path.
    #[serde(default)]
    pub replace: bool,
}

/// What to remove.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct FileRemoval {
    /// File or directory in the task; below `/workspace` unless it is absolute.
    pub path: String,
    /// Remove a directory with what is in it, except if another file system is mounted there. Otherwise it must be empty.
    #[serde(default)]
    pub recursive: bool,
}

/// What to watch, and for how long.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct FileWatch {
    /// Directory or file in the task; below `/workspace` unless it is absolute. A file is watched by its name, also after another
    /// one has replaced it.
    #[serde(default = "workspace")]
    pub path: String,
    /// Also watch its directories, at most 8192, except those where another file system is mounted.
    #[serde(default)]
    pub recursive: bool,
    /// Maximum time to watch, in seconds, more than 0 and at most 3600.
    #[serde(default = "default_watch_seconds")]
    #[cfg_attr(test, proptest(strategy = "0.001..3600.0f64"))]
    pub timeout_seconds: f64,
    /// Return when something has changed and then nothing for this time, in seconds. Null: watch until the end of the time.
    #[cfg_attr(test, proptest(strategy = "proptest::option::of(0.0..60.0f64)"))]
    pub idle_seconds: Option<f64>,
    /// Return after this number of changes, at most 100000, or after 16 MiB of paths. 0: no maximum, and the changes are sent as events
    /// only.
    #[serde(default = "default_max_changes")]
    pub max_changes: u64,
}

fn workspace() -> String {
    ".".to_owned()
}

fn default_max_entries() -> u64 {
    1000
}

fn default_watch_seconds() -> f64 {
    60.0
}

fn default_max_changes() -> u64 {
    1000
}

impl Listing {
    /// Checks the limits.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput).
    pub fn check(&self) -> Result<(), Error> {
        match (1..=MAX_LISTED).contains(&self.max_entries) {
            true => Ok(()),
            false => Err(Error::out_of_range("max_entries", 1, MAX_LISTED.cast_signed())),
        }
    }
}

/// The limits of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchLimits {
    /// Maximum time to watch.
    pub time: Duration,
    /// End when something has changed and then nothing for this time.
    pub idle: Option<Duration>,
    /// Maximum number of changes.
    pub changes: Option<u64>,
}

impl FileWatch {
    /// The limits, if they are within their own.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput).
    pub fn limits(&self) -> Result<WatchLimits, Error> {
        if self.max_changes > MAX_CHANGES {
            return Err(Error::out_of_range("max_changes", 0, MAX_CHANGES.cast_signed()));
        }
        let seconds = |name: &str, seconds: f64, from_zero: bool| match Duration::try_from_secs_f64(seconds) {
            Ok(time) if seconds <= MAX_WATCH_SECONDS && (from_zero || !time.is_zero()) => Ok(time),
            _ => {
                let least = if from_zero { "at least" } else { "more than" };
                let message = format!("{name} must be {least} 0 and at most {MAX_WATCH_SECONDS}");
                Err(Error::new(crate::ErrorKind::InvalidInput, message).naming(name))
            }
        };
        Ok(WatchLimits {
            time: seconds("timeout_seconds", self.timeout_seconds, false)?,
            idle: self.idle_seconds.map(|idle| seconds("idle_seconds", idle, true)).transpose()?,
            changes: (self.max_changes > 0).then_some(self.max_changes),
        })
    }
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct FileInfo {
    /// Its path: in a listing, below the listed directory. U+FFFD replaces bytes that are not UTF-8.
    pub path: String,
    /// What kind of file it is. Symbolic links are not followed.
    pub kind: FileKind,
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// Its permissions in octal digits, such as `0644`.
    pub mode: String,
    /// Number of its owner.
    pub uid: u32,
    /// Number of its group.
    pub gid: u32,
    /// Time of the latest change of its contents, in seconds since the epoch.
    #[cfg_attr(test, proptest(strategy = "0.0..4e9f64"))]
    pub modified_at: f64,
    /// What a symbolic link contains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Kinds of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
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

/// A change in what is watched.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct FileChange {
    /// What happened.
    pub change: ChangeKind,
    /// Path of the file below the watched directory; empty for the watched file or directory itself, and with `lost`.
    pub path: String,
    /// Its path before; only with `moved`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_path: Option<String>,
}

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It was made, or moved there from elsewhere.
    Created,
    /// Its contents were changed.
    Modified,
    /// Its mode, owner or times were changed.
    Attributes,
    /// It was removed, or moved elsewhere.
    Removed,
    /// It was moved within what is watched.
    Moved,
    /// Changes were too many to report all of them. List the directory to see what is there.
    Lost,
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Created => "created",
            Self::Modified => "modified",
            Self::Attributes => "attributes",
            Self::Removed => "removed",
            Self::Moved => "moved",
            Self::Lost => "lost",
        })
    }
}

/// A file of a task, described.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskFileInfo {
    /// Id of the task.
    pub task_id: VmId,
    /// What the file is.
    pub file: FileInfo,
}

/// The entries of a directory.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskFileList {
    /// Id of the task.
    pub task_id: VmId,
    /// The requested path.
    pub path: String,
    /// The entries, those of one directory by name, each directory before its own.
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub entries: Vec<FileInfo>,
    /// There are more, or some could not be read. Of a directory with more entries, these are any, not the first by name.
    pub truncated: bool,
}

/// A file or directory was moved.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskFileMoved {
    /// Id of the task.
    pub task_id: VmId,
    /// Its path before.
    pub source: String,
    /// Its path now.
    pub destination: String,
}

/// A file or directory was removed, or a directory was made.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskFileChanged {
    /// Id of the task.
    pub task_id: VmId,
    /// The requested path.
    pub path: String,
}

/// What changed while something was watched.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskFileChanges {
    /// Id of the task.
    pub task_id: VmId,
    /// The requested path.
    pub path: String,
    /// The changes, in their order; empty without a maximum.
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub changes: Vec<FileChange>,
    /// Why the watch ended.
    pub reason: WatchEnd,
}

/// Why a watch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum WatchEnd {
    /// The time was over.
    Time,
    /// Something had changed, and then nothing for the time that was asked for.
    Idle,
    /// The number of changes, or 16 MiB of paths, was reached.
    Full,
    /// The watched directory, or that of the watched file, is gone.
    Gone,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_watch_has_limits() {
        let watch = |given: serde_json::Value| serde_json::from_value::<FileWatch>(given).unwrap().limits();
        let limits = watch(json!({})).unwrap();
        let default = WatchLimits { time: Duration::from_secs(60), idle: None, changes: Some(1000) };
        assert_eq!(limits, default);
        assert_eq!(watch(json!({ "max_changes": 0, "idle_seconds": 0 })).unwrap().changes, None);
        for (given, name) in [
            (json!({ "timeout_seconds": 0 }), "timeout_seconds"),
            (json!({ "timeout_seconds": 3600.5 }), "timeout_seconds"),
            (json!({ "timeout_seconds": -1 }), "timeout_seconds"),
            (json!({ "idle_seconds": -0.1 }), "idle_seconds"),
            (json!({ "idle_seconds": 1e300 }), "idle_seconds"),
            (json!({ "max_changes": 100_001 }), "max_changes"),
        ] {
            let error = watch(given).unwrap_err();
            assert!(error.message.starts_with(name), "{error}");
            assert_eq!(error.parameters, [name]);
        }
    }

    #[test]
    fn a_listing_has_limits() {
        for (max_entries, is_allowed) in [(0, false), (1, true), (MAX_LISTED, true), (MAX_LISTED + 1, false)]
        {
            let listing = Listing { path: workspace(), recursive: false, max_entries };
            assert_eq!(listing.check().is_ok(), is_allowed, "{max_entries}");
        }
    }
}
