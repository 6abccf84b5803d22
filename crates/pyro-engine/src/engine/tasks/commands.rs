//! Commands of a task. In a guest, the task's supervisor runs and records them; this module is its client.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use pyro_supervisor::{
    CommandEnd, CommandInput, CommandOutcome, ConnectError, OutputChunk, OutputStream, Run, RunError,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{outlast, supervisor_lost, unanswered};
use crate::Kind;
use crate::capture::{Captured, OutputSink};
use crate::engine::exec::{
    command_input, exec_request, guest_cwd, not_asked, not_delivered, shell_of, with_not_started_hint,
};
use crate::engine::{Engine, now};
use crate::exit_code::{duration_ms, exit_code, status};
use crate::limits::{CheckedCommand, CheckedInput};
use crate::operations::{DetachTask, ExecTask};
use crate::registry::VmRecord;
use crate::state::VmEvent;
use crate::{
    CallContext, Error, ErrorKind, Event, Events, ExecutionMode, Hint, Lasting, Outcome, OutputMode,
    TaskDetached, TaskExec, TaskLogEntry, TtlFrom, VmId, convert, limits,
};

/// Maximum output per stream of a command that no client reads: the journal's limit.
const DETACHED_OUTPUT: OutputMode = OutputMode::Capture;

/// A finished command.
pub(super) struct FinishedCommand {
    pub(super) sequence: u64,
    pub(super) captured: Captured,
}

impl Engine {
    /// Runs one command in a task and waits for it to end; its entry is then in the journal. The task stays.
    ///
    /// `cancel` ends the command. Losing the caller does not: in a guest, the command runs to its end or its time
    /// limit.
    ///
    /// # Errors
    /// `InvalidInput`, `NotFound`, `Expired`, `WrongState`, `NotDelivered`, `OutcomeUnknown`, `Cancelled`.
    pub async fn exec_task(&self, request: ExecTask, call: &CallContext) -> Result<TaskExec, Error> {
        let ExecTask { task, command, lasting, output } = request;
        let wanted = command.timeout_seconds;
        let command = limits::check_command(command, output.output)?;
        let began = now();
        let id = self.task_id(&task.task_id).await?;
        let record = self.record_for_command(&id, &command, wanted, lasting).await?;
        let FinishedCommand { sequence, captured: Captured { end, stdout, stderr } } =
            match record.execution_mode {
                ExecutionMode::HostCompat => {
                    self.run_on_host(&record, &command, &call.events, &call.cancel).await?
                }
                ExecutionMode::GuestVsock | ExecutionMode::Pending => {
                    self.run_in_guest(&record, &command, call).await?
                }
            };
        self.renew_used(&id, None).await;
        let network_denials = self.denials_of_command(&record, began).await;
        Ok(TaskExec {
            task_id: id,
            shell: shell_of(&command, &record.environment, record.execution_mode),
            environment: record.environment,
            environment_version: record.environment_version,
            stdout: stdout.into(),
            stderr: stderr.into(),
            exit_code: exit_code(&end),
            duration_ms: duration_ms(&end),
            execution_mode: record.execution_mode,
            sequence,
            cwd: guest_cwd(&command),
            outcome: if end.killed { Outcome::Killed } else { Outcome::Exited },
            stdout_truncated: end.stdout_dropped,
            stderr_truncated: end.stderr_dropped,
            timed_out: end.timed_out,
            network_denials,
            command: command.text,
        })
    }

    /// Starts one command in a task and returns as soon as it has its sequence. The command runs to its end or its time
    /// limit.
    ///
    /// # Errors
    /// As [`Engine::exec_task`]; `InvalidInput` also if the task's commands run on the host.
    pub async fn detach_task(&self, request: DetachTask) -> Result<TaskDetached, Error> {
        let DetachTask { task, command, lasting } = request;
        let wanted = command.timeout_seconds;
        let command = limits::check_command(command, DETACHED_OUTPUT)?;
        let id = self.task_id(&task.task_id).await?;
        let record = self.record_for_command(&id, &command, wanted, lasting).await?;
        refuse_on_host(&record, "detached")?;
        if matches!(command.input, CheckedInput::Text(_)) {
            let message = "stdin cannot be given to a command without waiting for it";
            return Err(Error::new(ErrorKind::InvalidInput, message).hint(Hint::AttachInput));
        }
        let begun = self.client(&id).detach(exec_request(&command, &record.environment)).await;
        let sequence = match begun {
            Ok(sequence) => sequence,
            // The caller does not wait for the command, so it has nothing to cancel.
            Err(error) => return Err(self.run_error(&id, error, &CancellationToken::new()).await),
        };
        let cwd = guest_cwd(&command);
        Ok(TaskDetached { task_id: id, sequence, command: command.text, cwd, outcome: Outcome::Running })
    }

