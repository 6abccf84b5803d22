//! The only client of a supervisor: everything that another process wants of a VM that runs.

mod copy;
mod end;
mod event_fd;
mod process;
mod start;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{Exec, Frame, FrameCodec};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

pub use self::copy::CopyError;
pub use self::end::{EndError, EndRequest, Ended};
use self::process::Process;
pub use self::start::{Lifeline, StartError, make_template, start};
pub(crate) use self::start::{claim, spawn};
use super::conversation::{CommandOutcome, HOST_MARGIN, OutputChunk};
use super::dir;
use super::protocol::{ClientStream, GENERATION, Greeting, Opening, Reply, Request, other_version};

/// Time within which a supervisor answers what it can answer at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Time within which a process is gone whose connections are closed.
const EXIT_LIMIT: Duration = Duration::from_secs(1);
/// Time that a command has for ending when its caller gives it up.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);
/// Time that a supervisor has for recording the end of a command, beyond the command's own limits.
const RECORD_LIMIT: Duration = Duration::from_secs(10);

/// Why a supervisor was not asked for anything. Nothing was done, and nothing will be.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is none, normally because the VM has ended.
    #[error("the VM cannot be reached")]
    Unreachable(#[source] io::Error),
    /// It does not answer.
    #[error("the supervisor of the VM does not respond")]
    Unresponsive,
    /// It is of another version, and does not understand this one.
    #[error("{}", other_version(.version.as_deref()))]
    OtherVersion {
        /// Which; absent: one that does not say, because it is older than generations.
        version: Option<String>,
    },
}

/// Why a client does not know what became of its command.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The supervisor was not asked: the command certainly does not run.
    #[error(transparent)]
    NotDelivered(#[from] ConnectError),
    /// The supervisor did not take the command: it certainly does not run.
    #[error("{cause}")]
    Refused {
        /// Why.
        cause: String,
    },
    /// The caller gave the command up. It was not begun, or is being ended.
    #[error("the command was cancelled")]
    Cancelled,
    /// The supervisor was lost, or stopped answering. If the command has a number, its record will say more.
    #[error("the supervisor of the VM was lost")]
    Lost {
        /// Its number, if it was told.
        sequence: Option<u64>,
    },
}

/// What is to be run, and how.
#[derive(Clone, Debug)]
pub struct Run {
    /// The command.
    pub exec: Exec,
    /// Number it, keep its output and record how it ends. It then goes on when its client goes away; one that is in no
    /// journal ends.
    pub journal: bool,
}

/// A command that was accepted and is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its number, if it is in the journal.
    pub sequence: Option<u64>,
    /// What became of it.
    pub outcome: CommandOutcome,
}

/// A way to the supervisor of one VM. Holds no connection.
#[derive(Clone, Debug)]
pub struct Client {
    dir: PathBuf,
}

