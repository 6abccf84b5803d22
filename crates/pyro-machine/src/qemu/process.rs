//! The process of QEMU, with its end as an event.

use std::io;
use std::process::ExitStatus;

use pyro_confine::Process;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe::Receiver;

/// A process of QEMU. Dropping it kills it, without waiting for its end.
#[derive(Debug)]
pub(crate) struct VmmProcess {
    process: AsyncFd<Process>,
    /// What it prints, until someone reads it.
    pub(crate) output: Vec<Receiver>,
}

impl VmmProcess {
    /// Takes over a process that was started, with the pipes that it prints to.
    pub(crate) fn new(
        process: Process,
        output: impl IntoIterator<Item = io::PipeReader>,
    ) -> io::Result<Self> {
        let output =
            output.into_iter().map(|pipe| Receiver::from_owned_fd(pipe.into())).collect::<Result<_, _>>()?;
        #[expect(unsafe_code, reason = "tokio cannot check that a descriptor stays open")]
        // SAFETY: the process keeps its descriptor open as long as it lives, and never replaces it.
        let process = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE)? };
        Ok(Self { process, output })
    }

    /// Returns its process ID.
    pub(crate) fn id(&self) -> u32 {
        self.process.get_ref().id()
    }

    /// Waits for its end. Dropping the future loses nothing, and later calls return the same.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.process.get_mut().try_wait()? {
                return Ok(status);
            }
            // Cleared before the next look, so that no end is missed.
            self.process.readable().await?.clear_ready();
        }
    }

    /// Kills it, and waits until it is gone.
    pub(crate) async fn kill(&mut self) -> io::Result<()> {
        self.process.get_ref().kill();
        self.wait().await.map(drop)
    }
}
