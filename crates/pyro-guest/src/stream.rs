//! The yamux stream of one request: the request, frames in either direction, and the reply.

use futures::{SinkExt, StreamExt};
use pyro_wire::{Call, Frame, FrameCodec, NoInput, Request};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::Framed;

/// A stream whose request has not been read.
pub(crate) type RequestStream<S> = Framed<S, FrameCodec<Request, NoInput>>;

/// A stream whose request was read. Its codec accepts the input of that call, and sends its reply.
pub(crate) type CallStream<S, C> = Framed<S, FrameCodec<<C as Call>::Input, <C as Call>::Reply>>;

/// Returns the stream of a request as one of the call `C`.
pub(crate) fn accept<S: AsyncRead + AsyncWrite + Unpin, C: Call>(
    stream: RequestStream<S>,
) -> CallStream<S, C> {
    stream.map_codec(|_| FrameCodec::default())
}

/// Sends the only frame of a reply and closes the stream.
pub(crate) async fn finish<S, In, Reply>(mut stream: Framed<S, FrameCodec<In, Reply>>, reply: Reply)
where
    S: AsyncRead + AsyncWrite + Unpin,
    Reply: Serialize,
{
    // Fails if the host is gone; no one needs the reply then.
    let _ = stream.send(Frame::Control(reply)).await;
    let _ = stream.close().await;
}

/// Sends the only frame of a reply when it is known, unless the host leaves before.
pub(crate) async fn answer<S, In, Reply>(
    mut stream: Framed<S, FrameCodec<In, Reply>>,
    reply: impl Future<Output = Reply>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    In: DeserializeOwned,
    Reply: Serialize,
{
    let reply = tokio::select! {
        biased;
        reply = reply => reply,
        // These requests have no input.
        _ = stream.next() => return,
    };
    finish(stream, reply).await;
}
