//! One long call of the engine: its events are shown, and a signal or a reader that closes the output stops it.
//!
//! ```text
//! call ──events──► show ──► printer
//!   ▲                │ cannot write
//!   └── cancel ◄─────┴───── first signal
//! ```
//!
//! The engine cleans up after every call, and the session waits for it. Only a third signal ends the wait.

mod kept;

use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use pyro_engine::text::printable_line;
use pyro_engine::{CallContext, Error, ErrorKind, Event, Events, FileChange, OutputStream, PullEvent};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::kept::KeptText;
use crate::error::CliError;
use crate::json;
use crate::printer::{OutputError, Printer};
use crate::progress::{PullProgress, StartProgress};
use crate::signals::{self, ListenError, Signal};
use crate::stdin::{self, Passed, Source, Unread};
use crate::terminal::{self, RawMode};

/// Maximum number of events in the queue before the engine has to wait.
const EVENTS_AHEAD: usize = 64;

/// Maximum wait for output that is not read, once pyro has been asked to stop.
const LAST_OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// Runs a future to completion on this thread.
pub(crate) fn block_on<T, E>(work: impl Future<Output = Result<T, E>>) -> Result<T, CliError>
where
    CliError: From<E>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::System("cannot start the event loop".to_owned(), error))?;
    let result = runtime.block_on(work);
    // Only a write into a full pipe can still be in flight, and it must not delay the exit.
    runtime.shutdown_background();
    Ok(result?)
}

/// What a call has shown.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// The start of an installation was reported.
    pub(crate) pull_started: bool,
    /// The guest's last byte was not a newline, so a terminal's cursor is inside a line.
    pub(crate) inside_line: bool,
}

impl Shown {
    /// Ends the line, if stderr is a terminal, so that the next message starts on a new one.
    pub(crate) fn end_line(&self, printer: &Printer) {
        if self.inside_line && printer.stderr_is_terminal() {
            printer.note("");
        }
    }
}

/// How a command is connected to this process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Interaction {
    /// Show only warnings.
    pub(crate) quiet: bool,
    /// What is passed on to the command.
    pub(crate) passed: Passed,
    /// The terminal is in raw mode while the command runs.
    pub(crate) is_raw: bool,
    /// The command has the terminal, in which nothing else is written while it runs.
    pub(crate) on_terminal: bool,
    /// The terminal gets the modes back that the command has changed. It may be cut off, or leave them changed.
    pub(crate) puts_back: bool,
    /// What is shown after the call begins on a new line, although the command may go on within a line, elsewhere.
    pub(crate) ends_line: bool,
}

/// Runs a call of a command to its end, with what is passed on to it, and shows its events.
pub(crate) fn interact<T, F>(
    printer: &Printer,
    interaction: Interaction,
    task: Option<&str>,
    call: impl FnOnce(CallContext) -> F,
) -> Result<(T, Shown), CliError>
where
    F: Future<Output = Result<T, Error>>,
{
    block_on(async {
        let requests = signals::listen()?;
        if interaction.on_terminal {
            terminal::follow_job_control().map_err(ListenError)?;
        }
        let failed = |error| CliError::System("standard input cannot be passed on".to_owned(), error);
        let Source { input, failure } = stdin::pass_on(interaction.passed).map_err(failed)?;
        let accepted = CancellationToken::new();
        let watch = Watch {
            printer,
            quiet: interaction.quiet,
            on_terminal: interaction.on_terminal,
            raw: interaction.is_raw.then(|| RawTerminal::at(accepted.clone())),
            changed: interaction.puts_back.then(|| ChangedTerminal::of(printer, interaction.ends_line)),
            kept: None,
            task,
            requests,
            hangup: CancellationToken::new(),
            input_failure: failure,
            unread: None,
            stop: None,
        };
        let context = |events, cancel| CallContext { input, accepted, ..CallContext::new(events, cancel) };
        watch.follow(|events, cancel| call(context(events, cancel))).await
    })
}

/// The terminal, which is in raw mode from the moment at which the command is accepted. Until then, Ctrl-C cancels the call.
#[derive(Debug)]
struct RawTerminal {
    accepted: CancellationToken,
    is_entered: bool,
    mode: Option<RawMode>,
}

impl RawTerminal {
    fn at(accepted: CancellationToken) -> Self {
        Self { accepted, is_entered: false, mode: None }
    }

