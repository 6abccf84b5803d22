//! The guest's TCP connections. For each the host opens one of its own; the guest's handshake ends when the host's has.

mod flow;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Token};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_keepalive;

use self::flow::{Flow, Pumped};
use crate::host::{self, Relation};
use crate::limits;
use crate::link::Output;
use crate::packet::Unreachable;
use crate::policy::{DnsName, Protocol, Rule};
use crate::relay::{Judged, Shared};
use crate::stack::Stack;

/// A connection as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    pub(crate) guest: SocketAddr,
    pub(crate) destination: SocketAddr,
}

/// The guest's TCP connections.
#[derive(Debug, Default)]
pub(crate) struct TcpFlows {
    tokens: HashMap<Ends, Token>,
    connecting: HashMap<Token, Connecting>,
    flows: HashMap<Token, Flow>,
}

/// A connection that the host is opening. The guest's first segment waits.
#[derive(Debug)]
struct Connecting {
    ends: Ends,
    syn: Vec<u8>,
    stream: TcpStream,
    relation: Relation,
    servers: Option<Vec<DnsName>>,
    since: Instant,
}

impl TcpFlows {
    /// Whether this connection is known.
    pub(crate) fn contains(&self, ends: &Ends) -> bool {
        self.tokens.contains_key(ends)
    }

    /// Takes another segment of a known connection.
    pub(crate) fn segment(&mut self, ends: &Ends, packet: &[u8], stack: &mut Stack, output: &mut Output) {
        // Until the host is connected, the guest repeats its first segment.
        if self.tokens.get(ends).is_some_and(|token| self.flows.contains_key(token)) {
            stack.deliver(packet, output);
        }
    }

    /// Takes the first segment of a connection.
    pub(crate) fn open(
        &mut self,
        ends: Ends,
        syn: &[u8],
        shared: &mut Shared,
        stack: &mut Stack,
        output: &mut Output,
    ) {
        match self.connect(ends, syn, shared) {
            Ok(()) => {}
            Err(Refused::Silently) => {}
            Err(Refused::Reset) => stack.deliver(syn, output),
            Err(Refused::Unreachable(reason)) => shared.report(syn, reason, output),
        }
    }

    fn connect(&mut self, ends: Ends, syn: &[u8], shared: &mut Shared) -> Result<(), Refused> {
        let destination = shared.translate(ends.destination);
        if shared.is_on_link(destination.ip()) {
            return Err(Refused::Reset);
        }
        let judged = shared.judge(Protocol::Tcp, destination).map_err(|_| Refused::Silently)?;
        let Judged::Connect { peer, relation, servers } = judged else {
            return Err(Refused::Unreachable(Unreachable::Prohibited));
        };
        if self.tokens.len() >= limits::TCP_FLOWS {
            shared.deny(Protocol::Tcp, ends.destination, None, Rule::TooManyConnections);
            return Err(Refused::Reset);
        }
        if self.connecting.len() >= limits::TCP_CONNECTING
            || !shared.may_open(Protocol::Tcp, ends.destination)
        {
            return Err(Refused::Silently);
        }
        let mut stream = TcpStream::connect(peer).map_err(|error| Refused::of_host(&error))?;
        // Both are improvements only.
        let _ = stream.set_nodelay(true);
        let _ = set_socket_keepalive(&stream, true);
        let token = shared.token();
        let both = Interest::READABLE | Interest::WRITABLE;
        shared.registry.register(&mut stream, token, both).map_err(|_| Refused::Silently)?;
        let since = Instant::now();
        let connecting = Connecting { ends, syn: syn.to_owned(), stream, relation, servers, since };
        self.tokens.insert(ends, token);
        self.connecting.insert(token, connecting);
        Ok(())
    }

    /// Takes an event of the host's sockets. Returns whether the socket is one of these.
    pub(crate) fn event(
        &mut self,
        event: &mio::event::Event,
        shared: &mut Shared,
        stack: &mut Stack,
        output: &mut Output,
    ) -> bool {
        let token = event.token();
        if let Some(flow) = self.flows.get_mut(&token) {
            flow.event(event);
            return true;
        }
        let Some(connecting) = self.connecting.get(&token) else { return false };
        match connected(&connecting.stream) {
            Ok(false) => {}
            Ok(true) => self.established(token, shared, stack, output),
            Err(error) => {
                if let Some(Connecting { ends, syn, .. }) = self.connecting.remove(&token) {
                    self.tokens.remove(&ends);
                    match Refused::of_host(&error) {
                        Refused::Silently => {}
                        Refused::Reset => stack.deliver(&syn, output),
                        Refused::Unreachable(reason) => shared.report(&syn, reason, output),
                    }
                }
            }
        }
        true
    }

