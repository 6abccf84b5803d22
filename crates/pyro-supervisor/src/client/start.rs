//! Starts a supervisor and follows its reports.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_machine::spawn::Spawn;
use pyro_wire::{Frame, FrameCodec};
use rustix::process::Signal;
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::codec::Framed;

use super::process::Process;
use super::{EXIT_LIMIT, ask, greet};
use crate::protocol::{
    CLAIM_LIMIT, ClientStream, Event, GENERATION, Greeting, Launch, LifelineClient, Reply, Request,
};
use crate::spec::{LaunchSpec, Purpose};
use crate::{BootFailure, BootInfo, BootStage, EndReason, OwnerLock, dir as vm_dir, files, handover};

/// Time limit for a spare to grant a claim or to confirm its end. It waits for nothing else, so it answers at once.
pub(crate) const SPARE_LIMIT: Duration = Duration::from_secs(1);
/// Time limit for a supervisor to report how a boot or a claim went, beyond the limit of the boot or the claim itself. It
/// records the start before it reports it, or cleans up.
const REPORT_LIMIT: Duration = Duration::from_secs(30);
/// Time limit for a supervisor that has reported a step of a start to report anything more. It reports the step every few
/// seconds; it mounts directories and records the start without reporting anything.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

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
    /// It did not report in time. It has ended the VM, or was killed.
    #[error("timed out waiting for the supervisor to start the VM")]
    Unresponsive,
}

/// The connection to a supervisor that this process started. A VM that is bound to its caller ends when this is
/// dropped.
#[derive(Debug)]
pub struct Lifeline {
    /// Absent for a claimed spare, which another process started.
    supervisor: Option<Child>,
    stream: LifelineClient,
}

/// Starts `program` with `args` as the supervisor of the VM and waits until the guest takes commands. `on_stage` gets the
/// step that the start is at: when another one begins, and every few seconds.
///
/// Dropping the future ends the VM.
///
/// # Errors
/// [`StartError`]. After any of them except [`StartError::Lost`], [`StartError::Unresponsive`] and
/// [`StartError::Spawn`], the supervisor has cleaned up.
pub async fn start(
    program: &Path,
    args: &[&OsStr],
    spec: LaunchSpec,
    lock: &OwnerLock,
    on_stage: impl AsyncFnMut(BootStage),
) -> Result<(Lifeline, BootInfo), StartError> {
    let spec = LaunchSpec { reports_stages: true, ..spec };
    let limit = boot_limit(&spec);
    spawn(program, args, spec, lock).await?.booted(limit, on_stage).await
}

/// Returns how long a supervisor that reports nothing else can take to report how a boot went.
fn boot_limit(spec: &LaunchSpec) -> Duration {
    Duration::from_secs(spec.boot_limit_seconds).saturating_add(REPORT_LIMIT)
}

/// Starts `program` with `args` to make the template for VMs like that of `spec`, unless it exists. `on_stage` gets the
/// step that this is at, as with [`start`].
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
    on_stage: impl AsyncFnMut(BootStage),
) -> Result<(), StartError> {
    let spec = LaunchSpec { purpose: Purpose::Template, reports_stages: true, ..spec };
    let limit = boot_limit(&spec);
    let mut lifeline = spawn(program, args, spec, lock).await?;
    match lifeline.ready(limit, on_stage).await {
        Ok(made) => {
            made?;
            match timeout(EXIT_LIMIT, lifeline.reap()).await {
                Ok(()) => Ok(()),
                Err(_) => Err(lifeline.abandon().await),
            }
        }
        Err(_) => Err(lifeline.abandon().await),
    }
}

/// Starts the supervisor and sends it what to do.
pub(crate) async fn spawn<A: AsRef<OsStr>>(
    program: &Path,
    args: &[A],
    mut spec: LaunchSpec,
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
        .clear_env()
        .envs(&spec.variables)
        .stdin(theirs)
        .stdout(lock.share().map_err(StartError::Spawn)?)
        .stderr(log)
        .outlive_handle();
    let spawn = handover::pass_artifacts(spawn, &mut spec).map_err(StartError::Spawn)?;
    let spawn = spec.mount_sockets.pass(spawn).map_err(StartError::Spawn)?;
    let supervisor = spawn.start().map_err(StartError::Spawn)?;
    let mut lifeline =
        Lifeline { supervisor: Some(supervisor), stream: Framed::new(ours, FrameCodec::default()) };
    let hello = Launch::Hello(Greeting::own());
    for message in [hello, Launch::Start(Box::new(spec))] {
        lifeline.stream.send(Frame::Control(message)).await.map_err(|_| StartError::Lost)?;
    }
    Ok(lifeline)
}

