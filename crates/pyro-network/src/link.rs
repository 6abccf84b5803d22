//! The link to the guest: frames on a stream socket, each behind its length as four bytes in network order.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;

use mio::net::UnixStream;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};

use crate::config::MacAddress;
use crate::limits::OUTPUT_BYTES;

/// Largest frame that the peer may send, in bytes: what QEMU takes from a guest.
const MAX_FRAME_BYTES: usize = 4096 + 65_536;
/// Bytes of the length in front of a frame.
const LENGTH_BYTES: usize = 4;
const INPUT_BYTES: usize = 256 << 10;
/// Wanted size of the kernel's buffers.
const SOCKET_BUFFER_BYTES: usize = 1 << 20;
const ETHERNET_HEADER_BYTES: usize = 14;

/// Type of what a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EtherType {
    Ipv4,
    Ipv6,
    Arp,
}

impl EtherType {
    const fn bytes(self) -> [u8; 2] {
        match self {
            Self::Ipv4 => [0x08, 0x00],
            Self::Arp => [0x08, 0x06],
            Self::Ipv6 => [0x86, 0xdd],
        }
    }
}

/// The link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) stream: UnixStream,
    pub(crate) input: Input,
    pub(crate) output: Output,
}

/// The peer sent what is not a frame.
#[derive(Debug, thiserror::Error)]
#[error("invalid frame: expected at most {MAX_FRAME_BYTES} bytes, got {0}")]
pub(crate) struct InvalidFrame(u32);

impl Link {
    /// Takes over a connected stream socket.
    pub(crate) fn new(socket: OwnedFd, guest: MacAddress) -> io::Result<Self> {
        let stream = StdUnixStream::from(socket);
        stream.set_nonblocking(true)?;
        // The kernel may give less.
        let _ = set_socket_send_buffer_size(&stream, SOCKET_BUFFER_BYTES);
        let _ = set_socket_recv_buffer_size(&stream, SOCKET_BUFFER_BYTES);
        Ok(Self { stream: UnixStream::from_std(stream), input: Input::new(), output: Output::new(guest) })
    }

