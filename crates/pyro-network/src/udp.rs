//! The guest's UDP flows. Each has a socket of the host that is connected to its destination: what comes from elsewhere
//! does not arrive, and no port of the host is open to others.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use mio::net::UdpSocket;
use mio::{Interest, Token};
use rustix::io::Errno;

use crate::host::{self, Relation};
use crate::limits;
use crate::link::Output;
use crate::packet::{Unreachable, push_udp};
use crate::policy::{DnsName, Protocol};
use crate::relay::{Judged, Shared};
use crate::tcp::Ends;

/// Maximum number of datagrams of one flow that are taken at a time.
const BATCH: usize = 32;
/// Maximum size of a datagram.
const MAX_DATAGRAM_BYTES: usize = 65_535;

/// The guest's UDP flows.
#[derive(Debug)]
pub(crate) struct UdpFlows {
    tokens: HashMap<Ends, Token>,
    flows: HashMap<Token, Flow>,
    buffer: Box<[u8]>,
}

#[derive(Debug)]
struct Flow {
    ends: Ends,
    socket: UdpSocket,
    used: Instant,
    /// When it was allowed.
    judged: Instant,
    /// The names that its destination had when it was opened. The guest keeps using the address for as long as it likes.
    names: Vec<DnsName>,
    answered: bool,
    readable: bool,
    /// The latest datagram's beginning, by which the guest recognises an error message.
    quoted: Vec<u8>,
}

/// Bytes of a datagram by which the guest recognises it.
const QUOTED_BYTES: usize = 128;

impl Default for UdpFlows {
    fn default() -> Self {
        Self { tokens: HashMap::new(), flows: HashMap::new(), buffer: vec![0; MAX_DATAGRAM_BYTES].into() }
    }
}

impl UdpFlows {
    /// Forwards a datagram of the guest.
    pub(crate) fn forward(
        &mut self,
        ends: Ends,
        packet: &[u8],
        payload: &[u8],
        shared: &mut Shared,
        output: &mut Output,
    ) {
        let token = match self.tokens.get(&ends) {
            Some(&token) => token,
            None => match self.open(ends, shared) {
                Ok(token) => token,
                Err(reason) => {
                    if let Some(reason) = reason {
                        shared.report(packet, reason, output);
                    }
                    return;
                }
            },
        };
        if let Err(reason) = self.judge_again(token, shared) {
            if let Some(reason) = reason {
                shared.report(packet, reason, output);
            }
            return;
        }
        let Some(flow) = self.flows.get_mut(&token) else { return };
        flow.used = Instant::now();
        flow.quoted.clear();
        flow.quoted.extend_from_slice(&packet[..packet.len().min(QUOTED_BYTES)]);
        // An error of an earlier datagram is reported by the next call.
        if let Err(error) = flow.socket.send(payload).or_else(|_| flow.socket.send(payload))
            && let Some(reason) = unreachable(&error)
        {
            shared.report(packet, reason, output);
        }
    }

    fn open(&mut self, ends: Ends, shared: &mut Shared) -> Result<Token, Option<Unreachable>> {
        if shared.is_on_link(ends.destination.ip()) {
            return Err(Some(Unreachable::Port));
        }
        let names = shared.names(ends.destination.ip());
        let judged = shared.judge_named(Protocol::Udp, ends.destination, &names).map_err(|_| None)?;
        let Judged::Connect { peer, .. } = judged else { return Err(Some(Unreachable::Prohibited)) };
        if !shared.may_open(Protocol::Udp, ends.destination) {
            return Err(None);
        }
        if self.flows.len() >= limits::UDP_FLOWS
            && let Some((&oldest, _)) = self.flows.iter().min_by_key(|(_, flow)| flow.used)
        {
            self.end(oldest);
        }
        let socket = host::connected_udp(peer).map_err(|error| unreachable(&error))?;
        let mut socket = UdpSocket::from_std(socket);
        let token = shared.token();
        shared.registry.register(&mut socket, token, Interest::READABLE).map_err(|_| None)?;
        let (used, judged) = (Instant::now(), Instant::now());
        let quoted = Vec::new();
        let flow = Flow { ends, socket, used, judged, names, answered: false, readable: false, quoted };
        self.tokens.insert(ends, token);
        self.flows.insert(token, flow);
        Ok(token)
    }

