//! Shells of a task, which its supervisor runs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use pyro_supervisor::{
    AttachEnd, Client, CommandKey, CommandOutcome, InputOutcome, MAX_OPEN_SHELLS, ReadReason, ReadShell,
    RunError, SCROLLBACK_BYTES, ShellAnswer, ShellOutput, ShellPart, ShellState, TYPE_LIMIT,
};
use tokio::sync::Notify;
use tokio::time::Instant;
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

/// Maximum number of bytes before a cursor that say where in its line the terminal was.
const CONTEXT_BYTES: u64 = 4096;

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
    /// `OutcomeUnknown`; `AtCapacity` if the maximum number of shells is open.
    pub async fn open_task_shell(&self, request: OpenTaskShell) -> Result<TaskShell, Error> {
        let command = limits::check_command(request.shell.into(), OutputMode::Stream)?;
        let id = self.task_id(&request.task.task_id).await?;
        let record = self.record_for_use(&id, None).await?;
        refuse_on_host(&record, "shells")?;
        let opened = self.client(&id).open_shell(exec_request(&command, &record.environment)).await;
        let shell_id = match opened {
            Ok(shell_id) => shell_id,
            Err(RunError::Refused { cause }) if self.has_open_shells(&id, MAX_OPEN_SHELLS).await => {
                return Err(Error::new(ErrorKind::AtCapacity, cause).hint(Hint::ListShells));
            }
            Err(error) => return Err(self.run_error(&id, error, &CancellationToken::new()).await),
        };
        let found = Found { client: self.client(&id), id, shell_id };
        self.described(&found).await
    }

    async fn has_open_shells(&self, id: &VmId, count: usize) -> bool {
        let shells = self.client(id).list_shells().await.unwrap_or_default();
        shells.iter().filter(|shell| shell.outcome.is_none()).count() >= count
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
        let found = self.find_shell(&request.task.task_id, request.shell.shell_id, Some(waits(read))).await?;
        let reading = async {
            let deadline = deadline(read);
            let first = found.read(request_of(&found, read)).await?;
            found.output(read, deadline, first).await
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
        let found = self
            .find_shell(&request.task.task_id, request.shell.shell_id, Some(waits(read) + TYPE_LIMIT))
            .await?;
        let writing = async {
            let deadline = deadline(read);
            let written = found.write(typed.into(), read).await?;
            found.output(read, deadline, written).await
        };
        unless_cancelled(cancel, writing).await
    }

    /// Sends a signal to what runs in the foreground of a shell.
    ///
    /// # Errors
    /// `InvalidInput`, `NotFound`, `Expired`, `WrongState`, `NotDelivered`.
    pub async fn signal_task_shell(&self, request: SignalTaskShell) -> Result<TaskShell, Error> {
        let signal = request.signal.number()?;
        let found = self.find_shell(&request.task.task_id, request.shell.shell_id, None).await?;
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
        let found = self.find_shell(&request.task.task_id, request.shell.shell_id, None).await?;
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
        let found = self.find_shell(&request.task.task_id, request.shell.shell_id, None).await?;
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
        let found = self.find_shell(&request.task.task_id, request.shell.shell_id, None).await?;
        let typed = Arc::new(Notify::new());
        tokio::select! {
            biased;
            shown = unless_cancelled(&call.cancel, found.attach(&request, call, &typed)) => shown?,
            never = self.renew_at(&typed, &found.id) => match never {},
        }
        self.renew_used(&found.id, None).await;
        self.described(&found).await
    }

    /// Finds a shell for a use of it that takes at most `longest`, if that is known.
    async fn find_shell(
        &self,
        task_id: &str,
        shell_id: u64,
        longest: Option<Duration>,
    ) -> Result<Found, Error> {
        let id = self.task_id(task_id).await?;
        let record = self.record_for_use(&id, longest).await?;
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
    async fn read(&self, request: ReadShell) -> Result<ShellOutput, Error> {
        let read = self.client.read_shell(request).await.map_err(|error| match error {
            RunError::Refused { cause } => Error::new(ErrorKind::InvalidInput, cause),
            error => refused(&self.id, error),
        })?;
        read.ok_or_else(|| self.unknown())
    }

    fn unknown(&self) -> Error {
        let message = format!("task {} has no shell {}", self.id, self.shell_id);
        Error::new(ErrorKind::NotFound, message).hint(Hint::ListShells)
    }

    async fn state(&self) -> Result<ShellState, Error> {
        Ok(self.read(self.at_once(None, 0)).await?.part.shell)
    }

    /// Returns the latest bytes, as many as are kept.
    async fn latest(&self) -> Result<(Bytes, ShellPart), Error> {
        let ShellOutput { bytes, part, .. } = self.read(self.at_once(None, SCROLLBACK_BYTES)).await?;
        Ok((bytes, part))
    }

    /// A read that does not wait.
    fn at_once(&self, cursor: Option<u64>, max_bytes: u64) -> ReadShell {
        let sequence = self.shell_id;
        ReadShell { sequence, cursor, fresh: false, max_bytes, wait_ms: 0, idle_ms: 0, before: 0 }
    }

    /// Reads from a cursor without waiting, after another read has waited.
    async fn read_again(
        &self,
        from: u64,
        read: CheckedRead,
        waited: ReadReason,
    ) -> Result<ShellOutput, Error> {
        let at_once = CheckedRead { cursor: Some(from), wait_ms: 0, idle_ms: 0, ..read };
        let mut output = self.read(request_of(self, at_once)).await?;
        output.part.reason = match output.part.reason {
            reason @ (ReadReason::Full | ReadReason::Ended) => reason,
            ReadReason::Output | ReadReason::Idle | ReadReason::Time => waited,
        };
        Ok(output)
    }

    /// Returns what was read, in the requested form.
    async fn output(
        &self,
        read: CheckedRead,
        deadline: Instant,
        ShellOutput { mut before, mut bytes, mut part }: ShellOutput,
    ) -> Result<TaskShellOutput, Error> {
        // Only the beginning of a character or a sequence is not output.
        while !bytes.is_empty()
            && held_back(read.format, &bytes, part.reason) == bytes.len()
            && part.reason != ReadReason::Time
        {
            let end = part.start + bytes.len() as u64;
            let wait_ms = deadline.saturating_duration_since(Instant::now()).as_millis() as u64;
            let more = CheckedRead { cursor: Some(end), wait_ms, ..read };
            let next = self.read(request_of(self, more)).await?.part;
            ShellOutput { before, bytes, part } = self.read_again(part.start, read, next.reason).await?;
        }
        let held = held_back(read.format, &bytes, part.reason);
        let mut end = part.start + (bytes.len() - held) as u64;
        let whole = bytes.slice(..bytes.len() - held);
        let size = convert::caller_size(part.shell.size);
        // There can be more than was read.
        let mut is_last = part.reason == ReadReason::Ended;
        let text = match read.format {
            ShellFormat::Screen => {
                let (bytes, latest) = self.latest().await?;
                end = latest.start + bytes.len() as u64;
                is_last = latest.reason == ReadReason::Ended;
                part.shell = latest.shell;
                aside(move || terminal::screen(&bytes, size)).await?
            }
            ShellFormat::Plain => {
                let before = line_of(&before, part.start);
                aside(move || terminal::plain(&before, &whole, size.columns)).await?
            }
            ShellFormat::Raw => String::from_utf8_lossy(&whole).into_owned(),
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
            running: !is_last,
            exit_code: code(&part.shell).filter(|_| is_last),
        })
    }

    /// Types, waits for output that follows, and returns it.
    async fn write(&self, keys: Bytes, read: CheckedRead) -> Result<ShellOutput, Error> {
        let request = ReadShell { fresh: true, ..request_of(self, read) };
        if keys.is_empty() {
            return self.read(request).await;
        }
        let written = match self.client.write_shell(keys, request).await {
            // The cursor, or what the guest says.
            Err(RunError::Refused { cause }) => {
                let end = self.state().await?.written;
                return Err(match read.cursor.is_some_and(|cursor| cursor > end) {
                    true => Error::new(ErrorKind::InvalidInput, cause),
                    false => not_delivered(RunError::Refused { cause }),
                });
            }
            written => written.map_err(|error| refused(&self.id, error))?,
        };
        match written {
            Some(ShellAnswer::Output(output)) => Ok(output),
            Some(ShellAnswer::Ended) => Err(self.ended(&self.state().await?)),
            Some(ShellAnswer::NotTaken) => {
                let message =
                    format!("shell {} of task {} does not read what is typed", self.shell_id, self.id);
                Err(Error::new(ErrorKind::OutcomeUnknown, message))
            }
            None => Err(self.unknown()),
        }
    }

    fn ended(&self, before: &ShellState) -> Error {
        let code = code(before).map(|code| format!(" with exit code {code}")).unwrap_or_default();
        let message = format!("shell {} of task {} has ended{code}", self.shell_id, self.id);
        Error::new(ErrorKind::WrongState, message).hint(Hint::ListShells)
    }

    /// Notifies `on_typed` of everything that the caller types.
    async fn attach(
        &self,
        request: &AttachTaskShell,
        call: &CallContext,
        on_typed: &Arc<Notify>,
    ) -> Result<(), Error> {
        let key = CommandKey::Sequence(self.shell_id);
        // A shell that has ended is shown as it is.
        let _ = self.client.resize(key, convert::terminal_size(request.size)).await;
        let send = async |bytes: Bytes| {
            call.events.send(Event::Output { stream: OutputStream::Stdout, bytes }).await;
        };
        let draw = async || {
            let (bytes, part) = self.latest().await?;
            let cursor = part.start + bytes.len() as u64;
            let size = request.size;
            send(aside(move || terminal::state(&bytes, size)).await?.into()).await;
            Ok::<_, Error>(cursor)
        };
        // Its terminal is ready for keys before it shows anything: in line mode, the first Ctrl-Q would get lost.
        call.accepted.cancel();
        // A caller whose input ends at once sees what is there all the same.
        let drawn = draw().await?;
        let shown = async {
            let mut cursor = drawn;
            loop {
                let shown = self.client.attach_shell(self.shell_id, cursor, send);
                match shown.await.map_err(|error| refused(&self.id, error))? {
                    AttachEnd::Ended(_) | AttachEnd::NoShell => return Ok(()),
                    // What is missing can be the end of a sequence that has begun, which this cancels.
                    AttachEnd::Behind => send(Bytes::from_static(b"\x18")).await,
                }
                cursor = draw().await?;
            }
        };
        let typed = async {
            match caller_input(call) {
                // The caller only watches.
                None => std::future::pending().await,
                Some(input) => {
                    let on_typed = Arc::clone(on_typed);
                    let input = input.inspect(move |_| on_typed.notify_one());
                    self.client.input(key, input.boxed()).await
                }
            }
        };
        tokio::pin!(shown);
        tokio::select! {
            biased;
            ended = &mut shown => ended,
            typed = typed => match typed {
                Ok(None | Some(InputOutcome::Taken)) => Ok(()),
                // Its last output follows.
                Ok(Some(_)) => shown.await,
                Err(error) => Err(refused(&self.id, error)),
            },
        }
    }
}