    /// Waits until the command is accepted, and enters raw mode. Returns only once.
    async fn enter(&mut self) -> Result<(), OutputError> {
        if self.is_entered {
            return std::future::pending().await;
        }
        self.accepted.cancelled().await;
        self.is_entered = true;
        self.mode = RawMode::enter().map_err(|error| OutputError::new(OutputStream::Stdout, error))?;
        Ok(())
    }
}

/// The modes of the terminal, which dropping this puts back, on a new line.
struct ChangedTerminal<'a> {
    printer: &'a Printer,
    ends_line: bool,
    inside_line: bool,
    is_lost: bool,
}

impl<'a> ChangedTerminal<'a> {
    fn of(printer: &'a Printer, ends_line: bool) -> Self {
        Self { printer, ends_line, inside_line: false, is_lost: false }
    }

    fn follow(&mut self, bytes: &[u8]) {
        terminal::follow_output(bytes);
        if let Some(last) = bytes.last() {
            self.inside_line = *last != b'\n';
        }
    }
}

impl Drop for ChangedTerminal<'_> {
    fn drop(&mut self) {
        let mut sequence = terminal::take_modes();
        if self.inside_line && (self.ends_line || !sequence.is_empty()) {
            sequence.push_str("\r\n");
        }
        if !self.is_lost && !sequence.is_empty() {
            // The terminal may be gone.
            let _ = self.printer.bytes(sequence.as_bytes());
        }
    }
}

/// As [`RawTerminal::enter`]; never returns without a terminal.
async fn enter(raw: &mut Option<RawTerminal>) -> Result<(), OutputError> {
    match raw {
        Some(raw) => raw.enter().await,
        None => std::future::pending().await,
    }
}

/// Runs `call` to its end and shows its events; with `quiet`, only its warnings. Output, which was kept by the call or has other
/// readers, does not control a terminal.
pub(crate) fn watch<T, F>(
    printer: &Printer,
    quiet: bool,
    call: impl FnOnce(Events, CancellationToken) -> F,
) -> Result<(T, Shown), CliError>
where
    F: Future<Output = Result<T, Error>>,
{
    block_on(async {
        let requests = signals::listen()?;
        let (_, input_failure) = mpsc::channel(1);
        let watch = Watch {
            printer,
            quiet,
            on_terminal: false,
            raw: None,
            changed: None,
            kept: Some(KeptText::default()),
            task: None,
            requests,
            hangup: CancellationToken::new(),
            input_failure,
            unread: None,
            stop: None,
        };
        watch.follow(call).await
    })
}

struct Watch<'a> {
    printer: &'a Printer,
    quiet: bool,
    on_terminal: bool,
    raw: Option<RawTerminal>,
    changed: Option<ChangedTerminal<'a>>,
    kept: Option<KeptText>,
    /// The task in which the command goes on when the terminal is closed.
    task: Option<&'a str>,
    /// Requests to stop.
    requests: mpsc::Receiver<Signal>,
    /// The terminal is gone, as reading or writing has shown. That counts as SIGHUP, which may be ignored or come later.
    hangup: CancellationToken,
    /// Why standard input cannot be read, which ends the command.
    input_failure: mpsc::Receiver<Unread>,
    unread: Option<io::Error>,
    /// The first request to stop.
    stop: Option<Signal>,
}

