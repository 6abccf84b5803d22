//! Advisory locks on files that are stored next to the install directories, never inside one.
//!
//! The kernel releases a lock with its last holder, so a killed process leaves nothing to repair.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use rustix::fs::OFlags;

use crate::cancel::CancelFlag;
use crate::error::IoError;

/// A held lock. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

#[derive(Clone, Copy)]
enum Mode {
    Shared,
    Exclusive,
}

/// Takes a shared lock, waiting for exclusive holders, which are quick by convention.
pub(crate) fn shared(path: &Path) -> Result<Lock, IoError> {
    acquire(path, Mode::Shared)
}

/// Takes an exclusive lock, waiting for other holders, which are quick by convention.
pub(crate) fn exclusive(path: &Path) -> Result<Lock, IoError> {
    acquire(path, Mode::Exclusive)
}

/// Takes an exclusive lock if the file is not locked.
pub(crate) fn try_exclusive(path: &Path) -> Result<Option<Lock>, IoError> {
    loop {
        let file = open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(IoError::at("lock", path)(error)),
        }
        if let Some(lock) = still_named(file, path)? {
            return Ok(Some(lock));
        }
    }
}

/// Takes an exclusive lock, however long other processes hold it; returns `None` if cancelled while waiting.
///
/// A blocked `flock` cannot be cancelled, so a separate thread waits for it. If the caller leaves first, the thread
/// eventually gets the lock, finds no receiver for it, and drops it.
pub(crate) fn exclusive_unless_cancelled(path: &Path, cancel: &CancelFlag) -> Result<Option<Lock>, IoError> {
    let (sender, receiver) = mpsc::channel();
    let on_cancel = sender.clone();
    let _subscription = cancel.subscribe(move || {
        let _ = on_cancel.send(None);
    });
    loop {
        let file = open(path)?;
        let sender = sender.clone();
        thread::spawn(move || {
            let locked = file.lock().map(|()| file);
            let _ = sender.send(Some(locked));
        });
        let Ok(Some(locked)) = receiver.recv() else { return Ok(None) };
        if let Some(lock) = still_named(locked.map_err(IoError::at("lock", path))?, path)? {
            return Ok(Some(lock));
        }
    }
}

impl Lock {
    /// Returns the path of the locked file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns another handle on the same lock, which is released when all of its handles are closed.
    pub(crate) fn handle(&self) -> Result<File, IoError> {
        self.file.try_clone().map_err(IoError::at("duplicate the lock on", &self.path))
    }

    /// Removes the lock file. Only for an exclusive holder: waiters notice and start over.
    pub(crate) fn remove_file(self) -> Result<(), IoError> {
        std::fs::remove_file(&self.path).map_err(IoError::at("remove", &self.path))
    }
}

fn acquire(path: &Path, mode: Mode) -> Result<Lock, IoError> {
    loop {
        let file = open(path)?;
        let locked = match mode {
            Mode::Shared => file.lock_shared(),
            Mode::Exclusive => file.lock(),
        };
        locked.map_err(IoError::at("lock", path))?;
        if let Some(lock) = still_named(file, path)? {
            return Ok(lock);
        }
    }
}

/// Opens the file without write access if it exists: a process that only runs an environment needs no write permission.
fn open(path: &Path) -> Result<File, IoError> {
    // Opening a FIFO in the place of a lock must not block.
    let not_blocking = OFlags::NONBLOCK.bits().cast_signed();
    match OpenOptions::new().read(true).custom_flags(not_blocking).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(IoError::at("create", path)),
        opened => opened.map_err(IoError::at("open", path)),
    }
}

/// Discards a lock on a file that was removed during the wait: such a lock protects nothing.
fn still_named(file: File, path: &Path) -> Result<Option<Lock>, IoError> {
    let held = file.metadata().map_err(IoError::at("inspect", path))?;
    match std::fs::metadata(path) {
        Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => {
            Ok(Some(Lock { file, path: path.to_owned() }))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(IoError::at("inspect", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_holders_keep_an_exclusive_one_out() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("l");
        let first = shared(&path).expect("shared");
        let second = shared(&path).expect("shared twice");
        assert!(try_exclusive(&path).expect("works").is_none());
        drop((first, second));
        assert!(try_exclusive(&path).expect("works").is_some());
    }

    #[test]
    fn a_duplicated_handle_keeps_the_lock() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("l");
        let lock = exclusive(&path).expect("free");
        let handle = lock.handle().expect("duplicate");
        drop(lock);
        assert!(try_exclusive(&path).expect("works").is_none());
        drop(handle);
        assert!(try_exclusive(&path).expect("works").is_some());
    }

    #[test]
    fn a_waiter_survives_the_removal_of_the_file() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("l");
        let lock = exclusive(&path).expect("free");
        let waiter = thread::spawn({
            let path = path.clone();
            move || exclusive(&path).expect("lock after removal")
        });
        lock.remove_file().expect("removable");
        let got = waiter.join().expect("no panic");
        assert!(path.exists());
        assert!(try_exclusive(&path).expect("works").is_none());
        drop(got);
    }

    #[test]
    fn waiting_can_be_cancelled() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("l");
        let _lock = exclusive(&path).expect("free");
        let cancel = CancelFlag::new();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| exclusive_unless_cancelled(&path, &cancel));
            cancel.cancel();
            assert!(waiter.join().expect("no panic").expect("no error").is_none());
        });
    }
}
