//! The channel to the host as an asynchronous stream.
#![expect(unsafe_code, reason = "tokio asks its caller to vouch for the descriptor it watches")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The virtio-serial port. Not one of tokio's pipes, which take a short read to mean that no data is left: this device
/// returns one page at a time, and reports the remaining data only once.
#[derive(Debug)]
pub(crate) struct Port(AsyncFd<File>);

impl Port {
    /// `channel` must not block.
    pub(crate) fn new(channel: File) -> io::Result<Self> {
        // SAFETY: the file owns its descriptor, goes with the registration and cannot be exchanged.
        Ok(Self(unsafe { AsyncFd::register(channel) }?))
    }
}

impl AsyncRead for Port {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            if let Ok(read) = ready.try_io(|file| file.get_ref().read(buffer.initialize_unfilled())) {
                return Poll::Ready(read.map(|count| buffer.advance(count)));
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            if let Ok(written) = ready.try_io(|file| file.get_ref().write(bytes)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // It is open as long as the machine lives.
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Like the device, a datagram socket returns short reads while there is more, and reports that once.
    #[tokio::test]
    async fn a_short_read_does_not_hide_what_is_behind_it() {
        let (host, guest) = UnixDatagram::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        let mut port = Port::new(File::from(OwnedFd::from(guest))).unwrap();
        host.send(b"one ").unwrap();
        host.send(b"two").unwrap();
        let mut buffer = [0; 7];
        port.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"one two");
        port.write_all(b"three").await.unwrap();
        assert_eq!(host.recv(&mut buffer).unwrap(), 5);
    }
}
