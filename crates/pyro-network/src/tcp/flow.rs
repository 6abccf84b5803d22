//! One open TCP connection: a socket of the stack towards the guest, and a socket of the host.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Instant;

use mio::net::TcpStream;
use rustix::net::sockopt::set_socket_linger;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{self, RecvError, State};

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
    stage: Stage,
    handle: SocketHandle,
    readable: bool,
    writable: bool,
    /// The host's peer has sent everything.
    host_ended: bool,
    /// The guest has sent everything, and the host's peer knows.
    guest_ended: bool,
    large: bool,
    /// The guest must name one of these before anything is forwarded.
    servers: Option<Vec<DnsName>>,
    /// Bytes that were inspected and did not name a server yet.
    inspected: usize,
    #[cfg(test)]
    inspections: usize,
    since: Instant,
    confirmed: bool,
}

/// How far a connection has come.
#[derive(Debug)]
enum Stage {
    /// Bytes pass both ways.
    Open(TcpStream),
    /// The host's connection has failed.
    Failed(Failed),
    /// The guest's side has ended before its last bytes were sent.
    Gone(Gone),
    /// The guest must still learn of the end by a reset, for which the output may have had no space yet.
    Reset,
}

/// What had arrived from the host's peer before its connection failed, on its way to the guest.
#[derive(Debug)]
struct Failed {
    /// Absent once everything is read.
    host: Option<TcpStream>,
    /// Bytes that the guest had not acknowledged at the last look.
    queued: usize,
    /// The guest has until then to acknowledge more.
    due: Instant,
}

/// The guest's last bytes, on their way to the host's peer.
#[derive(Debug)]
struct Gone {
    host: TcpStream,
    rest: Vec<u8>,
    /// Everything is written, but the peer may not have taken it yet.
    lingers: bool,
    /// When the peer is reset. Absent if it has closed: then its connection only has to be closed as well.
    due: Option<Instant>,
}

