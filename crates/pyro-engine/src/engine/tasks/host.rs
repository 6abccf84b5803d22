//! Commands of a task whose caller agreed to the host. There is no supervisor: the caller's own process runs and
//! records each command, and holds a lock that shows other processes that the command is running.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pyro_machine::file_lock::unlocked;
use pyro_supervisor::{CommandEnd, CommandLog, CommandOutcome, OutputChunk, WORKSPACE, files, room};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::commands::Ran;
use crate::capture::{Captured, OutputSink};
use crate::engine::exec::refuse_cwd;
use crate::engine::{Engine, now, state_unusable};
use crate::limits::CheckedCommand;
use crate::registry::{CommandRecord, NewCommand, VmRecord};
use crate::{Error, ErrorKind, Event, Events, ExecutionMode, Hint, OutputMode, OutputStream, VmId, convert};

/// Locked while a command gets its sequence and its lock.
const BEGINNING: &str = "beginning.lock";
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
    ) -> Result<Ran, Error> {
        refuse_cwd(command)?;
        let id = record.vm_id.clone();
        let dir = self.vm_dir(&id).join(files::COMMANDS);
        fs::create_dir_all(&dir).map_err(|error| state_unusable("make", &dir, error))?;
        let new = NewCommand {
            command: command.command.clone(),
            cwd: WORKSPACE.to_owned(),
            execution_mode: ExecutionMode::HostCompat,
            accepted_at: now(),
        };
        let (task, commands) = (id.clone(), dir.clone());
        let begun = self.blocking(move |shared| {
            // No process may look at the command between its sequence and its lock.
            let _beginning = lock_file(&commands, BEGINNING)?;
            let sequence = shared.registry.accept_command(&task, &new)?;
            match hold(&commands, sequence) {
                Ok(lock) => Ok((sequence, lock)),
                Err(error) => {
                    shared.registry.end_command(&task, sequence, now(), &not_run(&error))?;
                    Err(error)
                }
            }
        });
        let (sequence, lock) = begun.await?;

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
        let recorded = recorded.await;
        drop(lock);
        let end = ran?.end;
        // The command has run, whatever is recorded of it. An error would make the caller run it again.
        if let Err(error) = recorded {
            tracing::error!(task_id = %id, sequence, %error, "the end of a command cannot be recorded");
            let text = format!("the end of command {sequence} of task {id} is not recorded: {error}");
            events.send(Event::Warning(text)).await;
        }
        Ok(Ran { sequence, captured: Captured::new(end, stdout, stderr) })
    }

    /// Fails while a command of the task runs on the host: only the process that runs the command can end it.
    pub(super) async fn refuse_while_busy(&self, id: &VmId) -> Result<(), Error> {
        let dir = self.vm_dir(id).join(files::COMMANDS);
        if !dir.exists() {
            return Ok(());
        }
        let id = id.clone();
        self.blocking(move |shared| {
            let commands = shared.registry.commands(&id)?;
            let is_busy = |record: &CommandRecord| {
                record.outcome.is_none()
                    && record.execution_mode == ExecutionMode::HostCompat
                    && is_running(&dir, record.sequence)
            };
            match commands.iter().find(|record| is_busy(record)) {
                Some(record) => {
                    let message = format!("task {id} runs command {} on the host", record.sequence);
                    Err(Error::new(ErrorKind::WrongState, message).hint(Hint::WaitOrStopProcess))
                }
                None => Ok(()),
            }
        })
        .await
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

/// Returns whether the process that runs the command still exists.
pub(super) fn is_running(dir: &Path, sequence: u64) -> bool {
    if let Ok(beginning) = File::open(dir.join(BEGINNING)) {
        let _ = beginning.lock_shared();
    }
    let Ok(file) = File::open(dir.join(lock_name(sequence))) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Shows that the command runs for as long as the returned value lives. Dropping it removes the lock file too.
fn hold(dir: &Path, sequence: u64) -> Result<Held, Error> {
    let locked = lock_file(dir, &lock_name(sequence))?;
    Ok(Held { path: dir.join(lock_name(sequence)), _locked: locked })
}

fn lock_file(dir: &Path, name: &str) -> Result<File, Error> {
    let path = dir.join(name);
    let failed = |error| state_unusable("lock", &path, error);
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
    file.lock().map_err(failed)?;
    Ok(file)
}

struct Held {
    path: PathBuf,
    _locked: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn lock_name(sequence: u64) -> String {
    format!("{sequence:06}.lock")
}
