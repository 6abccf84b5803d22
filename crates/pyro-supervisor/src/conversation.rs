//! One command in a guest, as a conversation on its own stream: what the supervisor asks, what the guest answers, and the
//! time limits, which are those on a host of usual pace. Used by both the supervisor and its clients.

use std::io;
use std::pin::pin;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pyro_wire::{
    Exec, ExecInput, ExecReply, Failure, FailureKind, Frame, FrameError, MAX_COUNT, OutputStream, Status,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::mux::{RequestStream, call};
use crate::pace::Pace;

/// Time limit for the guest to take a message or to answer one.
pub(crate) const HOST_MARGIN: Duration = Duration::from_secs(5);
/// Time that the guest may take to read its user's login environment and to start a command. It takes a request to end the
/// command meanwhile.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for the guest to report an end, beyond a command's grace: what the command leaves is ended first.
const END_MARGIN: Duration = HOST_MARGIN.saturating_add(Duration::from_secs(2));
/// Time that a guest may take for a command beyond the command's own limit and grace, before it counts as lost.
pub(crate) const GUEST_MARGIN: Duration = START_LIMIT.saturating_add(END_MARGIN);
/// Maximum length of a guest's reason that is kept, in characters.
const MAX_CAUSE_CHARS: usize = 1000;

/// Bytes that a command wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputChunk {
    /// The stream that it wrote them to.
    pub stream: OutputStream,
    /// The bytes.
    pub bytes: bytes::Bytes,
}

/// What became of a command that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommandOutcome {
    /// It ended.
    Ended(CommandEnd),
    /// It certainly did not run.
    NotRun {
        /// Why.
        cause: String,
        /// What kind of failure it was, if the guest could not start it.
        #[serde(default)]
        kind: Option<FailureKind>,
    },
    /// The guest was lost while it ran, or its end could not be recorded: it may have run, in part or whole.
    Unknown {
        /// What is known about the loss.
        cause: Option<String>,
    },
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CommandEnd {
    /// Status of the shell; absent when the guest did not answer within the limit and its margin, or did not confirm
    /// that it ended the command.
    #[schemars(with = "Option<pyro_wire::Status>")]
    pub status: Option<Status>,
    /// The time limit was hit.
    pub timed_out: bool,
    /// Someone ended it.
    pub killed: bool,
    /// Time the command took.
    pub duration: Duration,
    /// Bytes of stdout that are counted and not kept.
    pub stdout_dropped: u64,
    /// Bytes of stderr that are counted and not kept.
    pub stderr_dropped: u64,
}

/// Returns the line that follows the standard error of a command that reached its limit.
pub fn timeout_note(limit: Duration) -> String {
    format!("command timed out after {}s\n", limit.as_secs())
}

