//! Whether a VMM still has a disk open. It is killed with its supervisor, whose own lock is free before the kernel has closed the
//! files of the VMM; until then, another VMM that is started with the disk fails.
#![expect(unsafe_code, reason = "rustix does not take the answer about a lock that belongs to no process")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use tokio::time::Instant;

use crate::file_lock::Retry;

/// Waits until no VMM has the disk at `path` open, at most until `deadline`. Returns whether that is so; it is of a disk that does not
/// exist.
///
/// # Errors
/// The file cannot be opened, or its locks cannot be read.
pub async fn released(path: &Path, deadline: Instant) -> io::Result<bool> {
    // The directory reports that a file which was open for writing is closed.
    let mut retry = Retry::in_dir(path.parent().unwrap_or(path));
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        file => file?,
    };
    while is_locked(&file)? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        retry.wait(deadline).await;
    }
    Ok(true)
}

/// Returns whether a VMM has locked any part of the file, as QEMU locks its disks.
fn is_locked(file: &File) -> io::Result<bool> {
    // From the beginning to the end, however long the file is.
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the kernel reads and writes no more than the structure.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } {
        0 => Ok(lock.l_type != libc::F_UNLCK as libc::c_short),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::time::Duration;

    use super::*;

    /// Locks a byte as QEMU does: shared, of the open file and not of the process.
    fn open_as_vmm(path: &Path) -> File {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let lock = libc::flock {
            l_type: libc::F_RDLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 201,
            l_len: 1,
            l_pid: 0,
        };
        // SAFETY: the descriptor is open, and the kernel reads no more than the structure.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        file
    }

    fn in_an_hour() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    #[tokio::test]
    async fn a_disk_is_awaited_until_the_last_vmm_closes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer.img");
        assert!(released(&path, in_an_hour()).await.unwrap(), "it does not exist");
        std::fs::write(&path, "").unwrap();
        assert!(released(&path, in_an_hour()).await.unwrap(), "no VMM has it open");
        let vmm = open_as_vmm(&path);
        assert!(is_locked(&File::open(&path).unwrap()).unwrap());
        let (is_released, ()) = tokio::join!(released(&path, in_an_hour()), async {
            tokio::task::yield_now().await;
            drop(vmm);
        });
        assert!(is_released.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_vmm_that_does_not_end_is_not_awaited_forever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer.img");
        std::fs::write(&path, "").unwrap();
        let _vmm = open_as_vmm(&path);
        let deadline = Instant::now() + Duration::from_secs(10);
        assert!(!released(&path, deadline).await.unwrap());
        assert!(Instant::now() >= deadline);
    }
}
