//! One shell: what its terminal wrote, who waits for that, and what is typed into it.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use pyro_wire::{Frame, MAX_OUTPUT_BYTES, OutputStream, TerminalSize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::conversation::CommandOutcome;
use crate::protocol::{
    InputOutcome, ReadReason, ReadShell, Reply, Request, SCROLLBACK_BYTES, ServerStream, ShellPart,
    ShellState,
};
use crate::server::REPLY_LIMIT;
use crate::server::commands::input::{HangUp, LAST_INPUT_LIMIT};
use crate::server::commands::reply;
use crate::server::commands::scrollback::Scrollback;

/// One shell.
pub(in crate::server::commands) struct Shell {
    pub(super) sequence: u64,
    /// Its number in the guest.
    pub(super) id: u64,
    size: Cell<TerminalSize>,
    pub(super) scrollback: RefCell<Scrollback>,
    pub(super) activity: watch::Sender<Activity>,
    /// What is typed. Closed when the shell takes no more.
    keys: mpsc::Sender<Typed>,
}

/// One piece of what is typed.
pub(super) struct Typed {
    pub(super) bytes: Bytes,
    /// Receives whether it was passed on to the guest, or why not. Dropped if the shell takes no more.
    pub(super) passed: oneshot::Sender<Result<(), String>>,
}

/// What is read of a shell: what follows an offset, when there is output behind another one.
#[derive(Clone, Copy)]
pub(super) struct Range {
    from: u64,
    waits_behind: u64,
}

/// What a shell has done so far.
#[derive(Clone)]
pub(super) struct Activity {
    pub(super) written: u64,
    /// When its terminal wrote last.
    latest: Instant,
    /// How it ended, and its place in the order of ends.
    pub(super) end: Option<(CommandOutcome, u64)>,
}

impl Activity {
    fn outcome(&self) -> Option<&CommandOutcome> {
        self.end.as_ref().map(|(outcome, _)| outcome)
    }
}

