//! The Ethernet interface of a machine whose VMM gives it none: a TAP interface, whose frames two threads carry over a vsock
//! connection. The host's end of the connection is the same as that of a VMM's interface.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::thread;

use pyro_wire::Failure;

use crate::failure::During;
use crate::vsock;

/// Name of the interface.
pub(crate) const INTERFACE: &str = "eth0";
/// Where interfaces are made.
const TUN: &str = "/dev/net/tun";
/// Largest frame: the largest packet, and the header in front of it.
const MAX_FRAME_BYTES: usize = 65_535 + 14;
/// Bytes of the length in front of a frame.
const LENGTH_BYTES: usize = 4;
const BUFFER_BYTES: usize = 256 << 10;

/// Makes the interface, which exists as long as the agent.
pub(crate) fn start(port: u32) -> Result<(), Failure> {
    let interface = tap::open(TUN, INTERFACE).during("making the network interface")?;
    let link = vsock::connect_to_host(port).during("connecting the network interface to the host")?;
    let other = || Ok::<_, io::Error>((interface.try_clone()?, link.try_clone()?));
    let (from_interface, to_link) = other().during("connecting the network interface to the host")?;
    let carry = |name: &str, work: fn(File, File) -> io::Result<()>, from: File, to: File| {
        let work = move || {
            if let Err(error) = work(from, to) {
                eprintln!("pyro-guest: the network interface failed: {error}");
            }
        };
        thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
    };
    carry("to-host", send, from_interface, to_link).during("starting a thread")?;
    carry("from-host", receive, link, interface).during("starting a thread")
}

/// Carries frames of the interface to the host.
fn send(mut interface: impl Read, mut link: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; LENGTH_BYTES + MAX_FRAME_BYTES];
    loop {
        let length = interface.read(&mut buffer[LENGTH_BYTES..])?;
        // At most the size of the buffer.
        buffer[..LENGTH_BYTES].copy_from_slice(&(length as u32).to_be_bytes());
        link.write_all(&buffer[..LENGTH_BYTES + length])?;
    }
}

/// Carries frames of the host to the interface, until the host closes the connection.
fn receive(link: impl Read, mut interface: impl Write) -> io::Result<()> {
    let mut link = BufReader::with_capacity(BUFFER_BYTES, link);
    let mut buffer = vec![0; MAX_FRAME_BYTES];
    loop {
        let mut length = [0; LENGTH_BYTES];
        match link.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            done => done?,
        }
        let length = u32::from_be_bytes(length) as usize;
        let frame = buffer.get_mut(..length).ok_or(io::ErrorKind::InvalidData)?;
        link.read_exact(frame)?;
        // An interface that is down takes none, and what an interface does not take is lost on every network.
        let _ = interface.write(frame);
    }
}

mod tap {
    #![expect(unsafe_code, reason = "ioctl")]

    use std::fs::File;
    use std::io;

    use rustix::ioctl::{Setter, ioctl, opcode};

    const SET_INTERFACE: u32 = opcode::write::<std::ffi::c_int>(b'T', 202);
    const NAME_BYTES: usize = 16;

    /// `struct ifreq`, as far as this request uses it.
    #[repr(C)]
    struct Request {
        name: [u8; NAME_BYTES],
        flags: libc::c_short,
        rest: [u8; 22],
    }

    /// Makes an interface for Ethernet frames without anything in front of them.
    pub(super) fn open(device: &str, name: &str) -> io::Result<File> {
        let file = File::options().read(true).write(true).open(device)?;
        let mut request = Request {
            name: [0; NAME_BYTES],
            flags: (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short,
            rest: [0; 22],
        };
        // The last byte stays zero.
        for (byte, of_name) in request.name[..NAME_BYTES - 1].iter_mut().zip(name.bytes()) {
            *byte = of_name;
        }
        // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, which has the size of the request.
        unsafe { ioctl(&file, Setter::<SET_INTERFACE, Request>::new(request)) }?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Like an interface, a socket for datagrams delivers frames one by one.
    struct Interface(UnixDatagram);

    impl Read for Interface {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.recv(buffer) {
                Ok(0) => Err(io::ErrorKind::BrokenPipe.into()),
                done => done,
            }
        }
    }

    impl Write for Interface {
        fn write(&mut self, frame: &[u8]) -> io::Result<usize> {
            self.0.send(frame)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn frames() -> Vec<Vec<u8>> {
        [60, 1514, 60_000, 14].map(|length| vec![length as u8; length]).into()
    }

    fn on_stream(frames: &[Vec<u8>]) -> Vec<u8> {
        frames.iter().flat_map(|frame| [&(frame.len() as u32).to_be_bytes()[..], frame].concat()).collect()
    }

    #[test]
    fn frames_arrive_at_the_host_behind_their_lengths() {
        let (guest, interface) = UnixDatagram::pair().unwrap();
        let (link, mut host) = UnixStream::pair().unwrap();
        let sender = thread::spawn(move || send(Interface(interface), link));
        for frame in frames() {
            guest.send(&frame).unwrap();
        }
        let mut seen = vec![0; on_stream(&frames()).len()];
        host.read_exact(&mut seen).unwrap();
        assert_eq!(seen, on_stream(&frames()));
        guest.send(&[]).unwrap();
        assert_eq!(sender.join().unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn frames_of_the_host_arrive_one_by_one_until_it_closes_the_connection() {
        let (guest, interface) = UnixDatagram::pair().unwrap();
        let (link, mut host) = UnixStream::pair().unwrap();
        let receiver = thread::spawn(move || receive(link, Interface(interface)));
        let sender = thread::spawn(move || {
            for part in on_stream(&frames()).chunks(777) {
                host.write_all(part).unwrap();
            }
        });
        let mut buffer = vec![0; MAX_FRAME_BYTES];
        for frame in frames() {
            let length = guest.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], frame);
        }
        sender.join().unwrap();
        receiver.join().unwrap().unwrap();
    }

    #[test]
    fn a_frame_that_is_too_long_ends_the_link() {
        let (_guest, interface) = UnixDatagram::pair().unwrap();
        let stream = (MAX_FRAME_BYTES as u32 + 1).to_be_bytes();
        let error = receive(&stream[..], Interface(interface)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
