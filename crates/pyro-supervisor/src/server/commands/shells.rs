//! Shells: commands on terminals that belong to no client.
//!
//! ```text
//!  clients ──type──► queue ──► guest ──► scrollback ──read, attach──► clients
//! ```
//!
//! Nothing that a client does or leaves undone holds a shell up: what its terminal writes goes to a ring of bytes, from which
//! each client reads as fast as it can. Several clients may type at once; what each sends in one piece stays together.

mod shell;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::rc::Rc;

use futures::{SinkExt, StreamExt};
use pyro_wire::{Exec, Failure, Frame, FrameCodec, Input, InputReply, MAX_OUTPUT_BYTES, OutputStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::codec::Framed;
use tokio_util::compat::FuturesAsyncReadCompatExt;

pub(super) use self::shell::Shell;
use self::shell::Typed;
use super::input::Attached;
use super::{Addressable, Begun, CommandLog, Commands, is_withdrawn, reply};
use crate::conversation::{CommandOutcome, OutputChunk, converse};
use crate::mux::call;
use crate::protocol::{CommandKey, InputOutcome, MAX_OPEN_SHELLS, ReadShell, Reply, ServerStream};
use crate::server::Store;

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
            let stream = (Framed::new(stream.compat(), FrameCodec::default()), self.0.streams.pace());
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
        let Ok(Ok(guest)) = timeout(self.margin(), call(stream, Input { command: id })).await else {
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
                let answer = timeout(self.margin(), from_guest.next()).await;
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
        match shell.range(request) {
            Ok(range) => shell.answer(range, request, client).await,
            Err(refused) => reply(&mut client, refused).await,
        }
    }

    /// Types what a client sends into a shell, waits for the output that follows, and sends it.
    pub(in crate::server) async fn write_shell(&self, request: ReadShell, mut client: ServerStream) {
        let Some(shell) = self.shell(request.sequence).await else {
            return reply(&mut client, Reply::NotRunning).await;
        };
        let range = match shell.range(ReadShell { fresh: true, ..request }) {
            Ok(range) => range,
            Err(refused) => return reply(&mut client, refused).await,
        };
        let Some(typed) = shell.type_from(&mut client).await else { return };
        let is_taken = typed == Reply::Input(InputOutcome::Taken);
        reply(&mut client, typed).await;
        if is_taken {
            shell.answer(range, request, client).await;
        }
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
        if let Some(answer) = shell.type_from(&mut client).await {
            reply(&mut client, answer).await;
        }
    }
}
