//! One open TCP connection: a socket of the stack towards the guest, and a socket of the host.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Instant;

use mio::net::TcpStream;
use rustix::net::sockopt::set_socket_linger;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{self, State};

use super::Ends;
use crate::inspect::{Named, server_name};
use crate::limits;
use crate::policy::{DnsName, Protocol, Rule};
use crate::relay::Shared;
use crate::stack::Stack;

/// One open TCP connection.
#[derive(Debug)]
pub(super) struct Flow {
    ends: Ends,
    /// Absent once the host's connection has ended while the guest must still learn of it.
    host: Option<TcpStream>,
    handle: SocketHandle,
    readable: bool,
    writable: bool,
    /// The host's peer has sent everything.
    host_ended: bool,
    /// The guest has sent its last byte.
    guest_ending: bool,
    /// The guest has sent everything, and the host's peer knows.
    guest_ended: bool,
    /// The guest's last bytes, which the host's peer has not taken when the guest's side has ended.
    rest: Option<Vec<u8>>,
    large: bool,
    /// The guest must name one of these before anything is forwarded.
    servers: Option<Vec<DnsName>>,
    since: Instant,
    confirmed: bool,
}

/// What pumping did.
pub(super) enum Pumped {
    Open {
        /// Bytes were moved, or a side was closed.
        moved: bool,
    },
    Ended,
}

impl Flow {
    pub(super) fn new(
        ends: Ends,
        host: TcpStream,
        handle: SocketHandle,
        (large, servers): (bool, Option<Vec<DnsName>>),
    ) -> Self {
        Self {
            ends,
            host: Some(host),
            handle,
            readable: true,
            writable: true,
            host_ended: false,
            guest_ending: false,
            guest_ended: false,
            rest: None,
            large,
            servers,
            since: Instant::now(),
            confirmed: false,
        }
    }

    pub(super) fn ends(&self) -> Ends {
        self.ends
    }

    pub(super) fn has_large_buffers(&self) -> bool {
        self.large
    }

    pub(super) fn event(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
    }

    /// Moves bytes both ways.
    pub(super) fn pump(&mut self, shared: &mut Shared, stack: &mut Stack) -> Pumped {
        let socket = stack.socket(self.handle);
        let Some(mut host) = self.host.take() else {
            // The guest learns of it by a reset, for which the output may have had no space yet.
            return match socket.remote_endpoint() {
                None => Pumped::Ended,
                Some(_) => Pumped::Open { moved: false },
            };
        };
        if let Some(rest) = &mut self.rest {
            return match finish(rest, &mut self.writable, &mut host) {
                Ok(true) => Pumped::Ended,
                Ok(false) => {
                    self.host = Some(host);
                    Pumped::Open { moved: false }
                }
                Err(_) => Pumped::Ended,
            };
        }
        self.guest_ending |= has_ended(socket);
        match socket.state() {
            State::TimeWait | State::Closed if self.guest_ending && self.host_ended => {
                return self.last_bytes(socket, host);
            }
            State::TimeWait | State::Closed => {
                reset(&host);
                return Pumped::Ended;
            }
            State::Listen | State::SynSent | State::SynReceived => {
                self.host = Some(host);
                return Pumped::Open { moved: false };
            }
            _ => self.confirmed = true,
        }
        let moved = match self.identify(shared, socket) {
            Identified::Yes => self.exchange(socket, &mut host),
            Identified::NotYet => Ok(false),
            Identified::No => Err(io::ErrorKind::PermissionDenied.into()),
        };
        match moved {
            Ok(moved) => {
                self.host = Some(host);
                Pumped::Open { moved }
            }
            Err(_) => {
                socket.abort();
                reset(&host);
                Pumped::Open { moved: true }
            }
        }
    }

    /// Takes the last bytes of a connection that both sides have closed.
    fn last_bytes(&mut self, socket: &mut tcp::Socket<'_>, mut host: TcpStream) -> Pumped {
        match self.forward(socket, &mut host) {
            Ok(_) if socket.can_recv() => {
                let mut rest = vec![0; socket.recv_queue()];
                let length = socket.recv_slice(&mut rest).unwrap_or(0);
                rest.truncate(length);
                self.rest = Some(rest);
                self.host = Some(host);
                Pumped::Open { moved: true }
            }
            _ => Pumped::Ended,
        }
    }

