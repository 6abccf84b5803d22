//! Commands of a task whose caller agreed to the host. There is no supervisor: the caller's own process runs and
//! records each command, and holds a lock that shows other processes that the command is running.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pyro_machine::file_lock::{Locked, locked, unlocked};
use pyro_supervisor::{CommandEnd, CommandLog, CommandOutcome, OutputChunk, WORKSPACE, files, room};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::commands::FinishedCommand;
use crate::capture::{Captured, OutputSink};
use crate::engine::exec::refuse_guest_only;
use crate::engine::{Engine, now, state_unusable, unless_cancelled};
use crate::limits::CheckedCommand;
use crate::registry::{CommandRecord, NewCommand, VmRecord};
use crate::{Error, ErrorKind, Event, Events, ExecutionMode, Hint, OutputMode, OutputStream, VmId, convert};

/// Locked while a command gets its sequence and its lock.
const BEGINNING: &str = "beginning.lock";
/// Time limit for commands that begin. Each takes as long as one write to the registry.
const BEGINNING_LIMIT: Duration = Duration::from_secs(5);
/// Number of output events that may be queued before the command has to wait.
const EVENTS_AHEAD: usize = 4;
/// The end of a command that was killed because its caller cancelled it.
const CANCELLED: CommandEnd = CommandEnd {
    status: None,
    timed_out: false,
    killed: true,
    duration: Duration::ZERO,
    stdout_dropped: 0,
    stderr_dropped: 0,
};

