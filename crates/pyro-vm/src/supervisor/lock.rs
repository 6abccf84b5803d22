//! How everyone knows whether a VM has a living owner: a lock, which the kernel releases with its last
//! holder, instead of a process id, which may have been given to another process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;

use super::files;

/// The held lock of one VM. Passed on to the supervisor, so that there is no moment without an owner.
#[derive(Debug)]
pub struct OwnerLock(File);

impl OwnerLock {
    /// Takes the lock in a VM's directory; `None` if someone has it, that is if the VM has an owner.
    ///
    /// # Errors
    /// The lock file cannot be opened, for instance because the directory is gone.
    pub fn try_acquire(dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join(files::OWNER_LOCK);
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Takes the lock as soon as the VM has no owner; `None` if the directory is gone. Blocks.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn acquire(dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join(files::OWNER_LOCK);
        let file = match OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        file.lock()?;
        Ok(Some(Self(file)))
    }

    /// Whether the VM has an owner. Changes nothing.
    pub fn is_held(dir: &Path) -> bool {
        let Ok(file) = File::open(dir.join(files::OWNER_LOCK)) else { return false };
        // A shared lock that is given back at once; two who look at the same time do not see each other.
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// Takes over a lock that another process has passed on.
    pub(super) fn received(descriptor: OwnedFd) -> Self {
        Self(File::from(descriptor))
    }

    /// Shares the lock with a child process, as one of its standard streams.
    pub(super) fn share(&self) -> io::Result<Stdio> {
        Ok(self.0.try_clone()?.into())
    }
}

impl AsFd for OwnerLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_seen_by_others_and_lives_on_in_a_child() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!OwnerLock::is_held(dir.path()), "no file, no owner");
        let lock = OwnerLock::try_acquire(dir.path()).unwrap().unwrap();
        assert!(OwnerLock::is_held(dir.path()));
        assert!(OwnerLock::try_acquire(dir.path()).unwrap().is_none());

        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut child = std::process::Command::new("/bin/cat")
            .stdin(reader.try_clone().unwrap())
            .stdout(lock.share().unwrap())
            .spawn()
            .unwrap();
        drop(lock);
        assert!(OwnerLock::is_held(dir.path()), "the child still has it");
        drop(writer);
        child.wait().unwrap();
        assert!(!OwnerLock::is_held(dir.path()));
        assert_eq!(std::io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
    }
}
