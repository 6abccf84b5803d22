//! Questions in flight: each is sent to one resolver of the host after the other, from a port and with an identifier of its
//! own, until one answers.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use mio::net::{TcpStream, UdpSocket};
use mio::{Interest, Token};
use smoltcp::wire::DnsRcode;

use super::message::{self, Invalid, Question};
use super::resolvers::Resolvers;
use crate::host;
use crate::limits;
use crate::policy::{DnsName, Egress, NameVerdict, Rule};
use crate::relay::Shared;

/// Maximum size of an answer in bytes.
const MAX_ANSWER_BYTES: usize = 65_535;
/// Maximum number of addresses in an answer that names are bound to.
const MAX_ADDRESSES: usize = 64;
const LENGTH_BYTES: usize = 2;
/// Maximum number of datagrams of one resolver that are taken before others have their turn.
const BATCH: usize = 32;

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A datagram from this port of the guest.
    Datagram(SocketAddr),
    /// A connection of the guest.
    Connection(Token),
}

/// Questions in flight, and answers that are ready.
#[derive(Debug)]
pub(crate) struct Forwarder {
    resolvers: Resolvers,
    exchanges: HashMap<Token, Exchange>,
    answers: Vec<(Origin, Vec<u8>)>,
    buffer: Box<[u8]>,
}

#[derive(Debug)]
struct Exchange {
    origin: Origin,
    question: Question,
    /// The name is bound to the addresses in the answer.
    bound: bool,
    id: u16,
    resolvers: Vec<SocketAddr>,
    upstream: Upstream,
    /// Something may have arrived.
    ready: bool,
    due: Instant,
}

#[derive(Debug)]
enum Upstream {
    Datagram(UdpSocket),
    Stream { stream: TcpStream, output: Vec<u8>, input: Vec<u8> },
}

impl Forwarder {
    pub(crate) fn new(resolv_conf: &Path) -> Self {
        Self::with(Resolvers::new(resolv_conf))
    }

    fn with(resolvers: Resolvers) -> Self {
        Self {
            resolvers,
            exchanges: HashMap::new(),
            answers: Vec::new(),
            buffer: vec![0; MAX_ANSWER_BYTES].into(),
        }
    }

    /// Takes a message of the guest.
    pub(crate) fn ask(&mut self, origin: Origin, message: &[u8], shared: &mut Shared) {
        let question = match Question::parse(message) {
            _ if message.len() > limits::DNS_QUERY_BYTES => Err(Invalid::Malformed),
            parsed => parsed,
        };
        let question = match question {
            Ok(question) => question,
            Err(invalid) => {
                self.answers.extend(message::error(message, invalid).map(|reply| (origin, reply)));
                return;
            }
        };
        let bound = match judge(&question, shared) {
            NameVerdict::Free => false,
            NameVerdict::Bound if question.asks_for_services() => {
                self.answers.push((origin, question.empty(DnsRcode::NoError)));
                return;
            }
            NameVerdict::Bound => question.asks_for_addresses(),
            NameVerdict::Denied => {
                if let Some(name) = question.name() {
                    shared.denials.name(name, None, Rule::NameNotOnAllowlist);
                }
                self.answers.push((origin, question.empty(DnsRcode::NXDomain)));
                return;
            }
        };
        if self.exchanges.len() >= limits::DNS_QUERIES {
            self.answers.push((origin, question.empty(DnsRcode::ServFail)));
            return;
        }
        // Asked from the back.
        let resolvers: Vec<_> =
            self.resolvers.current().iter().take(limits::DNS_ATTEMPTS).rev().copied().collect();
        self.attempt((origin, question, bound), resolvers, shared);
    }

    /// Asks the next resolver, or answers that none is left.
    fn attempt(
        &mut self,
        (origin, question, bound): (Origin, Question, bool),
        mut resolvers: Vec<SocketAddr>,
        shared: &mut Shared,
    ) {
        while let Some(resolver) = resolvers.pop() {
            let token = shared.token();
            let mut id = [0; 2];
            if getrandom::fill(&mut id).is_err() {
                break;
            }
            let id = u16::from_ne_bytes(id);
            let upstream = match origin {
                Origin::Datagram(_) => ask_by_datagram(resolver, &question.with_id(id), token, shared),
                Origin::Connection(_) => ask_by_stream(resolver, &question.with_id(id), token, shared),
            };
            if let Ok(upstream) = upstream {
                let due = Instant::now() + limits::DNS_ATTEMPT_TIME;
                let exchange =
                    Exchange { origin, question, bound, id, resolvers, upstream, ready: false, due };
                self.exchanges.insert(token, exchange);
                return;
            }
        }
        self.answers.push((origin, question.empty(DnsRcode::ServFail)));
    }

    /// Takes an event of the host's sockets. Returns whether the socket is one of these.
    pub(crate) fn event(&mut self, token: Token) -> bool {
        let exchange = self.exchanges.get_mut(&token);
        exchange.map(|exchange| exchange.ready = true).is_some()
    }

    /// Takes what resolvers have sent. Returns whether there may be more.
    pub(crate) fn pump(&mut self, shared: &mut Shared) -> bool {
        let ready: Vec<_> =
            self.exchanges.iter().filter(|(_, exchange)| exchange.ready).map(|(&token, _)| token).collect();
        for token in ready {
            self.progress(token, shared);
        }
        self.exchanges.values().any(|exchange| exchange.ready)
    }

    fn progress(&mut self, token: Token, shared: &mut Shared) {
        let Some(exchange) = self.exchanges.get_mut(&token) else { return };
        match exchange.progress(&mut self.buffer) {
            Ok(None) => {}
            Ok(Some(answer)) => {
                if let Some(exchange) = self.exchanges.remove(&token) {
                    let reply = exchange.reply(answer, shared);
                    self.answers.push((exchange.origin, reply));
                }
            }
            Err(_) => self.try_next(token, shared),
        }
    }

