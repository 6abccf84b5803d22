//! Shells of a task, which its supervisor runs.

use std::time::Duration;

use bytes::Bytes;
use pyro_supervisor::{
    Client, CommandKey, CommandOutcome, InputOutcome, ReadReason, ReadShell, RunError, SCROLLBACK_BYTES,
    ShellPart, ShellState,
};
use tokio_util::sync::CancellationToken;

use super::commands::refuse_on_host;
use super::{supervisor_lost, unanswered};
use crate::engine::exec::{caller_input, exec_request, not_delivered};
use crate::engine::{Engine, unless_cancelled};
use crate::exit_code::exit_code;
use crate::operations::{
    AttachTaskShell, CloseTaskShell, OpenTaskShell, ReadTaskShell, ResizeTaskShell, SignalTaskShell,
    WriteTaskShell,
};
use crate::{
    CallContext, CheckedRead, Error, ErrorKind, Event, Hint, Kind, Outcome, OutputMode, OutputStream,
    ShellFormat, ShellReadReason, TaskShell, TaskShellOutput, TaskShells, VmId, VmState, convert, limits,
    terminal,
};

/// Time limit for a shell to take what is typed. One that reads nothing takes about half a mebibyte in advance.
const TYPE_LIMIT: Duration = Duration::from_secs(10);

/// One shell and the client of its supervisor.
struct Found {
    id: VmId,
    shell_id: u64,
    client: Client,
}

impl Engine {
    /// Opens a shell, which goes on without its caller.
    ///
    /// # Errors
    /// `InvalidInput`, also if the task's commands run on the host; `NotFound`, `Expired`, `WrongState`, `NotDelivered`,
    /// `OutcomeUnknown`.
    pub async fn open_task_shell(&self, request: OpenTaskShell) -> Result<TaskShell, Error> {
        let command = limits::check_command(request.shell.into(), OutputMode::Stream)?;
        let id = self.task_id(&request.task.task_id).await?;
        let record = self.record_for_use(&id, None).await?;
        refuse_on_host(&record, "shells")?;
        let opened = self.client(&id).open_shell(exec_request(&command, &record.environment)).await;
        let shell_id = match opened {
            Ok(shell_id) => shell_id,
            Err(error) => return Err(self.run_error(&id, error, &CancellationToken::new()).await),
        };
        let found = Found { client: self.client(&id), id, shell_id };
        self.described(&found).await
    }

    /// Lists the shells of a task; none if it is stopped.
    ///
    /// # Errors
    /// `NotFound`, `StateUnusable`, `NotDelivered`.
    pub async fn list_task_shells(&self, task_id: &str) -> Result<TaskShells, Error> {
        let id = self.task_id(task_id).await?;
        let record = self.get(Kind::Task, &id).await?;
        let states = match record.state {
            VmState::Started => self.client(&id).list_shells().await.map_err(|error| refused(&id, error))?,
            _ => Vec::new(),
        };
        let mut shells = Vec::new();
        for state in states {
            shells.push(self.shell(&id, state).await?);
        }
        Ok(TaskShells { task_id: id, count: shells.len() as u64, shells })
    }

    /// Returns output of a shell.
    ///
    /// # Errors
    /// `InvalidInput`, `NotFound`, `Expired`, `WrongState`, `NotDelivered`, `Cancelled`.
    pub async fn read_task_shell(
        &self,
        request: ReadTaskShell,
        cancel: &CancellationToken,
    ) -> Result<TaskShellOutput, Error> {
        let read = request.read.check()?;
        let found = self.find_shell(&request.task.task_id, request.shell.shell_id).await?;
        let reading = async {
            let (bytes, part) = found.read(request_of(&found, read)).await?;
            found.output(read, bytes, part).await
        };
        unless_cancelled(cancel, reading).await
    }

