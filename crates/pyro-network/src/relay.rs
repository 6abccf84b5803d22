//! What connections, flows and queries share: the configuration, the policy's verdicts, names that are bound to
//! addresses, and the registry of the event loop.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use mio::{Registry, Token};

use crate::config::Config;
use crate::denials::DenialLog;
use crate::dns::Bindings;
use crate::host::{self, Relation};
use crate::link::Output;
use crate::packet::{Unreachable, report_unreachable};
use crate::policy::{Destination, DnsName, Protocol, Rule, Verdict};
use crate::rate::Rate;

/// Token of the link.
pub(crate) const LINK: Token = Token(0);

/// What connections, flows and queries share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) registry: Registry,
    pub(crate) denials: DenialLog,
    pub(crate) bindings: Bindings,
    rate: Rate,
    next_token: usize,
}

impl Shared {
    pub(crate) fn new(config: Config, registry: Registry, denials: DenialLog) -> Self {
        let rate = Rate::of_flows(Instant::now());
        Self { config, registry, denials, bindings: Bindings::default(), rate, next_token: LINK.0 + 1 }
    }

    /// Returns a token that no socket had before.
    pub(crate) fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    /// Whether the address is one of ours or the guest's on the link, which lead nowhere.
    pub(crate) fn is_on_link(&self, address: IpAddr) -> bool {
        let v4 = &self.config.v4;
        match address {
            IpAddr::V4(address) => [v4.guest, v4.gateway, v4.resolver].contains(&address),
            IpAddr::V6(address) => {
                self.config.v6.is_some_and(|link| [link.guest, link.gateway].contains(&address))
            }
        }
    }

    /// Returns where a connection of the guest leads. A guest cannot send packets to a loopback address, which is its own, so
    /// the gateway stands for that of the host where a rule opens the port.
    pub(crate) fn translate(&self, destination: SocketAddr) -> SocketAddr {
        let port = destination.port();
        let is_gateway = destination.ip() == IpAddr::V4(self.config.v4.gateway);
        let behind = is_gateway.then(|| self.config.policy.behind_gateway(port)).flatten();
        behind.map_or(destination, |address| SocketAddr::new(address, port))
    }

    /// Judges a connection or a flow of the guest. What is denied is logged.
    ///
    /// # Errors
    /// The kernel does not say whether the address is the host's own.
    pub(crate) fn judge(&mut self, protocol: Protocol, destination: SocketAddr) -> io::Result<Judged> {
        let names = self.names(destination.ip());
        self.judge_named(protocol, destination, &names)
    }

    /// Returns the names that are bound to a destination's address now.
    pub(crate) fn names(&self, destination: IpAddr) -> Vec<DnsName> {
        self.bindings.names(host::effective(destination)).cloned().collect()
    }

    /// As [`Shared::judge`], with these names of the destination.
    ///
    /// # Errors
    /// The kernel does not say whether the address is the host's own.
    pub(crate) fn judge_named(
        &mut self,
        protocol: Protocol,
        destination: SocketAddr,
        names: &[DnsName],
    ) -> io::Result<Judged> {
        let address = host::effective(destination.ip());
        let names: Vec<_> = names.iter().collect();
        let relation = host::relation(address)?;
        let port = destination.port();
        match self.config.policy.judge(&Destination { protocol, address, port, relation, names: &names }) {
            Verdict::Allowed => Ok(Judged::Connect { peer: (address, port).into(), relation, servers: None }),
            Verdict::AllowedFor(servers) => {
                Ok(Judged::Connect { peer: (address, port).into(), relation, servers: Some(servers) })
            }
            Verdict::Denied(rule) => {
                self.denials.connection(protocol, (destination.ip(), port), names.first().copied(), rule);
                Ok(Judged::Denied)
            }
        }
    }

    /// Returns whether the guest may open one more connection or flow now. One that it may not open is logged.
    pub(crate) fn may_open(&mut self, protocol: Protocol, to: SocketAddr) -> bool {
        let may_open = self.rate.take(Instant::now());
        if !may_open {
            self.deny(protocol, to, None, Rule::TooManyConnections);
        }
        may_open
    }

    /// Logs a denial of something that was allowed at first.
    pub(crate) fn deny(&mut self, protocol: Protocol, to: SocketAddr, name: Option<&DnsName>, rule: Rule) {
        self.denials.connection(protocol, (to.ip(), to.port()), name, rule);
    }

    /// Tells the guest that its packet does not get to its destination.
    pub(crate) fn report(&self, packet: &[u8], reason: Unreachable, output: &mut Output) {
        report_unreachable(packet, reason, &self.config, output);
    }
}

/// How a connection or flow was judged.
#[derive(Debug)]
pub(crate) enum Judged {
    /// It may be opened.
    Connect {
        /// Where to.
        peer: SocketAddr,
        /// Whether that is known to be this host, and allowed.
        relation: Relation,
        /// The guest must name one of these servers first.
        servers: Option<Vec<DnsName>>,
    },
    Denied,
}