    /// Reads once. Returns the number of bytes, which is zero if the peer has closed the link, or `None` if there is
    /// nothing to read now.
    pub(crate) fn fill(&mut self) -> io::Result<Option<usize>> {
        let space = self.input.space();
        match self.stream.read(space) {
            Ok(length) => {
                self.input.end += length;
                Ok(Some(length))
            }
            Err(error) if is_temporary(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes what waits, as far as the peer takes it.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let Output { pending, sent, .. } = &mut self.output;
        while *sent < pending.len() {
            match self.stream.write(&pending[*sent..]) {
                Ok(length) => *sent += length,
                Err(error) if is_temporary(&error) => break,
                Err(error) => return Err(error),
            }
        }
        self.output.compact();
        Ok(())
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Bytes that were read, and of which frames are taken.
#[derive(Debug)]
pub(crate) struct Input {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Input {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; INPUT_BYTES].into(), start: 0, end: 0 }
    }

    /// Returns where to read to. Not empty after [`Input::next`] has returned no frame.
    fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < MAX_FRAME_BYTES + LENGTH_BYTES {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// Returns the next frame, if it has arrived completely.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>, InvalidFrame> {
        let available = &self.buffer[self.start..self.end];
        let Some((length, rest)) = available.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let announced = u32::from_be_bytes(*length);
        let length = announced as usize;
        if length > MAX_FRAME_BYTES {
            return Err(InvalidFrame(announced));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let start = self.start + LENGTH_BYTES;
        self.start = start + length;
        Ok(Some(&self.buffer[start..self.start]))
    }

    #[cfg(test)]
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        let space = self.space();
        let length = bytes.len().min(space.len());
        space[..length].copy_from_slice(&bytes[..length]);
        self.end += length;
        length
    }
}

/// Frames that wait until the peer takes them.
#[derive(Debug)]
pub(crate) struct Output {
    pending: Vec<u8>,
    sent: usize,
    guest: MacAddress,
}

/// Our hardware address on every link.
pub(crate) const OUR_MAC: MacAddress = MacAddress([0x02, 0x70, 0x79, 0x72, 0x6f, 0x01]);

impl Output {
    pub(crate) fn new(guest: MacAddress) -> Self {
        Self { pending: Vec::new(), sent: 0, guest }
    }

    /// Whether more frames should be made. Some more than that are taken, so that one answer always fits.
    pub(crate) fn has_space(&self) -> bool {
        self.pending.len() - self.sent < OUTPUT_BYTES
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.pending.len() == self.sent
    }

    /// Adds a frame whose content has `length` bytes, which `fill` writes.
    pub(crate) fn push<R>(&mut self, kind: EtherType, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let frame = ETHERNET_HEADER_BYTES + length;
        // A packet has at most 65,575 bytes.
        self.pending.extend_from_slice(&(frame as u32).to_be_bytes());
        self.pending.extend_from_slice(&self.guest.0);
        self.pending.extend_from_slice(&OUR_MAC.0);
        self.pending.extend_from_slice(&kind.bytes());
        let start = self.pending.len();
        self.pending.resize(start + length, 0);
        fill(&mut self.pending[start..])
    }

    /// Adds a frame with an IP packet of `length` bytes, whose version is known once `fill` has written it.
    pub(crate) fn push_ip<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let result = self.push(EtherType::Ipv4, length, fill);
        let start = self.pending.len() - length;
        if self.pending.get(start).is_some_and(|byte| byte >> 4 == 6) {
            self.pending[start - 2..start].copy_from_slice(&EtherType::Ipv6.bytes());
        }
        result
    }

    fn compact(&mut self) {
        if self.sent == self.pending.len() {
            self.pending.clear();
            self.sent = 0;
            // What one burst needed is not kept.
            self.pending.shrink_to(INPUT_BYTES);
        } else if self.sent > OUTPUT_BYTES {
            self.pending.drain(..self.sent);
            self.sent = 0;
        }
    }

    #[cfg(test)]
    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.sent = 0;
        std::mem::take(&mut self.pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_however_they_arrive() {
        let mut input = Input::new();
        let frames: Vec<Vec<u8>> = (0..200).map(|n: usize| vec![n as u8; n * n % 3000]).collect();
        let stream: Vec<u8> = frames
            .iter()
            .flat_map(|frame| [&(frame.len() as u32).to_be_bytes()[..], frame].concat())
            .collect();
        let mut found = Vec::new();
        for part in stream.chunks(777) {
            let mut part = part;
            while !part.is_empty() {
                part = &part[input.push(part)..];
                while let Some(frame) = input.next().unwrap() {
                    found.push(frame.to_vec());
                }
            }
        }
        assert_eq!(found, frames);
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_before_it_arrives() {
        let mut input = Input::new();
        input.push(&(MAX_FRAME_BYTES as u32 + 1).to_be_bytes());
        assert!(input.next().is_err());
    }

    #[test]
    fn a_peer_that_does_not_read_stops_the_output_and_loses_nothing() {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        let mut link = Link::new(ours.into(), MacAddress([6; 6])).unwrap();
        let mut made = 0_u32;
        while link.output.has_space() {
            link.output.push(EtherType::Ipv4, 60_000, |packet| packet.fill(made as u8));
            made += 1;
            link.flush().unwrap();
        }
        assert!(!link.output.is_empty());
        theirs.set_nonblocking(true).unwrap();
        let mut seen = Vec::new();
        let mut buffer = vec![0; 1 << 20];
        let mut theirs = theirs;
        while seen.len() < made as usize * (LENGTH_BYTES + ETHERNET_HEADER_BYTES + 60_000) {
            if let Ok(length) = theirs.read(&mut buffer) {
                seen.extend_from_slice(&buffer[..length]);
            }
            link.flush().unwrap();
        }
        for (n, frame) in seen.chunks(LENGTH_BYTES + ETHERNET_HEADER_BYTES + 60_000).enumerate() {
            assert_eq!(frame.last(), Some(&(n as u8)));
        }
    }
}
