//! The only client of a supervisor: every request that another process makes to a running VM.

mod copy;
mod end;
mod files;
mod input;
mod mount;
mod process;
mod service;
mod shells;
mod start;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use futures::future::{FusedFuture, OptionFuture};
use futures::{FutureExt, SinkExt, StreamExt};
use pyro_wire::{Exec, Frame, FrameCodec, FrameError};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

pub use self::copy::CopyError;
pub use self::end::{EndError, EndRequest, Ended};
pub use self::input::{CommandInput, InputStream};
pub use self::mount::MountError;
use self::process::Process;
pub use self::service::ServiceError;
pub use self::shells::{AttachEnd, ShellAnswer, ShellOutput, TYPE_LIMIT};
pub use self::start::{Lifeline, StartError, make_template, start};
pub(crate) use self::start::{SPARE_LIMIT, claim, kill_silent_spare, spawn};
use super::conversation::{CommandOutcome, GUEST_MARGIN, HOST_MARGIN, OutputChunk};
use super::dir;
use super::protocol::{
    ClientStream, CommandKey, GENERATION, Greeting, Opening, Reply, Request, other_version,
};
use super::{Pace, PortMapping, PublishedPort};

/// Time limit for a supervisor to answer a greeting and to take a request.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for a supervisor to accept or to refuse what it was asked. It may wait twice for its registry first, each time
/// for at most 10 seconds: to record the VM's start, for which the request is held, and to number a command.
const ACCEPT_LIMIT: Duration = Duration::from_secs(30);
/// Time after which a supervisor that is silent about a request is asked whether it responds at all.
const PROBE_AFTER: Duration = Duration::from_secs(2);
/// The same for a supervisor that watches a command, about which it can be silent for as long as the command runs.
const WATCH_PROBE_AFTER: Duration = Duration::from_secs(30);
/// Time limit for a command to end when it is killed, and for its end to be recorded.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// Time limit for a process to exit after it closed its connections.
const HANG_UP_LIMIT: Duration = Duration::from_secs(1);
/// Time limit for a supervisor to exit after its last message, after its lifeline was closed, or after it was killed.
const EXIT_LIMIT: Duration = Duration::from_secs(5);
/// Time limit for a command to end when its caller cancels it.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);
/// Time limit for a supervisor to record the end of a command, beyond the command's own limits.
const RECORD_LIMIT: Duration = Duration::from_secs(10);

/// Why a supervisor received no request. Nothing was done, and nothing will be.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It does not exist, normally because the VM has ended.
    #[error("the VM cannot be reached")]
    Unreachable(#[source] io::Error),
    /// It does not answer.
    #[error("the supervisor of the VM does not respond")]
    Unresponsive,
    /// It is of another version and does not understand this client.
    #[error("{}", other_version(.version.as_deref()))]
    OtherVersion {
        /// Its version; absent for one that is older than generations, which does not say.
        version: Option<String>,
    },
}

/// Why a request for a command failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The supervisor did not receive the request: the command surely does not run.
    #[error(transparent)]
    NotDelivered(#[from] ConnectError),
    /// The supervisor refused the command: it surely does not run.
    #[error("{cause}")]
    Refused {
        /// Why.
        cause: String,
    },
    /// The caller cancelled the command. It was not started, or is being ended.
    #[error("the command was cancelled")]
    Cancelled,
    /// The command could not be given its input, and was ended. It has a record if it is in the journal.
    #[error("the command was ended, because its input could not be sent: {cause}")]
    InputFailed {
        /// Why.
        cause: String,
    },
    /// The supervisor was lost, or fell silent while the command ran. If the command has a number, its record will say
    /// more.
    #[error("the supervisor of the VM was lost")]
    Lost {
        /// Its number, if it is known.
        sequence: Option<u64>,
    },
    /// The supervisor received the request and did not answer in time. It may still do what it was asked.
    #[error("timed out waiting for an answer of the VM's supervisor")]
    Unanswered,
}

/// Why published ports were not changed.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The host cannot listen there.
    #[error("{cause}")]
    CannotListen {
        /// Why.
        cause: String,
    },
    /// The change cannot be recorded.
    #[error("the published ports cannot be recorded, and none was changed: {cause}")]
    NotRecorded {
        /// Why.
        cause: String,
    },
    /// Any other reason.
    #[error(transparent)]
    Request(#[from] RunError),
}

/// A command to run, and how.
#[derive(Clone, Debug)]
pub struct Run {
    /// The command.
    pub exec: Exec,
    /// Give it a number, keep its output and record how it ends. It then goes on when its client disconnects; without
    /// this it ends.
    pub journal: bool,
}

/// A command that was accepted and has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its number, if it is in the journal.
    pub sequence: Option<u64>,
    /// What became of it.
    pub outcome: CommandOutcome,
}