    /// Returns the record of a running task for a command in it.
    ///
    /// # Errors
    /// `InvalidInput` if the lifetime of the task ends before the time limit that the caller `wanted`. The default time limit is
    /// not held against the lifetime: a caller that asked for none is not told a number.
    async fn record_for_command(
        &self,
        id: &VmId,
        command: &CheckedCommand,
        wanted: Option<i64>,
        lasting: Lasting,
    ) -> Result<VmRecord, Error> {
        let record = self.record_for(Kind::Task, id, VmEvent::Exec).await?;
        if let Some(wanted) = wanted.filter(|_| !lasting.extends_lifetime) {
            outlast(&record, wanted, self.shared.config.max_raised_ttl_seconds)?;
        }
        self.renewed(&record, command.timeout).await;
        Ok(record)
    }

    async fn run_in_guest(
        &self,
        record: &VmRecord,
        command: &CheckedCommand,
        call: &CallContext,
    ) -> Result<FinishedCommand, Error> {
        let CallContext { events, cancel, .. } = call;
        let mut stdout = OutputSink::new(convert::stream(OutputStream::Stdout), command.output, events);
        let mut stderr = OutputSink::new(convert::stream(OutputStream::Stderr), command.output, events);
        let run = Run { exec: exec_request(command, &record.environment), journal: true };
        let take = async |chunk: OutputChunk| match chunk.stream {
            OutputStream::Stdout => stdout.accept(&chunk.bytes).await,
            OutputStream::Stderr => stderr.accept(&chunk.bytes).await,
        };
        let typed = Arc::new(Notify::new());
        let input = command_input(command, call).map(|input| {
            let typed = Arc::clone(&typed);
            let note = move |event: &CommandInput| {
                if matches!(event, CommandInput::Data(_)) {
                    typed.notify_one();
                }
            };
            input.inspect(note).boxed()
        });
        let client = self.client(&record.vm_id);
        let ran = tokio::select! {
            biased;
            ran = client.run_with_input(run, input, cancel, take) => ran,
            never = self.renew_at(&typed, &record.vm_id), if record.ttl_from == TtlFrom::Use => match never {},
        };
        let (sequence, end) = match ran {
            Ok(ran) => (ran.sequence.unwrap_or_default(), ran.outcome),
            // The supervisor may have dropped only this client, because it did not read for too long.
            Err(RunError::Lost { sequence: Some(sequence) }) => {
                return self.recover(&record.vm_id, sequence, command.output, cancel).await;
            }
            Err(error) => return Err(self.run_error(&record.vm_id, error, cancel).await),
        };
        match end {
            CommandOutcome::Ended(end) => {
                Ok(FinishedCommand { sequence, captured: Captured::new(end, stdout, stderr) })
            }
            CommandOutcome::NotRun { cause, kind } => {
                let error = Error::new(ErrorKind::NotDelivered, cause).hint(Hint::RecordedAsNotRun);
                Err(with_not_started_hint(error, kind))
            }
            CommandOutcome::Unknown { cause } => Err(self.lost(&record.vm_id, cause, cancel).await),
        }
    }

    /// Waits for the end of a command whose client was lost, and returns what the journal says. `cancel` ends the command.
    async fn recover(
        &self,
        id: &VmId,
        sequence: u64,
        output: OutputMode,
        cancel: &CancellationToken,
    ) -> Result<FinishedCommand, Error> {
        let client = self.client(id);
        let is_cancelled = tokio::select! {
            biased;
            () = cancel.cancelled() => true,
            _ = client.watch(sequence, false, async |_| {}) => false,
        };
        if is_cancelled {
            // The journal records how it ends.
            let _ = client.kill(sequence).await;
            return Err(Error::cancelled());
        }
        let entry = self.entry(id, sequence).await?;
        let (Some(exit_code), Some(duration_ms)) = (entry.exit_code, entry.duration_ms) else {
            return Err(self.lost(id, None, cancel).await);
        };
        let end = CommandEnd {
            status: status(exit_code),
            timed_out: entry.timed_out,
            killed: entry.outcome == Outcome::Killed,
            duration: Duration::from_millis(duration_ms),
            stdout_dropped: entry.stdout_truncated,
            stderr_dropped: entry.stderr_truncated,
        };
        let (stdout, stderr) = match output {
            OutputMode::Capture | OutputMode::CaptureAndStream => {
                (entry.stdout.into_bytes(), entry.stderr.into_bytes())
            }
            OutputMode::Stream => (Vec::new(), Vec::new()),
        };
        Ok(FinishedCommand { sequence, captured: Captured { end, stdout, stderr } })
    }

    /// Waits until a command has ended and returns its entry.
    ///
    /// # Errors
    /// `NotFound`, `StateUnusable`, `Cancelled`; `NotDelivered` if the task's supervisor does not respond or is of
    /// another version.
    pub async fn wait_task(
        &self,
        task_id: &str,
        sequence: u64,
        cancel: &CancellationToken,
    ) -> Result<TaskLogEntry, Error> {
        self.follow(task_id, sequence, None, cancel).await
    }

