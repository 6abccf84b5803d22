//! Commands of a journal: the supervisor runs them, so that they, their output and their record need no client.
//!
//! ```text
//!            number ◄── Recorder ◄──┐
//!  client ◄─────────────────────────┤ run ◄── guest
//!            output ──► files ──────┘
//!                         │ watch
//!  other clients ◄────────┘
//! ```
//!
//! A client that goes away changes nothing. One that does not read what it asked for slows its command down, until the
//! command is ended or its time is over; then the client is no longer waited for.

mod log;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::SinkExt;
use pyro_wire::{Exec, Frame, FrameCodec, OutputStream};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::codec::Framed;
use tokio_util::compat::FuturesAsyncReadCompatExt;
use tokio_util::sync::CancellationToken;

pub use self::log::{CommandLog, STREAM_LIMIT, file_name, room};

use super::control::{ControlReply, ServerStream};
use super::files;
use super::serve::Recorder;
use crate::guest::{ExecError, ExecOutcome, OutputChunk, converse, timeout_note};
use crate::mux::{Permit, Streams};

/// Time that all commands together have for ending when their VM is stopped: the grace of a command, and the guest's
/// answer.
const SETTLE_LIMIT: Duration = Duration::from_secs(3);
/// Pause after a record that could not be written.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Longest reason of the guest's that is recorded, in characters.
const MAX_CAUSE_CHARS: usize = 1000;
/// Bytes that are read from a command's files at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// What became of a command that had been given its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandEnd {
    /// It ended.
    Ended {
        /// How.
        outcome: ExecOutcome,
        /// Someone ended it.
        killed: bool,
        /// Bytes of stdout that its file does not have.
        stdout_truncated: u64,
        /// Bytes of stderr that its file does not have.
        stderr_truncated: u64,
    },
    /// It surely did not run.
    NotRun {
        /// Why.
        cause: String,
    },
    /// Its guest was lost while it ran: nobody knows.
    Lost,
}

/// The commands of one VM. Cheap to clone.
#[derive(Clone)]
pub(super) struct Commands(Rc<Shared>);

struct Shared {
    vm_id: String,
    /// Where their output is kept.
    dir: PathBuf,
    streams: Streams,
    recorder: Arc<dyn Recorder>,
    running: RefCell<BTreeMap<u64, Running>>,
    /// Commands that are being given their number.
    beginning: watch::Sender<usize>,
    /// Bytes of output that may still be kept.
    room: Cell<u64>,
    closed: Cell<bool>,
    /// Cancelled when the VM ends: what cannot be recorded by then will never be.
    ending: CancellationToken,
    /// Commands that are not over and recorded.
    count: watch::Sender<usize>,
}

/// A command that runs, for those who look at it.
#[derive(Clone)]
struct Running {
    terminate: CancellationToken,
    progress: watch::Receiver<Progress>,
}

#[derive(Clone, Default)]
struct Progress {
    stdout: u64,
    stderr: u64,
    end: Option<CommandEnd>,
}

impl Commands {
    pub(super) fn new(
        vm_id: &str,
        vm_dir: &std::path::Path,
        streams: Streams,
        recorder: Arc<dyn Recorder>,
    ) -> Self {
        let dir = vm_dir.join(files::COMMANDS);
        Self(Rc::new(Shared {
            vm_id: vm_id.to_owned(),
            room: Cell::new(log::room(&dir)),
            dir,
            streams,
            recorder,
            running: RefCell::default(),
            beginning: watch::Sender::new(0),
            closed: Cell::new(false),
            ending: CancellationToken::new(),
            count: watch::Sender::new(0),
        }))
    }

