//! Work directories: made for one build, removed with it, and recognisably dead if its process was killed.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::IoError;
use crate::layout::{Layout, PARTIAL_PREFIX};
use crate::lock::{self, Lock};
use crate::process::Tools;
use crate::{fsio, remove};

const LOCK: &str = "lock";

/// A live work directory.
#[derive(Debug)]
pub(crate) struct Partial<'a> {
    path: PathBuf,
    lock: Lock,
    tools: &'a Tools,
}

impl<'a> Partial<'a> {
    /// Makes one. The platform's lock keeps others from judging it before its own lock is held.
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

    /// A handle for a child process: as long as it lives, nobody takes the directory for abandoned.
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

/// Removes the work directories whose builders are gone, and returns them. One that cannot be removed does
/// not keep the others; the first such error comes second.
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

fn sweep_one(path: &Path, tools: &Tools) -> Result<bool, IoError> {
    // A directory without a lock was killed between two steps of `create` or half removed.
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

/// The directories in `dir`, sorted; symbolic links are not followed. None if `dir` is missing.
pub(crate) fn directories(dir: &Path) -> Result<Vec<PathBuf>, IoError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(IoError::at("list", dir)(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(IoError::at("list", dir))?;
        // An entry that vanishes meanwhile was somebody else's to remove.
        if entry.file_type().is_ok_and(|file_type| file_type.is_dir()) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Makes the subdirectories of a build.
pub(crate) fn populate(work: &Path) -> Result<(), IoError> {
    for dir in ["install", "kernel", "unpacked", "tmp"] {
        fsio::create_private_dir(&work.join(dir))?;
    }
    Ok(())
}
