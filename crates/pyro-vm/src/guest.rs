//! Talking to the guest of a running VM, through its supervisor.

use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{Frame, FrameCodec, FrameError, Reply, Request};
use tokio::net::UnixStream;
use tokio_util::codec::Framed;

use crate::supervisor::control::{self, ControlRequest};

pub use pyro_wire::{Exec, OutputStream, Status as ExitStatus};

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutcome {
    /// Status of the shell; absent when the guest did not answer within the limit and its margin, so that
    /// nobody knows.
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
        let limit = Duration::from_millis(exec.timeout_ms);
        let patience = limit + Duration::from_millis(exec.kill_grace_ms) + HOST_MARGIN;
        let mut stream = self.open().await.map_err(ExecError::NotDelivered)?;
        let started = tokio::time::Instant::now();
        stream.send(Frame::Control(Request::Exec(exec))).await.map_err(|error| match error {
            FrameError::Io(error) => ExecError::NotDelivered(error),
            other => ExecError::NotDelivered(io::Error::other(other)),
        })?;
        // Time in which the host itself did not listen is not held against the guest.
        let mut deaf = Duration::ZERO;
        loop {
            let deadline = patience.checked_add(deaf).and_then(|patience| started.checked_add(patience));
            let silence = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => pending().await,
                }
            };
            let frame = tokio::select! {
                biased;
                frame = stream.next() => frame,
                () = silence => {
                    let duration = started.elapsed();
                    return Ok(ExecOutcome {
                        status: None, timed_out: true, duration, stdout_dropped: 0, stderr_dropped: 0,
                    });
                }
            };
            match frame {
                Some(Ok(Frame::Output(stream, bytes))) => {
                    let received = tokio::time::Instant::now();
                    on_output(OutputChunk { stream, bytes }).await;
                    deaf += received.elapsed();
                }
                Some(Ok(Frame::Control(Reply::Exited(exit)))) => {
                    return Ok(ExecOutcome {
                        status: Some(exit.status),
                        timed_out: exit.timed_out,
                        duration: Duration::from_millis(exit.duration_ms),
                        stdout_dropped: exit.stdout_dropped,
                        stderr_dropped: exit.stderr_dropped,
                    });
                }
                Some(Ok(Frame::Control(Reply::NotStarted(failure)))) => {
                    return Err(ExecError::NotStarted { step: failure.step, cause: failure.cause });
                }
                Some(Ok(Frame::Control(Reply::Halted | Reply::Identified))) | None => {
                    return Err(ExecError::Lost(None));
                }
                Some(Err(error)) => return Err(ExecError::Lost(Some(error))),
            }
        }
    }

    async fn open(&self) -> io::Result<Framed<UnixStream, FrameCodec<Reply, Request>>> {
        let stream = control::connect(&self.dir, ControlRequest::Guest).await?;
        Ok(Framed::new(stream, FrameCodec::default()))
    }
}