/// Runs a command, once, on an open stream to a guest on a host of this pace, and asks the guest to end it when `terminate` is done. The guest can be sent
/// requests about the command once `on_sent` is called; with [`Exec::report_start`], the command has been started then. While
/// `on_output` waits, the command is slowed down, but its deadline goes on.
pub(crate) async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    (stream, pace): (RequestStream<S>, Pace),
    exec: Exec,
    on_sent: impl FnOnce(),
    terminate: impl Future<Output = ()>,
    on_output: &mut impl AsyncFnMut(OutputChunk),
) -> CommandOutcome {
    let limit = Duration::from_millis(exec.timeout_ms);
    let grace = Duration::from_millis(exec.kill_grace_ms) + pace.allow(END_MARGIN);
    let margin = pace.allow(HOST_MARGIN);
    let report_start = exec.report_start;
    let mut stream = match tokio::time::timeout(margin, call(stream, exec)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return CommandOutcome::not_run(&io::Error::other(error).to_string()),
        // Part of it may have gone.
        Err(_) => return CommandOutcome::lost(None),
    };
    let mut on_sent = Some(on_sent);
    if let Some(on_sent) = on_sent.take_if(|_| !report_start) {
        on_sent();
    }
    let started = Instant::now();
    let mut terminate = pin!(terminate);
    let mut terminated = false;
    // When the guest counts as lost. The guest is not responsible for the time in which the host itself did not read.
    let mut deadline = started + pace.allow(START_LIMIT) + limit + grace;
    loop {
        let frame = tokio::select! {
            biased;
            // First, or a guest that never stops sending would never be asked.
            () = &mut terminate, if !terminated => {
                terminated = true;
                deadline = Instant::now() + grace;
                // A guest that does not even take that reaches the deadline.
                let request = stream.send(Frame::Control(ExecInput::Terminate));
                if let Ok(Err(error)) = tokio::time::timeout(margin, request).await {
                    return CommandOutcome::lost(Some(error));
                }
                continue;
            }
            frame = stream.next() => Some(frame),
            () = tokio::time::sleep_until(deadline) => None,
        };
        // A guest that never stops sending is late too.
        let is_late = deadline + margin < Instant::now();
        let Some(frame) = frame.filter(|_| !is_late) else {
            return CommandOutcome::Ended(CommandEnd {
                status: None,
                timed_out: !terminated,
                killed: terminated,
                duration: started.elapsed(),
                stdout_dropped: 0,
                stderr_dropped: 0,
            });
        };
        match frame {
            Some(Ok(Frame::Output(stream, bytes))) => {
                let received = Instant::now();
                on_output(OutputChunk { stream, bytes }).await;
                deadline += received.elapsed();
            }
            Some(Ok(Frame::Control(ExecReply::Started))) => {
                if let Some(on_sent) = on_sent.take() {
                    on_sent();
                }
            }
            Some(Ok(Frame::Control(ExecReply::Exited(exit)))) => {
                return CommandOutcome::Ended(CommandEnd {
                    status: Some(exit.status),
                    timed_out: exit.timed_out,
                    killed: terminated && !exit.timed_out,
                    duration: Duration::from_millis(exit.duration_ms),
                    stdout_dropped: exit.stdout_dropped,
                    stderr_dropped: exit.stderr_dropped,
                });
            }
            Some(Ok(Frame::Control(ExecReply::NotStarted(Failure { kind, step, cause, .. })))) => {
                let cause = format!("the guest could not start the command: {step}: {cause}");
                return CommandOutcome::NotRun { cause: shortened(&cause), kind: Some(kind) };
            }
            None => return CommandOutcome::lost(None),
            Some(Err(error)) => return CommandOutcome::lost(Some(error)),
        }
    }
}

impl CommandOutcome {
    /// Returns the outcome of a command that surely did not run.
    pub(crate) fn not_run(cause: &str) -> Self {
        Self::NotRun { cause: shortened(cause), kind: None }
    }

    fn lost(error: Option<FrameError>) -> Self {
        Self::Unknown { cause: error.map(|error| error.to_string()) }
    }

    /// Adds bytes that the journal does not keep.
    pub(crate) fn without(self, (stdout, stderr): (u64, u64)) -> Self {
        match self {
            Self::Ended(end) => Self::Ended(CommandEnd {
                stdout_dropped: end.stdout_dropped.saturating_add(stdout).min(MAX_COUNT),
                stderr_dropped: end.stderr_dropped.saturating_add(stderr).min(MAX_COUNT),
                ..end
            }),
            other => other,
        }
    }
}

/// Keeps the begin of a reason that a guest gives.
pub(crate) fn shortened(cause: &str) -> String {
    cause.chars().take(MAX_CAUSE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use pyro_wire::{Exit, FrameCodec, Request};
    use tokio::net::UnixStream;
    use tokio_util::codec::Framed;

    use super::*;

    async fn answered(reply: ExecReply) -> CommandOutcome {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut guest = Framed::new(theirs, FrameCodec::<Request, ExecReply>::default());
        guest.send(Frame::Control(reply)).await.unwrap();
        let exec = Exec::new("true", Duration::from_secs(1));
        let stream = (Framed::new(ours, FrameCodec::default()), Pace::USUAL);
        converse(stream, exec, || {}, pending(), &mut async |_| {}).await
    }

    /// Each of these numbers would fail to be written to the registry, or be another number for a reader of JSON.
    #[tokio::test]
    async fn numbers_of_a_guest_are_clamped() {
        let exit = Exit {
            status: Status::Code(0),
            timed_out: false,
            duration_ms: u64::MAX,
            stdout_dropped: u64::MAX,
            stderr_dropped: 1 << 63,
        };
        let CommandOutcome::Ended(end) = answered(ExecReply::Exited(exit)).await else { panic!("it ended") };
        assert_eq!(end.duration, Duration::from_millis(MAX_COUNT));
        assert_eq!((end.stdout_dropped, end.stderr_dropped), (MAX_COUNT, MAX_COUNT));
        let CommandOutcome::Ended(end) = CommandOutcome::Ended(end).without((u64::MAX, 1)) else { panic!() };
        assert_eq!((end.stdout_dropped, end.stderr_dropped), (MAX_COUNT, MAX_COUNT));
    }
}
