//! Shells: commands on terminals that belong to no client.
//!
//! ```text
//!  clients ──type──► queue ──► guest ──► scrollback ──read, attach──► clients
//! ```
//!
//! Nothing that a client does or leaves undone holds a shell up: what its terminal writes goes to a ring of bytes, from which
//! each client reads as fast as it can. Several clients may type at once; what each sends in one piece stays together.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use pyro_wire::{
    Exec, Failure, Frame, FrameCodec, Input, InputReply, MAX_OUTPUT_BYTES, OutputStream, TerminalSize,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::codec::Framed;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::input::{Attached, HangUp, LAST_INPUT_LIMIT};
use super::scrollback::Scrollback;
use super::{Addressable, Begun, CommandLog, Commands, is_withdrawn, reply};
use crate::conversation::{CommandOutcome, HOST_MARGIN, OutputChunk, converse};
use crate::mux::call;
use crate::protocol::{
    CommandKey, InputOutcome, MAX_OPEN_SHELLS, ReadReason, ReadShell, Reply, Request, SCROLLBACK_BYTES,
    ServerStream, ShellPart, ShellState,
};
use crate::server::{REPLY_LIMIT, Store};

/// Maximum number of shells that have ended and can still be read.
const MAX_ENDED_SHELLS: usize = 16;
/// Number of shells that have ended last and keep their scrollback, which clients may still be reading.
const MAX_ENDED_WHOLE: usize = 4;
/// Maximum number of bytes that are kept of one that has ended earlier.
const ENDED_BYTES: usize = 256 << 10;

/// The shells of a VM by their numbers in the journal: those that run, and the latest that have ended.
#[derive(Default)]
pub(super) struct Shells {
    all: RefCell<BTreeMap<u64, Rc<Shell>>>,
    /// Number of shells that have no number yet.
    opening: Cell<usize>,
    /// Number of shells that have ended.
    ended: Cell<u64>,
}

/// The right to open one shell.
struct Place<'a>(&'a Shells);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.opening.set(self.0.opening.get() - 1);
    }
}

impl Shells {
    /// `None`: the maximum number of shells run.
    fn reserve(&self) -> Option<Place<'_>> {
        let running = self.all.borrow().values().filter(|shell| shell.is_running()).count();
        if running + self.opening.get() >= MAX_OPEN_SHELLS {
            return None;
        }
        self.opening.set(self.opening.get() + 1);
        Some(Place(self))
    }

    /// Ends a shell. Of those that ended long before, less is kept, or nothing.
    fn end(&self, shell: &Shell, outcome: CommandOutcome) {
        self.ended.set(self.ended.get() + 1);
        shell.end(outcome, self.ended.get());
        let mut all = self.all.borrow_mut();
        let mut ended: Vec<Rc<Shell>> =
            all.values().filter(|shell| shell.place_of_end().is_some()).cloned().collect();
        ended.sort_by_key(|shell| std::cmp::Reverse(shell.place_of_end()));
        for shell in ended.iter().skip(MAX_ENDED_WHOLE) {
            shell.scrollback.borrow_mut().shrink(ENDED_BYTES);
        }
        for shell in ended.iter().skip(MAX_ENDED_SHELLS) {
            all.remove(&shell.sequence);
        }
    }
}

/// One shell.
pub(super) struct Shell {
    sequence: u64,
    /// Its number in the guest.
    id: u64,
    size: Cell<TerminalSize>,
    scrollback: RefCell<Scrollback>,
    activity: watch::Sender<Activity>,
    /// What is typed. Closed when the shell takes no more.
    keys: mpsc::Sender<Typed>,
}

/// One piece of what is typed.
struct Typed {
    bytes: Bytes,
    /// Receives whether it was passed on to the guest, or why not. Dropped if the shell takes no more.
    passed: oneshot::Sender<Result<(), String>>,
}

/// What a shell has done so far.
#[derive(Clone)]
struct Activity {
    written: u64,
    /// When its terminal wrote last.
    latest: Instant,
    /// How it ended, and its place in the order of ends.
    end: Option<(CommandOutcome, u64)>,
}

impl Activity {
    fn outcome(&self) -> Option<&CommandOutcome> {
        self.end.as_ref().map(|(outcome, _)| outcome)
    }
}

