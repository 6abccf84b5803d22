//! A started process, until it has ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use pyro_wire::Status;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process, kill_process_group, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

use super::spawn::Spawned;
use crate::watched::watch;

/// A process of the agent. If it is dropped before its end, it is killed.
pub(super) struct Child {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    status: Option<Status>,
}

impl Child {
    /// Has the runtime watch a process. If it cannot, the process is killed.
    pub(super) fn new(Spawned { pid, pidfd }: Spawned) -> io::Result<Self> {
        match watch(pidfd, Interest::READABLE) {
            Ok(pidfd) => Ok(Self { pid, pidfd, status: None }),
            Err(error) => {
                // It was not waited for, so the number is still its own.
                kill_process(pid, Signal::KILL)?;
                waitid(WaitId::Pid(pid), WaitIdOptions::EXITED)?;
                Err(error)
            }
        }
    }

    /// Its process ID, which is also that of the process group that it leads.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for its end. Can be called again. Its process ID remains its own until this is dropped.
    pub(super) async fn wait(&mut self) -> io::Result<Status> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        loop {
            let mut ready = self.pidfd.readable().await?;
            let id = WaitId::PidFd(self.pidfd.as_fd());
            match waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT)? {
                Some(ended) => {
                    let status = status_of(&ended);
                    self.status = Some(status);
                    return Ok(status);
                }
                None => ready.clear_ready(),
            }
        }
    }
}

impl Child {
    /// Kills its process group. A process that waits for a file system may take its time to end.
    fn kill_and_reap(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
        let _ = kill_process(self.pid, Signal::KILL);
        let (Ok(pidfd), Ok(runtime)) = (self.pidfd.get_ref().try_clone(), Handle::try_current()) else {
            return;
        };
        runtime.spawn_blocking(move || waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED));
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.status.is_none() {
            return self.kill_and_reap();
        }
        let id = WaitId::PidFd(self.pidfd.as_fd());
        // Fails only if it was waited for.
        let _ = waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

fn status_of(ended: &WaitIdStatus) -> Status {
    match ended.terminating_signal() {
        Some(signal) => Status::Signal(signal),
        // A process that has ended and was not killed has a code.
        None => Status::Code(ended.exit_status().unwrap_or_default()),
    }
}
