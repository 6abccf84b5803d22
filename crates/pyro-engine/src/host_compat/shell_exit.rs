//! Detects a process's exit without reaping it.

#![expect(unsafe_code, reason = "tokio asks its caller to vouch for the descriptor it watches")]

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;

/// Signals when a process has exited.
///
/// Until the process is reaped, its process group ID cannot be reused, so the group can be signalled without hitting an
/// unrelated process.
#[derive(Debug)]
pub(super) struct ShellExit(AsyncFd<OwnedFd>);

impl ShellExit {
    /// Watches `process`, which must be an unreaped child of this process.
    pub(super) fn watch(process: Pid) -> io::Result<Self> {
        let descriptor = pidfd_open(process, PidfdFlags::NONBLOCK)?;
        // SAFETY: an `OwnedFd` refers to the same open descriptor for as long as it lives, and `AsyncFd` owns it and
        // deregisters it before closing it.
        let watched = unsafe { AsyncFd::register(descriptor) };
        Ok(Self(watched.map_err(io::Error::from)?))
    }

    /// Waits for the exit. May be called again.
    pub(super) async fn wait(&self) -> io::Result<()> {
        self.0.readable().await.map(|_| ())
    }
}