impl Engine {
    /// Runs one command on the host and records it in the journal.
    pub(super) async fn run_on_host(
        &self,
        record: &VmRecord,
        command: &CheckedCommand,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<FinishedCommand, Error> {
        refuse_guest_only(command)?;
        let id = record.vm_id.clone();
        let dir = self.vm_dir(&id).join(files::COMMANDS);
        fs::create_dir_all(&dir).map_err(|error| state_unusable("make", &dir, error))?;
        let new = NewCommand {
            command: command.text.clone(),
            cwd: WORKSPACE.to_owned(),
            execution_mode: ExecutionMode::HostCompat,
            accepted_at: now(),
        };
        // No process may look at the command between its sequence and its lock.
        let path = dir.join(BEGINNING);
        let beginning = unless_cancelled(cancel, self.beginning(&id, &path, locked(&path))).await?;
        let (sequence, lock) = self.begin_on_host(&id, &dir, new, beginning).await?;

        let mut room = room(&dir);
        let mut log = CommandLog::new(dir, sequence);
        let mut stdout = OutputSink::new(OutputStream::Stdout, command.output, events);
        let mut stderr = OutputSink::new(OutputStream::Stderr, command.output, events);
        let streamed = CheckedCommand { output: OutputMode::Stream, ..command.clone() };
        let (sender, mut receiver) = mpsc::channel(EVENTS_AHEAD);
        let keep = async {
            while let Some(event) = receiver.recv().await {
                let Event::Output { stream, bytes } = event else { continue };
                room -= log.append(
                    &OutputChunk { stream: convert::guest_stream(stream), bytes: bytes.clone() },
                    room,
                );
                match stream {
                    OutputStream::Stdout => stdout.accept(&bytes).await,
                    OutputStream::Stderr => stderr.accept(&bytes).await,
                }
            }
        };
        let run = async {
            let events = Events::to(sender);
            self.execute_on_host(record, &streamed, &events, cancel).await
        };
        let (ran, ()) = tokio::join!(run, keep);
        let (stdout_dropped, stderr_dropped) = log.dropped();
        let outcome = match &ran {
            Ok(captured) => {
                CommandOutcome::Ended(CommandEnd { stdout_dropped, stderr_dropped, ..captured.end.clone() })
            }
            Err(error) if error.kind == ErrorKind::OutcomeUnknown => CommandOutcome::Unknown { cause: None },
            Err(error) if error.kind == ErrorKind::Cancelled => CommandOutcome::Ended(CANCELLED),
            Err(error) => not_run(error),
        };
        let task = id.clone();
        let recorded = self.blocking(move |shared| {
            log.sync();
            shared.registry.end_command(&task, sequence, now(), &outcome)
        });
        let recorded = recorded.await.inspect_err(|error| {
            tracing::error!(task_id = %id, sequence, %error, "the end of a command cannot be recorded");
        });
        drop(lock);
        let end = ran?.end;
        // The command has run, whatever is recorded of it. An error would make the caller run it again.
        if let Err(error) = recorded {
            let text = format!("the end of command {sequence} of task {id} is not recorded: {error}");
            events.send(Event::Warning(text)).await;
        }
        Ok(FinishedCommand { sequence, captured: Captured::new(end, stdout, stderr) })
    }

    /// Gives a command its sequence and its lock.
    async fn begin_on_host(
        &self,
        id: &VmId,
        dir: &Path,
        new: NewCommand,
        beginning: Locked,
    ) -> Result<(u64, Held), Error> {
        let (task, commands) = (id.clone(), dir.to_owned());
        self.blocking(move |shared| {
            let _beginning = beginning;
            let sequence = shared.registry.accept_command(&task, &new)?;
            match Held::try_new(commands.join(lock_name(sequence))) {
                Ok(lock) => Ok((sequence, lock)),
                Err(error) => {
                    shared.registry.end_command(&task, sequence, now(), &not_run(&error))?;
                    Err(error)
                }
            }
        })
        .await
    }

    /// Waits until no command of the task is between its sequence and its lock. One that is looks as if the process that
    /// runs it was gone.
    pub(super) async fn await_beginning(&self, id: &VmId) -> Result<(), Error> {
        let path = self.vm_dir(id).join(files::COMMANDS).join(BEGINNING);
        self.beginning(id, &path, unlocked(&path)).await
    }

    /// Waits for the lock of commands that begin, but not for a process that was stopped while it held it.
    async fn beginning<T>(
        &self,
        id: &VmId,
        path: &Path,
        lock: impl Future<Output = io::Result<T>>,
    ) -> Result<T, Error> {
        match timeout(BEGINNING_LIMIT, lock).await {
            Ok(lock) => lock.map_err(|error| state_unusable("lock", path, error)),
            Err(_) => {
                let message = format!("task {id} is held by a process that does not react");
                let file = path.display().to_string();
                Err(Error::new(ErrorKind::WrongState, message).hint(Hint::FindHolder { file }))
            }
        }
    }

    /// Fails while a command of the task runs on the host: only the process that runs the command can end it.
    pub(super) async fn refuse_while_busy(&self, id: &VmId) -> Result<(), Error> {
        let dir = self.vm_dir(id).join(files::COMMANDS);
        if !dir.exists() {
            return Ok(());
        }
        let task = id.clone();
        let commands = self.registry(move |registry| registry.commands(&task)).await?;
        let mut open = commands.iter().filter(|record| is_open_on_host(record)).peekable();
        if open.peek().is_none() {
            return Ok(());
        }
        self.await_beginning(id).await?;
        match open.find(|record| is_running(&dir, record.sequence)) {
            Some(record) => {
                let message = format!("task {id} runs command {} on the host", record.sequence);
                Err(Error::new(ErrorKind::WrongState, message).hint(Hint::WaitOrStopProcess))
            }
            None => Ok(()),
        }
    }

    /// Waits until the process that runs the command has recorded its end, or is gone.
    pub(super) async fn await_on_host(&self, id: &VmId, sequence: u64) -> Result<(), Error> {
        let path = self.vm_dir(id).join(files::COMMANDS).join(lock_name(sequence));
        unlocked(&path).await.map_err(|error| state_unusable("lock", &path, error))
    }
}

fn not_run(error: &Error) -> CommandOutcome {
    CommandOutcome::NotRun { cause: error.to_string(), kind: None }
}

/// Returns whether a command on the host has no end on record.
pub(super) fn is_open_on_host(record: &CommandRecord) -> bool {
    record.outcome.is_none() && record.execution_mode == ExecutionMode::HostCompat
}

/// Returns whether the process that runs the command still exists. After its record was read, the caller has waited with
/// [`Engine::await_beginning`].
pub(super) fn is_running(dir: &Path, sequence: u64) -> bool {
    let Ok(file) = File::open(dir.join(lock_name(sequence))) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Shows that a command runs for as long as this lives. Dropping it removes the lock file too.
struct Held {
    path: PathBuf,
    _locked: File,
}

impl Held {
    fn try_new(path: PathBuf) -> Result<Self, Error> {
        let lock = || {
            let mut options = OpenOptions::new();
            let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path)?;
            // The command is new, so no other process knows of the file.
            file.try_lock()?;
            Ok(file)
        };
        match lock() {
            Ok(file) => Ok(Self { path, _locked: file }),
            Err(error) => Err(state_unusable("lock", &path, error)),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn lock_name(sequence: u64) -> String {
    format!("{sequence:06}.lock")
}