    /// Compares the server that the guest names.
    fn identify(&mut self, shared: &mut Shared, socket: &mut tcp::Socket<'_>) -> Identified {
        let Some(servers) = &self.servers else { return Identified::Yes };
        let bytes = socket.peek(limits::INSPECTION_BYTES).unwrap_or_default();
        let (named, rule) = match server_name(bytes) {
            Named::Server(name) if servers.contains(&name) => {
                self.servers = None;
                return Identified::Yes;
            }
            Named::Server(name) => (Some(name), Rule::ServerNameMismatch),
            // A guest that has ended will say no more.
            Named::Partly if socket.may_recv() && !has_ended(socket) => {
                if self.since.elapsed() < limits::INSPECTION_TIME {
                    return Identified::NotYet;
                }
                (None, Rule::ServerNameMissing)
            }
            Named::Partly | Named::Nothing => (None, Rule::ServerNameMissing),
        };
        shared.deny(Protocol::Tcp, self.ends.destination, named.as_ref(), rule);
        Identified::No
    }

    fn exchange(&mut self, socket: &mut tcp::Socket<'_>, host: &mut TcpStream) -> io::Result<bool> {
        let to_host = self.forward(socket, host)?;
        let to_guest = self.backward(socket, host)?;
        Ok(to_host || to_guest)
    }

    fn forward(&mut self, socket: &mut tcp::Socket<'_>, host: &mut TcpStream) -> io::Result<bool> {
        let mut moved = false;
        while self.writable && socket.can_recv() {
            let written = socket.recv(|bytes| match host.write(bytes) {
                Ok(length) => (length, Ok(length)),
                Err(error) => (0, Err(error)),
            });
            match written {
                Ok(Ok(_)) => moved = true,
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        if !self.guest_ended && !socket.can_recv() && has_ended(socket) {
            self.guest_ended = true;
            moved = true;
            host.shutdown(Shutdown::Write)?;
        }
        Ok(moved)
    }

    fn backward(&mut self, socket: &mut tcp::Socket<'_>, host: &mut TcpStream) -> io::Result<bool> {
        let mut moved = false;
        while self.readable && !self.host_ended && socket.can_send() {
            let read = socket.send(|space| match host.read(space) {
                Ok(length) => (length, Ok(length)),
                Err(error) => (0, Err(error)),
            });
            match read {
                Ok(Ok(0)) => {
                    self.host_ended = true;
                    moved = true;
                    socket.close();
                }
                Ok(Ok(_)) => moved = true,
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        Ok(moved)
    }

    /// Ends what the guest does not confirm, and returns when that is next due.
    pub(super) fn expire(&mut self, now: Instant, stack: &mut Stack) -> Option<Instant> {
        if !self.confirmed {
            let due = self.since + limits::HANDSHAKE_TIME;
            if now >= due {
                stack.socket(self.handle).abort();
            }
            return Some(due.max(now));
        }
        self.servers.as_ref().map(|_| self.since + limits::INSPECTION_TIME)
    }

    #[cfg(test)]
    pub(super) fn compare_servers(&mut self, servers: Vec<DnsName>) {
        self.servers = Some(servers);
    }

    /// Removes the guest's side.
    pub(super) fn end(&mut self, stack: &mut Stack) {
        stack.remove(self.handle);
    }
}

/// Writes the last bytes. Returns whether all are written.
fn finish(rest: &mut Vec<u8>, writable: &mut bool, host: &mut TcpStream) -> io::Result<bool> {
    while *writable && !rest.is_empty() {
        match host.write(rest) {
            Ok(length) => drop(rest.drain(..length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => *writable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(rest.is_empty())
}

enum Identified {
    Yes,
    NotYet,
    No,
}

/// Whether the guest has sent its last byte.
fn has_ended(socket: &tcp::Socket<'_>) -> bool {
    matches!(socket.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait)
}

/// The peer learns that the connection was cut off, not closed, once the socket is dropped.
fn reset(host: &TcpStream) {
    let _ = set_socket_linger(host, Some(std::time::Duration::ZERO));
}