impl Watch<'_> {
    async fn follow<T, F>(
        mut self,
        call: impl FnOnce(Events, CancellationToken) -> F,
    ) -> Result<(T, Shown), CliError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (sender, receiver) = mpsc::channel(EVENTS_AHEAD);
        let cancel = CancellationToken::new();
        let over = CancellationToken::new();
        let show = Show {
            raw: self.raw.take(),
            changed: self.changed.take(),
            kept: self.kept.take(),
            hangup: self.hangup.clone(),
            ..Show::new(self.printer, self.quiet, self.on_terminal)
        };
        let mut show = pin!(show.until(receiver, &over, &cancel));
        let mut ended_show = None;
        let mut call = pin!(call(Events::to(sender), cancel.clone()));
        let (mut count, mut has_hung_up) = (0, false);
        let result = loop {
            tokio::select! {
                result = &mut call => break result,
                end = &mut show, if ended_show.is_none() => ended_show = Some(end),
                Some(unread) = self.input_failure.recv() => match unread {
                    Unread::Hangup => self.hangup.cancel(),
                    Unread::Failed(error) => {
                        self.unread = Some(error);
                        cancel.cancel();
                    }
                },
                signal = request(&mut self.requests, &self.hangup, has_hung_up) => {
                    if let (Signal::Hangup, Some(task)) = (signal, self.task) {
                        // The command is not cancelled.
                        return Err(CliError::Left(task.to_owned()));
                    }
                    // Reading, writing, the kernel, and a shell all report the same one, so it is not impatience.
                    if signal == Signal::Hangup && std::mem::replace(&mut has_hung_up, true) {
                        continue;
                    }
                    count += 1;
                    if count == 3 {
                        return Err(CliError::Abandoned(self.stop.unwrap_or(signal)));
                    }
                    self.stop_requested(count, signal, &cancel);
                }
            }
        };
        over.cancel();
        let end = loop {
            if let Some(end) = ended_show {
                break end;
            }
            tokio::select! {
                end = &mut show => ended_show = Some(end),
                Some(signal) = self.requests.recv() => {
                    self.stop.get_or_insert(signal);
                    cancel.cancel();
                }
            }
        };
        self.outcome(result, end)
    }

    /// Reports what a signal does. The first is reported to people only; a second one always, because the user may think
    /// that pyro hangs.
    fn stop_requested(&mut self, count: u32, signal: Signal, cancel: &CancellationToken) {
        self.stop.get_or_insert(signal);
        cancel.cancel();
        if count > 1 {
            self.printer.note_aside(
                "[pyro] still cleaning up; interrupt once more to exit without finishing".to_owned(),
            );
        } else if !self.quiet {
            self.printer.note_aside(format!("[pyro] {signal}: stopping and cleaning up"));
        }
    }

    fn outcome<T>(self, result: Result<T, Error>, end: ShowEnd) -> Result<(T, Shown), CliError> {
        if let (Err(_), Some(error), None) = (&result, self.unread, self.stop) {
            let text = "cannot read standard input; the command was ended";
            return Err(CliError::System(text.to_owned(), error));
        }
        match (result, end.loss, self.stop) {
            (_, Some(Loss::Unread), Some(signal)) => Err(CliError::Unread(signal)),
            (Err(error), _, Some(signal)) => Err(CliError::Stopped(signal, error)),
            // pyro did not stop the call, so its failure says more than that of the output.
            (Err(error), _, None) if error.kind != ErrorKind::Cancelled => Err(CliError::Engine(error)),
            (_, Some(Loss::Failed(failed)), _) => Err(CliError::Output(failed)),
            (Err(error), _, None) => Err(CliError::Engine(error)),
            // Finished before a request to stop took effect: return the result.
            (Ok(value), _, _) => Ok((value, end.shown)),
        }
    }
}

/// Waits for the next request to stop.
async fn request(
    requests: &mut mpsc::Receiver<Signal>,
    hangup: &CancellationToken,
    has_hung_up: bool,
) -> Signal {
    tokio::select! {
        Some(signal) = requests.recv() => signal,
        () = hangup.cancelled(), if !has_hung_up => Signal::Hangup,
        else => std::future::pending().await,
    }
}

/// Why some output of the guest was not shown.
enum Loss {
    /// It could not be written.
    Failed(OutputError),
    /// It was not read within [`LAST_OUTPUT_GRACE`] after the call was cancelled.
    Unread,
}

/// How showing ended.
struct ShowEnd {
    shown: Shown,
    loss: Option<Loss>,
}

/// Shows events one after another.
struct Show<'a> {
    printer: &'a Printer,
    quiet: bool,
    on_terminal: bool,
    raw: Option<RawTerminal>,
    changed: Option<ChangedTerminal<'a>>,
    /// Output is escaped for a terminal.
    kept: Option<KeptText>,
    /// Reports that the terminal is gone.
    hangup: CancellationToken,
    progress: PullProgress<'a>,
    start: StartProgress,
    shown: Shown,
    loss: Option<Loss>,
}

impl<'a> Show<'a> {
    fn new(printer: &'a Printer, quiet: bool, on_terminal: bool) -> Self {
        let progress = PullProgress::new(printer);
        Self {
            printer,
            quiet,
            on_terminal,
            raw: None,
            changed: None,
            kept: None,
            hangup: CancellationToken::new(),
            progress,
            start: StartProgress::default(),
            shown: Shown::default(),
            loss: None,
        }
    }

