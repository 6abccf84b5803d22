//! Starting a supervisor and hearing from it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;

use futures::{SinkExt, StreamExt};
use pyro_wire::{Frame, FrameCodec};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio_util::codec::Framed;

use super::{BootFailure, BootInfo, EndReason, Event, OwnerLock, files};
use crate::spec::LaunchSpec;

/// Why a VM did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The supervisor process could not be started.
    #[error("cannot start the supervisor")]
    Spawn(#[source] io::Error),
    /// It reported a failed boot.
    #[error("the VM did not come up: {} failed: {}", .0.stage, .0.cause)]
    Boot(BootFailure),
    /// It was told to end the VM before it was up.
    #[error("the VM was ended while it was starting")]
    Ended(EndReason),
    /// It died without a word.
    #[error("the supervisor was lost while the VM was starting")]
    Lost,
}

/// The connection to a supervisor that this process started. A VM that is bound to its caller ends when this
/// is dropped.
#[derive(Debug)]
pub struct Lifeline {
    supervisor: Child,
    stream: Framed<UnixStream, FrameCodec<Event, LaunchSpec>>,
}

/// Starts `program` with `args` as the supervisor of the VM and waits until the guest takes commands.
///
/// Dropping the future ends the VM.
///
/// # Errors
/// [`StartError`]. After any of them but [`StartError::Lost`] and [`StartError::Spawn`] the supervisor has
/// cleaned up by itself.
pub async fn start(
    program: &Path,
    args: &[&std::ffi::OsStr],
    spec: LaunchSpec,
    lock: &OwnerLock,
) -> Result<(Lifeline, BootInfo), StartError> {
    let (ours, theirs) = UnixStream::pair().map_err(StartError::Spawn)?;
    let theirs = OwnedFd::from(theirs.into_std().map_err(StartError::Spawn)?);
    let log = File::create(spec.dir.join(files::SUPERVISOR_LOG)).map_err(StartError::Spawn)?;
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(lock.share().map_err(StartError::Spawn)?)
        .stderr(log);
    let supervisor = command.spawn().map_err(StartError::Spawn)?;
    // The command holds this process's copies of the descriptors.
    drop(command);
    let mut lifeline = Lifeline { supervisor, stream: Framed::new(ours, FrameCodec::default()) };
    lifeline.stream.send(Frame::Control(spec)).await.map_err(|_| StartError::Lost)?;
    match lifeline.next_event().await {
        Some(Event::Booted(info)) => Ok((lifeline, info)),
        Some(Event::Failed(failure)) => {
            lifeline.reap().await;
            Err(StartError::Boot(failure))
        }
        Some(Event::Ended(reason)) => {
            lifeline.reap().await;
            Err(StartError::Ended(reason))
        }
        None => {
            lifeline.reap().await;
            Err(StartError::Lost)
        }
    }
}

impl Lifeline {
    /// Waits for the end of the VM and of its supervisor. `None`: the supervisor died without a word, and
    /// whoever holds the lock now must clean up.
    pub async fn ended(mut self) -> Option<EndReason> {
        let event = self.next_event().await;
        self.reap().await;
        match event {
            Some(Event::Ended(reason)) => Some(reason),
            _ => None,
        }
    }

    async fn next_event(&mut self) -> Option<Event> {
        match self.stream.next().await {
            Some(Ok(Frame::Control(event))) => Some(event),
            _ => None,
        }
    }

    async fn reap(&mut self) {
        // Fails only if it has been reaped already.
        let _ = self.supervisor.wait().await;
    }
}