    /// Runs a command to its end, whatever the client does.
    pub(super) async fn run(&self, exec: Exec, detach: bool, mut client: ServerStream) {
        let begun = match self.begin(&exec).await {
            Ok(begun) => begun,
            Err(cause) => return say(&mut client, ControlReply::Refused { cause }).await,
        };
        let Begun { sequence, stream, terminate, progress, permit } = begun;
        say(&mut client, ControlReply::Accepted { sequence }).await;
        let timeout = Duration::from_millis(exec.timeout_ms);
        let mut listener = Listener {
            client: (!detach).then_some(client),
            patience: Instant::now().checked_add(timeout).and_then(|end| end.checked_add(SETTLE_LIMIT)),
            deaf: false,
        };
        let mut log = CommandLog::new(self.0.dir.clone(), sequence);

        let mut take = async |chunk: OutputChunk| {
            let room = self.0.room.get();
            self.0.room.set(room - log.append(&chunk, room));
            progress.send_modify(|progress| (progress.stdout, progress.stderr) = log.kept());
            listener.send(chunk, &terminate).await;
        };
        let stream = Framed::new(stream.compat(), FrameCodec::default());
        let asked_to_end = terminate.clone();
        let ran = converse(stream, exec, asked_to_end.cancelled_owned(), &mut take).await;
        if matches!(&ran, Ok(outcome) if outcome.timed_out) {
            let note = log.note(&timeout_note(timeout));
            progress.send_modify(|progress| (progress.stdout, progress.stderr) = log.kept());
            listener.send(OutputChunk { stream: OutputStream::Stderr, bytes: note.into() }, &terminate).await;
        }
        let end = match ran {
            Ok(outcome) => {
                let (stdout_dropped, stderr_dropped) = log.dropped();
                CommandEnd::Ended {
                    killed: terminate.is_cancelled() && !outcome.timed_out,
                    stdout_truncated: outcome.stdout_dropped.saturating_add(stdout_dropped),
                    stderr_truncated: outcome.stderr_dropped.saturating_add(stderr_dropped),
                    outcome,
                }
            }
            Err(error @ (ExecError::NotDelivered(_) | ExecError::NotStarted { .. })) => {
                CommandEnd::NotRun { cause: error.to_string().chars().take(MAX_CAUSE_CHARS).collect() }
            }
            Err(ExecError::Lost(_)) => CommandEnd::Lost,
        };
        drop(permit);
        // Whoever saw an end would rely on its record, so nobody is told before.
        let recorded = self.record_end(sequence, log, end.clone()).await;
        if recorded {
            progress.send_modify(|progress| progress.end = Some(end.clone()));
        }
        self.0.running.borrow_mut().remove(&sequence);
        if recorded && let Some(client) = &mut listener.client {
            say(client, ControlReply::Ended(end)).await;
        }
        self.0.count.send_modify(|count| *count -= 1);
    }

    /// Gives a command its number. It has a way to the guest then.
    async fn begin(&self, exec: &Exec) -> Result<Begun, String> {
        if self.0.closed.get() {
            return Err("the VM is being stopped".to_owned());
        }
        let stream = self.0.streams.open().await;
        let (stream, permit) = stream.ok_or("the guest is gone, or runs as many commands as it can")?;
        // From here on the end of the VM waits for this command.
        self.0.count.send_modify(|count| *count += 1);
        self.0.beginning.send_modify(|count| *count += 1);
        let recorded = self.blocking({
            let (vm_id, exec) = (self.0.vm_id.clone(), exec.clone());
            move |recorder| recorder.record_command(&vm_id, &exec)
        });
        let begun = match recorded.await {
            Ok(sequence) => {
                let (progress, watched) = watch::channel(Progress::default());
                let terminate = CancellationToken::new();
                let running = Running { terminate: terminate.clone(), progress: watched };
                self.0.running.borrow_mut().insert(sequence, running);
                if self.0.closed.get() {
                    terminate.cancel();
                }
                Ok(Begun { sequence, stream, permit, terminate, progress })
            }
            Err(cause) => {
                self.0.count.send_modify(|count| *count -= 1);
                Err(cause)
            }
        };
        self.0.beginning.send_modify(|count| *count -= 1);
        begun
    }

