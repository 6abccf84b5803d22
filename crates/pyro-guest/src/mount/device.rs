//! `/dev/fuse`, one message at a time.
#![expect(unsafe_code, reason = "tokio asks its caller to vouch for the descriptor it watches")]

use std::fs::File;
use std::io::{self, Read, Write};

use bytes::Bytes;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// The kernel does not read into a smaller buffer than what it was offered for a write, 1 MiB, and headers. It sends no more than
/// a message of [`pyro_wire::MAX_FUSE_MESSAGE_BYTES`].
const BUFFER_BYTES: usize = (1 << 20) + (4 << 10);

/// The kernel's end of a mounted directory. Closing it ends the connection: whatever waits for the host gets an error.
#[derive(Debug)]
pub(super) struct Device(AsyncFd<File>);

impl Device {
    pub(super) fn new(device: File) -> io::Result<Self> {
        fcntl_setfl(&device, fcntl_getfl(&device)? | OFlags::NONBLOCK)?;
        // SAFETY: the file owns its descriptor, goes with the registration and cannot be exchanged.
        Ok(Self(unsafe { AsyncFd::register(device) }?))
    }

    /// A buffer for [`Self::read`].
    pub(super) fn buffer() -> Vec<u8> {
        vec![0; BUFFER_BYTES]
    }

    /// Returns the next message of the kernel; `None` when the directory is not mounted any more.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<Option<Bytes>> {
        loop {
            let mut ready = self.0.readable().await?;
            let Ok(read) = ready.try_io(|file| file.get_ref().read(buffer)) else { continue };
            match read {
                Ok(0) => return Ok(None),
                Ok(length) => {
                    return Ok(Some(Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default())));
                }
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::NODEV) => return Ok(None),
                    // A request that its caller has given up.
                    Some(Errno::INTR | Errno::NOENT) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// Gives the kernel a reply.
    pub(super) async fn write(&self, message: &[u8]) -> io::Result<()> {
        loop {
            let mut ready = self.0.writable().await?;
            let Ok(written) = ready.try_io(|file| file.get_ref().write(message)) else { continue };
            match written {
                Ok(_) => return Ok(()),
                Err(error) => match Errno::from_io_error(&error) {
                    // Its caller has given up.
                    Some(Errno::NOENT | Errno::NODEV) => return Ok(()),
                    Some(Errno::INTR) => {}
                    _ => return Err(error),
                },
            }
        }
    }
}