/// A client of the supervisor of one VM. Holds no connection.
#[derive(Clone, Debug)]
pub struct Client {
    dir: PathBuf,
    pace: Pace,
}

impl Client {
    /// Creates the client for the VM whose directory is `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), pace: Pace::USUAL }
    }

    /// Has the same client wait as long as it must on a host of this pace.
    #[must_use]
    pub fn at(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// Returns the directory of the VM.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs a command, at most once, and waits for its end. `on_output` receives its output as it is written, in order
    /// within each stream; while it waits, the command is slowed down, but its deadline goes on.
    ///
    /// `cancel` ends the command. A command that the supervisor has not started by then never runs. Dropping the future
    /// ends a command without a journal, and does not affect one with a journal.
    ///
    /// # Errors
    /// [`RunError`]; its variants say whether the command can have run.
    pub async fn run(
        &self,
        run: Run,
        cancel: &CancellationToken,
        on_output: impl AsyncFnMut(OutputChunk),
    ) -> Result<Ran, RunError> {
        self.run_with_input(run, None, cancel, on_output).await
    }

    /// As [`Self::run`], with `input` for the command, which is dropped when the command takes no more of it.
    ///
    /// # Errors
    /// [`RunError`].
    pub async fn run_with_input(
        &self,
        run: Run,
        mut input: Option<InputStream>,
        cancel: &CancellationToken,
        mut on_output: impl AsyncFnMut(OutputChunk),
    ) -> Result<Ran, RunError> {
        let patience = patience(&run.exec, self.pace);
        let takes_input = run.exec.input;
        let mut feeding = pin!(OptionFuture::default());
        let connected = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(RunError::Cancelled),
            connected = self.connect() => connected?,
        };
        let mut stream = connected.stream;
        let request = Request::Run { exec: run.exec, journal: run.journal, detach: false };
        tokio::select! {
            biased;
            // A request that is not sent whole is not delivered.
            () = cancel.cancelled() => return Err(RunError::Cancelled),
            asked = ask(&mut stream, request) => asked?,
        }
        let mut sequence = None;
        // When the supervisor counts as lost.
        let mut deadline = Instant::now() + self.pace.allow(ACCEPT_LIMIT);
        loop {
            let frame = tokio::select! {
                biased;
                () = cancel.cancelled() => {
                    return Err(give_up(stream, self.pace, &mut on_output).await);
                }
                frame = stream.next() => frame,
                fed = &mut feeding, if !feeding.is_terminated() => match fed.flatten() {
                    Some(cause) => {
                        return self.end_without_input(stream, sequence, cause, &mut on_output).await;
                    }
                    // How the command ends says what became of its input.
                    None => continue,
                },
                () = tokio::time::sleep_until(deadline) => return Err(RunError::Lost { sequence }),
            };
            match frame {
                Some(Ok(Frame::Control(Reply::Accepted { sequence: number, id }))) => {
                    sequence = number;
                    // Only the first counts: a command is accepted once.
                    if let Some(input) = input.take() {
                        feeding.set(Some(self.feed(CommandKey::Id(id), takes_input, input).fuse()).into());
                    }
                    deadline = Instant::now() + patience;
                }
                Some(Ok(Frame::Output(from, bytes))) => {
                    let received = Instant::now();
                    let mut input_failure = None;
                    {
                        let mut taken = pin!(on_output(OutputChunk { stream: from, bytes }));
                        loop {
                            tokio::select! {
                                biased;
                                () = cancel.cancelled() => break,
                                () = &mut taken => break,
                                fed = &mut feeding, if !feeding.is_terminated() => {
                                    input_failure = fed.flatten();
                                }
                            }
                        }
                    }
                    if let Some(cause) = input_failure {
                        return self.end_without_input(stream, sequence, cause, &mut on_output).await;
                    }
                    // The supervisor is not responsible for the time in which the caller did not read.
                    deadline += received.elapsed();
                }
                Some(Ok(Frame::Control(Reply::Ended(outcome)))) => return Ok(Ran { sequence, outcome }),
                Some(Ok(Frame::Control(reply @ (Reply::Refused { .. } | Reply::Unknown(_))))) => {
                    return Err(unexpected(reply));
                }
                Some(
                    Ok(Frame::Control(
                        Reply::Done
                        | Reply::NotRunning
                        | Reply::Input(_)
                        | Reply::Shells(_)
                        | Reply::ShellPart(_)
                        | Reply::Published(_)
                        | Reply::NotPublished
                        | Reply::Mounted
                        | Reply::NotMounted
                        | Reply::CannotListen { .. }
                        | Reply::NotRecorded { .. }
                        | Reply::Service(_),
                    ))
                    | Err(_),
                )
                | None => return Err(RunError::Lost { sequence }),
            }
        }
    }

    /// Ends a command that cannot be given its input. One that has ended by itself meanwhile did not need it.
    async fn end_without_input(
        &self,
        mut stream: ClientStream,
        sequence: Option<u64>,
        cause: String,
        on_output: &mut impl AsyncFnMut(OutputChunk),
    ) -> Result<Ran, RunError> {
        match timeout(self.pace.allow(CANCEL_LIMIT), cancelled(&mut stream, on_output)).await {
            Ok(Ok(Some(outcome))) if !matches!(&outcome, CommandOutcome::Ended(end) if end.killed) => {
                Ok(Ran { sequence, outcome })
            }
            // The supervisor is gone, and the record of the command says more.
            Ok(Err(_)) => Err(RunError::Lost { sequence }),
            Ok(Ok(None)) if sequence.is_some() => Err(RunError::Lost { sequence }),
            Ok(Ok(_)) | Err(_) => Err(RunError::InputFailed { cause }),
        }
    }

    /// Starts a command with a journal, does not wait for it, and returns its number.
    ///
    /// # Errors
    /// [`RunError`].
    pub async fn detach(&self, exec: Exec) -> Result<u64, RunError> {
        let request = Request::Run { exec, journal: true, detach: true };
        match self.ask(request).await? {
            Reply::Accepted { sequence: Some(sequence), .. } => Ok(sequence),
            reply => Err(unexpected(reply)),
        }
    }

    /// Waits until a running command has ended. If `output` is true, `on_output` receives its output from the beginning.
    /// `None`: it is not running, and its record says more.
    ///
    /// # Errors
    /// The supervisor cannot be reached, was lost, or does not respond any more.
    pub async fn watch(
        &self,
        sequence: u64,
        output: bool,
        on_output: impl AsyncFnMut(OutputChunk),
    ) -> Result<Option<CommandOutcome>, RunError> {
        let watched = self.outcome_of(Request::Watch { sequence, output }, on_output);
        // A watch changes nothing, so nothing is lost with one that is given up.
        let silent = Err(ConnectError::Unresponsive.into());
        self.while_responsive(WATCH_PROBE_AFTER, watched).await.unwrap_or(silent)
    }

    /// Ends a running command and waits until it has ended. `None`: it is not running, and its record says more.
    ///
    /// # Errors
    /// The supervisor cannot be reached, was lost, or did not confirm the end in time.
    pub async fn kill(&self, sequence: u64) -> Result<Option<CommandOutcome>, RunError> {
        let ended = self.outcome_of(Request::Kill { sequence }, async |_| {});
        match timeout(self.pace.allow(KILL_LIMIT), self.while_responsive(PROBE_AFTER, ended)).await {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(_) => Err(RunError::Unanswered),
        }
    }

    /// Changes when the VM's lifetime ends, in seconds since the epoch.
    ///
    /// # Errors
    /// The supervisor cannot be reached, did not answer, or is about to end the VM.
    pub async fn extend(&self, expires_at: f64) -> Result<(), RunError> {
        match self.ask(Request::Extend { expires_at }).await? {
            Reply::Done => Ok(()),
            reply => Err(unexpected(reply)),
        }
    }

    /// Publishes a port of the guest on the host, and records that.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn publish(&self, mapping: PortMapping) -> Result<PublishedPort, PublishError> {
        match self.ask(Request::Publish(mapping)).await? {
            Reply::Published(published) => Ok(published),
            Reply::CannotListen { cause } => Err(PublishError::CannotListen { cause }),
            Reply::NotRecorded { cause } => Err(PublishError::NotRecorded { cause }),
            reply => Err(unexpected(reply).into()),
        }
    }

    /// Closes the published ports with this number on the host, with their connections, and records that. Returns whether
    /// there were any.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn unpublish(&self, host_port: u16) -> Result<bool, PublishError> {
        self.close_ports(host_port, None).await
    }

    /// Closes the published port with this address on the host, as [`Self::unpublish`] does.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn unpublish_address(&self, host: SocketAddr) -> Result<bool, PublishError> {
        self.close_ports(host.port(), Some(host.ip())).await
    }

    async fn close_ports(&self, host_port: u16, host_ip: Option<IpAddr>) -> Result<bool, PublishError> {
        match self.ask(Request::Unpublish { host_port, host_ip }).await? {
            Reply::Done => Ok(true),
            Reply::NotPublished => Ok(false),
            Reply::NotRecorded { cause } => Err(PublishError::NotRecorded { cause }),
            reply => Err(unexpected(reply).into()),
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
                Some(Ok(Frame::Control(reply))) => return Err(unexpected(reply)),
                Some(Err(_)) | None => return Err(RunError::Lost { sequence: None }),
            }
        }
    }

    /// Makes a request that is answered by one message, without waiting for the guest.
    async fn ask(&self, request: Request) -> Result<Reply, RunError> {
        let mut stream = self.connect().await?.stream;
        ask(&mut stream, request).await?;
        match timeout(self.pace.allow(ACCEPT_LIMIT), self.while_responsive(PROBE_AFTER, stream.next())).await
        {
            Ok(Some(Some(Ok(Frame::Control(reply))))) => Ok(reply),
            Ok(Some(_)) => Err(RunError::Lost { sequence: None }),
            Ok(None) | Err(_) => Err(RunError::Unanswered),
        }
    }

    /// Awaits the answer to a request for as long as the supervisor responds to greetings; `None`: it does not. It is
    /// greeted whenever it has been silent for `probe_after`.
    async fn while_responsive<T>(&self, probe_after: Duration, answer: impl Future<Output = T>) -> Option<T> {
        let mut answer = pin!(answer);
        loop {
            if let Ok(answer) = timeout(probe_after, answer.as_mut()).await {
                return Some(answer);
            }
            tokio::select! {
                biased;
                answer = answer.as_mut() => return Some(answer),
                greeted = self.connect() => if let Err(ConnectError::Unresponsive) = greeted {
                    return None;
                },
            }
        }
    }

    /// Connects to the supervisor and checks that it speaks this program's generation, before any request.
    pub(crate) async fn connect(&self) -> Result<Connected, ConnectError> {
        let stream = dir::connect(&self.dir).await.map_err(ConnectError::Unreachable)?;
        let process = Process::behind(&stream);
        match timeout(ANSWER_LIMIT, greet(stream)).await {
            Err(_) => Err(ConnectError::Unresponsive),
            Ok(Ok((greeting, stream))) if greeting.generation == GENERATION => {
                Ok(Connected { stream, process })
            }
            Ok(Ok((greeting, _))) => Err(ConnectError::OtherVersion { version: Some(greeting.version) }),
            // It is about to exit, or it was built before greetings and does not understand them.
            Ok(Err(error)) => match process {
                Ok(process) if timeout(HANG_UP_LIMIT, process.ended()).await.is_err() => {
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

/// Sends a request. After an error it is not delivered: a part of a request is not one.
async fn ask(stream: &mut ClientStream, request: Request) -> Result<(), ConnectError> {
    match timeout(ANSWER_LIMIT, stream.send(Frame::Control(request))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(ConnectError::Unreachable(io::Error::other(error))),
        Err(_) => Err(ConnectError::Unresponsive),
    }
}

/// Returns the error for a reply that does not grant the request.
fn unexpected(reply: Reply) -> RunError {
    match reply {
        Reply::Refused { cause } => RunError::Refused { cause },
        Reply::Unknown(Greeting { version, .. }) => {
            ConnectError::OtherVersion { version: Some(version) }.into()
        }
        Reply::Done
        | Reply::Accepted { .. }
        | Reply::NotRunning
        | Reply::Input(_)
        | Reply::Ended(_)
        | Reply::Shells(_)
        | Reply::ShellPart(_)
        | Reply::Published(_)
        | Reply::NotPublished
        | Reply::Mounted
        | Reply::NotMounted
        | Reply::CannotListen { .. }
        | Reply::NotRecorded { .. }
        | Reply::Service(_) => RunError::Lost { sequence: None },
    }
}

/// Returns how long a supervisor can be silent about a command that it has accepted. A clock can hold the sum of any two
/// numbers of milliseconds.
fn patience(exec: &Exec, pace: Pace) -> Duration {
    Duration::from_millis(exec.timeout_ms)
        + Duration::from_millis(exec.kill_grace_ms)
        + pace.allow(GUEST_MARGIN + HOST_MARGIN + RECORD_LIMIT)
}

/// Asks the supervisor not to start the command, or to end it, and waits for that. A frozen supervisor reads this before
/// it starts the command.
async fn give_up(
    mut stream: ClientStream,
    pace: Pace,
    on_output: &mut impl AsyncFnMut(OutputChunk),
) -> RunError {
    let _ = timeout(pace.allow(CANCEL_LIMIT), cancelled(&mut stream, on_output)).await;
    RunError::Cancelled
}

/// Cancels a command. Returns its outcome; `None` if the supervisor closes the connection, as it does for a command
/// without a journal.
async fn cancelled(
    stream: &mut ClientStream,
    on_output: &mut impl AsyncFnMut(OutputChunk),
) -> Result<Option<CommandOutcome>, FrameError> {
    stream.send(Frame::Control(Request::Cancel)).await?;
    loop {
        match stream.next().await {
            Some(Ok(Frame::Output(stream, bytes))) => on_output(OutputChunk { stream, bytes }).await,
            Some(Ok(Frame::Control(Reply::Accepted { .. }))) => {}
            Some(Ok(Frame::Control(Reply::Ended(outcome)))) => return Ok(Some(outcome)),
            _ => return Ok(None),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