    /// Types into a shell and returns the output that follows.
    ///
    /// # Errors
    /// As [`Engine::read_task_shell`]; `WrongState` also if the shell has ended, `OutcomeUnknown` if it did not take all of it.
    pub async fn write_task_shell(
        &self,
        request: WriteTaskShell,
        cancel: &CancellationToken,
    ) -> Result<TaskShellOutput, Error> {
        let (typed, read) = (request.typed.bytes()?, request.read.check()?);
        let found = self.find_shell(&request.task.task_id, request.shell.shell_id).await?;
        let writing = async {
            let before = found.state().await?;
            found.type_keys(typed.into(), &before).await?;
            // What was written earlier must not count as output that follows.
            let waiting = CheckedRead { cursor: Some(before.written), ..read };
            let (bytes, part) = found.read(request_of(&found, waiting)).await?;
            match read.cursor {
                Some(cursor) if cursor != before.written => {
                    let at_once = CheckedRead { wait_ms: 0, idle_ms: 0, ..read };
                    let (bytes, all) = found.read(request_of(&found, at_once)).await?;
                    let reason = if all.reason == ReadReason::Full { all.reason } else { part.reason };
                    found.output(read, bytes, ShellPart { reason, ..all }).await
                }
                _ => found.output(read, bytes, part).await,
            }
        };
        unless_cancelled(cancel, writing).await
    }

    /// Sends a signal to what runs in the foreground of a shell.
    ///
    /// # Errors
    /// `InvalidInput`, `NotFound`, `Expired`, `WrongState`, `NotDelivered`.
    pub async fn signal_task_shell(&self, request: SignalTaskShell) -> Result<TaskShell, Error> {
        let signal = request.signal.number()?;
        let found = self.find_shell(&request.task.task_id, request.shell.shell_id).await?;
        let before = found.state().await?;
        let sent = found.client.signal(CommandKey::Sequence(found.shell_id), signal).await;
        match sent.map_err(|error| refused(&found.id, error))? {
            true => self.described(&found).await,
            false => Err(found.ended(&before)),
        }
    }

    /// Changes the size of a shell's terminal.
    ///
    /// # Errors
    /// `InvalidInput`, `NotFound`, `Expired`, `WrongState`, `NotDelivered`.
    pub async fn resize_task_shell(&self, request: ResizeTaskShell) -> Result<TaskShell, Error> {
        limits::check_terminal(request.size)?;
        let found = self.find_shell(&request.task.task_id, request.shell.shell_id).await?;
        let before = found.state().await?;
        let size = convert::terminal_size(request.size);
        let resized = found.client.resize(CommandKey::Sequence(found.shell_id), size).await;
        match resized.map_err(|error| refused(&found.id, error))? {
            true => self.described(&found).await,
            false => Err(found.ended(&before)),
        }
    }

    /// Ends a shell and everything that it started. One that has ended is not an error.
    ///
    /// # Errors
    /// `NotFound`, `Expired`, `WrongState`, `NotDelivered`, `OutcomeUnknown`.
    pub async fn close_task_shell(&self, request: CloseTaskShell) -> Result<TaskShell, Error> {
        let found = self.find_shell(&request.task.task_id, request.shell.shell_id).await?;
        found.state().await?;
        match found.client.kill(found.shell_id).await {
            Ok(_) => self.described(&found).await,
            Err(error) => Err(refused(&found.id, error)),
        }
    }

    /// Shows a shell to a caller, who types into it, until it ends or the input does. The shell goes on in the second case, and
    /// when the call is cancelled.
    ///
    /// # Errors
    /// `InvalidInput`, `NotFound`, `Expired`, `WrongState`, `NotDelivered`, `Cancelled`.
    pub async fn attach_task_shell(
        &self,
        request: AttachTaskShell,
        call: &CallContext,
    ) -> Result<TaskShell, Error> {
        limits::check_terminal(request.size)?;
        let found = self.find_shell(&request.task.task_id, request.shell.shell_id).await?;
        unless_cancelled(&call.cancel, found.attach(&request, call)).await?;
        self.renew_used(&found.id, None).await;
        self.described(&found).await
    }