    /// Sends the output of a command from its beginning as [`Event::Output`], waits until the command has ended, and
    /// returns its entry without the output. Output that the journal does not keep is not sent.
    ///
    /// # Errors
    /// As [`Engine::wait_task`].
    pub async fn follow_task(
        &self,
        task_id: &str,
        sequence: u64,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Result<TaskLogEntry, Error> {
        self.follow(task_id, sequence, Some(events), cancel).await
    }

    async fn follow(
        &self,
        task_id: &str,
        sequence: u64,
        events: Option<&Events>,
        cancel: &CancellationToken,
    ) -> Result<TaskLogEntry, Error> {
        let id = self.task_id(task_id).await?;
        self.get(Kind::Task, &id).await?;
        let entry = self.entry(&id, sequence).await?;
        let mut sent = [0, 0];
        let watched = async {
            match (entry.outcome, entry.execution_mode) {
                (Outcome::Running, ExecutionMode::HostCompat) => self.await_on_host(&id, sequence).await,
                (Outcome::Running, _) => {
                    let on_output = async |chunk: OutputChunk| {
                        sent[index(chunk.stream)] += chunk.bytes.len();
                        send(events, chunk.stream, chunk.bytes).await;
                    };
                    let client = self.client(&id);
                    match client.watch(sequence, events.is_some(), on_output).await {
                        Ok(_) => Ok(()),
                        Err(error) => self.await_record(&id, error).await,
                    }
                }
                _ => Ok(()),
            }
        };
        crate::engine::unless_cancelled(cancel, watched).await?;
        let mut entry = self.entry(&id, sequence).await?;
        if events.is_some() {
            let kept = [
                (OutputStream::Stdout, std::mem::take(&mut entry.stdout)),
                (OutputStream::Stderr, std::mem::take(&mut entry.stderr)),
            ];
            for (stream, kept) in kept {
                let rest = kept.as_bytes().get(sent[index(stream)]..).unwrap_or_default().to_vec();
                send(events, stream, rest).await;
            }
        }
        Ok(entry)
    }

    /// Ends a command, with a polite signal first, waits until it has ended, and returns its entry. A command that has
    /// already ended is not an error.
    ///
    /// # Errors
    /// `NotFound`, `StateUnusable`; `InvalidInput` if the task's commands run on the host; `NotDelivered` if the task's
    /// supervisor does not respond or is of another version; `OutcomeUnknown` if it did not confirm the end.
    pub async fn kill_task(&self, task_id: &str, sequence: u64) -> Result<TaskLogEntry, Error> {
        let id = self.task_id(task_id).await?;
        let record = self.get(Kind::Task, &id).await?;
        let entry = self.entry(&id, sequence).await?;
        if entry.outcome != Outcome::Running {
            return Ok(entry);
        }
        refuse_on_host(&record, "ended from elsewhere")?;
        if let Err(error) = self.client(&id).kill(sequence).await {
            self.await_record(&id, error).await?;
        }
        match self.entry(&id, sequence).await? {
            entry if entry.outcome == Outcome::Running => Err(supervisor_lost(&id)),
            entry => Ok(entry),
        }
    }

    /// Waits until the supervisor that could not be asked for a command's end is gone: it is exiting, and what it failed
    /// to record is known then. Any other supervisor goes on, so it is not awaited.
    async fn await_record(&self, id: &VmId, error: RunError) -> Result<(), Error> {
        match error {
            RunError::NotDelivered(
                error @ (ConnectError::OtherVersion { .. } | ConnectError::Unresponsive),
            ) => Err(not_asked(error)),
            RunError::Unanswered => Err(unanswered(id)),
            RunError::NotDelivered(ConnectError::Unreachable(_))
            | RunError::Refused { .. }
            | RunError::Cancelled
            | RunError::InputFailed { .. }
            | RunError::Lost { .. } => self.await_release(id).await.map(drop),
        }
    }

    pub(super) async fn run_error(&self, id: &VmId, error: RunError, cancel: &CancellationToken) -> Error {
        match error {
            RunError::Lost { .. } => self.lost(id, None, cancel).await,
            RunError::Unanswered => Error::outcome_unknown(Kind::Task, id.as_str()).caused_by(error),
            error => not_delivered(error),
        }
    }

    /// Returns the error for a command whose outcome is unknown, with what is known of the loss.
    async fn lost(&self, id: &VmId, cause: Option<String>, cancel: &CancellationToken) -> Error {
        let error = Error::outcome_unknown(Kind::Task, id.as_str());
        let error = match cause {
            Some(cause) => error.caused_by(cause),
            None => error,
        };
        self.explain_loss(Kind::Task, id, error, cancel).await
    }
}

async fn send(events: Option<&Events>, stream: OutputStream, bytes: impl Into<bytes::Bytes>) {
    let bytes = bytes.into();
    if let Some(events) = events
        && !bytes.is_empty()
    {
        events.send(Event::Output { stream: convert::stream(stream), bytes }).await;
    }
}

/// Returns the index of a stream's counter.
fn index(stream: OutputStream) -> usize {
    match stream {
        OutputStream::Stdout => 0,
        OutputStream::Stderr => 1,
    }
}

pub(super) fn refuse_on_host(record: &VmRecord, what: &str) -> Result<(), Error> {
    if record.execution_mode != ExecutionMode::HostCompat {
        return Ok(());
    }
    let message = format!("commands of task {} run on the host and cannot be {what}", record.vm_id);
    Err(Error::new(ErrorKind::InvalidInput, message).hint(Hint::RunAndWait))
}
