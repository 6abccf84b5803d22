//! Starts a supervisor and follows its reports.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use futures::{SinkExt, StreamExt};
use pyro_machine::spawn::Spawn;
use pyro_wire::{Frame, FrameCodec};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::time::timeout;
use tokio_util::codec::Framed;

use super::{ANSWER_LIMIT, Client, ask};
use crate::handover;
use crate::protocol::{Event, GENERATION, Greeting, Launch, LifelineClient, Reply, Request};
use crate::spec::{LaunchSpec, Purpose};
use crate::{BootFailure, BootInfo, EndReason, OwnerLock, files};

/// Why a VM did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The supervisor process could not be started.
    #[error("cannot start the supervisor")]
    Spawn(#[source] io::Error),
    /// It reported a failed boot.
    #[error("the VM did not come up: {} failed: {}", .0.stage, .0.cause)]
    Boot(BootFailure),
    /// It was asked to end the VM before it was up.
    #[error("the VM was ended while it was starting")]
    Ended(EndReason),
    /// The supervising program is of another version than this one, because it was replaced in the meantime.
    #[error("the program was replaced by version {version} while this one runs")]
    OtherVersion {
        /// The version of the new program.
        version: String,
    },
    /// It died without reporting why.
    #[error("the supervisor was lost while the VM was starting")]
    Lost,
}

/// The connection to a supervisor that this process started. A VM that is bound to its caller ends when this is
/// dropped.
#[derive(Debug)]
pub struct Lifeline {
    /// Absent for a claimed spare, which another process started.
    supervisor: Option<Child>,
    stream: LifelineClient,
}

/// Starts `program` with `args` as the supervisor of the VM and waits until the guest takes commands.
///
/// Dropping the future ends the VM.
///
/// # Errors
/// [`StartError`]. After any of them except [`StartError::Lost`] and [`StartError::Spawn`], the supervisor has cleaned
/// up.
pub async fn start(
    program: &Path,
    args: &[&OsStr],
    spec: LaunchSpec,
    lock: &OwnerLock,
) -> Result<(Lifeline, BootInfo), StartError> {
    spawn(program, args, spec, lock).await?.booted().await
}

/// Starts `program` with `args` to make the template for VMs like that of `spec`, unless it exists.
///
/// Dropping the future cancels that.
///
/// # Errors
/// As [`start`].
pub async fn make_template(
    program: &Path,
    args: &[&OsStr],
    spec: LaunchSpec,
    lock: &OwnerLock,
) -> Result<(), StartError> {
    let spec = LaunchSpec { purpose: Purpose::Template, ..spec };
    let mut lifeline = spawn(program, args, spec, lock).await?;
    match lifeline.ready().await {
        Ok(_) => {
            lifeline.reap().await;
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Starts the supervisor and sends it what to do.
pub(crate) async fn spawn<A: AsRef<OsStr>>(
    program: &Path,
    args: &[A],
    spec: LaunchSpec,
    lock: &OwnerLock,
) -> Result<Lifeline, StartError> {
    let (ours, theirs) = UnixStream::pair().map_err(StartError::Spawn)?;
    let theirs = OwnedFd::from(theirs.into_std().map_err(StartError::Spawn)?);
    // For appending: the supervisor truncates it when it has grown too large.
    let path = spec.dir.join(files::SUPERVISOR_LOG);
    File::create(&path).map_err(StartError::Spawn)?;
    let log = OpenOptions::new().append(true).open(&path).map_err(StartError::Spawn)?;
    let spawn = Spawn::new(program)
        .args(args)
        .current_dir(Path::new("/"))
        .stdin(theirs)
        .stdout(lock.share().map_err(StartError::Spawn)?)
        .stderr(log)
        .outlive_handle();
    let supervisor = spawn.start().map_err(StartError::Spawn)?;
    let mut lifeline =
        Lifeline { supervisor: Some(supervisor), stream: Framed::new(ours, FrameCodec::default()) };
    let hello = Launch::Hello(Greeting::own());
    for message in [hello, Launch::Start(Box::new(spec))] {
        lifeline.stream.send(Frame::Control(message)).await.map_err(|_| StartError::Lost)?;
    }
    Ok(lifeline)
}

/// Makes the spare in `dir` the VM that `spec` describes. `None`: another process has claimed it, or it is gone.
///
/// # Errors
/// As [`start`], except [`StartError::Spawn`].
pub(crate) async fn claim(
    dir: &Path,
    spec: LaunchSpec,
    lock: &OwnerLock,
) -> Option<Result<(Lifeline, BootInfo), StartError>> {
    let mut stream = Client::new(dir).connect().await.ok()?.stream;
    ask(&mut stream, Request::Claim(Box::new(spec))).await.ok()?;
    let Ok(Some(Ok(Frame::Control(Reply::Done)))) = timeout(ANSWER_LIMIT, stream.next()).await else {
        return None;
    };
    // The spare sends nothing more before it has the lock, so nothing is lost with the buffer.
    let stream = stream.into_inner();
    handover::send(&stream, lock).await.ok()?;
    let lifeline = Lifeline { supervisor: None, stream: Framed::new(stream, FrameCodec::default()) };
    Some(lifeline.booted().await)
}

impl Lifeline {
    /// Waits until the guest takes commands.
    async fn booted(mut self) -> Result<(Self, BootInfo), StartError> {
        match self.ready().await? {
            Some(info) => Ok((self, info)),
            None => Err(StartError::Lost),
        }
    }

    /// Waits until the VM or template is ready; for a VM, returns its description.
    async fn ready(&mut self) -> Result<Option<BootInfo>, StartError> {
        let error = match self.next_event().await {
            Some(Event::Booted(info)) => return Ok(Some(info)),
            Some(Event::TemplateReady) => return Ok(None),
            Some(Event::Failed(failure)) => StartError::Boot(failure),
            Some(Event::Ended(reason)) => StartError::Ended(reason),
            Some(Event::Hello(Greeting { version, .. })) => StartError::OtherVersion { version },
            None => StartError::Lost,
        };
        self.reap().await;
        Err(error)
    }

    /// Waits for the end of the VM and of its supervisor. `None`: the supervisor died without reporting the end, and
    /// the next holder of the lock must clean up.
    pub async fn ended(mut self) -> Option<EndReason> {
        let event = self.next_event().await;
        self.reap().await;
        match event {
            Some(Event::Ended(reason)) => Some(reason),
            _ => None,
        }
    }

    async fn next_event(&mut self) -> Option<Event> {
        loop {
            match self.stream.next().await? {
                Ok(Frame::Control(Event::Hello(Greeting { generation: GENERATION, .. }))) => {}
                Ok(Frame::Control(event)) => return Some(event),
                _ => return None,
            }
        }
    }

    async fn reap(&mut self) {
        if let Some(supervisor) = &mut self.supervisor {
            // Fails only if it has been reaped already.
            let _ = supervisor.wait().await;
        }
    }
}
