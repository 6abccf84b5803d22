//! The event loop.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{SocketFlags, accept_with};

use crate::config::{Config, ConfigError, MAX_CONFIG_BYTES};
use crate::confine::{ConfineError, confine};
use crate::control::{Control, Message};
use crate::denials::DenialLog;
use crate::dns::{Connections, Forwarder, Origin};
use crate::icmp;
use crate::link::{InvalidFrame, Link, Output};
use crate::packet::{Dropped, Inbound, answer_arp, answer_solicitation, push_udp};
use crate::random;
use crate::relay::{LINK, Shared};
use crate::stack::Stack;
use crate::tcp::{Ends, TcpFlows};
use crate::udp::UdpFlows;

/// Port of our resolver.
const DNS_PORT: u16 = 53;
/// Maximum number of frames that are taken before connections have their turn.
const BATCH: usize = 64;
/// Maximum number of events that are taken at a time.
const EVENTS: usize = 256;
/// Shortest wait for a timer.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// Why a guest's network ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration could not be read.
    #[error("cannot read the network configuration")]
    Read(#[source] io::Error),
    /// The configuration is unusable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The process could not be confined.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// The event loop could not be set up.
    #[error("cannot set up the network")]
    Setup(#[source] io::Error),
    /// There are no random numbers.
    #[error("no random numbers")]
    Random(#[source] io::Error),
    /// The link failed.
    #[error("the link to the guest failed")]
    Link(#[source] io::Error),
    /// The peer on the link sent what is not a frame.
    #[error("the link to the guest failed")]
    Frame(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<InvalidFrame> for RunError {
    fn from(error: InvalidFrame) -> Self {
        Self::Frame(Box::new(error))
    }
}

/// Runs a guest's network until the link closes. `config` is a file with a serialised [`Config`], `link` a stream socket, or one that
/// listens for it, and denials are written to `events` as JSON lines, each a [`Denial`](crate::Denial); `control` is for each [`Message`]. The
/// process is confined first; it must have no other thread.
///
/// # Errors
/// [`RunError`].
pub fn run(link: OwnedFd, config: OwnedFd, events: OwnedFd, control: OwnedFd) -> Result<(), RunError> {
    let mut text = Vec::new();
    File::from(config).take(MAX_CONFIG_BYTES).read_to_end(&mut text).map_err(RunError::Read)?;
    let config = Config::decode(&text)?;
    let confinement = confine()?;
    let control = Control::new(control);
    control.send(&Message::Confined(Box::new(confinement))).map_err(RunError::Setup)?;
    let link = connected(link).map_err(RunError::Link)?;
    let mut server = Server::with_control(link, config, Some(events), Some(control))?;
    while server.step(None)? {}
    Ok(())
}

/// Returns the link: the socket itself, or the first connection to one that listens, and then no longer does. Blocks until a
/// guest connects. The process that starts this one ends it if no guest does.
fn connected(link: OwnedFd) -> io::Result<OwnedFd> {
    if !socket_acceptconn(&link)? {
        return Ok(link);
    }
    loop {
        match accept_with(&link, SocketFlags::CLOEXEC) {
            Err(Errno::INTR) => {}
            accepted => return Ok(accepted?),
        }
    }
}

/// A guest's network.
#[derive(Debug)]
pub struct Server {
    poll: Poll,
    events: Events,
    link: Link,
    readable: bool,
    /// Something may be done without waiting for an event.
    busy: bool,
    network: Network,
}

/// Everything but the link.
#[derive(Debug)]
pub(crate) struct Network {
    shared: Shared,
    stack: Stack,
    tcp: TcpFlows,
    udp: UdpFlows,
    dns: Forwarder,
    dns_connections: Connections,
    dropped: u64,
}

impl Server {
    /// Sets up a guest's network on `link`.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn new(link: OwnedFd, config: Config, events: Option<OwnedFd>) -> Result<Self, RunError> {
        Self::with_control(link, config, events, None)
    }

    /// The same, with a connection that brings later lists of resolvers.
    fn with_control(
        link: OwnedFd,
        config: Config,
        events: Option<OwnedFd>,
        control: Option<Control>,
    ) -> Result<Self, RunError> {
        let poll = Poll::new().map_err(RunError::Setup)?;
        if let Some(events) = &events {
            rustix::io::ioctl_fionbio(events, true).map_err(|errno| RunError::Setup(errno.into()))?;
        }
        let mut link = Link::new(link, config.guest_mac).map_err(RunError::Link)?;
        let both = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut link.stream, LINK, both).map_err(RunError::Setup)?;
        let registry = poll.registry().try_clone().map_err(RunError::Setup)?;
        let shared = Shared::new(config, registry, DenialLog::new(events));
        let network = Network::new(shared, control, &mut link.output)?;
        Ok(Self { poll, events: Events::with_capacity(EVENTS), link, readable: true, busy: true, network })
    }

    /// Waits for something to do, at most for `limit`, and does it. Returns whether the link is open.
    ///
    /// # Errors
    /// [`RunError::Link`], [`RunError::Frame`].
    pub fn step(&mut self, limit: Option<Duration>) -> Result<bool, RunError> {
        let now = Instant::now();
        // What is still due now waits for something else.
        let due = self.network.expire(now).map(|due| due.max(SHORTEST_WAIT));
        let timeout = match self.busy {
            true => Some(Duration::ZERO),
            // What cannot be sent does not become due by waiting.
            false if !self.link.output.has_space() => due,
            false => {
                let delay = self.network.stack.delay().map(|delay| delay.max(SHORTEST_WAIT));
                [due, delay].into_iter().flatten().min()
            }
        };
        let timeout = [timeout, limit].into_iter().flatten().min();
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(RunError::Setup(error)),
            _ => {}
        }
        for event in self.events.iter() {
            match event.token() {
                LINK => self.readable |= event.is_readable() || event.is_read_closed() || event.is_error(),
                _ => self.network.event(event, &mut self.link.output),
            }
        }
        if !self.take_frames()? {
            return Ok(false);
        }
        self.busy |= self.network.pump(&mut self.link.output);
        match self.link.flush() {
            Err(error) if is_closed(&error) => return Ok(false),
            flushed => flushed.map_err(RunError::Link)?,
        }
        self.busy &= self.link.output.has_space();
        Ok(true)
    }

    /// Takes frames of the guest, unless it does not take ours.
    fn take_frames(&mut self) -> Result<bool, RunError> {
        self.busy = false;
        let mut taken = 0;
        loop {
            let Link { input, output, .. } = &mut self.link;
            while output.has_space() {
                if taken == BATCH {
                    self.busy = true;
                    return Ok(true);
                }
                let Some(frame) = input.next()? else { break };
                taken += 1;
                self.network.frame(frame, output);
            }
            if !output.has_space() || !self.readable {
                return Ok(true);
            }
            match self.link.fill() {
                Ok(Some(0)) => return Ok(false),
                Ok(Some(_)) => {}
                Ok(None) => self.readable = false,
                Err(error) if is_closed(&error) => return Ok(false),
                Err(error) => return Err(RunError::Link(error)),
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn network(&mut self) -> &mut Network {
        &mut self.network
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

impl Network {
    pub(crate) fn new(
        shared: Shared,
        control: Option<Control>,
        output: &mut Output,
    ) -> Result<Self, RunError> {
        let mut seed = [0; 8];
        random::fill(&mut seed).map_err(RunError::Random)?;
        let stack = Stack::new(shared.config.mtu, u64::from_ne_bytes(seed), output);
        Ok(Self {
            dns: Forwarder::new(&shared.config.resolvers, control),
            shared,
            stack,
            tcp: TcpFlows::default(),
            udp: UdpFlows::default(),
            dns_connections: Connections::default(),
            dropped: 0,
        })
    }

    /// Takes a frame of the guest.
    pub(crate) fn frame(&mut self, frame: &[u8], output: &mut Output) {
        match Inbound::parse(frame, &self.shared.config) {
            Ok(inbound) => self.packet(inbound, output),
            Err(reason) => self.count(reason),
        }
    }

    fn count(&mut self, reason: Dropped) {
        self.dropped += 1;
        // At most as many messages as a number has bits.
        if self.dropped.is_power_of_two() {
            tracing::debug!(?reason, dropped = self.dropped, "frames of the guest were dropped");
        }
    }

    fn packet(&mut self, inbound: Inbound<'_>, output: &mut Output) {
        let Self { shared, stack, tcp, udp, dns, dns_connections, .. } = self;
        let resolver = SocketAddr::new(shared.config.v4.resolver.into(), DNS_PORT);
        match inbound {
            Inbound::Tcp { packet, guest, destination, opens } if destination == resolver => {
                let ends = Ends { guest, destination };
                dns_connections.segment((ends, opens), packet, shared, stack, output);
            }
            Inbound::Tcp { packet, guest, destination, opens } => {
                let ends = Ends { guest, destination };
                if tcp.contains(&ends) {
                    tcp.segment(&ends, packet, stack, output);
                } else if opens {
                    tcp.open(ends, packet, shared, stack, output);
                } else {
                    stack.deliver(packet, output);
                }
            }
            Inbound::Udp { guest, destination, payload, .. } if destination == resolver => {
                dns.ask(Origin::Datagram(guest), payload, shared);
            }
            Inbound::Udp { packet, guest, destination, payload } => {
                udp.forward(Ends { guest, destination }, packet, payload, shared, output);
            }
            Inbound::Echo { guest, destination, ident, seq_no, data } => {
                icmp::echo((guest, destination), (ident, seq_no), data, shared, output);
            }
            Inbound::Arp(request) => answer_arp(&request, &shared.config, output),
            Inbound::Solicit { source, target } => {
                answer_solicitation(source, target, &shared.config, output)
            }
        }
    }

    fn event(&mut self, event: &mio::event::Event, output: &mut Output) {
        let Self { shared, stack, tcp, udp, dns, .. } = self;
        let token = event.token();
        // A socket may have been closed after its event was taken.
        let _ = tcp.event(event, shared, stack, output) || udp.event(token) || dns.event(token);
    }

    /// Moves what can be moved. Returns whether there may be more.
    pub(crate) fn pump(&mut self, output: &mut Output) -> bool {
        let Self { shared, stack, tcp, udp, dns, dns_connections, .. } = self;
        let mut busy = tcp.pump(shared, stack);
        busy |= udp.pump(shared, output);
        busy |= dns.pump(shared);
        busy |= dns_connections.pump(dns, shared, stack);
        let resolver = SocketAddr::new(shared.config.v4.resolver.into(), DNS_PORT);
        for (origin, answer) in dns.take_answers() {
            match origin {
                Origin::Datagram(guest) => push_udp(resolver, guest, &answer, shared.config.mtu, output),
                Origin::Connection(token) => {
                    dns_connections.answer(token, &answer);
                    busy = true;
                }
            }
        }
        stack.send(output);
        busy
    }

    /// Ends what has taken too long, and returns the time until there may be more.
    fn expire(&mut self, now: Instant) -> Option<Duration> {
        let Self { shared, stack, tcp, udp, dns, dns_connections, .. } = self;
        let dues = [
            tcp.expire(now, stack),
            udp.expire(now),
            dns.expire(now, shared),
            dns_connections.expire(now, stack),
        ];
        dues.into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests;
