//! Messages of one directory, between its server and the guest. The other end of the stream is `mount/relay.rs` of `pyro-guest`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, SinkExt, StreamExt};
use pyro_wire::{
    Failure, Frame, FrameError, FuseMessages, InvalidFuseMessage, MAX_FUSE_MESSAGE_BYTES, Mount, MountInput,
    MountReply, OutputStream,
};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::mux::CallStream;

/// Time limit for a server to exit when its directory is not mounted any more.
const EXIT_LIMIT: Duration = Duration::from_secs(1);

/// Why messages do not pass any more, if not because the directory was unmounted.
#[derive(Debug, thiserror::Error)]
pub(super) enum RelayError {
    #[error("the guest closed the stream")]
    GuestGone,
    #[error("the server of the directory has ended")]
    ServerGone,
    #[error("the guest does not follow the protocol")]
    Unexpected,
    #[error(transparent)]
    Invalid(#[from] InvalidFuseMessage),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the connection to the server failed")]
    Server(#[from] io::Error),
}

/// A socket whose packets are messages. Only the readiness of tokio's type is used.
#[derive(Debug)]
pub(super) struct Packets(UnixStream);

impl Packets {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self(UnixStream::from_std(socket)?))
    }

    /// Returns the next message; `None` if the other end is closed.
    async fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Bytes>> {
        let receive = || Ok(recv(self.0.as_fd(), &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC)?.1);
        match self.0.async_io(Interest::READABLE, receive).await {
            Ok(0) => Ok(None),
            Ok(length) => {
                let message = buffer.get(..length).ok_or(io::ErrorKind::InvalidData)?;
                Ok(Some(Bytes::copy_from_slice(message)))
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn send(&self, message: &[u8]) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let send = || Ok(send(self.0.as_fd(), message, flags).map(drop)?);
        self.0.async_io(Interest::WRITABLE, send).await
    }

    /// Tells the server that nothing more comes, and waits for its exit, which closes its end.
    pub(super) async fn settle(&self) {
        if shutdown(self.0.as_fd(), Shutdown::Write).is_err() {
            return;
        }
        let mut buffer = vec![0; MAX_FUSE_MESSAGE_BYTES];
        let ended = async { while let Ok(Some(_)) = self.receive(&mut buffer).await {} };
        let _ = timeout(EXIT_LIMIT, ended).await;
    }
}

/// Passes messages on until the directory is unmounted, which `unmount` asks the guest for. If its server ends before, the directory
/// stays mounted and nothing in it can be used: otherwise the guest would write to its own disk there; `lost` is called then. Returns
/// why the guest may have kept something that was written to it.
pub(super) async fn run<S>(
    stream: CallStream<S, Mount>,
    server: &Packets,
    unmount: &Notify,
    lost: impl Fn(&RelayError),
) -> Result<Option<Failure>, RelayError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut to_guest, mut from_guest) = stream.split();
    let up = async {
        let mut messages = FuseMessages::default();
        loop {
            match from_guest.next().await {
                Some(Ok(Frame::Output(OutputStream::Stdout, frame))) => {
                    if let Some(message) = messages.add(frame)? {
                        // The other direction finds out that the server has ended.
                        let _ = server.send(&message).await;
                    }
                }
                Some(Ok(Frame::Control(MountReply::Unmounted { not_written }))) => return Ok(not_written),
                Some(Ok(_)) => return Err(RelayError::Unexpected),
                Some(Err(error)) => return Err(error.into()),
                None => return Err(RelayError::GuestGone),
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; MAX_FUSE_MESSAGE_BYTES];
        'served: loop {
            let mut next = tokio::select! {
                () = unmount.notified() => {
                    to_guest.send(Frame::Control(MountInput::Unmount)).await?;
                    continue;
                }
                message = server.receive(&mut buffer) => Some(message),
            };
            while let Some(message) = next {
                let message = match message {
                    Ok(Some(message)) => message,
                    ended => {
                        lost(&ended.err().map_or(RelayError::ServerGone, RelayError::Server));
                        break 'served;
                    }
                };
                for frame in FuseMessages::frames(message) {
                    to_guest.feed(Frame::Output(OutputStream::Stdout, frame)).await?;
                }
                // Those that wait already are sent with it.
                next = server.receive(&mut buffer).now_or_never();
            }
            to_guest.flush().await?;
        }
        // A server that has not ended by itself, but sends an invalid message, ends now.
        let _ = shutdown(server.0.as_fd(), Shutdown::Both);
        to_guest.send(Frame::Control(MountInput::Lost)).await?;
        loop {
            unmount.notified().await;
            to_guest.send(Frame::Control(MountInput::Unmount)).await?;
        }
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}