    /// Shows events until every sender is gone, or until the call is `over` and all its events are shown.
    async fn until(
        mut self,
        mut events: mpsc::Receiver<Event>,
        over: &CancellationToken,
        cancel: &CancellationToken,
    ) -> ShowEnd {
        loop {
            tokio::select! {
                biased;
                // Before the output, of which the first can come at the same time.
                entered = enter(&mut self.raw) => if let Err(failed) = entered {
                    self.loss = Some(Loss::Failed(failed));
                    cancel.cancel();
                },
                event = events.recv() => match event {
                    Some(event) => self.event(event, cancel).await,
                    None => {
                        self.rest(cancel).await;
                        return ShowEnd { shown: self.shown, loss: self.loss };
                    }
                },
                () = over.cancelled(), if !events.is_closed() => events.close(),
            }
        }
    }

    async fn event(&mut self, event: Event, cancel: &CancellationToken) {
        match event {
            Event::Warning(text) => self.progress.note(&format!("[warning] {text}")),
            Event::Output { stream, bytes } => self.output(stream, bytes, cancel).await,
            Event::Phase(_) if self.on_terminal => {}
            Event::Phase(_) | Event::Pull(_) | Event::FirstOfKind | Event::Starting { .. } if self.quiet => {}
            // A log file needs no explanation for a pause.
            Event::FirstOfKind if self.printer.stderr_is_terminal() => {
                self.progress.note("[vm] this is the first VM of its kind; later ones start faster");
            }
            Event::FirstOfKind => {}
            Event::Starting { step, seconds } => {
                if let Some(line) = self.start.line(step, seconds) {
                    self.progress.note(&line);
                }
            }
            // A program has to know from when on it sees each change.
            Event::Watching => self.progress.note("[watch] watching; end with Ctrl-C"),
            Event::FileChange(change) => {
                let line = change_line(&change, self.quiet);
                self.output(OutputStream::Stdout, line.into(), cancel).await;
            }
            Event::Phase(phase) => self.progress.note(&format!("[run] {phase}")),
            Event::Pull(event) => {
                self.shown.pull_started |= matches!(event, PullEvent::Started { .. });
                self.progress.show(event);
            }
        }
    }

    /// Shows what is left of characters that were cut off.
    async fn rest(&mut self, cancel: &CancellationToken) {
        for (stream, text) in self.kept.take().into_iter().flat_map(KeptText::rest) {
            self.output(stream, text, cancel).await;
        }
    }

    async fn output(&mut self, stream: OutputStream, bytes: Bytes, cancel: &CancellationToken) {
        let bytes = match &mut self.kept {
            Some(kept) if self.printer.is_terminal(stream) => kept.next(stream, &bytes),
            _ => bytes,
        };
        // After a loss, drop the rest: the engine must not wait for space in the queue.
        if self.loss.is_some() {
            return;
        }
        if let Some(changed) = &mut self.changed {
            changed.follow(&bytes);
        }
        if let Some(last) = bytes.last() {
            self.shown.inside_line = *last != b'\n';
        }
        let too_late = async {
            cancel.cancelled().await;
            tokio::time::sleep(LAST_OUTPUT_GRACE).await;
        };
        tokio::select! {
            written = self.printer.guest(stream, bytes) => if let Err(failed) = written {
                match failed.is_hangup() {
                    true => self.hangup.cancel(),
                    false => cancel.cancel(),
                }
                self.loss = Some(Loss::Failed(failed));
            },
            () = too_late => self.loss = Some(Loss::Unread),
        }
        if let (Some(_), Some(changed)) = (&self.loss, &mut self.changed) {
            // More output would not be read either.
            changed.is_lost = true;
        }
    }
}

/// A change of a watched file as a line: of JSON, or for people. Names do not control the terminal in either.
fn change_line(change: &FileChange, as_json: bool) -> Vec<u8> {
    let line = match (as_json, &change.old_path) {
        // The types of a change can all be written.
        (true, _) => return json::line(change).unwrap_or_default(),
        (false, None) => printable_line(&format!("{:<10} {}", change.change, change.path), usize::MAX),
        (false, Some(from)) => {
            printable_line(&format!("{:<10} {from} -> {}", change.change, change.path), usize::MAX)
        }
    };
    (line + "\n").into_bytes()
}

#[cfg(test)]
mod tests;
