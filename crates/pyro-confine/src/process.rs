//! A process that was started, held by a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal, waitpid};

/// A child process. Dropping it kills it, without waiting for its end.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    descriptor: OwnedFd,
    status: Option<ExitStatus>,
}

impl Process {
    pub(crate) fn new(pid: Pid, descriptor: OwnedFd) -> Self {
        Self { pid, descriptor, status: None }
    }

    /// Returns its process ID in this process's namespace.
    pub fn id(&self) -> u32 {
        self.pid.as_raw_pid().cast_unsigned()
    }

    /// Returns its exit status if it has ended. Until then, waiting for [`Process::as_fd`] to become readable is waiting
    /// for its end.
    ///
    /// # Errors
    /// Another part of this process has waited for it.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.wait_with(WaitOptions::NOHANG)
    }

    /// Waits for its end. Blocks.
    ///
    /// # Errors
    /// As [`Process::try_wait`].
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.wait_with(WaitOptions::empty())?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Kills it. One that has ended already is not an error.
    pub fn kill(&self) {
        if self.status.is_none() {
            let _ = pidfd_send_signal(&self.descriptor, Signal::KILL);
        }
    }

    fn wait_with(&mut self, options: WaitOptions) -> io::Result<Option<ExitStatus>> {
        while self.status.is_none() {
            match waitpid(Some(self.pid), options) {
                Ok(Some((_, status))) => self.status = Some(ExitStatus::from_raw(status.as_raw())),
                Ok(None) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(self.status)
    }
}

/// Readable once the process has ended.
impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.try_wait(), Ok(None)) {
            self.kill();
            // A process that was killed is gone within milliseconds. Its parent must collect it, which must not block
            // the thread that drops the handle.
            let pid = self.pid;
            let _ = std::thread::Builder::new().name("reaper".to_owned()).spawn(move || {
                while matches!(waitpid(Some(pid), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
            });
        }
    }
}

impl std::os::fd::AsRawFd for Process {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.descriptor.as_raw_fd()
    }
}
