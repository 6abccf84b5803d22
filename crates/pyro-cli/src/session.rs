//! One long call of the engine, watched from the terminal: its events are shown, signals stop it, and a
//! reader that goes away stops it too.
//!
//! ```text
//! call ──events──► show ──► printer
//!   ▲                │ cannot write
//!   └── cancel ◄─────┴───── first signal
//! ```
//!
//! However the call ends, it is the engine that cleans up, and it is waited for. Only a third signal gives
//! that up.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use pyro_engine::{EngineError, ErrorKind, Event, Events, OutputStream, PullEvent};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::CliError;
use crate::printer::{OutputError, Printer};
use crate::progress::PullProgress;
use crate::signals::{self, Signal};

/// Events that may wait to be shown before the engine has to wait.
const EVENTS_AHEAD: usize = 64;

/// How long output that nobody reads is waited for once pyro has been asked to stop.
const LAST_OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// Runs a future to its end on this thread.
pub(crate) fn block_on<T, E>(work: impl Future<Output = Result<T, E>>) -> Result<T, CliError>
where
    CliError: From<E>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::System("cannot start the event loop".to_owned(), error))?;
    let result = runtime.block_on(work);
    // Only a write into a pipe that nobody empties can still be under way, and it must not hold up the end.
    runtime.shutdown_background();
    Ok(result?)
}

/// What was shown of a call.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// An installation was reported from its start.
    pub(crate) pull_started: bool,
    /// The last byte the guest wrote was no newline, so a terminal's cursor stands inside a line.
    pub(crate) inside_line: bool,
}

impl Shown {
    /// Sees to it that what is said next stands on a line of its own, where both streams meet on a terminal.
    pub(crate) fn end_line(&self, printer: &Printer) {
        if self.inside_line && printer.stderr_is_terminal() {
            printer.note("");
        }
    }
}

/// Carries out `call` to its end and shows its events; with `quiet`, only its warnings.
pub(crate) fn watch<T, F>(
    printer: &Printer,
    quiet: bool,
    call: impl FnOnce(Events, CancellationToken) -> F,
) -> Result<(T, Shown), CliError>
where
    F: Future<Output = Result<T, EngineError>>,
{
    block_on(async {
        let requests = signals::listen()?;
        Watch { printer, quiet, requests, stop: None }.follow(call).await
    })
}

struct Watch<'a> {
    printer: &'a Printer,
    quiet: bool,
    /// Requests to stop.
    requests: mpsc::Receiver<Signal>,
    /// The first of them.
    stop: Option<Signal>,
}

impl Watch<'_> {
    async fn follow<T, F>(
        mut self,
        call: impl FnOnce(Events, CancellationToken) -> F,
    ) -> Result<(T, Shown), CliError>
    where
        F: Future<Output = Result<T, EngineError>>,
    {
        let (sender, receiver) = mpsc::channel(EVENTS_AHEAD);
        let cancel = CancellationToken::new();
        let over = CancellationToken::new();
        let mut show = pin!(Show::new(self.printer, self.quiet).until(receiver, &over, &cancel));
        let mut ended_show = None;
        let mut call = pin!(call(Events::to(sender), cancel.clone()));
        let mut count = 0;
        let result = loop {
            tokio::select! {
                result = &mut call => break result,
                end = &mut show, if ended_show.is_none() => ended_show = Some(end),
                Some(signal) = self.requests.recv() => {
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

    /// Says what a signal does. The first is reported to people only, the second to everybody: it looks
    /// as if pyro hung.
    fn stop_requested(&mut self, count: u32, signal: Signal, cancel: &CancellationToken) {
        self.stop.get_or_insert(signal);
        cancel.cancel();
        if count > 1 {
            self.printer
                .note_aside("[pyro] still cleaning up; once more to leave the rest behind".to_owned());
        } else if !self.quiet {
            self.printer.note_aside(format!("[pyro] {signal}: stopping and cleaning up"));
        }
    }

    fn outcome<T>(&self, result: Result<T, EngineError>, end: ShowEnd) -> Result<(T, Shown), CliError> {
        match (result, end.loss, self.stop) {
            (_, Some(Loss::Unread), Some(signal)) => Err(CliError::Unread(signal)),
            (Err(error), _, Some(signal)) => Err(CliError::Stopped(signal, error)),
            // The call was not stopped by us, so its failure says more than that of the output.
            (Err(error), _, None) if error.kind != ErrorKind::Cancelled => Err(CliError::Engine(error)),
            (_, Some(Loss::Failed(failed)), _) => Err(CliError::Output(failed)),
            (Err(error), _, None) => Err(CliError::Engine(error)),
            // Finished before a request to stop took effect: the result is real and is given.
            (Ok(value), _, _) => Ok((value, end.shown)),
        }
    }
}

/// Why some output of the guest was not shown.
enum Loss {
    /// It could not be written.
    Failed(OutputError),
    /// Nobody took it, for [`LAST_OUTPUT_GRACE`] after the call was cancelled.
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
    progress: PullProgress<'a>,
    shown: Shown,
    loss: Option<Loss>,
}

impl<'a> Show<'a> {
    fn new(printer: &'a Printer, quiet: bool) -> Self {
        let progress = PullProgress::new(printer);
        Self { printer, quiet, progress, shown: Shown::default(), loss: None }
    }

    /// Shows events until there are no more: either every sender is gone, or the call is `over` and what
    /// it had sent is shown.
    async fn until(
        mut self,
        mut events: mpsc::Receiver<Event>,
        over: &CancellationToken,
        cancel: &CancellationToken,
    ) -> ShowEnd {
        loop {
            tokio::select! {
                biased;
                event = events.recv() => match event {
                    Some(event) => self.event(event, cancel).await,
                    None => return ShowEnd { shown: self.shown, loss: self.loss },
                },
                () = over.cancelled(), if !events.is_closed() => events.close(),
            }
        }
    }

    async fn event(&mut self, event: Event, cancel: &CancellationToken) {
        match event {
            Event::Warning(text) => self.progress.note(&format!("[warning] {text}")),
            Event::Output { stream, bytes } => self.output(stream, bytes, cancel).await,
            Event::Phase(_) | Event::Pull(_) | Event::FirstOfKind if self.quiet => {}
            // A log file needs no explanation for a pause.
            Event::FirstOfKind if self.printer.stderr_is_terminal() => {
                self.progress.note("[vm] this is the first VM of its kind; later ones start faster");
            }
            Event::FirstOfKind => {}
            Event::Phase(phase) => self.progress.note(&format!("[run] {phase}")),
            Event::Pull(event) => {
                self.shown.pull_started |= matches!(event, PullEvent::Started { .. });
                self.progress.show(event);
            }
        }
    }

    async fn output(&mut self, stream: OutputStream, bytes: Bytes, cancel: &CancellationToken) {
        // After a loss the rest is taken and dropped: the engine may not have to wait for room.
        if self.loss.is_some() {
            return;
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
                self.loss = Some(Loss::Failed(failed));
                cancel.cancel();
            },
            () = too_late => self.loss = Some(Loss::Unread),
        }
    }
}

#[cfg(test)]
mod tests;