/// The next stage, and whether bytes were moved or a side was closed. `None`: the connection has ended.
type Next = Option<(Stage, bool)>;

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
            stage: Stage::Open(host),
            handle,
            readable: true,
            writable: true,
            host_ended: false,
            guest_ended: false,
            large,
            servers,
            inspected: 0,
            #[cfg(test)]
            inspections: 0,
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
        let next = match std::mem::replace(&mut self.stage, Stage::Reset) {
            Stage::Open(host) => self.open(host, shared, socket),
            Stage::Failed(failed) => self.hand_over(failed, socket),
            Stage::Gone(gone) => self.send_rest(gone),
            Stage::Reset => socket.remote_endpoint().map(|_| (Stage::Reset, false)),
        };
        match next {
            Some((stage, moved)) => {
                self.stage = stage;
                Pumped::Open { moved }
            }
            None => Pumped::Ended,
        }
    }

    fn open(&mut self, mut host: TcpStream, shared: &mut Shared, socket: &mut tcp::Socket<'_>) -> Next {
        match socket.state() {
            // A reset takes a socket that is not confirmed back to where it waits for a first segment.
            State::Listen => {
                reset(&host);
                return None;
            }
            State::TimeWait | State::Closed => return self.guest_gone(host, socket),
            State::SynSent | State::SynReceived => return Some((Stage::Open(host), false)),
            _ => self.confirmed = true,
        }
        match self.identify(shared, socket) {
            Identified::Yes => {}
            Identified::NotYet => return Some((Stage::Open(host), false)),
            Identified::No => {
                self.servers = None;
                socket.abort();
                reset(&host);
                return Some((Stage::Reset, true));
            }
        }
        let forwarded = self.forward(socket, &mut host);
        let returned = self.backward(socket, &mut host);
        let due = Instant::now() + limits::DRAIN_TIME;
        let queued = socket.send_queue();
        match (forwarded, returned) {
            (Ok(to_host), Ok(to_guest)) => {
                if self.host_ended {
                    socket.close();
                }
                Some((Stage::Open(host), to_host || to_guest))
            }
            // What the peer sent before may still have to be read.
            (Err(_), Ok(_)) if !self.host_ended => {
                Some((Stage::Failed(Failed { host: Some(host), queued, due }), true))
            }
            (Err(_), _) | (_, Err(_)) => Some((Stage::Failed(Failed { host: None, queued, due }), true)),
        }
    }

    /// Hands the guest what had arrived before the host's connection failed, and then the reset.
    fn hand_over(&mut self, mut failed: Failed, socket: &mut tcp::Socket<'_>) -> Next {
        match socket.state() {
            State::TimeWait => return None,
            State::Closed => return socket.remote_endpoint().map(|_| (Stage::Reset, false)),
            _ => {}
        }
        let mut moved = false;
        if let Some(host) = &mut failed.host {
            match self.backward(socket, host) {
                Ok(to_guest) => moved = to_guest,
                Err(_) => self.host_ended = true,
            }
            if self.host_ended {
                failed.host = None;
            }
        }
        let now = Instant::now();
        let queued = socket.send_queue();
        if moved || queued < failed.queued {
            failed.due = now + limits::DRAIN_TIME;
        }
        failed.queued = queued;
        if (failed.host.is_none() && queued == 0) || now >= failed.due {
            socket.abort();
            return Some((Stage::Reset, true));
        }
        Some((Stage::Failed(failed), moved))
    }

    /// Takes the last bytes of a guest whose side has ended. It has closed its side first, unless it has reset the
    /// connection.
    fn guest_gone(&mut self, host: TcpStream, socket: &mut tcp::Socket<'_>) -> Next {
        let mut rest = vec![0; socket.recv_queue()];
        let length = socket.recv_slice(&mut rest).unwrap_or(0);
        rest.truncate(length);
        let has_closed = self.guest_ended || socket.recv(|_| (0, ())) == Err(RecvError::Finished);
        // Nothing is forwarded for a guest that has not named its server.
        if !has_closed || self.servers.is_some() {
            reset(&host);
            return None;
        }
        let due = (!self.host_ended).then(|| Instant::now() + limits::DRAIN_TIME);
        self.send_rest(Gone { host, rest, lingers: false, due })
    }

    /// Sends the guest's last bytes. A peer that is still sending is reset once it had time to take them: closing the
    /// host's socket before would discard what the peer has not acknowledged.
    fn send_rest(&mut self, mut gone: Gone) -> Next {
        let Gone { host, rest, lingers, due } = &mut gone;
        let mut moved = write_rest(rest, &mut self.writable, host).ok()?;
        if moved {
            *due = due.map(|_| Instant::now() + limits::DRAIN_TIME);
        }
        if rest.is_empty() {
            due.as_ref()?;
            if !*lingers {
                *lingers = true;
                *due = Some(Instant::now() + limits::LINGER_TIME);
                host.shutdown(Shutdown::Write).ok()?;
            }
            moved |= self.discard(host)?;
        }
        if due.is_some_and(|due| Instant::now() >= due) {
            reset(host);
            return None;
        }
        Some((Stage::Gone(gone), moved))
    }

    /// Reads and drops what the guest no longer takes. Returns whether there may be more, or `None` if the peer has ended.
    fn discard(&mut self, host: &mut TcpStream) -> Option<bool> {
        let mut buffer = [0; DISCARDED_BYTES];
        for _ in 0..DISCARDS {
            if !self.readable {
                return Some(false);
            }
            match host.read(&mut buffer) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        Some(self.readable)
    }

    /// Compares the server that the guest names.
    fn identify(&mut self, shared: &mut Shared, socket: &mut tcp::Socket<'_>) -> Identified {
        let Some(servers) = &self.servers else { return Identified::Yes };
        let received = socket.recv_queue();
        let named = if self.inspected == received {
            Named::Partly
        } else {
            #[cfg(test)]
            {
                self.inspections += 1;
            }
            server_name(socket.peek(limits::INSPECTION_BYTES).unwrap_or_default())
        };
        let (named, rule) = match named {
            Named::Server(name) if servers.contains(&name) => {
                self.servers = None;
                return Identified::Yes;
            }
            Named::Server(name) => (Some(name), Rule::ServerNameMismatch),
            // A guest that has ended will say no more.
            Named::Partly if socket.may_recv() && !has_ended(socket) => {
                self.inspected = received;
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

    /// Ends what the guest does not confirm, and returns when pumping has something to end.
    pub(super) fn expire(&mut self, now: Instant, stack: &mut Stack) -> Option<Instant> {
        match &self.stage {
            Stage::Open(_) if !self.confirmed => {
                let due = self.since + limits::HANDSHAKE_TIME;
                if now >= due {
                    stack.socket(self.handle).abort();
                }
                Some(due.max(now))
            }
            Stage::Open(_) => self.servers.as_ref().map(|_| self.since + limits::INSPECTION_TIME),
            Stage::Failed(failed) => Some(failed.due),
            Stage::Gone(gone) => gone.due,
            Stage::Reset => None,
        }
    }

    #[cfg(test)]
    pub(super) fn compare_servers(&mut self, servers: Vec<DnsName>) {
        self.servers = Some(servers);
    }

    /// Returns how often bytes of the guest were inspected.
    #[cfg(test)]
    pub(super) fn inspections(&self) -> usize {
        self.inspections
    }

    #[cfg(test)]
    pub(super) fn age(&mut self, by: std::time::Duration) {
        self.since -= by;
    }

    /// Removes the guest's side.
    pub(super) fn end(&mut self, stack: &mut Stack) {
        stack.remove(self.handle);
    }
}

/// Bytes that are discarded at a time, and how often before others have their turn.
const DISCARDED_BYTES: usize = 16 << 10;
const DISCARDS: usize = 16;

/// Writes the last bytes. Returns whether some were written.
fn write_rest(rest: &mut Vec<u8>, writable: &mut bool, host: &mut TcpStream) -> io::Result<bool> {
    let length = rest.len();
    while *writable && !rest.is_empty() {
        match host.write(rest) {
            Ok(length) => drop(rest.drain(..length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => *writable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(rest.len() < length)
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
