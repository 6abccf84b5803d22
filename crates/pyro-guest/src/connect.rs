//! Connects the host with a server in the machine. The other end of the stream is `server/ports/relay.rs` of `pyro-supervisor`,
//! which passes bytes in the same way with the roles exchanged.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use pyro_wire::{Connect, ConnectInput, ConnectReply, Frame, OutputStream};
use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::failure::failed;
use crate::stream::{CallStream, finish};

/// Bytes of a server that are sent at a time, at most.
const CHUNK_BYTES: usize = 64 << 10;

/// Passes bytes both ways until both directions have ended, or one has failed: then the server's connection is reset, and
/// the stream closes without an answer.
pub(crate) async fn serve<S>(Connect { port }: Connect, stream: CallStream<S, Connect>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut server = match connect(port).await {
        Ok(server) => server,
        Err(error) => {
            let failure = failed(format!("connecting to port {port}"), error);
            return finish(stream, ConnectReply::Failed(failure)).await;
        }
    };
    if relay(stream, &mut server).await.is_err() {
        // An improvement only: without it, the server sees an end instead of a reset.
        let _ = set_socket_linger(&server, Some(Duration::ZERO));
    }
}

/// Connects to a server on the loopback interface, which may listen for IPv6 alone.
pub(crate) async fn connect(port: u16) -> io::Result<TcpStream> {
    let server = match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.map_err(|_| error)?
        }
        connected => connected?,
    };
    server.set_nodelay(true)?;
    Ok(server)
}

async fn relay<S>(stream: CallStream<S, Connect>, server: &mut TcpStream) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut to_host, mut from_host) = stream.split();
    let (mut from_server, mut to_server) = server.split();
    let client_finished = Notify::new();
    let server_finished = AtomicBool::new(false);
    let up = async {
        loop {
            match from_host.next().await {
                Some(Ok(Frame::Output(OutputStream::Stdout, bytes))) => to_server.write_all(&bytes).await?,
                Some(Ok(Frame::Control(ConnectInput::Finished))) => break,
                Some(Ok(Frame::Output(OutputStream::Stderr, _))) => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        to_server.shutdown().await?;
        client_finished.notify_one();
        // The host closes the stream when the server has finished too, or because the client is gone.
        match from_host.next().await {
            None if server_finished.load(Ordering::Relaxed) => Ok(()),
            None => Err(io::ErrorKind::ConnectionAborted.into()),
            Some(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    };
    let down = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let frame = match from_server.read(&mut buffer).await? {
                0 => break,
                length => Frame::Output(OutputStream::Stdout, Bytes::copy_from_slice(&buffer[..length])),
            };
            to_host.send(frame).await.map_err(io::Error::other)?;
        }
        server_finished.store(true, Ordering::Relaxed);
        to_host.send(Frame::Control(ConnectReply::Finished)).await.map_err(io::Error::other)?;
        client_finished.notified().await;
        to_host.close().await.map_err(io::Error::other)
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}
