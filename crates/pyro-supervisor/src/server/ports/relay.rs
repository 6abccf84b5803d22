//! One connection of a client on the host to a server in the guest. The other end of the stream is `connect.rs` of
//! `pyro-guest`, which passes bytes in the same way with the roles exchanged.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use pyro_wire::{Connect, ConnectInput, ConnectReply, Frame, FrameCodec, OutputStream};
use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::codec::Framed;
use tokio_util::compat::FuturesAsyncReadCompatExt;

use crate::mux::{CallStream, Streams, call};

/// Bytes of a client that are sent at a time, at most.
const CHUNK_BYTES: usize = 64 << 10;

/// Passes bytes both ways until both directions have ended. A connection that ends in another way is reset.
pub(super) async fn serve(mut client: TcpStream, guest_port: u16, streams: &Streams) {
    if let Err(error) = connect(&mut client, guest_port, streams).await {
        tracing::debug!(%error, guest_port, "a connection to a published port was reset");
        // An improvement only: without it, the client sees an end instead of a reset.
        let _ = set_socket_linger(&client, Some(Duration::ZERO));
    }
}

async fn connect(client: &mut TcpStream, guest_port: u16, streams: &Streams) -> io::Result<()> {
    client.set_nodelay(true)?;
    let (stream, _permit) = streams.open().await.map_err(io::Error::other)?;
    let stream = Framed::new(stream.compat(), FrameCodec::default());
    let stream = call(stream, Connect { port: guest_port }).await.map_err(io::Error::other)?;
    let (from_client, to_client) = client.split();
    relay(from_client, to_client, stream).await
}

/// Passes bytes between a client, given by its two halves, and a server in the guest until both directions have ended.
pub(in crate::server) async fn relay<S>(
    mut from_client: impl AsyncRead + Unpin,
    mut to_client: impl AsyncWrite + Unpin,
    stream: CallStream<S, Connect>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut to_guest, mut from_guest) = stream.split();
    let server_finished = Notify::new();
    let client_finished = Cell::new(false);
    let down = async {
        loop {
            match from_guest.next().await {
                Some(Ok(Frame::Output(OutputStream::Stdout, bytes))) => to_client.write_all(&bytes).await?,
                Some(Ok(Frame::Control(ConnectReply::Finished))) => break,
                Some(Ok(Frame::Control(ConnectReply::Failed(failure)))) => {
                    return Err(io::Error::other(failure.to_string()));
                }
                Some(Ok(Frame::Output(OutputStream::Stderr, _))) => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return Err(io::ErrorKind::ConnectionReset.into()),
            }
        }
        to_client.shutdown().await?;
        server_finished.notify_one();
        // The guest closes the stream when the client has finished too, or because the server is gone.
        match from_guest.next().await {
            None if client_finished.get() => Ok(()),
            None => Err(io::ErrorKind::ConnectionReset.into()),
            Some(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    };
    let up = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let frame = match from_client.read(&mut buffer).await? {
                0 => break,
                length => Frame::Output(OutputStream::Stdout, Bytes::copy_from_slice(&buffer[..length])),
            };
            to_guest.send(frame).await.map_err(io::Error::other)?;
        }
        client_finished.set(true);
        to_guest.send(Frame::Control(ConnectInput::Finished)).await.map_err(io::Error::other)?;
        server_finished.notified().await;
        to_guest.close().await.map_err(io::Error::other)
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}
