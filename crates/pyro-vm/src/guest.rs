//! Talking to the guest of a running VM, through its supervisor.

use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{Call, ExecInput, ExecReply, Failure, Frame, FrameCodec, FrameError, NoInput, Request};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::Instant;
use tokio_util::codec::Framed;

use crate::supervisor::control::{self, ControlRequest};

pub use pyro_wire::{Exec, FailureKind, OutputStream, Status as ExitStatus};

/// Time that the guest has beyond a command's own limit and grace before the host stops believing in it.
const HOST_MARGIN: Duration = Duration::from_secs(5);

/// Bytes a command wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputChunk {
    /// Where it wrote them.
    pub stream: OutputStream,
    /// The bytes.
    pub bytes: bytes::Bytes,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOutcome {
    /// Status of the shell; absent when the guest did not answer within the limit and its margin, or to the wish to
    /// end the command, so that nobody knows.
    pub status: Option<ExitStatus>,
    /// The time limit was hit.
    pub timed_out: bool,
    /// Time the command took.
    pub duration: Duration,
    /// Bytes of stdout that the guest counted and did not send.
    pub stdout_dropped: u64,
    /// Bytes of stderr that the guest counted and did not send.
    pub stderr_dropped: u64,
}

/// Why there is no outcome. The first two mean that the command surely did not run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The request never reached the guest.
    #[error("the VM cannot be reached")]
    NotDelivered(#[source] io::Error),
    /// The guest could not start the command.
    #[error("the guest could not start the command: {step}: {cause}")]
    NotStarted {
        /// What kind of failure it was.
        kind: FailureKind,
        /// What the guest was doing.
        step: String,
        /// Why it failed.
        cause: String,
    },
    /// The request was sent, and then the guest was lost. The command may have run, in part or whole.
    #[error("the VM was lost while the command ran")]
    Lost(#[source] Option<FrameError>),
}

/// A way to the guest of one VM. Holds no connection.
#[derive(Clone, Debug)]
pub struct GuestClient {
    dir: PathBuf,
}

impl GuestClient {
    /// For the VM whose directory is `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Directory of the VM.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs a command, once, and hands its output to `on_output` as it comes. Output of a stream keeps its
    /// order. While `on_output` waits, the command is slowed down, but its deadline goes on. Dropping the
    /// future kills the command.
    ///
    /// # Errors
    /// [`ExecError`]; its variants say whether the command can have run.
    pub async fn exec(
        &self,
        exec: Exec,
        mut on_output: impl AsyncFnMut(OutputChunk),
    ) -> Result<ExecOutcome, ExecError> {
        let stream = self.open().await.map_err(ExecError::NotDelivered)?;
        converse(stream, exec, pending(), &mut on_output).await
    }

    pub(crate) async fn open(&self) -> io::Result<RequestStream<UnixStream>> {
        let stream = control::connect(&self.dir, ControlRequest::Guest).await?;
        Ok(Framed::new(stream.into_inner(), FrameCodec::default()))
    }
}

/// The line that follows the standard error of a command that reached its limit.
pub fn timeout_note(limit: Duration) -> String {
    format!("command timed out after {}s\n", limit.as_secs())
}

/// A stream to the guest that carries one request, which is still to be sent.
pub(crate) type RequestStream<S> = Framed<S, FrameCodec<NoInput, Request>>;

/// A stream to the guest whose request was sent.
pub(crate) type CallStream<S, C> = Framed<S, FrameCodec<<C as Call>::Reply, <C as Call>::Input>>;

/// Sends the request of a stream.
///
/// # Errors
/// The channel failed or the request is too large.
pub(crate) async fn call<S: AsyncRead + AsyncWrite + Unpin, C: Call>(
    mut stream: RequestStream<S>,
    request: C,
) -> Result<CallStream<S, C>, FrameError> {
    stream.send(Frame::Control(request.into())).await?;
    Ok(stream.map_codec(|_| FrameCodec::default()))
}

/// Runs a command on a stream that is open, and asks the guest to end it when `terminate` is done.
///
/// # Errors
/// [`ExecError`]; its variants say whether the command can have run.
pub(crate) async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    stream: RequestStream<S>,
    exec: Exec,
    terminate: impl Future<Output = ()>,
    on_output: &mut impl AsyncFnMut(OutputChunk),
) -> Result<ExecOutcome, ExecError> {
    let limit = Duration::from_millis(exec.timeout_ms);
    let grace = Duration::from_millis(exec.kill_grace_ms) + HOST_MARGIN;
    let mut stream = match tokio::time::timeout(HOST_MARGIN, call(stream, exec)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(FrameError::Io(error))) => return Err(ExecError::NotDelivered(error)),
        Ok(Err(other)) => return Err(ExecError::NotDelivered(io::Error::other(other))),
        // Part of it may have gone.
        Err(_) => return Err(ExecError::Lost(None)),
    };
    let started = Instant::now();
    let mut terminate = pin!(terminate);
    let mut terminated = false;
    // When the host stops believing in the guest; never, if that is beyond what a clock can hold. Time in which
    // the host itself did not listen is not held against the guest.
    let mut deadline = limit.checked_add(grace).and_then(|patience| started.checked_add(patience));
    loop {
        let silence = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => pending().await,
            }
        };
        let frame = tokio::select! {
            biased;
            // First, or a guest that never stops talking would never be told.
            () = &mut terminate, if !terminated => {
                terminated = true;
                deadline = Instant::now().checked_add(grace);
                // A guest that does not even take that meets the deadline.
                let wish = stream.send(Frame::Control(ExecInput::Terminate));
                if let Ok(Err(error)) = tokio::time::timeout(HOST_MARGIN, wish).await {
                    return Err(ExecError::Lost(Some(error)));
                }
                continue;
            }
            frame = stream.next() => Some(frame),
            () = silence => None,
        };
        // A guest that never stops talking is not silent, but late all the same.
        let is_late = deadline.is_some_and(|deadline| deadline + HOST_MARGIN < Instant::now());
        let Some(frame) = frame.filter(|_| !is_late) else {
            let duration = started.elapsed();
            return Ok(ExecOutcome {
                status: None,
                timed_out: !terminated,
                duration,
                stdout_dropped: 0,
                stderr_dropped: 0,
            });
        };
        match frame {
            Some(Ok(Frame::Output(stream, bytes))) => {
                let received = Instant::now();
                on_output(OutputChunk { stream, bytes }).await;
                deadline = deadline.and_then(|deadline| deadline.checked_add(received.elapsed()));
            }
            Some(Ok(Frame::Control(ExecReply::Exited(exit)))) => {
                return Ok(ExecOutcome {
                    status: Some(exit.status),
                    timed_out: exit.timed_out,
                    duration: Duration::from_millis(exit.duration_ms),
                    stdout_dropped: exit.stdout_dropped,
                    stderr_dropped: exit.stderr_dropped,
                });
            }
            Some(Ok(Frame::Control(ExecReply::NotStarted(Failure { kind, step, cause, .. })))) => {
                return Err(ExecError::NotStarted { kind, step, cause });
            }
            None => return Err(ExecError::Lost(None)),
            Some(Err(error)) => return Err(ExecError::Lost(Some(error))),
        }
    }
}
