//! The channel to the host while the machine is set up, over a virtio-serial port or vsock.
#![expect(unsafe_code, reason = "there is no safe wrapper of vsock addresses")]

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Time limit for the VMM to accept a connection. The kernel's own, 2 seconds, is short for a host that is busy.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// What opens a channel again.
type Reopen = Box<dyn FnOnce() -> io::Result<File> + Send>;

/// The channel to the host.
pub(crate) struct Channel {
    file: File,
    /// The channel may be lost, once: when the machine was saved, and is restored.
    reopen: Option<Reopen>,
    packet_port: Option<u32>,
}

impl From<File> for Channel {
    fn from(file: File) -> Self {
        Self { file, reopen: None, packet_port: None }
    }
}

impl Channel {
    /// Opens a channel with `connect`, and does it again when a restored machine has lost it.
    pub(crate) fn connect(connect: impl Fn() -> io::Result<File> + Send + 'static) -> io::Result<Self> {
        Ok(Self { file: connect()?, reopen: Some(Box::new(connect)), packet_port: None })
    }

    /// Sets the host's vsock port for the packets of the machine.
    pub(crate) fn with_packet_port(self, port: u32) -> Self {
        Self { packet_port: Some(port), ..self }
    }

    /// Returns the host's vsock port for the packets of the machine. `None`: its VMM gives it an interface.
    pub(crate) fn packet_port(&self) -> Option<u32> {
        self.packet_port
    }

    /// Returns the open file or socket. From then on, its loss is the end of the channel.
    pub(crate) fn into_file(self) -> File {
        self.file
    }
}

impl Read for Channel {
    /// A restored machine finds that its connection was reset, and gets the host's next message on another one. In every
    /// other machine, the connection is only reset when the host is gone, and then there is nothing to connect to.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buffer) {
            // The second, if the reset was processed before this began to read.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::NotConnected) => {
                let Some(reopen) = self.reopen.take() else { return Err(error) };
                self.file = reopen()?;
                self.file.read(buffer)
            }
            result => result,
        }
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Connects to a vsock port of the host. Blocks.
pub(crate) fn connect_to_host(port: u32) -> io::Result<File> {
    const SO_VM_SOCKETS_CONNECT_TIMEOUT: libc::c_int = 6;
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let limit = libc::timeval { tv_sec: CONNECT_LIMIT.as_secs() as libc::time_t, tv_usec: 0 };
    // SAFETY: all fields of the structure may be zero.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = libc::VMADDR_CID_HOST;
    address.svm_port = port;
    // SAFETY: the kernel reads the structures, whose sizes are passed with them.
    unsafe {
        check(libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            SO_VM_SOCKETS_CONNECT_TIMEOUT,
            (&raw const limit).cast(),
            size_of_val(&limit) as libc::socklen_t,
        ))?;
        check(libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        ))?;
    }
    Ok(socket.into())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;

    fn file(stream: UnixStream) -> File {
        OwnedFd::from(stream).into()
    }

    /// A host that closes its end while the guest's bytes are unread, which resets the connection.
    fn reset(host: UnixStream, guest: &mut Channel) {
        guest.write_all(b"unread").unwrap();
        drop(host);
    }

    #[test]
    fn a_restored_machine_goes_on_with_another_connection() {
        let (connected, hosts) = channel();
        let connected = Mutex::new(connected);
        let mut guest = Channel::connect(move || {
            let (host, guest) = UnixStream::pair().unwrap();
            (&host).write_all(b"hello").unwrap();
            connected.lock().unwrap().send(host).unwrap();
            Ok(file(guest))
        })
        .unwrap();
        let first = hosts.recv().unwrap();
        let mut bytes = [0; 5];
        guest.read_exact(&mut bytes).unwrap();
        reset(first, &mut guest);
        guest.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        let mut second = hosts.recv().unwrap();
        guest.write_all(b"there").unwrap();
        second.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"there");

        reset(second, &mut guest);
        assert_eq!(guest.read(&mut bytes).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(hosts.recv().is_err(), "a machine is restored once");
    }

    #[test]
    fn a_host_that_is_gone_ends_the_channel() {
        let mut hosts = vec![UnixStream::pair().unwrap()];
        let (host, stream) = hosts.pop().unwrap();
        let first = Mutex::new(Some(file(stream)));
        let connect = move || first.lock().unwrap().take().ok_or(ErrorKind::ConnectionRefused.into());
        let mut guest = Channel::connect(connect).unwrap();
        reset(host, &mut guest);
        assert_eq!(guest.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn an_orderly_end_is_not_a_loss() {
        let (host, stream) = UnixStream::pair().unwrap();
        let mut guest = Channel::from(file(stream));
        drop(host);
        assert_eq!(guest.read(&mut [0]).unwrap(), 0);
    }
}
