//! The host's end of the guest channel: the handshake, then yamux streams on demand.

use std::task::Poll;

use futures::future::poll_fn;
use futures::{SinkExt, StreamExt};
use pyro_wire::{Bootstrap, BootstrapReply, Frame, FrameCodec, FrameError, GENERATION, Hello};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::codec::{Decoder, Encoder, Framed};
use tokio_util::compat::TokioAsyncReadCompatExt;
use yamux::{Config, Connection, Mode};

/// Streams open at once, that is commands running at once in one guest.
const MAX_STREAMS: usize = 256;
/// Bound on what the guest can make the host buffer. Each stream may have 256 KiB in any case.
const MAX_BUFFERED_BYTES: usize = MAX_STREAMS * 512 * 1024;

/// Why the channel could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the guest closed the channel")]
    Closed,
    #[error("the guest does not follow the protocol")]
    Frame(#[from] FrameError),
    #[error("the guest spoke out of turn")]
    OutOfTurn,
    #[error("the guest speaks generation {0} of the protocol, this program speaks {GENERATION}")]
    Generation(u32),
    #[error("the guest failed at {step}: {cause}")]
    Refused { step: String, cause: String },
}

/// Waits for the guest's first frame.
pub(crate) async fn receive_hello(channel: &mut UnixStream) -> Result<Hello, HandshakeError> {
    let mut framed = Framed::new(channel, FrameCodec::<Hello, ()>::default());
    let hello = receive(&mut framed).await?;
    if hello.generation != GENERATION {
        return Err(HandshakeError::Generation(hello.generation));
    }
    Ok(hello)
}

/// Tells the guest who it is and waits until it takes requests.
pub(crate) async fn bootstrap(channel: &mut UnixStream, message: Bootstrap) -> Result<(), HandshakeError> {
    let mut framed = Framed::new(channel, FrameCodec::<BootstrapReply, Bootstrap>::default());
    framed.send(Frame::Control(message)).await?;
    match receive(&mut framed).await? {
        BootstrapReply::Ready => Ok(()),
        BootstrapReply::Refused { step, cause } => Err(HandshakeError::Refused { step, cause }),
    }
}

async fn receive<In, Out>(
    framed: &mut Framed<&mut UnixStream, FrameCodec<In, Out>>,
) -> Result<In, HandshakeError>
where
    FrameCodec<In, Out>:
        Decoder<Item = Frame<In>, Error = FrameError> + Encoder<Frame<Out>, Error = FrameError>,
{
    match framed.next().await.ok_or(HandshakeError::Closed)?? {
        // Each side speaks strictly in turn in this phase, so nothing may follow yet.
        Frame::Control(message) if framed.read_buffer().is_empty() => Ok(message),
        Frame::Control(_) | Frame::Output(..) => Err(HandshakeError::OutOfTurn),
    }
}

/// Opens streams on the connection that a [`drive`] future serves.
#[derive(Clone)]
pub(crate) struct Streams(mpsc::Sender<oneshot::Sender<yamux::Stream>>);

impl Streams {
    /// A new stream to the guest; `None` when the channel is closed or has all the streams it can have.
    pub(crate) async fn open(&self) -> Option<yamux::Stream> {
        let (sender, receiver) = oneshot::channel();
        self.0.send(sender).await.ok()?;
        receiver.await.ok()
    }
}

/// Starts yamux on the channel. The future must be polled for the streams to move; it ends with the channel.
pub(crate) fn drive(channel: UnixStream) -> (Streams, impl Future<Output = ()>) {
    let mut config = Config::default();
    config.set_max_num_streams(MAX_STREAMS).set_max_connection_receive_window(Some(MAX_BUFFERED_BYTES));
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
                        // Whoever asked may have given up; the stream is then closed by its drop.
                        let _ = request.send(stream);
                        continue;
                    }
                    // The request is dropped, which tells the asker.
                    Poll::Ready(Err(_)) => continue,
                    Poll::Pending => waiting = Some(request),
                }
            }
            match connection.poll_next_inbound(context) {
                // A guest has no business opening streams; dropping one resets it.
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    (Streams(sender), driver)
}
