//! Runs the VM's commands in the supervisor, so that journalled commands, their output and their records need no
//! client.
//!
//! ```text
//!            number ◄── Store ◄──┐
//!  client ◄──────────────────────┤ run ◄── guest
//!            output ──► files ───┘
//!                         │ watch
//!  other clients ◄────────┘
//! ```
//!
//! A client that disconnects before its command is accepted has withdrawn it. After that, a disconnect does not affect
//! a journalled command, unless it is a login shell, and ends one that is not in the journal. A client that does not read its output slows its
//! command down, until the command is killed or times out; then the supervisor stops waiting for the client.

mod input;
mod log;
mod scrollback;
mod shells;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{SplitSink, SplitStream};
use futures::{FutureExt, SinkExt, StreamExt};
use pyro_wire::{Exec, Frame, FrameCodec, OutputStream, Program};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::codec::Framed;
use tokio_util::compat::FuturesAsyncReadCompatExt;
use tokio_util::sync::CancellationToken;

pub use self::log::{CommandLog, STREAM_LIMIT, file_name, room};

use self::shells::Shells;
use super::{REPLY_LIMIT, Store, StoreError};
use crate::conversation::{CommandOutcome, OutputChunk, converse, timeout_note};
use crate::mux::{OpenError, Permit, Streams};
use crate::protocol::{Reply, Request, ServerStream};
use crate::{dir, files};

/// Time limit for all commands together to end when their VM is stopped: a command's kill grace and the guest's answer.
pub(super) const SETTLE_LIMIT: Duration = Duration::from_secs(3);
/// What each of them adds to that: an emulated guest ends the processes of one control group after another.
pub(super) const SETTLE_STEP: Duration = Duration::from_millis(40);
/// Initial pause after a record could not be written. It doubles each time, up to [`MAX_RETRY_PAUSE`].
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(60);
/// Bytes to read from a command's files at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// The commands of one VM. Cheap to clone.
pub(super) struct Commands<S>(Rc<Shared<S>>);

impl<S> Clone for Commands<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

struct Shared<S> {
    vm_id: String,
    /// Directory that holds the commands' output.
    dir: PathBuf,
    streams: Streams,
    store: Rc<S>,
    running: RefCell<BTreeMap<u64, Running>>,
    /// Every command that has not ended, by its number in the guest.
    addressable: RefCell<BTreeMap<u64, Addressable>>,
    shells: Shells,
    /// Number in the guest of the latest command.
    latest_id: Cell<u64>,
    /// Commands outside the journal, which can only be ended together.
    unnumbered: CancellationToken,
    /// Number of commands that are being given their sequence.
    beginning: watch::Sender<usize>,
    /// Bytes of output that may still be kept.
    room: Cell<u64>,
    closed: Cell<bool>,
    /// Cancelled when the VM ends: an end that is not recorded by then never will be.
    ending: CancellationToken,
    /// Number of commands that have not both ended and been recorded.
    count: watch::Sender<usize>,
}

/// A command as seen by the clients that send it something.
#[derive(Clone)]
struct Addressable {
    /// Whether the guest was sent the command. Its sender goes when the command ends.
    is_sent: watch::Receiver<bool>,
    /// `None`: the command takes no input.
    input: Option<InputSlot>,
}

/// The permit for the stream that carries a command's input. `None`: a client uses it.
type InputSlot = Rc<RefCell<Option<Rc<Permit>>>>;

/// A running command, as seen by the clients that watch or kill it.
#[derive(Clone)]
struct Running {
    /// Its number in the guest.
    id: u64,
    terminate: CancellationToken,
    progress: watch::Receiver<Progress>,
}

#[derive(Clone, Default)]
struct Progress {
    stdout: u64,
    stderr: u64,
    end: Option<CommandOutcome>,
}