/// Makes the spare in `dir` the VM that `spec` describes. `None`: another process has claimed it, it is gone, or it did
/// not answer and was killed, so that no other start waits for it.
///
/// # Errors
/// As [`start`], except [`StartError::Spawn`].
pub(crate) async fn claim(
    dir: &Path,
    spec: LaunchSpec,
    lock: &OwnerLock,
) -> Option<Result<(Lifeline, BootInfo), StartError>> {
    let sockets = spec.mount_sockets.clone();
    let limit = spec.pace.allow(CLAIM_LIMIT) + REPORT_LIMIT;
    let Ok(granted) = timeout(SPARE_LIMIT, request_claim(dir, spec)).await else {
        kill_silent_spare(dir).await;
        return None;
    };
    // The spare sends nothing more before it has the lock, so nothing is lost with the buffer.
    let stream = granted?.into_inner();
    handover::send(&stream, lock).await.ok()?;
    for socket in sockets.iter() {
        handover::send(&stream, socket).await.ok()?;
    }
    drop(sockets);
    let lifeline = Lifeline { supervisor: None, stream: Framed::new(stream, FrameCodec::default()) };
    Some(lifeline.booted(limit, async |_| {}).await)
}

/// Returns the connection on which the spare has granted the claim. A spare that closes it without an answer has been
/// claimed, and lives on as that VM, so its end is not awaited.
async fn request_claim(dir: &Path, spec: LaunchSpec) -> Option<ClientStream> {
    let (greeting, mut stream) = greet(vm_dir::connect(dir).await.ok()?).await.ok()?;
    if greeting.generation != GENERATION {
        return None;
    }
    ask(&mut stream, Request::Claim(Box::new(spec))).await.ok()?;
    match stream.next().await {
        Some(Ok(Frame::Control(Reply::Done))) => Some(stream),
        _ => None,
    }
}

/// Kills the supervisor of the spare in `dir`, which has not answered, and returns whether it is gone. One that is booting
/// or being claimed is left alone: it has no socket yet, or has closed it. A spare holds nothing of a user's.
pub(crate) async fn kill_silent_spare(dir: &Path) -> bool {
    let Some(process) = Process::holding(dir) else { return false };
    if vm_dir::connect(dir).await.is_err() {
        return false;
    }
    tracing::warn!(dir = %dir.display(), "a spare does not respond and is killed");
    process.signal(Signal::KILL);
    timeout(EXIT_LIMIT, process.ended()).await.is_ok()
}

impl Lifeline {
    /// Waits until the guest takes commands. `limit` is that for a supervisor that does not report the steps of the start.
    async fn booted(
        mut self,
        limit: Duration,
        on_stage: impl AsyncFnMut(BootStage),
    ) -> Result<(Self, BootInfo), StartError> {
        match self.ready(limit, on_stage).await {
            Ok(Ok(Some(info))) => Ok((self, info)),
            Ok(Ok(None)) => Err(StartError::Lost),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(self.abandon().await),
        }
    }

    /// Ends a supervisor that has not reported in time, and waits until it is gone. It ends by itself when its lifeline
    /// closes, unless it is frozen.
    async fn abandon(self) -> StartError {
        let Self { supervisor, stream } = self;
        // Not the process that holds the VM's lock: a spare that froze before it took over the lock holds nothing yet, and
        // would take over the VM, even from another supervisor, when it goes on.
        let claimed = match &supervisor {
            None => Process::supervisor_behind(stream.get_ref()),
            Some(_) => None,
        };
        drop(stream);
        if let Some(mut supervisor) = supervisor
            && timeout(EXIT_LIMIT, supervisor.wait()).await.is_err()
        {
            let _ = supervisor.start_kill();
            let _ = timeout(EXIT_LIMIT, supervisor.wait()).await;
        }
        if let Some(claimed) = claimed
            && timeout(EXIT_LIMIT, claimed.ended()).await.is_err()
        {
            claimed.signal(Signal::KILL);
            let _ = timeout(EXIT_LIMIT, claimed.ended()).await;
        }
        StartError::Unresponsive
    }

    /// Waits until the VM or template is ready; for a VM, returns its description.
    ///
    /// # Errors
    /// It was silent for too long.
    async fn ready(
        &mut self,
        limit: Duration,
        mut on_stage: impl AsyncFnMut(BootStage),
    ) -> Result<Result<Option<BootInfo>, StartError>, Elapsed> {
        let mut deadline = Instant::now() + limit;
        let error = loop {
            break match timeout_at(deadline, self.next_event()).await? {
                Some(Event::Stage(stage)) => {
                    // The supervisor is not responsible for the time that this takes.
                    on_stage(stage).await;
                    deadline = Instant::now() + SILENCE_LIMIT;
                    continue;
                }
                Some(Event::Booted(info)) => return Ok(Ok(Some(info))),
                Some(Event::TemplateReady) => return Ok(Ok(None)),
                Some(Event::Failed(failure)) => StartError::Boot(failure),
                Some(Event::Ended(reason)) => StartError::Ended(reason),
                Some(Event::Hello(Greeting { version, .. })) => StartError::OtherVersion { version },
                None => StartError::Lost,
            };
        };
        timeout(EXIT_LIMIT, self.reap()).await?;
        Ok(Err(error))
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

#[cfg(test)]
mod tests;
