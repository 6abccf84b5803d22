//! Finds out whether a service is ready.

use std::cell::RefCell;
use std::future::pending;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use pyro_wire::{Connect, Exec, Failure, FrameCodec, Probe, ProbeReply, Stat, StatReply, Status};
use tokio::io::{duplex, split};
use tokio::time::{sleep, timeout};
use tokio_util::codec::Framed;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use crate::conversation::{CommandOutcome, converse, shortened};
use crate::mux::{OpenError, Streams, call};
use crate::server::ports::relay::relay;
use crate::{ReadyCheck, with_causes};

/// Pause after the first attempt. No event reports that a server listens. It doubles each time, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Time limit for one attempt to reach a server.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);
/// Maximum size of the head of an HTTP response, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Bytes that wait between the client and the relay of an HTTP connection.
const BUFFER_BYTES: usize = 16 << 10;

/// Why a service is not ready.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotReady {
    #[error("no answer within {} seconds", ATTEMPT_LIMIT.as_secs())]
    Late,
    #[error("the guest sent no valid response")]
    NoResponse,
    #[error(transparent)]
    NoStream(#[from] OpenError),
    #[error("{}", shortened(&.0.to_string()))]
    Failed(Failure),
    #[error("the HTTP status is {}", .0.as_u16())]
    Status(StatusCode),
    #[error("{}", with_causes(.0))]
    Get(#[from] GetError),
    #[error("the command timed out")]
    CommandTimedOut,
    #[error("the command ended with exit code {0}")]
    ExitCode(i32),
    #[error("the command was ended by signal {0}")]
    Signal(i32),
    #[error("the command did not end")]
    CommandUnconfirmed,
    #[error("{0}")]
    CommandNotRun(String),
    #[error("how the command ended is unknown")]
    CommandUnknown,
}

/// Tries until the service is ready. `reason` is why it was not ready at the last attempt.
pub(super) async fn until_ready(streams: &Streams, check: &ReadyCheck, reason: &RefCell<Option<NotReady>>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let late = |_| Err(NotReady::Late);
        let attempt = match check {
            // It has its own limit.
            ReadyCheck::Command(exec) => command(streams, exec).await,
            ReadyCheck::Tcp(port) => {
                timeout(ATTEMPT_LIMIT, connect(streams, *port)).await.unwrap_or_else(late)
            }
            // Each attempt holds a thread of the guest while the file system does not respond.
            ReadyCheck::File(path) => find(streams, path).await,
            ReadyCheck::Http { host, port, path } => {
                timeout(ATTEMPT_LIMIT, respond(streams, host, *port, path)).await.unwrap_or_else(late)
            }
        };
        match attempt {
            Ok(()) => return,
            Err(cause) => *reason.borrow_mut() = Some(cause),
        }
        sleep(pause).await;
        pause = MAX_PAUSE.min(pause * 2);
    }
}

async fn connect(streams: &Streams, port: u16) -> Result<(), NotReady> {
    match streams.ask_for_client(Probe { port }).await? {
        Some(ProbeReply::Ready) => Ok(()),
        Some(ProbeReply::NotReady(failure)) => Err(NotReady::Failed(failure)),
        None => Err(NotReady::NoResponse),
    }
}

async fn find(streams: &Streams, path: &str) -> Result<(), NotReady> {
    match streams.ask_for_client(Stat { path: path.to_owned() }).await? {
        Some(StatReply::Found(_)) => Ok(()),
        Some(StatReply::Failed(failure)) => Err(NotReady::Failed(failure)),
        None => Err(NotReady::NoResponse),
    }
}

async fn respond(streams: &Streams, host: &str, port: u16, path: &str) -> Result<(), NotReady> {
    match get(streams, host, port, path).await? {
        status if status.is_success() || status.is_redirection() => Ok(()),
        status => Err(NotReady::Status(status)),
    }
}

/// Why there is no answer to a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum GetError {
    #[error(transparent)]
    Connect(#[from] io::Error),
    #[error("the request is not possible")]
    Request(#[from] hyper::http::Error),
    #[error("no valid HTTP response from port {0}")]
    Http(u16, #[source] hyper::Error),
}

/// Returns the status of the answer to a GET request. Its body is not read.
async fn get(streams: &Streams, host: &str, port: u16, path: &str) -> Result<StatusCode, GetError> {
    let (ours, theirs) = duplex(BUFFER_BYTES);
    let relayed = async {
        let (stream, _permit) = streams.open().await.map_err(io::Error::other)?;
        let stream = Framed::new(stream.compat(), FrameCodec::default());
        let stream = call(stream, Connect { port }).await.map_err(io::Error::other)?;
        let (from_client, to_client) = split(theirs);
        relay(from_client, to_client, stream).await
    };
    let answered = async {
        let mut builder = http1::Builder::new();
        let failed = |error| GetError::Http(port, error);
        let (mut sender, connection) =
            builder.max_buf_size(MAX_HEAD_BYTES).handshake(TokioIo::new(ours)).await.map_err(failed)?;
        let request = Request::get(path)
            .header(header::HOST, format!("{host}:{port}"))
            .header(header::USER_AGENT, "pyro")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())?;
        let mut response = pin!(sender.send_request(request));
        let response = tokio::select! {
            biased;
            response = &mut response => response,
            // The answer may have come with the end.
            _ = connection => response.await,
        };
        Ok(response.map_err(failed)?.status())
    };
    let mut answered = pin!(answered);
    let error = tokio::select! {
        biased;
        answered = &mut answered => return answered,
        Err(error) = relayed => error,
    };
    // The answer may have come before the connection was lost.
    answered.await.map_err(|_: GetError| error.into())
}

async fn command(streams: &Streams, exec: &Exec) -> Result<(), NotReady> {
    let (stream, _permit) = streams.open().await?;
    let stream = (Framed::new(stream.compat(), FrameCodec::default()), streams.pace());
    // Dropping the stream ends the command.
    match converse(stream, exec.clone(), || {}, pending(), &mut async |_| {}).await {
        CommandOutcome::Ended(end) if end.timed_out => Err(NotReady::CommandTimedOut),
        CommandOutcome::Ended(end) => match end.status {
            Some(Status::Code(0)) => Ok(()),
            Some(Status::Code(code)) => Err(NotReady::ExitCode(code)),
            Some(Status::Signal(signal)) => Err(NotReady::Signal(signal)),
            None => Err(NotReady::CommandUnconfirmed),
        },
        CommandOutcome::NotRun { cause, .. } => Err(NotReady::CommandNotRun(cause)),
        CommandOutcome::Unknown { .. } => Err(NotReady::CommandUnknown),
    }
}
