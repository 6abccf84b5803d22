//! Runs commands on the host, for callers that agreed to it because no VM can run.
//!
//! This is not a sandbox: the command runs as the calling user. It gets its own directory, an environment with only
//! `PATH` and `HOME`, no input, and limits that keep a runaway process from exhausting the host. All its processes end
//! with it, except those that leave its process group.

mod confine;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use pyro_machine::event_fd::EventFd;
use pyro_machine::spawn::Spawn;
use pyro_supervisor::CommandEnd;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Child;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::confine::confine;
use crate::capture::{Captured, OutputSink};
use crate::{Error, ErrorKind, Events, Hint, OutputMode, OutputStream, search_path};

/// How long a command may clean up after it was asked to end.
const GRACE: Duration = Duration::from_secs(1);

/// Size of one read, in bytes.
const CHUNK: usize = 64 * 1024;

/// A command to run on the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostCommand<'a> {
    /// Shell text for `bash -lc`.
    pub(crate) command: &'a str,
    /// Environment variables in addition to `PATH` and `HOME`.
    pub(crate) env: &'a BTreeMap<String, String>,
    /// Time limit.
    pub(crate) timeout: Duration,
    /// Working directory and `HOME`; must exist.
    pub(crate) directory: &'a Path,
    /// `PATH`, which is also where `bash` is searched for.
    pub(crate) search_path: &'a OsStr,
    /// Memory that the VM would have had, in MiB.
    pub(crate) mem_mib: u32,
    /// How to handle the output.
    pub(crate) output: OutputMode,
}

/// Runs `command` and waits for it to end.
///
/// Dropping the future, like `cancel`, kills the command and everything in its process group.
///
/// # Errors
///
/// `NotDelivered` if it could not be started, `Cancelled`.
pub(crate) async fn run(
    command: &HostCommand<'_>,
    events: &Events,
    cancel: &CancellationToken,
) -> Result<Captured, Error> {
    let begin = Instant::now();
    let (mut group, exited) = spawn(command)?;
    let mut stdout = OutputSink::new(OutputStream::Stdout, command.output, events);
    let mut stderr = OutputSink::new(OutputStream::Stderr, command.output, events);
    let (out_pipe, err_pipe) = (group.child.stdout.take(), group.child.stderr.take());

    let shell_gone = CancellationToken::new();
    let oversight = async {
        let ending = oversee(&mut group, &exited, command.timeout).await;
        let duration = begin.elapsed();
        shell_gone.cancel();
        (ending, duration)
    };
    let work = async {
        tokio::join!(
            oversight,
            pump(out_pipe, &mut stdout, &shell_gone),
            pump(err_pipe, &mut stderr, &shell_gone)
        )
    };
    let finished = tokio::select! {
        biased;
        () = cancel.cancelled() => None,
        ((ending, duration), (), ()) = work => Some((ending, duration)),
    };
    let Some((ending, duration)) = finished else {
        group.end().await.map_err(lost)?;
        return Err(Error::cancelled());
    };
    let Ending { status, timed_out } = ending.map_err(lost)?;
    if timed_out {
        stderr.note(&pyro_supervisor::timeout_note(command.timeout)).await;
    }
    let end = CommandEnd {
        status: Some(guest_status(status)),
        timed_out,
        killed: false,
        duration,
        stdout_dropped: 0,
        stderr_dropped: 0,
    };
    Ok(Captured::new(end, stdout, stderr))
}

fn spawn(command: &HostCommand<'_>) -> Result<(Group, EventFd), Error> {
    let not_started = |message: &str| Error::new(ErrorKind::NotDelivered, message);
    let bash = search_path::find("bash", command.search_path)
        .ok_or_else(|| not_started("bash was not found on this host").hint(Hint::InstallBash))?;
    // The kernel ends the shell with the thread that starts it, which in practice lives as long as this process.
    let shell = Spawn::new(bash)
        .args(["-lc", command.command])
        .current_dir(command.directory)
        .clear_env()
        .env("PATH", command.search_path)
        .env("HOME", command.directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .own_process_group()
        .bind_to_parent();
    let shell = command.env.iter().fold(shell, |shell, (name, value)| shell.env(name, value));
    let shell = confine(shell, command.mem_mib, command.timeout + GRACE);

    let failed = |error: io::Error| not_started("bash could not be started on this host").caused_by(error);
    let group = Group::new(shell.start().map_err(failed)?).map_err(failed)?;
    // Until the shell is reaped, the id of its group cannot be reused, so the group can be signalled.
    let exited = pidfd_open(group.leader, PidfdFlags::NONBLOCK).map_err(io::Error::from);
    let exited = exited.and_then(EventFd::new).map_err(failed)?;
    Ok((group, exited))
}

/// The shell and the processes of its group. Dropping the value kills them.
#[derive(Debug)]
struct Group {
    child: Child,
    leader: Pid,
    reaped: bool,
}

impl Group {
    fn new(child: Child) -> io::Result<Self> {
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let leader = id.ok_or_else(|| io::Error::other("the new process has no id"))?;
        Ok(Self { child, leader, reaped: false })
    }

    fn signal(&self, signal: Signal) {
        if !self.reaped {
            // The group may have no members left except the dead shell.
            let _ = kill_process_group(self.leader, signal);
        }
    }

    /// Kills the remaining processes of the group and collects the shell's status.
    async fn end(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        let status = self.child.wait().await?;
        self.reaped = true;
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

struct Ending {
    status: ExitStatus,
    timed_out: bool,
}

/// Waits for the shell to exit and ends it after `limit`.
async fn oversee(group: &mut Group, exited: &EventFd, limit: Duration) -> io::Result<Ending> {
    let timed_out = timeout(limit, exited.happened()).await.is_err();
    if timed_out {
        group.signal(Signal::TERM);
        let _ = timeout(GRACE, exited.happened()).await;
    }
    Ok(Ending { status: group.end().await?, timed_out })
}

/// Moves output into `sink` until end of file. Once the shell is gone, it takes only what the pipe holds at that time,
/// because a process that left the group may keep the pipe open forever.
async fn pump(
    pipe: Option<impl AsyncRead + AsFd + Unpin>,
    sink: &mut OutputSink,
    shell_gone: &CancellationToken,
) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            biased;
            () = shell_gone.cancelled() => break,
            read = pipe.read(&mut buffer) => read,
        };
        match read {
            // A reader cannot do anything about a pipe error.
            Ok(0) | Err(_) => return,
            Ok(count) => sink.accept(&buffer[..count]).await,
        }
    }
    let mut left = rustix::io::ioctl_fionread(&pipe).map_or(0, |left| usize::try_from(left).unwrap_or(0));
    while left > 0 {
        let room = left.min(CHUNK);
        match pipe.read(&mut buffer[..room]).await {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                sink.accept(&buffer[..count]).await;
                left -= count;
            }
        }
    }
}

/// Returns the status as that of a command in a guest.
fn guest_status(status: ExitStatus) -> pyro_supervisor::ExitStatus {
    match (status.code(), status.signal()) {
        (Some(code), _) => pyro_supervisor::ExitStatus::Code(code),
        (None, signal) => pyro_supervisor::ExitStatus::Signal(signal.unwrap_or(0)),
    }
}

fn lost(error: io::Error) -> Error {
    Error::new(ErrorKind::OutcomeUnknown, "the status of a host command was lost")
        .hint(Hint::MayHaveRun)
        .caused_by(error)
}