impl Shell {
    pub(super) fn new(sequence: u64, id: u64, size: TerminalSize, keys: mpsc::Sender<Typed>) -> Self {
        Self {
            sequence,
            id,
            size: Cell::new(size),
            scrollback: RefCell::new(Scrollback::new(SCROLLBACK_BYTES as usize)),
            activity: watch::Sender::new(Activity { written: 0, latest: Instant::now(), end: None }),
            keys,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.activity.borrow().end.is_none()
    }

    pub(super) fn place_of_end(&self) -> Option<u64> {
        self.activity.borrow().end.as_ref().map(|(_, place)| *place)
    }

    pub(super) fn append(&self, bytes: &[u8]) {
        self.scrollback.borrow_mut().append(bytes);
        self.activity.send_modify(|activity| {
            activity.written += bytes.len() as u64;
            activity.latest = Instant::now();
        });
    }

    pub(super) fn end(&self, outcome: CommandOutcome, place: u64) {
        self.activity.send_modify(|activity| activity.end = Some((outcome, place)));
    }

    /// Remembers the size that its terminal was given.
    pub(in crate::server::commands) fn set_size(&self, size: TerminalSize) {
        self.size.set(size);
    }

    pub(super) fn state(&self) -> ShellState {
        let activity = self.activity.borrow();
        ShellState {
            sequence: self.sequence,
            size: self.size.get(),
            written: activity.written,
            outcome: activity.outcome().cloned(),
        }
    }

    /// Returns where a read begins. On failure, returns what to answer.
    pub(super) fn range(
        &self,
        ReadShell { cursor, fresh, max_bytes, .. }: ReadShell,
    ) -> Result<Range, Reply> {
        let (written, oldest) = (self.activity.borrow().written, self.scrollback.borrow().oldest());
        let from = cursor.unwrap_or_else(|| match fresh {
            true => written,
            false => written.saturating_sub(max_bytes.min(SCROLLBACK_BYTES)).max(oldest),
        });
        if from > written {
            return Err(Reply::Refused { cause: format!("invalid cursor: expected at most {written}") });
        }
        Ok(Range { from, waits_behind: if fresh { written } else { from } })
    }

    /// Types what a client sends, until the client finishes or the shell takes no more. Returns what to answer; `None`: the client
    /// has disconnected.
    pub(super) async fn type_from(&self, client: &mut ServerStream) -> Option<Reply> {
        let hang_up = match HangUp::of(client) {
            Ok(hang_up) => hang_up,
            Err(error) => return Some(Reply::Refused { cause: error.to_string() }),
        };
        // A shell that reads nothing keeps its client from being read, and so from being seen to leave.
        let abandoned = async {
            hang_up.wait().await;
            sleep(LAST_INPUT_LIMIT).await;
        };
        let closed = Reply::Input(InputOutcome::Closed);
        let typing = async {
            loop {
                let frame = tokio::select! {
                    biased;
                    () = self.keys.closed() => return Some(closed),
                    frame = client.next() => frame,
                };
                match frame {
                    Some(Ok(Frame::Output(_, bytes))) => {
                        let (passed, taken) = oneshot::channel();
                        if self.keys.send(Typed { bytes, passed }).await.is_err() {
                            return Some(closed);
                        }
                        match taken.await {
                            Ok(Ok(())) => {}
                            Ok(Err(cause)) => return Some(Reply::Refused { cause }),
                            Err(_) => return Some(closed),
                        }
                    }
                    Some(Ok(Frame::Control(Request::InputFinished))) => {
                        return Some(Reply::Input(InputOutcome::Taken));
                    }
                    _ => return None,
                }
            }
        };
        tokio::select! {
            biased;
            answer = typing => answer,
            () = abandoned => None,
        }
    }

    /// Waits for output, and sends it.
    pub(super) async fn answer(
        &self,
        Range { from, waits_behind }: Range,
        request: ReadShell,
        mut client: ServerStream,
    ) {
        let max_bytes = request.max_bytes.min(SCROLLBACK_BYTES);
        let Some(reason) = self.wait(waits_behind, max_bytes, request, &mut client).await else { return };
        let reason = self.stands_at(from, max_bytes).unwrap_or(reason);
        let (before, bytes, part) = {
            let scrollback = self.scrollback.borrow();
            let (start, bytes) = scrollback.read(from, max_bytes as usize);
            let first = start.saturating_sub(request.before.min(SCROLLBACK_BYTES)).max(scrollback.oldest());
            let (_, before) = scrollback.read(first, (start - first) as usize);
            let part = ShellPart {
                start,
                before: start - first,
                dropped: start - from,
                reason,
                shell: self.state(),
            };
            (before, bytes, part)
        };
        for mut bytes in [before, bytes] {
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(MAX_OUTPUT_BYTES));
                let sent = client.send(Frame::Output(OutputStream::Stdout, piece));
                if !matches!(timeout(REPLY_LIMIT, sent).await, Ok(Ok(()))) {
                    return;
                }
            }
        }
        reply(&mut client, Reply::ShellPart(part)).await;
    }

    /// Returns why a read from an offset on need not wait: it returns as much as it may, or the shell has ended.
    fn stands_at(&self, from: u64, max_bytes: u64) -> Option<ReadReason> {
        let activity = self.activity.borrow();
        let available = activity.written - from.max(self.scrollback.borrow().oldest());
        let is_running = activity.end.is_none();
        if available >= max_bytes && (available > max_bytes || is_running) {
            return Some(ReadReason::Full);
        }
        (!is_running).then_some(ReadReason::Ended)
    }

    /// Waits until a read from an offset on ends, and returns why. `None`: the client has disconnected.
    async fn wait(
        &self,
        from: u64,
        max_bytes: u64,
        ReadShell { wait_ms, idle_ms, .. }: ReadShell,
        client: &mut ServerStream,
    ) -> Option<ReadReason> {
        let mut activity = self.activity.subscribe();
        let deadline = Instant::now() + Duration::from_millis(wait_ms);
        let idle = Duration::from_millis(idle_ms);
        loop {
            let (written, latest) = {
                let seen = activity.borrow_and_update();
                (seen.written, seen.latest)
            };
            if let Some(reason) = self.stands_at(from, max_bytes) {
                return Some(reason);
            }
            let has_output = written > from.max(self.scrollback.borrow().oldest());
            if has_output && idle.is_zero() {
                return Some(ReadReason::Output);
            }
            let idle_at = has_output.then(|| latest + idle).filter(|at| *at <= deadline);
            tokio::select! {
                biased;
                // The client sends nothing more, so this is its disconnect.
                _ = client.next() => return None,
                _ = activity.changed() => {}
                () = sleep_until(idle_at.unwrap_or(deadline)) => return Some(match idle_at {
                    Some(_) => ReadReason::Idle,
                    None => ReadReason::Time,
                }),
            }
        }
    }
}
