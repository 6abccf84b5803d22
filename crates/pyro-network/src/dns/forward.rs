//! Questions in flight: each is sent to one resolver of the host after the other, from a port and with an identifier of its
//! own, until one answers.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::{TcpStream, UdpSocket};
use mio::{Interest, Token};
use smoltcp::wire::DnsRcode;

use super::message::{self, Invalid, Question};
use super::resolvers::Resolvers;
use crate::control::Control;
use crate::host;
use crate::limits;
use crate::policy::{DnsName, Egress, NameVerdict, Rule};
use crate::random;
use crate::rate::Rate;
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
    rate: Rate,
    buffer: Box<[u8]>,
}

/// Equal questions that wait for one answer.
#[derive(Debug)]
struct Asked {
    /// Never empty. The first question is the one that is sent.
    askers: Vec<(Origin, Question)>,
    /// The name is bound to the addresses in the answer.
    bound: bool,
}

#[derive(Debug)]
struct Exchange {
    asked: Asked,
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
    /// `control` brings later lists of resolvers.
    pub(crate) fn new(resolvers: &[SocketAddr], control: Option<Control>) -> Self {
        Self::with(Resolvers::new(resolvers, control))
    }

    fn with(resolvers: Resolvers) -> Self {
        Self {
            resolvers,
            exchanges: HashMap::new(),
            answers: Vec::new(),
            rate: Rate::of_questions(Instant::now()),
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
        let exchanges = self.exchanges.len();
        let waiting: usize = self.exchanges.values().map(|exchange| exchange.asked.askers.len()).sum();
        // Each further exchange would be one more that a forged answer can hit.
        let same = self.exchanges.values_mut().find(|exchange| exchange.covers(origin, &question, bound));
        // A guest repeats a question that is not answered soon.
        if same.as_ref().is_some_and(|exchange| exchange.is_asked(origin, &question)) {
            return;
        }
        let is_full = match &same {
            Some(_) => waiting >= limits::DNS_ASKERS,
            None => exchanges >= limits::DNS_QUERIES,
        };
        if is_full {
            self.answers.push((origin, question.empty(DnsRcode::ServFail)));
            return;
        }
        if let Some(exchange) = same {
            exchange.asked.askers.push((origin, question));
            return;
        }
        if !self.rate.take(Instant::now()) {
            if let Some(name) = question.name() {
                shared.denials.name(name, None, Rule::TooManyConnections);
            }
            self.answers.push((origin, question.empty(DnsRcode::ServFail)));
            return;
        }
        // Asked from the back.
        let resolvers: Vec<_> =
            self.resolvers.current().iter().take(limits::DNS_ATTEMPTS).rev().copied().collect();
        let asked = Asked { askers: vec![(origin, question)], bound };
        self.attempt(asked, resolvers, shared);
    }

    /// Asks the next resolver, or answers that none is left.
    fn attempt(&mut self, asked: Asked, mut resolvers: Vec<SocketAddr>, shared: &mut Shared) {
        let Some((origin, question)) = asked.askers.first() else { return };
        while let Some(resolver) = resolvers.pop() {
            let token = shared.token();
            let mut id = [0; 2];
            if random::fill(&mut id).is_err() {
                break;
            }
            let id = u16::from_ne_bytes(id);
            let upstream = match origin {
                Origin::Datagram(_) => ask_by_datagram(resolver, &question.with_id(id), token, shared),
                Origin::Connection(_) => ask_by_stream(resolver, &question.with_id(id), token, shared),
            };
            if let Ok(upstream) = upstream {
                let due = Instant::now() + limits::DNS_ATTEMPT_TIME;
                let exchange = Exchange { asked, id, resolvers, upstream, ready: false, due };
                self.exchanges.insert(token, exchange);
                return;
            }
        }
        let failed = |(origin, question): (Origin, Question)| (origin, question.empty(DnsRcode::ServFail));
        self.answers.extend(asked.askers.into_iter().map(failed));
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
                    self.answers.extend(exchange.asked.replies(&answer, shared));
                }
            }
            Err(_) => self.try_next(token, shared),
        }
    }

    fn try_next(&mut self, token: Token, shared: &mut Shared) {
        if let Some(Exchange { asked, resolvers, .. }) = self.exchanges.remove(&token) {
            self.attempt(asked, resolvers, shared);
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

    /// Gives up all questions in flight, for tests.
    #[cfg(test)]
    pub(crate) fn forget(&mut self) {
        self.exchanges.clear();
    }

    #[cfg(test)]
    pub(crate) fn set_resolvers(&mut self, addresses: &[SocketAddr]) {
        self.resolvers = Resolvers::new(addresses, None);
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
    /// Whether the answer will be one to this question too. What is bound is answered by a message of its own for each
    /// question; any other answer passes unchanged, so it must have been asked for in the same way.
    fn covers(&self, origin: Origin, question: &Question, bound: bool) -> bool {
        let Some((first_origin, first)) = self.asked.askers.first() else { return false };
        let is_datagram = |origin: &Origin| matches!(origin, Origin::Datagram(_));
        let is_same = if bound { first.asks_the_same(question) } else { first.is_repeated_by(question) };
        self.asked.bound == bound && is_datagram(first_origin) == is_datagram(&origin) && is_same
    }

    /// Whether this very question of this asker waits for the answer already.
    fn is_asked(&self, origin: Origin, question: &Question) -> bool {
        self.asked.askers.iter().any(|(known, asked)| (known, asked) == (&origin, question))
    }

    /// Does what can be done now, and returns the answer once it has arrived. Stays ready if there may be more.
    fn progress(&mut self, buffer: &mut [u8]) -> io::Result<Option<Vec<u8>>> {
        self.ready = false;
        let Some((_, question)) = self.asked.askers.first() else { return Ok(None) };
        match &mut self.upstream {
            Upstream::Datagram(socket) => {
                for _ in 0..BATCH {
                    let Some(length) = unless_blocked(socket.recv(buffer))? else { return Ok(None) };
                    // What does not answer the question is ignored.
                    if let Some(answer) = question.answer(buffer[..length].to_vec(), self.id) {
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
                        let answer = question.answer(answer.to_vec(), self.id);
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
}

impl Asked {
    /// Returns what each asker is answered.
    fn replies(self, answer: &[u8], shared: &mut Shared) -> Vec<(Origin, Vec<u8>)> {
        let Self { askers, bound } = self;
        let Some(name) = askers.first().and_then(|(_, question)| question.name().cloned()).filter(|_| bound)
        else {
            return askers.into_iter().map(|(origin, asked)| (origin, asked.taken_as(answer))).collect();
        };
        let bound = bind_answer(&name, answer, shared);
        let reply = |question: &Question| match &bound {
            Bound::Truncated => question.truncated(),
            Bound::Addresses(addresses) => question.addresses(addresses),
            Bound::Empty(code) => question.empty(*code),
        };
        askers.into_iter().map(|(origin, question)| (origin, reply(&question))).collect()
    }
}

/// What an answer with a name that is bound says.
enum Bound {
    /// Too large for a datagram.
    Truncated,
    Addresses(Vec<(IpAddr, Duration)>),
    Empty(DnsRcode),
}

fn bind_answer(name: &DnsName, answer: &[u8], shared: &mut Shared) -> Bound {
    if message::is_truncated(answer) {
        return Bound::Truncated;
    }
    match message::code(answer) {
        Some(DnsRcode::NoError) => match message::addresses(answer, name) {
            Some(addresses) => Bound::Addresses(bind(name, addresses, shared)),
            None => Bound::Empty(DnsRcode::ServFail),
        },
        Some(code @ (DnsRcode::NXDomain | DnsRcode::Refused)) => Bound::Empty(code),
        _ => Bound::Empty(DnsRcode::ServFail),
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
