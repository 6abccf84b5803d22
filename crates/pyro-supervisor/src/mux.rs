//! The host's end of the guest channel: the handshake, then yamux streams on demand.

use std::io;
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;
use futures::future::poll_fn;
use futures::{SinkExt, StreamExt};
use pyro_wire::{
    CHANNEL_WRITE_BYTES, Call, Failure, Frame, FrameCodec, FrameError, GENERATION, Hello, NoInput, Request,
    SetupReply, bytes_missing,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::codec::{Decoder, Encoder, Framed};
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

use crate::pace::Pace;

/// Maximum number of client requests in flight, such as commands that run; a command that takes input counts twice. Of the 256 streams
/// that yamux opens before the guest has answered on any of them, some are reserved for the supervisor.
const MAX_REQUESTS: usize = 250;
/// Maximum number of streams in yamux. More than there can be: exceeding it would close the whole channel, and closed
/// streams count until yamux has polled them.
const MAX_STREAMS: usize = 512;
/// Bound on what the guest can make the host buffer. Each stream may have 256 KiB in any case.
const MAX_BUFFERED_BYTES: usize = MAX_STREAMS * 256 * 1024;

/// Why the channel could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the guest closed the channel")]
    Closed,
    #[error("the guest does not follow the protocol")]
    Frame(#[from] FrameError),
    #[error("unexpected message from the guest agent")]
    Unexpected,
    #[error("the guest uses generation {0} of the protocol; this program uses generation {GENERATION}")]
    Generation(u32),
    #[error("the guest failed at {step}: {cause}")]
    Refused { step: String, cause: String },
}

/// Why there is no stream for a client's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OpenError {
    /// The channel is closed.
    #[error("the guest is gone")]
    Closed,
    /// [`MAX_REQUESTS`] are in flight.
    #[error("the guest runs as many commands as it can")]
    TooMany,
}

/// Waits for the guest's first frame.
pub(crate) async fn receive_hello(channel: &mut UnixStream) -> Result<Hello, HandshakeError> {
    let hello: Hello = receive(channel).await?;
    if hello.generation != GENERATION {
        return Err(HandshakeError::Generation(hello.generation));
    }
    Ok(hello)
}

/// Sends the guest a set-up step and waits until it is applied.
pub(crate) async fn set_up(channel: &mut UnixStream, message: impl Serialize) -> Result<(), HandshakeError> {
    let mut bytes = BytesMut::new();
    FrameCodec::<(), _>::default().encode(Frame::Control(message), &mut bytes)?;
    channel.write_all(&bytes).await.map_err(FrameError::Io)?;
    match receive(channel).await? {
        SetupReply::Done => Ok(()),
        SetupReply::Failed(Failure { step, cause, .. }) => Err(HandshakeError::Refused { step, cause }),
    }
}

/// Reads one message and not a byte more: what follows the last one belongs to yamux.
async fn receive<In: DeserializeOwned>(channel: &mut UnixStream) -> Result<In, HandshakeError> {
    let mut buffer = BytesMut::new();
    loop {
        let missing = bytes_missing(&buffer)?;
        if missing == 0 {
            break;
        }
        let start = buffer.len();
        buffer.resize(start + missing, 0);
        channel.read_exact(&mut buffer[start..]).await.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => HandshakeError::Closed,
            _ => FrameError::Io(error).into(),
        })?;
    }
    match FrameCodec::<In, ()>::default().decode(&mut buffer)? {
        Some(Frame::Control(message)) => Ok(message),
        Some(Frame::Output(..)) | None => Err(HandshakeError::Unexpected),
    }
}

/// A stream to the guest that carries one request, not sent yet.
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
    Ok(stream.map_codec(|_| FrameCodec::of_replies()))
}

/// Opens streams on the connection that a [`drive`] future serves.
#[derive(Clone)]
pub(crate) struct Streams {
    requests: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
    permits: Arc<Semaphore>,
    pace: Pace,
}

/// The permit for a stream, held as long as the stream.
pub(crate) type Permit = OwnedSemaphorePermit;