    async fn find_shell(&self, task_id: &str, shell_id: u64) -> Result<Found, Error> {
        let id = self.task_id(task_id).await?;
        let record = self.record_for_use(&id, None).await?;
        refuse_on_host(&record, "shells")?;
        Ok(Found { client: self.client(&id), id, shell_id })
    }

    async fn described(&self, found: &Found) -> Result<TaskShell, Error> {
        self.shell(&found.id, found.state().await?).await
    }

    async fn shell(&self, id: &VmId, state: ShellState) -> Result<TaskShell, Error> {
        let (task, sequence) = (id.clone(), state.sequence);
        let (command, cwd) = match self.registry(move |registry| registry.command(&task, sequence)).await {
            Ok(entry) => (entry.command, entry.cwd),
            // The journal has dropped the entry of a shell that ended long ago.
            Err(error) if error.kind == ErrorKind::NotFound => Default::default(),
            Err(error) => return Err(error),
        };
        Ok(TaskShell {
            task_id: id.clone(),
            shell_id: sequence,
            command,
            cwd,
            columns: state.size.columns,
            rows: state.size.rows,
            cursor: state.written,
            running: state.outcome.is_none(),
            exit_code: code(&state),
            outcome: match &state.outcome {
                None => Outcome::Running,
                Some(CommandOutcome::Ended(end)) if end.killed => Outcome::Killed,
                Some(CommandOutcome::Ended(_)) => Outcome::Exited,
                Some(CommandOutcome::NotRun { .. }) => Outcome::NotRun,
                Some(CommandOutcome::Unknown { .. }) => Outcome::Unknown,
            },
        })
    }
}

impl Found {
    async fn read(&self, request: ReadShell) -> Result<(Bytes, ShellPart), Error> {
        let read = self.client.read_shell(request).await.map_err(|error| match error {
            RunError::Refused { cause } => Error::new(ErrorKind::InvalidInput, cause),
            error => refused(&self.id, error),
        })?;
        read.ok_or_else(|| {
            let message = format!("task {} has no shell {}", self.id, self.shell_id);
            Error::new(ErrorKind::NotFound, message).hint(Hint::ListShells)
        })
    }

    async fn state(&self) -> Result<ShellState, Error> {
        let nothing =
            ReadShell { sequence: self.shell_id, cursor: None, max_bytes: 0, wait_ms: 0, idle_ms: 0 };
        Ok(self.read(nothing).await?.1.shell)
    }

    /// Returns the latest bytes, as many as are kept.
    async fn latest(&self) -> Result<(Bytes, ShellPart), Error> {
        let all = ReadShell {
            sequence: self.shell_id,
            cursor: None,
            max_bytes: SCROLLBACK_BYTES,
            wait_ms: 0,
            idle_ms: 0,
        };
        self.read(all).await
    }

    /// Returns what was read, in the requested form.
    async fn output(
        &self,
        read: CheckedRead,
        bytes: Bytes,
        part: ShellPart,
    ) -> Result<TaskShellOutput, Error> {
        let mut end = part.start + bytes.len() as u64;
        let size = convert::caller_size(part.shell.size);
        let is_last = part.reason == ReadReason::Ended;
        let text = match read.format {
            ShellFormat::Screen => {
                let (bytes, latest) = self.latest().await?;
                end = latest.start + bytes.len() as u64;
                terminal::screen(&bytes, size)
            }
            ShellFormat::Raw | ShellFormat::Plain => {
                let mut held = match read.format {
                    ShellFormat::Plain => terminal::incomplete_sequence(&bytes),
                    ShellFormat::Raw | ShellFormat::Screen => 0,
                };
                held = held.max(terminal::incomplete_character(&bytes));
                // The rest of it may never come, or not fit.
                if is_last || (held == bytes.len() && part.reason == ReadReason::Full) {
                    held = 0;
                }
                end -= held as u64;
                let whole = &bytes[..bytes.len() - held];
                match read.format {
                    ShellFormat::Plain => terminal::plain(whole, size.columns),
                    ShellFormat::Raw | ShellFormat::Screen => String::from_utf8_lossy(whole).into_owned(),
                }
            }
        };
        Ok(TaskShellOutput {
            task_id: self.id.clone(),
            shell_id: self.shell_id,
            text,
            cursor: end,
            dropped_bytes: part.dropped,
            reason: match part.reason {
                ReadReason::Output => ShellReadReason::Output,
                ReadReason::Idle => ShellReadReason::Idle,
                ReadReason::Full => ShellReadReason::Full,
                ReadReason::Ended => ShellReadReason::Ended,
                ReadReason::Time => ShellReadReason::Time,
            },
            running: part.shell.outcome.is_none(),
            exit_code: code(&part.shell),
        })
    }

