//! Work directories: created for one build, removed with it, and recognisable as abandoned if its process was killed.

use std::fs::{self, File, FileType};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::IoError;
use crate::layout::{Layout, PARTIAL_PREFIX};
use crate::lock::{self, Lock};
use crate::process::Tools;
use crate::{fsio, remove};

const LOCK: &str = "lock";
/// Locking a new work directory takes microseconds.
const MAKING_TIME: Duration = Duration::from_secs(2);

/// A live work directory.
#[derive(Debug)]
pub(crate) struct Partial<'a> {
    path: PathBuf,
    lock: Lock,
    tools: &'a Tools,
}

impl<'a> Partial<'a> {
    /// Creates a work directory. The platform's lock keeps other processes from sweeping it before its own lock is held.
    pub(crate) fn create(layout: &Layout, tools: &'a Tools) -> Result<Self, IoError> {
        let parent = layout.platform_dir();
        let _platform = lock::exclusive(&layout.platform_lock())?;
        let path = tempfile::Builder::new()
            .prefix(PARTIAL_PREFIX)
            .rand_bytes(12)
            .tempdir_in(&parent)
            .map_err(IoError::at("create a work directory in", &parent))?
            .keep();
        match lock::exclusive(&path.join(LOCK)) {
            Ok(lock) => Ok(Partial { path, lock, tools }),
            Err(error) => {
                let _ = fs::remove_dir_all(&path);
                Err(error)
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a handle for a child process: while the handle lives, no process considers the directory abandoned.
    pub(crate) fn lease(&self) -> Result<File, IoError> {
        self.lock.handle()
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if let Err(error) = remove::tree(&self.path, self.tools) {
            // The next pull or prune tries again.
            tracing::warn!(path = %self.path.display(), error = %error.source, "cannot remove a work directory");
        }
    }
}

/// Removes the work directories whose builders are gone, and returns them. A failure to remove one does not stop the
/// removal of the others; the second value is the first such error.
pub(crate) fn sweep(layout: &Layout, tools: &Tools) -> Result<(Vec<PathBuf>, Option<IoError>), IoError> {
    let _platform = lock::exclusive(&layout.platform_lock())?;
    let dir = layout.platform_dir();
    let mut removed = Vec::new();
    let mut failed = None;
    for path in directories(&dir)? {
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PARTIAL_PREFIX)) {
            continue;
        }
        match sweep_one(&path, tools) {
            Ok(true) => removed.push(path),
            Ok(false) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    Ok((removed, failed))
}

/// Returns the work directories whose builders are gone. Removes nothing, and needs no lock: one that was made a moment ago
/// may be about to get its own, and is left out.
pub(crate) fn abandoned(layout: &Layout) -> Result<Vec<PathBuf>, IoError> {
    let mut found = directories(&layout.platform_dir())?;
    found.retain(|path| {
        let is_partial =
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PARTIAL_PREFIX));
        is_partial && is_older_than_making(path) && !is_locked(&path.join(LOCK))
    });
    Ok(found)
}

fn is_older_than_making(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    modified.and_then(|time| time.elapsed().ok()).is_some_and(|age| age > MAKING_TIME)
}

fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock))
}

fn sweep_one(path: &Path, tools: &Tools) -> Result<bool, IoError> {
    // The process that owned a directory without a lock was killed between two steps of `create` or during the removal.
    let lock_file = path.join(LOCK);
    let _lock = if lock_file.exists() {
        match lock::try_exclusive(&lock_file)? {
            Some(lock) => Some(lock),
            None => return Ok(false),
        }
    } else {
        None
    };
    remove::tree(path, tools)?;
    Ok(true)
}

/// Returns the directories in `dir`, sorted; symbolic links are not followed. Empty if `dir` does not exist.
pub(crate) fn directories(dir: &Path) -> Result<Vec<PathBuf>, IoError> {
    entries(dir, |kind| kind.is_dir())
}

/// Returns everything else in `dir`, sorted.
pub(crate) fn files(dir: &Path) -> Result<Vec<PathBuf>, IoError> {
    entries(dir, |kind| !kind.is_dir())
}

fn entries(dir: &Path, wanted: impl Fn(FileType) -> bool) -> Result<Vec<PathBuf>, IoError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(IoError::at("list", dir)(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(IoError::at("list", dir))?;
        // If an entry vanishes in the meantime, another process has removed it.
        if entry.file_type().is_ok_and(&wanted) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Creates the subdirectories of a build.
pub(crate) fn populate(work: &Path) -> Result<(), IoError> {
    for dir in ["install", "kernel", "unpacked", "tmp"] {
        fsio::create_private_dir(&work.join(dir))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_work_directory_that_was_made_a_moment_ago_is_not_abandoned() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned());
        let work = layout.platform_dir().join(format!("{PARTIAL_PREFIX}x"));
        fs::create_dir_all(&work).unwrap();
        assert!(abandoned(&layout).unwrap().is_empty(), "its builder may not have locked it yet");
        let long_ago = SystemTime::now() - MAKING_TIME - Duration::from_secs(1);
        File::open(&work).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(abandoned(&layout).unwrap(), [work]);
    }
}