impl<S: Store + 'static> Commands<S> {
    pub(super) fn new(vm_id: &str, vm_dir: &std::path::Path, streams: Streams, store: Rc<S>) -> Self {
        let dir = vm_dir.join(files::COMMANDS);
        Self(Rc::new(Shared {
            vm_id: vm_id.to_owned(),
            room: Cell::new(log::room(&dir)),
            dir,
            streams,
            store,
            running: RefCell::default(),
            addressable: RefCell::default(),
            shells: Shells::default(),
            latest_id: Cell::new(0),
            unnumbered: CancellationToken::new(),
            beginning: watch::Sender::new(0),
            closed: Cell::new(false),
            ending: CancellationToken::new(),
            count: watch::Sender::new(0),
        }))
    }

    /// Runs a command to its end.
    pub(super) async fn run(&self, exec: Exec, journal: bool, detach: bool, mut client: ServerStream) {
        // The request may have waited in the socket's buffer for longer than its client did.
        if is_withdrawn(&mut client) {
            return;
        }
        let begun = match self.begin(&exec, journal).await {
            Ok(begun) => begun,
            Err(error) => return reply(&mut client, Reply::Refused { cause: error.to_string() }).await,
        };
        let exec = Exec { id: begun.address.id, ..exec };
        if journal {
            self.run_numbered(begun, exec, detach, client).await;
        } else {
            self.run_unnumbered(begun, exec, client).await;
        }
    }

    async fn run_unnumbered(&self, begun: Begun<S>, exec: Exec, mut client: ServerStream) {
        reply(&mut client, Reply::Accepted { sequence: None, id: exec.id }).await;
        let (sink, reader) = client.split();
        let mut listener = Listener { client: Some(sink), patience: patience(&exec), given_up: false };
        let Begun { stream, address, terminate, permit: _permit, counted, .. } = begun;
        let stream = (Framed::new(stream.compat(), FrameCodec::default()), self.0.streams.pace());
        let mut take = async |chunk: OutputChunk| listener.send(chunk, &terminate).await;
        let ended = terminate.clone().cancelled_owned();
        let ran = async { converse(stream, exec, || address.sent(), ended, &mut take).await };
        let outcome = tokio::select! {
            biased;
            // Dropping the stream ends the command.
            () = gone(reader) => return,
            outcome = ran => outcome,
        };
        drop(address);
        // The end of the VM does not wait for a client that does not read.
        drop(counted);
        if let Some(client) = &mut listener.client {
            reply(client, Reply::Ended(outcome)).await;
        }
    }

    async fn run_numbered(&self, begun: Begun<S>, exec: Exec, detach: bool, mut client: ServerStream) {
        let Begun { sequence, address, stream, permit, terminate, progress, counted } = begun;
        let mut log = CommandLog::new(self.0.dir.clone(), sequence);
        self.0.room.set(log::room_now(&self.0.dir, self.0.room.get()));
        let mut withdrawn = is_withdrawn(&mut client);
        if !withdrawn {
            reply(&mut client, Reply::Accepted { sequence: Some(sequence), id: exec.id }).await;
            withdrawn = !detach && is_withdrawn(&mut client);
        }
        let (sink, reader) = client.split();
        let timeout = Duration::from_millis(exec.timeout_ms);
        let mut listener =
            Listener { client: (!detach).then_some(sink), patience: patience(&exec), given_up: false };
        let outcome = if withdrawn {
            CommandOutcome::not_run("its caller withdrew it before it began")
        } else {
            if !detach {
                let is_login_shell = exec.program == Program::LoginShell;
                tokio::task::spawn_local(cancel(reader, terminate.clone(), is_login_shell));
            }
            let mut take = async |chunk: OutputChunk| {
                let room = self.0.room.get();
                self.0.room.set(room - log.append(&chunk, room));
                progress.send_modify(|progress| (progress.stdout, progress.stderr) = log.kept());
                listener.send(chunk, &terminate).await;
            };
            let stream = (Framed::new(stream.compat(), FrameCodec::default()), self.0.streams.pace());
            let ended = terminate.clone().cancelled_owned();
            converse(stream, exec, || address.sent(), ended, &mut take).await
        };
        drop((permit, address));
        if matches!(&outcome, CommandOutcome::Ended(end) if end.timed_out) {
            let note = log.note(&timeout_note(timeout));
            progress.send_modify(|progress| (progress.stdout, progress.stderr) = log.kept());
            listener.send(OutputChunk { stream: OutputStream::Stderr, bytes: note.into() }, &terminate).await;
        }
        // A client that sees an end relies on its record, so report it only after it is recorded.
        let recorded = self.record_end(sequence, log, &outcome).await;
        if let Some(recorded) = &recorded {
            progress.send_modify(|progress| progress.end = Some(recorded.clone()));
        }
        self.0.running.borrow_mut().remove(&sequence);
        drop(counted);
        if let (Some(recorded), Some(client)) = (recorded, &mut listener.client) {
            // The client counts what it keeps itself.
            let reported = if let CommandOutcome::Unknown { .. } = recorded { recorded } else { outcome };
            reply(client, Reply::Ended(reported)).await;
        }
    }

    /// Gives a journalled command its sequence. From then on it has a stream to the guest.
    async fn begin(&self, exec: &Exec, journal: bool) -> Result<Begun<S>, NotBegun> {
        if self.0.closed.get() {
            return Err(NotBegun::Stopping);
        }
        let (stream, permit) = self.0.streams.open().await?;
        // A command that is accepted can be sent its input.
        let input = exec.input.then(|| self.0.streams.reserve()).transpose()?;
        // `end_all` may have run in the meantime, and it does not wait for commands that are not counted.
        if self.0.closed.get() {
            return Err(NotBegun::Stopping);
        }
        // From here on the end of the VM waits for this command.
        let counted = Counted::new(&self.0.count);
        let (progress, watched) = watch::channel(Progress::default());
        let address = Address::new(&self.0, input);
        if !journal {
            let terminate = self.0.unnumbered.child_token();
            return Ok(Begun { sequence: 0, address, stream, permit, terminate, progress, counted });
        }
        self.0.beginning.send_modify(|count| *count += 1);
        let begun = match self.0.store.record_command(&self.0.vm_id, exec).await {
            Ok(sequence) => {
                let terminate = CancellationToken::new();
                let running = Running { id: address.id, terminate: terminate.clone(), progress: watched };
                self.0.running.borrow_mut().insert(sequence, running);
                if self.0.closed.get() {
                    terminate.cancel();
                }
                Ok(Begun { sequence, address, stream, permit, terminate, progress, counted })
            }
            Err(error) => {
                drop(counted);
                Err(error.into())
            }
        };
        self.0.beginning.send_modify(|count| *count -= 1);
        begun
    }

    /// Records a command's outcome as soon as possible; a full disk only delays it. An outcome that can never be
    /// recorded becomes unknown. Returns `None` if the VM ended first.
    async fn record_end(
        &self,
        sequence: u64,
        log: CommandLog,
        outcome: &CommandOutcome,
    ) -> Option<CommandOutcome> {
        let mut outcome = outcome.clone().without(log.dropped());
        let log = Arc::new(log);
        let mut pause = RETRY_PAUSE;
        loop {
            let ending = self.0.ending.is_cancelled();
            let synced = Arc::clone(&log);
            let _ = tokio::task::spawn_blocking(move || synced.sync()).await;
            let recorded = self.0.store.record_command_end(&self.0.vm_id, sequence, &outcome);
            let Err(error) = recorded.await else { return Some(outcome) };
            dir::bound_log();
            tracing::error!(sequence, %error, "the end of a command cannot be recorded");
            match outcome {
                CommandOutcome::Unknown { .. } if error.is_permanent => return Some(outcome),
                _ if error.is_permanent => outcome = CommandOutcome::Unknown { cause: Some(error.cause) },
                _ if ending => return None,
                _ => {
                    let _ = tokio::time::timeout(pause, self.0.ending.cancelled()).await;
                    pause = MAX_RETRY_PAUSE.min(pause * 2);
                }
            }
        }
    }

    /// Returns the command if it is running. Waits for commands that are being given their sequence.
    async fn find(&self, sequence: u64) -> Option<Running> {
        let mut beginning = self.0.beginning.subscribe();
        loop {
            let none_begins = *beginning.borrow_and_update() == 0;
            let running = self.0.running.borrow().get(&sequence).cloned();
            if running.is_some() || none_begins {
                return running;
            }
            beginning.changed().await.ok()?;
        }
    }

    /// Reports to a client how a command ends, once it has, preceded by its kept output from the beginning if `output`
    /// is set. Refuses a command that is not running: its end is on record.
    pub(super) async fn watch(&self, sequence: u64, output: bool, mut client: ServerStream) {
        let Some(Running { mut progress, .. }) = self.find(sequence).await else {
            return reply(&mut client, Reply::NotRunning).await;
        };
        let mut sent = [(OutputStream::Stdout, 0), (OutputStream::Stderr, 0)];
        loop {
            let seen = progress.borrow_and_update().clone();
            if output {
                for ((stream, at), until) in sent.iter_mut().zip([seen.stdout, seen.stderr]) {
                    let path = self.0.dir.join(file_name(sequence, *stream));
                    while *at < until {
                        let length = (until - *at).min(CHUNK_BYTES as u64) as usize;
                        let Ok(bytes) = log::read_at(&path, *at, length) else { return };
                        *at += length as u64;
                        if client.send(Frame::Output(*stream, bytes)).await.is_err() {
                            return;
                        }
                    }
                }
            }
            if let Some(end) = seen.end {
                return reply(&mut client, Reply::Ended(end)).await;
            }
            tokio::select! {
                changed = progress.changed() => if changed.is_err() { return },
                // The client sends nothing more, so this is its disconnect.
                _ = futures::StreamExt::next(&mut client) => return,
            }
        }
    }

    /// Ends a command.
    pub(super) async fn kill(&self, sequence: u64, mut client: ServerStream) {
        let Some(Running { terminate, mut progress, .. }) = self.find(sequence).await else {
            return reply(&mut client, Reply::NotRunning).await;
        };
        terminate.cancel();
        let end = tokio::select! {
            ended = progress.wait_for(|progress| progress.end.is_some()) => {
                ended.ok().and_then(|progress| progress.end.clone())
            }
            // The client sends nothing more, so this is its disconnect. The end of the command may never be on record.
            _ = futures::StreamExt::next(&mut client) => return,
        };
        if let Some(end) = end {
            reply(&mut client, Reply::Ended(end)).await;
        }
    }

    /// Accepts no more commands and ends the running ones, so that their ends can be recorded.
    pub(super) async fn end_all(&self) {
        self.0.closed.set(true);
        self.0.unnumbered.cancel();
        self.0.running.borrow().values().for_each(|running| running.terminate.cancel());
        self.settle().await;
    }

    /// Waits until no command is running, either because all were terminated or because the guest is gone.
    pub(super) async fn settle(&self) {
        self.0.closed.set(true);
        self.0.ending.cancel();
        let mut count = self.0.count.subscribe();
        let running = *count.borrow();
        let none = count.wait_for(|count| *count == 0);
        let limit = SETTLE_LIMIT + SETTLE_STEP * u32::try_from(running).unwrap_or(u32::MAX);
        if tokio::time::timeout(limit, none).await.is_err() {
            tracing::warn!("commands did not end in time");
        }
    }
}