    async fn type_keys(&self, keys: Bytes, before: &ShellState) -> Result<(), Error> {
        if keys.is_empty() {
            return Ok(());
        }
        match tokio::time::timeout(TYPE_LIMIT, self.client.type_into_shell(self.shell_id, keys)).await {
            Ok(Ok(Some(InputOutcome::Taken))) => Ok(()),
            Ok(Ok(Some(InputOutcome::Closed | InputOutcome::NotRunning))) => Err(self.ended(before)),
            Ok(Ok(_)) => {
                let message = format!("command {} of task {} is not a shell", self.shell_id, self.id);
                Err(Error::new(ErrorKind::WrongState, message).hint(Hint::ListShells))
            }
            Ok(Err(error)) => Err(refused(&self.id, error)),
            Err(_) => {
                let message =
                    format!("shell {} of task {} does not read what is typed", self.shell_id, self.id);
                Err(Error::new(ErrorKind::OutcomeUnknown, message))
            }
        }
    }

    fn ended(&self, before: &ShellState) -> Error {
        let code = code(before).map(|code| format!(" with exit code {code}")).unwrap_or_default();
        let message = format!("shell {} of task {} has ended{code}", self.shell_id, self.id);
        Error::new(ErrorKind::WrongState, message).hint(Hint::ListShells)
    }

    async fn attach(&self, request: &AttachTaskShell, call: &CallContext) -> Result<(), Error> {
        let key = CommandKey::Sequence(self.shell_id);
        // A shell that has ended is shown as it is.
        let _ = self.client.resize(key, convert::terminal_size(request.size)).await;
        let (bytes, part) = self.latest().await?;
        let send = async |bytes: Bytes| {
            call.events.send(Event::Output { stream: OutputStream::Stdout, bytes }).await;
        };
        send(terminal::state(&bytes, request.size).into()).await;
        let cursor = part.start + bytes.len() as u64;
        let typed = async {
            match caller_input(call) {
                // The caller only watches.
                None => std::future::pending().await,
                Some(input) => self.client.input(key, input).await,
            }
        };
        let shown = self.client.attach_shell(self.shell_id, cursor, async |chunk| send(chunk.bytes).await);
        tokio::pin!(shown);
        tokio::select! {
            biased;
            ended = &mut shown => ended.map(drop).map_err(|error| refused(&self.id, error)),
            typed = typed => match typed {
                Ok(None | Some(InputOutcome::Taken)) => Ok(()),
                // Its last output follows.
                Ok(Some(_)) => shown.await.map(drop).map_err(|error| refused(&self.id, error)),
                Err(error) => Err(refused(&self.id, error)),
            },
        }
    }
}

fn request_of(found: &Found, read: CheckedRead) -> ReadShell {
    let CheckedRead { cursor, max_bytes, wait_ms, idle_ms, .. } = read;
    ReadShell { sequence: found.shell_id, cursor, max_bytes, wait_ms, idle_ms }
}

fn code(state: &ShellState) -> Option<i64> {
    match &state.outcome {
        Some(CommandOutcome::Ended(end)) => Some(exit_code(end)),
        _ => None,
    }
}

/// Returns the error for a request about a shell that was not granted, or whose answer was lost.
fn refused(id: &VmId, error: RunError) -> Error {
    match error {
        RunError::Lost { .. } => supervisor_lost(id),
        RunError::Unanswered => unanswered(id),
        error => not_delivered(error),
    }
}