    fn try_next(&mut self, token: Token, shared: &mut Shared) {
        if let Some(Exchange { origin, question, bound, resolvers, .. }) = self.exchanges.remove(&token) {
            self.attempt((origin, question, bound), resolvers, shared);
        }
    }

    /// Asks the next resolver where one takes too long, and returns the time until there may be more.
    pub(crate) fn expire(&mut self, now: Instant, shared: &mut Shared) -> Option<Duration> {
        let late: Vec<_> = self
            .exchanges
            .iter()
            .filter(|(_, exchange)| exchange.due <= now)
            .map(|(&token, _)| token)
            .collect();
        for token in late {
            self.try_next(token, shared);
        }
        let due = self.exchanges.values().map(|exchange| exchange.due).min()?;
        Some(due.saturating_duration_since(now))
    }

    /// Returns the answers that are ready.
    pub(crate) fn take_answers(&mut self) -> Vec<(Origin, Vec<u8>)> {
        std::mem::take(&mut self.answers)
    }

    /// Has something arrive for every question, for tests.
    #[cfg(test)]
    pub(crate) fn wake(&mut self) {
        for exchange in self.exchanges.values_mut() {
            exchange.ready = true;
        }
    }

    #[cfg(test)]
    pub(crate) fn set_resolvers(&mut self, addresses: &[SocketAddr]) {
        self.resolvers = Resolvers::fixed(addresses);
    }
}

fn judge(question: &Question, shared: &Shared) -> NameVerdict {
    match question.name() {
        Some(name) => shared.config.policy.judge_name(name),
        // Such as the root, or a name with a space.
        None if shared.config.policy.egress == Egress::Public => NameVerdict::Free,
        None => NameVerdict::Denied,
    }
}

fn ask_by_datagram(
    resolver: SocketAddr,
    query: &[u8],
    token: Token,
    shared: &Shared,
) -> io::Result<Upstream> {
    let socket = host::connected_udp(resolver)?;
    socket.send(query)?;
    let mut socket = UdpSocket::from_std(socket);
    shared.registry.register(&mut socket, token, Interest::READABLE)?;
    Ok(Upstream::Datagram(socket))
}

fn ask_by_stream(resolver: SocketAddr, query: &[u8], token: Token, shared: &Shared) -> io::Result<Upstream> {
    let mut stream = TcpStream::connect(resolver)?;
    shared.registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
    // A question has at most DNS_QUERY_BYTES.
    let output = [&(query.len() as u16).to_be_bytes()[..], query].concat();
    Ok(Upstream::Stream { stream, output, input: Vec::new() })
}

impl Exchange {
    /// Does what can be done now, and returns the answer once it has arrived. Stays ready if there may be more.
    fn progress(&mut self, buffer: &mut [u8]) -> io::Result<Option<Vec<u8>>> {
        self.ready = false;
        match &mut self.upstream {
            Upstream::Datagram(socket) => {
                for _ in 0..BATCH {
                    let Some(length) = unless_blocked(socket.recv(buffer))? else { return Ok(None) };
                    // What does not answer the question is ignored.
                    if let Some(answer) = self.question.answer(buffer[..length].to_vec(), self.id) {
                        return Ok(Some(answer));
                    }
                }
                self.ready = true;
                Ok(None)
            }
            Upstream::Stream { stream, output, input } => {
                if let Some(error) = stream.take_error()? {
                    return Err(error);
                }
                while !output.is_empty() {
                    match stream.write(output) {
                        Ok(length) => drop(output.drain(..length)),
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(None),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                        Err(error) => return Err(error),
                    }
                }
                loop {
                    if let Some((length, rest)) = input.split_first_chunk::<LENGTH_BYTES>()
                        && let Some(answer) = rest.get(..u16::from_be_bytes(*length).into())
                    {
                        let answer = self.question.answer(answer.to_vec(), self.id);
                        return answer.map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into());
                    }
                    let Some(length) = unless_blocked(stream.read(buffer))? else { return Ok(None) };
                    if length == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    input.extend_from_slice(&buffer[..length]);
                }
            }
        }
    }

    /// Returns what the guest is answered.
    fn reply(&self, answer: Vec<u8>, shared: &mut Shared) -> Vec<u8> {
        let (true, Some(name)) = (self.bound, self.question.name()) else { return answer };
        if message::is_truncated(&answer) {
            return self.question.truncated();
        }
        match message::code(&answer) {
            Some(DnsRcode::NoError) => match message::addresses(&answer, name) {
                Some(addresses) => self.question.addresses(&bind(name, addresses, shared)),
                None => self.question.empty(DnsRcode::ServFail),
            },
            Some(code @ (DnsRcode::NXDomain | DnsRcode::Refused)) => self.question.empty(code),
            _ => self.question.empty(DnsRcode::ServFail),
        }
    }
}

fn unless_blocked(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Binds a name to those of its addresses that it may have, and returns them.
fn bind(name: &DnsName, addresses: Vec<(IpAddr, Duration)>, shared: &mut Shared) -> Vec<(IpAddr, Duration)> {
    let mut bound = Vec::new();
    for (address, ttl) in addresses.into_iter().take(MAX_ADDRESSES) {
        let effective = host::effective(address);
        let may_have = host::relation(effective)
            .is_ok_and(|relation| shared.config.policy.may_bind(name, effective, relation));
        if may_have {
            shared.bindings.bind(name, effective, ttl);
            bound.push((address, ttl.min(limits::MAX_BINDING_TIME)));
        } else {
            shared.denials.name(name, Some(address), Rule::DnsRebinding);
        }
    }
    bound
}