impl Client {
    /// For the VM whose directory is `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Directory of the VM.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs a command, at most once, and waits for its end. Its output comes as it is written, that of a stream in
    /// order; while `on_output` waits, the command is slowed down, but its deadline goes on.
    ///
    /// `cancel` ends the command. One that the supervisor has not begun by then never runs. Dropping the future does the
    /// same to a command that is in no journal, and leaves one of the journal alone.
    ///
    /// # Errors
    /// [`RunError`]; its variants say whether the command can have run.
    pub async fn run(
        &self,
        run: Run,
        cancel: &CancellationToken,
        on_accepted: impl FnOnce(u64),
        mut on_output: impl AsyncFnMut(OutputChunk),
    ) -> Result<Ran, RunError> {
        let patience = patience(&run.exec);
        let connected = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(RunError::Cancelled),
            connected = self.connect() => connected?,
        };
        let mut stream = connected.stream;
        let request = Request::Run { exec: run.exec, journal: run.journal, detach: false };
        ask(&mut stream, request).await?;
        let mut on_accepted = Some(on_accepted);
        let mut sequence = None;
        // When nothing is expected any more; never, if that is beyond what a clock can hold.
        let mut deadline = Instant::now().checked_add(ANSWER_LIMIT);
        loop {
            let silence = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let frame = tokio::select! {
                biased;
                () = cancel.cancelled() => {
                    return Err(give_up(stream, &mut on_output).await);
                }
                frame = stream.next() => frame,
                () = silence => return Err(RunError::Lost { sequence }),
            };
            match frame {
                Some(Ok(Frame::Control(Reply::Accepted { sequence: number }))) => {
                    sequence = number;
                    deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
                    if let (Some(number), Some(on_accepted)) = (number, on_accepted.take()) {
                        on_accepted(number);
                    }
                }
                Some(Ok(Frame::Output(stream, bytes))) => {
                    let received = Instant::now();
                    tokio::select! {
                        biased;
                        () = cancel.cancelled() => {}
                        () = on_output(OutputChunk { stream, bytes }) => {}
                    }
                    // Time in which the caller did not listen is not held against the supervisor.
                    deadline = deadline.and_then(|deadline| deadline.checked_add(received.elapsed()));
                }
                Some(Ok(Frame::Control(Reply::Ended(outcome)))) => return Ok(Ran { sequence, outcome }),
                Some(Ok(Frame::Control(Reply::Refused { cause }))) => {
                    return Err(RunError::Refused { cause });
                }
                Some(Ok(Frame::Control(Reply::Unknown(Greeting { version, .. })))) => {
                    return Err(ConnectError::OtherVersion { version: Some(version) }.into());
                }
                Some(Ok(Frame::Control(Reply::Done | Reply::NotRunning)) | Err(_)) | None => {
                    return Err(RunError::Lost { sequence });
                }
            }
        }
    }

    /// Begins a command of the journal that nobody waits for, and gives its number.
    ///
    /// # Errors
    /// [`RunError`].
    pub async fn detach(&self, exec: Exec) -> Result<u64, RunError> {
        let request = Request::Run { exec, journal: true, detach: true };
        match self.ask(request).await? {
            Some(Reply::Accepted { sequence: Some(sequence) }) => Ok(sequence),
            Some(Reply::Refused { cause }) => Err(RunError::Refused { cause }),
            Some(Reply::Unknown(Greeting { version, .. })) => {
                Err(ConnectError::OtherVersion { version: Some(version) }.into())
            }
            _ => Err(RunError::Lost { sequence: None }),
        }
    }

    /// Waits until a command that runs has ended; its output, from the beginning, is given to `on_output` meanwhile if
    /// `output` is true. `None`: it does not run, and its record says more.
    ///
    /// # Errors
    /// The supervisor cannot be reached or was lost.
    pub async fn watch(
        &self,
        sequence: u64,
        output: bool,
        on_output: impl AsyncFnMut(OutputChunk),
    ) -> Result<Option<CommandOutcome>, RunError> {
        self.outcome_of(Request::Watch { sequence, output }, on_output).await
    }

    /// Ends a command that runs and waits until it has ended. `None`: it does not run, and its record says more.
    ///
    /// # Errors
    /// The supervisor cannot be reached or was lost.
    pub async fn kill(&self, sequence: u64) -> Result<Option<CommandOutcome>, RunError> {
        self.outcome_of(Request::Kill { sequence }, async |_| {}).await
    }

    /// Lets the VM's lifetime end at another time, in seconds since the epoch.
    ///
    /// # Errors
    /// It cannot be reached or is about to end.
    pub async fn extend(&self, expires_at: f64) -> Result<(), RunError> {
        match self.ask(Request::Extend { expires_at }).await? {
            Some(Reply::Done) => Ok(()),
            Some(Reply::Refused { cause }) => Err(RunError::Refused { cause }),
            _ => Err(RunError::Lost { sequence: None }),
        }
    }

    async fn outcome_of(
        &self,
        request: Request,
        mut on_output: impl AsyncFnMut(OutputChunk),
    ) -> Result<Option<CommandOutcome>, RunError> {
        let mut stream = self.connect().await?.stream;
        ask(&mut stream, request).await?;
        loop {
            match stream.next().await {
                Some(Ok(Frame::Output(stream, bytes))) => on_output(OutputChunk { stream, bytes }).await,
                Some(Ok(Frame::Control(Reply::Ended(outcome)))) => return Ok(Some(outcome)),
                Some(Ok(Frame::Control(Reply::NotRunning))) => return Ok(None),
                Some(Ok(Frame::Control(Reply::Refused { cause }))) => {
                    return Err(RunError::Refused { cause });
                }
                _ => return Err(RunError::Lost { sequence: None }),
            }
        }
    }

    /// Asks for something that is answered by one message and at once.
    async fn ask(&self, request: Request) -> Result<Option<Reply>, ConnectError> {
        let mut stream = self.connect().await?.stream;
        ask(&mut stream, request).await?;
        match timeout(ANSWER_LIMIT, stream.next()).await {
            Ok(Some(Ok(Frame::Control(reply)))) => Ok(Some(reply)),
            _ => Ok(None),
        }
    }

    /// Connects to the supervisor and finds out whether it speaks this program's generation, before it is asked for
    /// anything.
    pub(crate) async fn connect(&self) -> Result<Connected, ConnectError> {
        let stream = dir::connect(&self.dir).await.map_err(ConnectError::Unreachable)?;
        let process = Process::behind(&stream);
        match timeout(ANSWER_LIMIT, greet(stream)).await {
            Err(_) => Err(ConnectError::Unresponsive),
            Ok(Ok((greeting, stream))) if greeting.generation == GENERATION => {
                Ok(Connected { stream, process })
            }
            Ok(Ok((greeting, _))) => Err(ConnectError::OtherVersion { version: Some(greeting.version) }),
            // Either it is about to exit, or it does not understand greetings, as those that were built before there
            // were any.
            Ok(Err(error)) => match process {
                Ok(process) if timeout(EXIT_LIMIT, process.ended()).await.is_err() => {
                    Err(ConnectError::OtherVersion { version: None })
                }
                _ => Err(ConnectError::Unreachable(error)),
            },
        }
    }
}