impl Streams {
    /// Opens a new stream to the guest for a client's request.
    pub(crate) async fn open(&self) -> Result<(yamux::Stream, Permit), OpenError> {
        let permit = self.reserve()?;
        Ok((self.open_with(&permit).await?, permit))
    }

    /// Returns the permit for a stream that may be opened later.
    pub(crate) fn reserve(&self) -> Result<Permit, OpenError> {
        Arc::clone(&self.permits).try_acquire_owned().map_err(|_| OpenError::TooMany)
    }

    /// Opens a new stream to the guest with a permit that no open stream uses.
    pub(crate) async fn open_with(&self, _permit: &Permit) -> Result<yamux::Stream, OpenError> {
        self.open_reserved().await.ok_or(OpenError::Closed)
    }

    /// Returns how slow the guest's host is.
    pub(crate) fn pace(&self) -> Pace {
        self.pace
    }

    /// Waits until the channel is closed, by either end.
    pub(crate) async fn closed(&self) {
        self.requests.closed().await;
    }

    /// Opens one of the streams that are not counted, for the supervisor's own requests. `None`: the channel is closed.
    async fn open_reserved(&self) -> Option<yamux::Stream> {
        let (sender, receiver) = oneshot::channel();
        self.requests.send(sender).await.ok()?;
        receiver.await.ok()
    }

    /// Returns the guest's answer to one of the supervisor's own requests, without the output that may precede it;
    /// clients cannot use up its stream. `None` when there is no answer.
    pub(crate) async fn ask<C: Call>(&self, request: C) -> Option<C::Reply> {
        answer(self.open_reserved().await?, request).await
    }

    /// Returns the guest's answer to a request of a client, which counts as [`Self::open`] counts it. `None` when there is no
    /// answer.
    pub(crate) async fn ask_for_client<C: Call>(&self, request: C) -> Result<Option<C::Reply>, OpenError> {
        let (stream, _permit) = self.open().await?;
        Ok(answer(stream, request).await)
    }
}

async fn answer<C: Call>(stream: yamux::Stream, request: C) -> Option<C::Reply> {
    let mut stream = call(Framed::new(stream.compat(), FrameCodec::default()), request).await.ok()?;
    loop {
        match stream.next().await?.ok()? {
            Frame::Control(reply) => return Some(reply),
            Frame::Output(..) => {}
        }
    }
}

/// Starts yamux on the channel of a guest on a host of this pace. The future must be polled for the streams to move; it ends with the channel.
pub(crate) fn drive(channel: UnixStream, pace: Pace) -> (Streams, impl Future<Output = ()>) {
    let mut config = Config::default();
    config.set_max_num_streams(MAX_STREAMS).set_max_connection_receive_window(Some(MAX_BUFFERED_BYTES));
    // yamux flushes it after each of its frames.
    let channel = BufWriter::with_capacity(CHANNEL_WRITE_BYTES, channel);
    let mut connection = Connection::new(channel.compat(), config, Mode::Client);
    let (sender, mut requests) = mpsc::channel::<oneshot::Sender<yamux::Stream>>(MAX_STREAMS);
    let mut waiting: Option<oneshot::Sender<yamux::Stream>> = None;
    let driver = poll_fn(move |context| {
        loop {
            if waiting.is_none()
                && let Poll::Ready(Some(request)) = requests.poll_recv(context)
            {
                waiting = Some(request);
            }
            if let Some(request) = waiting.take() {
                match connection.poll_new_outbound(context) {
                    Poll::Ready(Ok(stream)) => {
                        // The requester may have given up; dropping the stream then closes it.
                        let _ = request.send(stream);
                        continue;
                    }
                    // Dropping the request notifies the requester.
                    Poll::Ready(Err(_)) => continue,
                    Poll::Pending => waiting = Some(request),
                }
            }
            match connection.poll_next_inbound(context) {
                // The guest must not open streams; dropping one resets it.
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    (Streams { requests: sender, permits: Arc::new(Semaphore::new(MAX_REQUESTS)), pace }, driver)
}

#[cfg(test)]
mod tests;