/// Runs work on hostile bytes on another thread, so that other calls are answered meanwhile.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let lost = |error| Error::internal("a background operation was lost").caused_by(error);
    tokio::task::spawn_blocking(work).await.map_err(lost)
}

fn waits(read: CheckedRead) -> Duration {
    Duration::from_millis(read.wait_ms)
}

fn deadline(read: CheckedRead) -> Instant {
    Instant::now() + waits(read)
}

/// Returns how many of the last bytes are left for the next read, because they are only the beginning of something.
fn held_back(format: ShellFormat, bytes: &[u8], reason: ReadReason) -> usize {
    let held = match format {
        ShellFormat::Screen => 0,
        ShellFormat::Plain => terminal::incomplete_sequence(bytes).max(terminal::incomplete_character(bytes)),
        ShellFormat::Raw => terminal::incomplete_character(bytes),
    };
    match reason {
        // The rest of it never comes, or does not fit.
        ReadReason::Ended => 0,
        ReadReason::Full if held == bytes.len() => 0,
        _ => held,
    }
}

fn request_of(found: &Found, read: CheckedRead) -> ReadShell {
    let CheckedRead { cursor, max_bytes, wait_ms, idle_ms, format } = read;
    let before = match format {
        ShellFormat::Plain => CONTEXT_BYTES,
        ShellFormat::Raw | ShellFormat::Screen => 0,
    };
    ReadShell { wait_ms, idle_ms, before, ..found.at_once(cursor, max_bytes) }
}

/// Returns what is left of the line, or of several lines, in the bytes before an offset.
fn line_of(before: &Bytes, offset: u64) -> Bytes {
    // Their beginning can be in the middle of a sequence, unless it is that of the shell.
    let is_cut = offset > before.len() as u64;
    let line = before.iter().position(|byte| *byte == b'\n').filter(|_| is_cut);
    before.slice(line.map_or(0, |end| end + 1)..)
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