/// Why a command is not begun.
#[derive(Debug, thiserror::Error)]
enum NotBegun {
    #[error("the VM is being stopped")]
    Stopping,
    #[error(transparent)]
    NoStream(#[from] OpenError),
    #[error(transparent)]
    NotRecorded(#[from] StoreError),
}

struct Begun<S> {
    sequence: u64,
    address: Address<S>,
    stream: yamux::Stream,
    permit: Permit,
    terminate: CancellationToken,
    progress: watch::Sender<Progress>,
    counted: Counted,
}

/// A command's number in the guest, under which clients find it for as long as this lives.
struct Address<S> {
    id: u64,
    is_sent: watch::Sender<bool>,
    shared: Rc<Shared<S>>,
}

impl<S> Address<S> {
    fn new(shared: &Rc<Shared<S>>, input: Option<Permit>) -> Self {
        let id = shared.latest_id.get() + 1;
        shared.latest_id.set(id);
        let (is_sent, watched) = watch::channel(false);
        let input = input.map(|permit| Rc::new(RefCell::new(Some(Rc::new(permit)))));
        shared.addressable.borrow_mut().insert(id, Addressable { is_sent: watched, input });
        Self { id, is_sent, shared: Rc::clone(shared) }
    }

    /// The guest was sent the command.
    fn sent(&self) {
        self.is_sent.send_replace(true);
    }
}

impl<S> Drop for Address<S> {
    fn drop(&mut self) {
        self.shared.addressable.borrow_mut().remove(&self.id);
    }
}

/// The client that requested a command, for as long as it is connected.
struct Listener {
    client: Option<SplitSink<ServerStream, Frame<Reply>>>,
    /// Time after which the command no longer waits for the client.
    patience: Instant,
    /// The client did not read when it had to. It still receives the command's outcome if it reads by then.
    given_up: bool,
}

impl Listener {
    async fn send(&mut self, chunk: OutputChunk, terminate: &CancellationToken) {
        let (Some(client), false) = (&mut self.client, self.given_up) else { return };
        tokio::select! {
            biased;
            sent = client.send(Frame::Output(chunk.stream, chunk.bytes)) => if sent.is_err() {
                self.client = None;
            },
            // A client that does not read must not delay killing its command or noticing its end.
            () = terminate.cancelled() => self.given_up = true,
            () = tokio::time::sleep_until(self.patience) => self.given_up = true,
        }
    }
}

/// Returns until when a command that begins now waits for its client.
fn patience(exec: &Exec) -> Instant {
    Instant::now() + Duration::from_millis(exec.timeout_ms) + SETTLE_LIMIT
}

/// Sends a reply to a client, which may have disconnected or may not read.
pub(super) async fn reply<C>(client: &mut C, message: Reply)
where
    C: futures::Sink<Frame<Reply>> + Unpin,
{
    let _ = tokio::time::timeout(REPLY_LIMIT, client.send(Frame::Control(message))).await;
}

/// Returns whether the client has disconnected or cancelled. It sends nothing else before it is answered.
pub(super) fn is_withdrawn(client: &mut ServerStream) -> bool {
    client.next().now_or_never().is_some()
}

/// Ends a command when its client cancels it. A disconnect only ends a login shell.
async fn cancel(mut client: SplitStream<ServerStream>, terminate: CancellationToken, is_login_shell: bool) {
    while let Some(Ok(frame)) = client.next().await {
        if frame == Frame::Control(Request::Cancel) {
            terminate.cancel();
        }
    }
    // No other client can type into it.
    if is_login_shell {
        terminate.cancel();
    }
}

/// Returns when the client has disconnected or cancelled its command.
async fn gone(mut client: SplitStream<ServerStream>) {
    let _ = client.next().await;
}

/// A command that counts as unfinished until this is dropped.
pub(super) struct Counted(watch::Sender<usize>);

impl Counted {
    pub(super) fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