impl Shell {
    fn new(sequence: u64, id: u64, size: TerminalSize, keys: mpsc::Sender<Typed>) -> Self {
        Self {
            sequence,
            id,
            size: Cell::new(size),
            scrollback: RefCell::new(Scrollback::new(SCROLLBACK_BYTES as usize)),
            activity: watch::Sender::new(Activity { written: 0, latest: Instant::now(), end: None }),
            keys,
        }
    }

    fn is_running(&self) -> bool {
        self.activity.borrow().end.is_none()
    }

    fn place_of_end(&self) -> Option<u64> {
        self.activity.borrow().end.as_ref().map(|(_, place)| *place)
    }

    fn append(&self, bytes: &[u8]) {
        self.scrollback.borrow_mut().append(bytes);
        self.activity.send_modify(|activity| {
            activity.written += bytes.len() as u64;
            activity.latest = Instant::now();
        });
    }

    fn end(&self, outcome: CommandOutcome, place: u64) {
        self.activity.send_modify(|activity| activity.end = Some((outcome, place)));
    }

    /// Remembers the size that its terminal was given.
    pub(super) fn set_size(&self, size: TerminalSize) {
        self.size.set(size);
    }

    fn state(&self) -> ShellState {
        let activity = self.activity.borrow();
        ShellState {
            sequence: self.sequence,
            size: self.size.get(),
            written: activity.written,
            outcome: activity.outcome().cloned(),
        }
    }
}

/// How a stream for what is typed ended.
enum StreamEnd {
    /// The shell takes no more.
    Ended,
    /// Why, and where to report what was not passed on.
    Failed(Option<oneshot::Sender<Result<(), String>>>, String),
}