    /// Records the end of a command, as soon as that is possible: a full disk is no reason to forget it. False: it was
    /// not possible before the VM ended.
    async fn record_end(&self, sequence: u64, log: CommandLog, end: CommandEnd) -> bool {
        let log = Arc::new(log);
        loop {
            let ending = self.0.ending.is_cancelled();
            let (vm_id, log, end) = (self.0.vm_id.clone(), Arc::clone(&log), end.clone());
            let recorded = self.blocking(move |recorder| {
                log.sync();
                recorder.record_command_end(&vm_id, sequence, &end)
            });
            let Err(cause) = recorded.await else { return true };
            tracing::error!(sequence, cause, "the end of a command cannot be recorded");
            if ending {
                return false;
            }
            let _ = tokio::time::timeout(RETRY_PAUSE, self.0.ending.cancelled()).await;
        }
    }

    /// The command, if it runs. One that is just being given its number is waited for.
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

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Recorder) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let recorder = Arc::clone(&self.0.recorder);
        tokio::task::spawn_blocking(move || work(&*recorder)).await.map_err(|error| error.to_string())?
    }

    /// Tells a client how a command ends, once it has, with its kept output from the beginning if that is wanted. One
    /// that does not run is refused: its end is on record.
    pub(super) async fn watch(&self, sequence: u64, output: bool, mut client: ServerStream) {
        let Some(Running { mut progress, .. }) = self.find(sequence).await else {
            return say(&mut client, ControlReply::NotRunning).await;
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
                return say(&mut client, ControlReply::Ended(end)).await;
            }
            tokio::select! {
                changed = progress.changed() => if changed.is_err() { return },
                // It says nothing more, so this is its going away.
                _ = futures::StreamExt::next(&mut client) => return,
            }
        }
    }

    /// Ends a command.
    pub(super) async fn kill(&self, sequence: u64, mut client: ServerStream) {
        let Some(Running { terminate, mut progress }) = self.find(sequence).await else {
            return say(&mut client, ControlReply::NotRunning).await;
        };
        terminate.cancel();
        let ended = progress.wait_for(|progress| progress.end.is_some()).await;
        let end = ended.ok().and_then(|progress| progress.end.clone());
        if let Some(end) = end {
            say(&mut client, ControlReply::Ended(end)).await;
        }
    }

    /// Takes no more commands and ends those that run, so that their end can be recorded.
    pub(super) async fn end_all(&self) {
        self.0.closed.set(true);
        self.0.running.borrow().values().for_each(|running| running.terminate.cancel());
        self.settle().await;
    }

    /// Waits until no command runs any more, because all of them were told to end or their guest is gone.
    pub(super) async fn settle(&self) {
        self.0.closed.set(true);
        self.0.ending.cancel();
        let mut count = self.0.count.subscribe();
        let none = count.wait_for(|count| *count == 0);
        if tokio::time::timeout(SETTLE_LIMIT, none).await.is_err() {
            tracing::warn!("commands did not end in time");
        }
    }
}

struct Begun {
    sequence: u64,
    stream: yamux::Stream,
    permit: Permit,
    terminate: CancellationToken,
    progress: watch::Sender<Progress>,
}

/// The client that asked for a command, as long as it is there.
struct Listener {
    client: Option<ServerStream>,
    /// When it is no longer waited for; never, if that is beyond what a clock can hold.
    patience: Option<Instant>,
    /// It did not read when it was needed to. It still learns how the command ended, if it reads by then.
    deaf: bool,
}

impl Listener {
    async fn send(&mut self, chunk: OutputChunk, terminate: &CancellationToken) {
        let (Some(client), false) = (&mut self.client, self.deaf) else { return };
        let patience = self.patience;
        let impatient = async {
            match patience {
                Some(patience) => tokio::time::sleep_until(patience).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            sent = client.send(Frame::Output(chunk.stream, chunk.bytes)) => if sent.is_err() {
                self.client = None;
            },
            // A client that does not read must not keep its command from being ended, or from its end being seen.
            () = terminate.cancelled() => self.deaf = true,
            () = impatient => self.deaf = true,
        }
    }
}

/// Says something to a client, which may have gone away or may not read.
async fn say(client: &mut ServerStream, reply: ControlReply) {
    let _ = tokio::time::timeout(SETTLE_LIMIT, client.send(Frame::Control(reply))).await;
}