    /// Ends a flow that the policy does not allow any more, because its address has become one of the host.
    fn judge_again(&mut self, token: Token, shared: &mut Shared) -> Result<(), Option<Unreachable>> {
        let Some(flow) = self.flows.get_mut(&token) else { return Ok(()) };
        if flow.judged.elapsed() < limits::UDP_JUDGED_TIME {
            return Ok(());
        }
        let Ends { destination, .. } = flow.ends;
        let refusal = match shared.judge_named(Protocol::Udp, destination, &flow.names) {
            Ok(Judged::Connect { relation, .. })
                if relation == Relation::Own || !host::is_to_itself(&flow.socket, destination.ip()) =>
            {
                flow.judged = Instant::now();
                return Ok(());
            }
            Ok(_) => Some(Unreachable::Prohibited),
            Err(_) => None,
        };
        self.end(token);
        Err(refusal)
    }

    fn end(&mut self, token: Token) {
        if let Some(flow) = self.flows.remove(&token) {
            self.tokens.remove(&flow.ends);
        }
    }

    /// Takes an event of the host's sockets. Returns whether the socket is one of these.
    pub(crate) fn event(&mut self, token: Token) -> bool {
        let flow = self.flows.get_mut(&token);
        flow.map(|flow| flow.readable = true).is_some()
    }

    /// Hands answers to the guest, as far as the output has space. Returns whether there may be more.
    pub(crate) fn pump(&mut self, shared: &Shared, output: &mut Output) -> bool {
        let mut more = false;
        for flow in self.flows.values_mut().filter(|flow| flow.readable) {
            for _ in 0..BATCH {
                if !output.has_space() {
                    break;
                }
                match flow.socket.recv(&mut self.buffer) {
                    Ok(length) => {
                        flow.used = Instant::now();
                        flow.answered = true;
                        let Ends { guest, destination } = flow.ends;
                        push_udp(destination, guest, &self.buffer[..length], shared.config.mtu, output);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        flow.readable = false;
                        break;
                    }
                    Err(error) => {
                        if let Some(reason) = unreachable(&error) {
                            shared.report(&flow.quoted, reason, output);
                        }
                    }
                }
            }
            more |= flow.readable && output.has_space();
        }
        more
    }

    /// Ends flows that were silent for too long, and returns the time until there may be more.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Duration> {
        let silent: Vec<_> =
            self.flows.iter().filter(|(_, flow)| flow.due() <= now).map(|(&token, _)| token).collect();
        for token in silent {
            self.end(token);
        }
        let due = self.flows.values().map(Flow::due).min()?;
        Some(due.saturating_duration_since(now))
    }

    /// Lets this time pass since every flow was judged.
    #[cfg(test)]
    pub(crate) fn age(&mut self, by: Duration) {
        for flow in self.flows.values_mut() {
            flow.judged -= by;
        }
    }

    /// Takes a flow for one to this destination. Its socket stays as it is.
    #[cfg(test)]
    pub(crate) fn take_for(&mut self, ends: Ends, destination: std::net::SocketAddr) {
        let token = self.tokens.remove(&ends).unwrap();
        let ends = Ends { destination, ..ends };
        self.flows.get_mut(&token).unwrap().ends = ends;
        self.tokens.insert(ends, token);
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Returns the destination of a flow's socket, for tests.
    #[cfg(test)]
    pub(crate) fn local_address(&self, ends: &Ends) -> Option<std::net::SocketAddr> {
        self.flows.get(self.tokens.get(ends)?)?.socket.local_addr().ok()
    }
}

impl Flow {
    fn due(&self) -> Instant {
        self.used + if self.answered { limits::UDP_TIME } else { limits::UDP_ONE_WAY_TIME }
    }
}

/// What the host's error is for the guest, if it learns of it.
fn unreachable(error: &io::Error) -> Option<Unreachable> {
    match Errno::from_io_error(error)? {
        Errno::CONNREFUSED => Some(Unreachable::Port),
        Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::ADDRNOTAVAIL | Errno::NETDOWN => {
            Some(Unreachable::Host)
        }
        Errno::ACCESS | Errno::PERM => Some(Unreachable::Prohibited),
        _ => None,
    }
}