    fn established(&mut self, token: Token, shared: &mut Shared, stack: &mut Stack, output: &mut Output) {
        let Some(connecting) = self.connecting.remove(&token) else { return };
        let Connecting { ends, syn, stream, relation, servers, .. } = connecting;
        // The host may have been given the address since.
        if relation != Relation::Own && host::is_to_itself(&stream, ends.destination.ip()) {
            shared.deny(Protocol::Tcp, ends.destination, None, Rule::HostAddress);
            self.tokens.remove(&ends);
            shared.report(&syn, Unreachable::Prohibited, output);
            return;
        }
        let large =
            self.flows.values().filter(|flow| flow.has_large_buffers()).count() < limits::LARGE_BUFFERS;
        let buffer_bytes = if large { limits::LARGE_BUFFER_BYTES } else { limits::SMALL_BUFFER_BYTES };
        match stack.accept(&syn, ends.destination, buffer_bytes, output) {
            Some(handle) => {
                self.flows.insert(token, Flow::new(ends, stream, handle, (large, servers)));
            }
            None => {
                self.tokens.remove(&ends);
            }
        }
    }

    /// Moves bytes both ways, and ends what has ended. Returns whether something changed.
    pub(crate) fn pump(&mut self, shared: &mut Shared, stack: &mut Stack) -> bool {
        let mut progress = false;
        let tokens = &mut self.tokens;
        self.flows.retain(|_, flow| match flow.pump(shared, stack) {
            Pumped::Open { moved } => {
                progress |= moved;
                true
            }
            Pumped::Ended => {
                progress = true;
                flow.end(stack);
                tokens.remove(&flow.ends());
                false
            }
        });
        progress
    }

    /// Ends what has taken too long, and returns the time until there may be more.
    pub(crate) fn expire(&mut self, now: Instant, stack: &mut Stack) -> Option<Duration> {
        let tokens = &mut self.tokens;
        self.connecting.retain(|_, connecting| {
            let lives = now.duration_since(connecting.since) < limits::CONNECT_TIME;
            if !lives {
                tokens.remove(&connecting.ends);
            }
            lives
        });
        let mut next = None;
        for flow in self.flows.values_mut() {
            let due = flow.expire(now, stack);
            next = [next, due].into_iter().flatten().min();
        }
        let connect =
            self.connecting.values().map(|connecting| connecting.since + limits::CONNECT_TIME).min();
        [next, connect].into_iter().flatten().min().map(|due| due.saturating_duration_since(now))
    }

    /// Has every open connection name one of these servers.
    #[cfg(test)]
    pub(crate) fn compare_servers(&mut self, servers: &[DnsName]) {
        for flow in self.flows.values_mut() {
            flow.compare_servers(servers.to_vec());
        }
    }

    /// Lets this time pass for every open connection.
    #[cfg(test)]
    pub(crate) fn age(&mut self, by: Duration) {
        for flow in self.flows.values_mut() {
            flow.age(by);
        }
    }

    /// Returns how often bytes of the guest were inspected.
    #[cfg(test)]
    pub(crate) fn inspections(&self) -> usize {
        self.flows.values().map(Flow::inspections).sum()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }
}

/// Whether the host's connection is open.
///
/// # Errors
/// It could not be opened.
fn connected(stream: &TcpStream) -> io::Result<bool> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    match stream.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

/// How the guest learns that a connection is not opened.
#[derive(Clone, Copy, Debug)]
enum Refused {
    /// By its own patience.
    Silently,
    /// As by a closed port.
    Reset,
    Unreachable(Unreachable),
}

impl Refused {
    /// What the host's error is for the guest.
    fn of_host(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(Errno::CONNREFUSED | Errno::CONNRESET) => Self::Reset,
            // The guest began at the same time, and gives up soon.
            Some(Errno::TIMEDOUT) => Self::Silently,
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Self::Silently,
            Some(Errno::ACCESS | Errno::PERM) => Self::Unreachable(Unreachable::Prohibited),
            _ => Self::Unreachable(Unreachable::Host),
        }
    }
}
