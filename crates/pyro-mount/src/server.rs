//! Messages in, messages out.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::directory::Directory;

/// Maximum number of bytes of a file in one message. What the guest's kernel uses unless it is offered more.
pub(crate) const MAX_DATA_BYTES: usize = 128 << 10;
/// Maximum size of a message, in bytes.
pub const MAX_MESSAGE_BYTES: usize = MAX_DATA_BYTES + (4 << 10);
/// Size of the header of a request, in bytes. It begins with the size of the whole message.
const HEADER_BYTES: usize = 40;
/// Number of messages that are served at a time: a file that is read from a slow disk does not hold up the others.
const THREADS: usize = 4;

/// Why a directory is not served any more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket failed.
    #[error("the connection to the guest failed")]
    Socket(#[source] io::Error),
    /// A message does not have the form of the protocol.
    #[error("the guest sent an invalid message: {0}")]
    Invalid(String),
    /// There is no thread for the work.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Serves `directory` on a `SOCK_SEQPACKET` socket until its other end is closed.
///
/// # Errors
/// [`ServeError`].
pub fn serve(directory: Directory, socket: impl AsFd) -> Result<(), ServeError> {
    let (server, socket) = (Server::new(directory), socket.as_fd());
    std::thread::scope(|scope| {
        let start = |_| {
            let (server, builder) = (&server, std::thread::Builder::new().stack_size(256 << 10));
            builder.spawn_scoped(scope, move || {
                let served = serve_messages(server, socket);
                // The other threads must not go on waiting for a message.
                let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
                served
            })
        };
        let threads: Vec<_> = (0..THREADS).map(start).collect();
        let mut served = Ok(());
        for thread in threads {
            let ended = match thread {
                Ok(thread) => thread
                    .join()
                    .unwrap_or_else(|_| Err(ServeError::Invalid("it was not understood".to_owned()))),
                Err(error) => {
                    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
                    Err(ServeError::Thread(error))
                }
            };
            served = served.and(ended);
        }
        served
    })
}

fn serve_messages(server: &Server<Directory>, socket: BorrowedFd<'_>) -> Result<(), ServeError> {
    let mut request = vec![0; MAX_MESSAGE_BYTES];
    let mut answer = vec![0; MAX_MESSAGE_BYTES];
    loop {
        // The true length, also of a message that is longer than the buffer.
        let length = match recv(socket, &mut request[..], RecvFlags::TRUNC) {
            Ok((_, 0)) => return Ok(()),
            Ok((_, length)) => length,
            Err(Errno::INTR) => continue,
            Err(Errno::CONNRESET) => return Ok(()),
            Err(error) => return Err(ServeError::Socket(error.into())),
        };
        let message = request.get_mut(..length).filter(|message| is_whole(message));
        let message = message.ok_or_else(|| ServeError::Invalid(format!("it has {length} bytes")))?;
        let invalid = |error: &dyn std::fmt::Display| ServeError::Invalid(error.to_string());
        let reader = Reader::<()>::from_fuse_buffer(FuseBuf::new(message)).map_err(|e| invalid(&e))?;
        let writer = FuseDevWriter::new(socket.as_raw_fd(), &mut answer).map_err(|e| invalid(&e))?;
        server.handle_message(reader, writer.into(), None, None).map_err(|e| invalid(&e))?;
    }
}

/// Returns whether a message has a header that states its length.
fn is_whole(message: &[u8]) -> bool {
    let stated = message.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize);
    message.len() >= HEADER_BYTES && stated == Some(message.len())
}

#[cfg(test)]
mod tests;
