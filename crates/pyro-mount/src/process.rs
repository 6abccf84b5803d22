//! What the process that serves a directory inherits from the one that starts it.
#![expect(unsafe_code, reason = "descriptors that the parent process opened")]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use crate::confine::{ConfineError, confine, raise_descriptor_limit};
use crate::directory::{Directory, Export};
use crate::server::{ServeError, serve};

/// Descriptor of the socket to the guest.
pub const SOCKET_FD: RawFd = 3;
/// Descriptor of the directory.
pub const DIRECTORY_FD: RawFd = 4;
/// Descriptor to which the process writes what confines it, as JSON, before it reads a byte of the guest.
pub const REPORT_FD: RawFd = 5;

/// Number of descriptors that the process needs besides those of the guest's files.
const RESERVED_DESCRIPTORS: u64 = 64;

/// Why the process ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The descriptors were not passed.
    #[error("the descriptors were not passed")]
    Descriptors(#[source] io::Error),
    /// The directory cannot be used.
    #[error("cannot use the directory")]
    Directory(#[source] io::Error),
    /// The process could not be confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// What confines the process could not be reported.
    #[error("cannot report the confinement")]
    Report(#[source] io::Error),
    /// Serving failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Serves the directory that the parent process has passed, until its other end of the socket closes. Call it once, as the only
/// work of a process.
///
/// # Errors
/// [`RunError`].
pub fn run_from_parent(writable: bool, owner: u32) -> Result<(), RunError> {
    let [socket, directory, report] = [SOCKET_FD, DIRECTORY_FD, REPORT_FD].map(|number| {
        // SAFETY: fcntl on a number that is not open fails, and then nothing is made of it.
        let is_open = unsafe { rustix::fd::BorrowedFd::borrow_raw(number) };
        rustix::io::fcntl_getfd(is_open).map_err(|errno| RunError::Descriptors(errno.into()))?;
        // SAFETY: the descriptor is open, and the parent has passed it for this use alone.
        Ok::<OwnedFd, RunError>(unsafe { OwnedFd::from_raw_fd(number) })
    });
    let (socket, directory, report) = (socket?, directory?, report?);
    // The guest has applied its own.
    rustix::process::umask(rustix::fs::Mode::empty());
    let max_open = raise_descriptor_limit().saturating_sub(RESERVED_DESCRIPTORS) / 2;
    let kept = directory.try_clone().map_err(RunError::Directory)?;
    let max_open = usize::try_from(max_open).unwrap_or(usize::MAX);
    let export = Export { directory, writable, owner, max_open };
    let served = Directory::new(export).map_err(RunError::Directory)?;
    let confinement = confine(kept.as_fd(), writable)?;
    drop(kept);
    let text = serde_json::to_vec(&confinement).map_err(|error| RunError::Report(error.into()))?;
    File::from(report).write_all(&text).map_err(RunError::Report)?;
    Ok(serve(served, socket)?)
}