/// A supervisor that speaks this generation.
pub(super) struct Connected {
    pub(super) stream: ClientStream,
    process: io::Result<Process>,
}

/// Exchanges greetings.
async fn greet(stream: UnixStream) -> io::Result<(Greeting, ClientStream)> {
    let mut stream: Framed<_, FrameCodec<Opening, Opening>> = Framed::new(stream, FrameCodec::default());
    let hello = Frame::Control(Opening::Hello(Greeting::own()));
    stream.send(hello).await.map_err(io::Error::other)?;
    match stream.next().await {
        Some(Ok(Frame::Control(Opening::Hello(greeting)))) => {
            Ok((greeting, stream.map_codec(|_| FrameCodec::default())))
        }
        Some(Ok(Frame::Output(..))) => Err(io::ErrorKind::InvalidData.into()),
        Some(Err(error)) => Err(io::Error::other(error)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

async fn ask(stream: &mut ClientStream, request: Request) -> Result<(), ConnectError> {
    // Part of a request is none: what is not sent whole is not delivered.
    stream
        .send(Frame::Control(request))
        .await
        .map_err(|error| ConnectError::Unreachable(io::Error::other(error)))
}

/// Longest time that a supervisor is silent about a command that it has accepted; `None`: beyond any clock.
fn patience(exec: &Exec) -> Option<Duration> {
    Duration::from_millis(exec.timeout_ms)
        .checked_add(Duration::from_millis(exec.kill_grace_ms))?
        .checked_add(HOST_MARGIN * 2)?
        .checked_add(RECORD_LIMIT)
}

/// Tells the supervisor not to begin the command, or to end it, and waits for that. One that is frozen reads it before
/// it begins anything.
async fn give_up(mut stream: ClientStream, on_output: &mut impl AsyncFnMut(OutputChunk)) -> RunError {
    let end = async {
        if stream.send(Frame::Control(Request::Cancel)).await.is_err() {
            return;
        }
        loop {
            match stream.next().await {
                Some(Ok(Frame::Output(stream, bytes))) => on_output(OutputChunk { stream, bytes }).await,
                Some(Ok(Frame::Control(Reply::Accepted { .. }))) => {}
                _ => return,
            }
        }
    };
    let _ = timeout(CANCEL_LIMIT, end).await;
    RunError::Cancelled
}