impl<S: Store + 'static> Commands<S> {
    /// Starts a shell and runs it to its end. The client learns its number.
    pub(in crate::server) async fn open_shell(&self, exec: Exec, mut client: ServerStream) {
        if is_withdrawn(&mut client) {
            return;
        }
        let refused = |cause: String| Reply::Refused { cause };
        let Some(size) = exec.terminal.filter(|_| exec.input) else {
            return reply(&mut client, refused("a shell needs a terminal and an input".to_owned())).await;
        };
        let Some(place) = self.0.shells.reserve() else {
            let cause = format!("too many open shells: the maximum is {MAX_OPEN_SHELLS}");
            return reply(&mut client, refused(cause)).await;
        };
        let begun = match self.begin(&exec, true).await {
            Ok(begun) => begun,
            Err(error) => return reply(&mut client, refused(error.to_string())).await,
        };
        let exec = Exec { id: begun.address.id, ..exec };
        let (keys, typed) = mpsc::channel(1);
        let shell = Rc::new(Shell::new(begun.sequence, exec.id, size, keys));
        self.0.shells.all.borrow_mut().insert(begun.sequence, Rc::clone(&shell));
        drop(place);
        self.run_shell(begun, exec, &shell, typed, client).await;
    }

    async fn run_shell(
        &self,
        begun: Begun<S>,
        exec: Exec,
        shell: &Shell,
        typed: mpsc::Receiver<Typed>,
        mut client: ServerStream,
    ) {
        let Begun { sequence, address, stream, permit, terminate, progress, counted } = begun;
        // Counts what the journal does not keep, which is all of it.
        let mut log = CommandLog::new(self.0.dir.clone(), sequence);
        let is_late = is_withdrawn(&mut client);
        if !is_late {
            reply(&mut client, Reply::Accepted { sequence: Some(sequence), id: exec.id }).await;
        }
        drop(client);
        let outcome = if is_late {
            CommandOutcome::not_run("its caller withdrew it before it began")
        } else {
            let id = exec.id;
            let typing = async {
                self.pass_on(id, typed).await;
                // Without its input, a shell goes on.
                pending::<Infallible>().await
            };
            let mut take = async |chunk: OutputChunk| {
                log.append(&chunk, 0);
                shell.append(&chunk.bytes);
            };
            let stream = Framed::new(stream.compat(), FrameCodec::default());
            let ended = terminate.cancelled_owned();
            let ran = converse(stream, exec, || address.sent(), ended, &mut take);
            tokio::select! {
                biased;
                outcome = ran => outcome,
                never = typing => match never {},
            }
        };
        drop((permit, address));
        let recorded = self.record_end(sequence, log, &outcome).await;
        if let Some(recorded) = &recorded {
            progress.send_modify(|progress| progress.end = Some(recorded.clone()));
        }
        self.0.shells.end(shell, recorded.unwrap_or(outcome));
        self.0.running.borrow_mut().remove(&sequence);
        drop(counted);
    }

    /// Passes on what clients type, until the shell takes no more. What cannot be passed on is reported to its client, and the
    /// next piece is tried again.
    async fn pass_on(&self, id: u64, mut typed: mpsc::Receiver<Typed>) {
        let Some((id, Addressable { input: Some(slot), .. })) = self.sent(CommandKey::Id(id)).await else {
            return;
        };
        let Some(attached) = Attached::to(slot) else { return };
        while let Some(first) = typed.recv().await {
            match self.pass_on_stream(id, &attached, first, &mut typed).await {
                StreamEnd::Ended => return,
                StreamEnd::Failed(None, _) => {}
                StreamEnd::Failed(Some(unpassed), cause) => {
                    // Its client may have left.
                    let _ = unpassed.send(Err(cause));
                }
            }
        }
    }

    /// Passes on what clients type for as long as one stream to the guest lasts.
    async fn pass_on_stream(
        &self,
        id: u64,
        attached: &Attached,
        first: Typed,
        typed: &mut mpsc::Receiver<Typed>,
    ) -> StreamEnd {
        let stream = match self.0.streams.open_with(&attached.permit).await {
            Ok(stream) => Framed::new(stream.compat(), FrameCodec::default()),
            Err(error) => return StreamEnd::Failed(Some(first.passed), error.to_string()),
        };
        let Ok(Ok(guest)) = timeout(HOST_MARGIN, call(stream, Input { command: id })).await else {
            return StreamEnd::Failed(Some(first.passed), "the guest takes no requests".to_owned());
        };
        let (mut to_guest, mut from_guest) = guest.split();
        let mut next = Some(first);
        let (unpassed, answer) = loop {
            let piece = match next.take() {
                Some(piece) => piece,
                None => tokio::select! {
                    biased;
                    // The guest answers when the shell takes no more.
                    answer = from_guest.next() => break (None, answer),
                    piece = typed.recv() => match piece {
                        Some(piece) => piece,
                        None => return StreamEnd::Ended,
                    },
                },
            };
            let Typed { bytes, passed } = piece;
            let sent = tokio::select! {
                biased;
                answer = from_guest.next() => break (Some(passed), answer),
                sent = to_guest.send(Frame::Output(OutputStream::Stdout, bytes)) => sent,
            };
            if sent.is_err() {
                // The guest's answer says why.
                let answer = timeout(HOST_MARGIN, from_guest.next()).await;
                break (Some(passed), answer.ok().flatten());
            }
            let _ = passed.send(Ok(()));
        };
        let cause = match answer {
            Some(Ok(Frame::Control(InputReply::Closed | InputReply::NotRunning))) => return StreamEnd::Ended,
            Some(Ok(Frame::Control(InputReply::Failed(Failure { step, cause, .. })))) => {
                format!("{step}: {cause}")
            }
            Some(Ok(Frame::Control(InputReply::Busy))) => {
                "the guest takes the input of another stream".to_owned()
            }
            Some(Ok(_) | Err(_)) => "unexpected message from the guest agent".to_owned(),
            None => "the guest has closed the input".to_owned(),
        };
        StreamEnd::Failed(unpassed, cause)
    }

    /// Returns a shell that runs or can still be read.
    async fn shell(&self, sequence: u64) -> Option<Rc<Shell>> {
        // One that is being given its number has no other yet.
        let _ = self.find(sequence).await;
        self.0.shells.all.borrow().get(&sequence).cloned()
    }

    /// Returns the shell that a command is. `None`: it is another command.
    pub(super) async fn shell_of(&self, command: CommandKey) -> Option<Rc<Shell>> {
        match command {
            CommandKey::Sequence(sequence) => self.shell(sequence).await,
            CommandKey::Id(id) => self.0.shells.all.borrow().values().find(|shell| shell.id == id).cloned(),
        }
    }

    /// Lists the shells.
    pub(in crate::server) async fn list_shells(&self, mut client: ServerStream) {
        let shells = self.0.shells.all.borrow().values().map(|shell| shell.state()).collect();
        reply(&mut client, Reply::Shells(shells)).await;
    }

    /// Waits for output of a shell, and sends it.
    pub(in crate::server) async fn read_shell(&self, request: ReadShell, mut client: ServerStream) {
        let Some(shell) = self.shell(request.sequence).await else {
            return reply(&mut client, Reply::NotRunning).await;
        };
        let mut activity = shell.activity.subscribe();
        let written = activity.borrow().written;
        let max_bytes = request.max_bytes.min(SCROLLBACK_BYTES);
        let from = request
            .cursor
            .unwrap_or_else(|| written.saturating_sub(max_bytes).max(shell.scrollback.borrow().oldest()));
        if from > written {
            let cause = format!("invalid cursor: expected at most {written}");
            return reply(&mut client, Reply::Refused { cause }).await;
        }
        let deadline = Instant::now() + Duration::from_millis(request.wait_ms);
        let idle = Duration::from_millis(request.idle_ms);
        let reason = loop {
            let seen = activity.borrow_and_update().clone();
            let available = seen.written - from.max(shell.scrollback.borrow().oldest());
            if available >= max_bytes && (available > max_bytes || seen.end.is_none()) {
                break ReadReason::Full;
            }
            if seen.end.is_some() {
                break ReadReason::Ended;
            }
            if available > 0 && idle.is_zero() {
                break ReadReason::Output;
            }
            let idle_at = (available > 0).then(|| seen.latest + idle).filter(|at| *at <= deadline);
            tokio::select! {
                biased;
                // The client sends nothing more, so this is its disconnect.
                _ = futures::StreamExt::next(&mut client) => return,
                _ = activity.changed() => {}
                () = sleep_until(idle_at.unwrap_or(deadline)) => break match idle_at {
                    Some(_) => ReadReason::Idle,
                    None => ReadReason::Time,
                },
            }
        };
        let (start, mut bytes) = shell.scrollback.borrow().read(from, max_bytes as usize);
        let state = shell.state();
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(MAX_OUTPUT_BYTES));
            let sent = client.send(Frame::Output(OutputStream::Stdout, piece));
            if !matches!(timeout(REPLY_LIMIT, sent).await, Ok(Ok(()))) {
                return;
            }
        }
        let part = ShellPart { start, dropped: start - from, reason, shell: state };
        reply(&mut client, Reply::ShellPart(part)).await;
    }

    /// Sends a client what a shell has written since a cursor, and what it writes, up to its end. A client that reads so slowly
    /// that it would miss something is sent the state of the shell instead, and that is all.
    pub(in crate::server) async fn attach_shell(&self, sequence: u64, cursor: u64, mut client: ServerStream) {
        let Some(shell) = self.shell(sequence).await else {
            return reply(&mut client, Reply::NotRunning).await;
        };
        let mut activity = shell.activity.subscribe();
        let mut at = cursor;
        loop {
            let seen = activity.borrow_and_update().clone();
            while at < seen.written {
                let (start, bytes) = shell.scrollback.borrow().read(at, MAX_OUTPUT_BYTES);
                if start > at {
                    return reply(&mut client, Reply::Shells(vec![shell.state()])).await;
                }
                at = start + bytes.len() as u64;
                if client.send(Frame::Output(OutputStream::Stdout, bytes)).await.is_err() {
                    return;
                }
            }
            if let Some((outcome, _)) = seen.end {
                return reply(&mut client, Reply::Ended(outcome)).await;
            }
            tokio::select! {
                _ = activity.changed() => {}
                // The client sends nothing more, so this is its disconnect.
                _ = futures::StreamExt::next(&mut client) => return,
            }
        }
    }

    /// Types what a client sends, until the client finishes or disconnects, or the shell takes no more.
    pub(super) async fn type_into(&self, shell: &Shell, mut client: ServerStream) {
        let hang_up = match HangUp::of(&client) {
            Ok(hang_up) => hang_up,
            Err(error) => return reply(&mut client, Reply::Refused { cause: error.to_string() }).await,
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
                    () = shell.keys.closed() => return Some(closed),
                    frame = client.next() => frame,
                };
                match frame {
                    Some(Ok(Frame::Output(_, bytes))) => {
                        let (passed, taken) = oneshot::channel();
                        if shell.keys.send(Typed { bytes, passed }).await.is_err() {
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
        let answer = tokio::select! {
            biased;
            answer = typing => answer,
            () = abandoned => None,
        };
        if let Some(answer) = answer {
            reply(&mut client, answer).await;
        }
    }
}
