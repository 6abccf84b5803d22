//! The commands that run, by their numbers, for requests that deal with one of them.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{self, Arc, PoisonError};

use pyro_wire::{Failure, Resize, Signal, SteerReply};
use tokio::net::unix::pipe;
use tokio::sync::{Mutex, MutexGuard, watch};
use tokio_util::sync::CancellationToken;

use super::process::Processes;
use super::terminal::Terminal;
use crate::failure::{During, refused};

/// Maximum number of commands that others with higher numbers may overtake.
const MAX_MISSING: u64 = 1024;

/// What can be done with a running command.
pub(super) struct Steering {
    pub(super) processes: Arc<Processes>,
    /// Where its input goes, while no request holds it.
    pub(super) input: CommandInput,
    pub(super) ended: CancellationToken,
}

/// The input of a command, which one request at a time writes to.
pub(super) struct CommandInput {
    target: Mutex<InputTarget>,
    /// Number of requests that wait for the one that writes.
    waiting: watch::Sender<usize>,
}

impl CommandInput {
    pub(super) fn new(target: InputTarget) -> Self {
        Self { target: Mutex::new(target), waiting: watch::Sender::new(0) }
    }

    /// Waits until no other request writes to it.
    pub(super) async fn lock(&self) -> MutexGuard<'_, InputTarget> {
        if let Ok(target) = self.target.try_lock() {
            return target;
        }
        self.waiting.send_modify(|count| *count += 1);
        let _waiting = Waiting(&self.waiting);
        self.target.lock().await
    }

    /// Returns when another request waits for it.
    pub(super) async fn wanted(&self) {
        // Fails if the sender is dropped, which this has.
        let _ = self.waiting.subscribe().wait_for(|count| *count > 0).await;
    }
}

/// A request that waits, until this is dropped.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Where the input of a command goes.
pub(super) enum InputTarget {
    /// It takes none, or its input has ended.
    Closed,
    Pipe(pipe::Sender),
    Terminal(Arc<Terminal>),
}

/// A command, from its request to its end. `None` until it has started.
type Command = watch::Receiver<Option<Arc<Steering>>>;

/// The commands of a guest that have begun and not ended.
#[derive(Debug)]
pub(crate) struct Running {
    commands: sync::Mutex<Commands>,
    /// Changes with every command that begins.
    begun: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Commands {
    running: HashMap<u64, Command>,
    /// The highest number of a command so far.
    highest: u64,
    /// Lower numbers whose commands have not come: requests may overtake each other.
    missing: BTreeSet<u64>,
}

impl Commands {
    fn begin(&mut self, id: u64, command: Command) {
        if id > self.highest {
            self.missing.extend((self.highest + 1).max(id.saturating_sub(MAX_MISSING))..id);
            self.highest = id;
            while self.missing.len() as u64 > MAX_MISSING {
                self.missing.pop_first();
            }
        } else {
            self.missing.remove(&id);
        }
        self.running.insert(id, command);
    }

    fn is_to_come(&self, id: u64) -> bool {
        id > self.highest || self.missing.contains(&id)
    }
}

impl Default for Running {
    fn default() -> Self {
        Self { commands: sync::Mutex::default(), begun: watch::Sender::new(()) }
    }
}

impl std::fmt::Debug for Steering {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Steering").finish_non_exhaustive()
    }
}

impl Running {
    /// Registers a command before it starts.
    pub(super) fn begin(&self, id: u64) -> Registration<'_> {
        let (steering, receiver) = watch::channel(None);
        if id > 0 {
            self.commands().begin(id, receiver);
            self.begun.send_replace(());
        }
        Registration { running: self, id, steering }
    }

    /// Waits until the command with this number has come and has started. `None`: it does not run any more. Callers watch the
    /// stream of their request meanwhile, because the command may never come.
    pub(super) async fn find(&self, id: u64) -> Option<Arc<Steering>> {
        let mut begun = self.begun.subscribe();
        while self.commands().is_to_come(id) {
            begun.changed().await.ok()?;
        }
        let mut command = self.commands().running.get(&id)?.clone();
        let started = command.wait_for(Option::is_some).await.ok()?;
        started.clone()
    }

    /// Changes the size of a command's terminal.
    pub(crate) async fn resize(&self, Resize { command, size }: Resize) -> SteerReply {
        let Some(steering) = self.find(command).await else { return SteerReply::NotRunning };
        let step = "resizing the terminal";
        let resized = match &steering.processes.terminal {
            Some(terminal) => terminal.resize(size).during(step),
            None => Err(refused(step, "the command has no terminal")),
        };
        reply(resized)
    }

    /// Sends a signal to a command.
    pub(crate) async fn signal(&self, Signal { command, signal }: Signal) -> SteerReply {
        match self.find(command).await {
            Some(steering) => reply(steering.processes.send(signal).during("sending a signal")),
            None => SteerReply::NotRunning,
        }
    }

    fn commands(&self) -> sync::MutexGuard<'_, Commands> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reply(outcome: Result<(), Failure>) -> SteerReply {
    match outcome {
        Ok(()) => SteerReply::Done,
        Err(failure) => SteerReply::Failed(failure),
    }
}

/// A registered command, until this is dropped.
pub(super) struct Registration<'a> {
    running: &'a Running,
    id: u64,
    steering: watch::Sender<Option<Arc<Steering>>>,
}

impl Registration<'_> {
    pub(super) fn started(&self, steering: Steering) {
        let steering = Arc::new(steering);
        self.steering.send_modify(|known| *known = Some(steering));
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        if let Some(steering) = self.steering.borrow().as_ref() {
            steering.ended.cancel();
        }
        if self.id > 0 {
            self.running.commands().running.remove(&self.id);
        }
    }
}

impl InputTarget {
    /// Writes bytes.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        use tokio::io::AsyncWriteExt;
        match self {
            Self::Closed => Err(io::ErrorKind::BrokenPipe.into()),
            Self::Pipe(pipe) => pipe.write_all(bytes).await,
            Self::Terminal(terminal) => terminal.write(bytes).await,
        }
    }

    /// Returns when nothing can read any more what is written.
    pub(super) async fn reader_gone(&self) {
        match self {
            Self::Closed => {}
            Self::Pipe(pipe) => {
                let _ = pipe.ready(tokio::io::Interest::ERROR).await;
            }
            Self::Terminal(_) => std::future::pending().await,
        }
    }
}
