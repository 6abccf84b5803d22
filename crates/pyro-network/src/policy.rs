//! What a guest may reach: values, and the one function that decides.

mod name;
mod ranges;

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use name::{DnsName, DomainPattern};
use ranges::Range;

use crate::host::Relation;

/// What a guest may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// What it may reach without a rule.
    pub egress: Egress,
    /// Networks that it may reach, on every port and with every protocol.
    ///
    /// A network opens private and other special ranges only if it lies within one: `0.0.0.0/0` does not open
    /// `10.0.0.0/8`, and loopback is opened by a part of `127.0.0.0/8` alone. The host's own addresses are opened by
    /// naming a single address.
    pub allow_cidrs: Vec<IpNet>,
    /// Hosts that it may reach. A name may have a private address; it opens neither loopback nor the host's own addresses. A
    /// loopback address with a port is also reached through the gateway's address and the same port.
    pub allow_hosts: Vec<HostRule>,
    /// Names that it may connect to by TCP where [`Egress::Allowlist`] applies.
    pub allow_domains: Vec<DomainRule>,
    /// Proxies of the host that it may reach by TCP, as those in `allow_hosts`. The servers that it names to them are not
    /// compared.
    pub proxies: Vec<HostRule>,
}

/// What a guest may reach without a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// The public internet: everything but special ranges and the host's own addresses.
    #[default]
    Public,
    /// Nothing.
    Allowlist,
}

/// A host that a guest may reach, by name or address, on one port or on all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostRule {
    /// The host.
    pub host: Host,
    /// The port. Absent: every port.
    pub port: Option<u16>,
}

impl HostRule {
    fn is_named(&self, name: &DnsName) -> bool {
        matches!(&self.host, Host::Name(host) if host == name)
    }
}

/// A name or an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Host {
    /// A name, as the guest asks for it.
    Name(DnsName),
    /// An address.
    Address(IpAddr),
}

/// Names that a guest may connect to, on one port or on the ports of HTTP and HTTPS, 80 and 443.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainRule {
    /// The names.
    pub pattern: DomainPattern,
    /// The port. Absent: 80 and 443.
    pub port: Option<u16>,
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        Self::Address(address)
    }
}

/// A protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// A question to our resolver.
    Dns,
}

/// The rule by which something was denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The loopback interface of the host, or an address that Linux takes for it.
    Loopback,
    /// An address of the host.
    HostAddress,
    /// A private network.
    Private,
    /// The shared address space of carrier-grade NAT.
    SharedAddressSpace,
    /// A link-local address, among them those of metadata services.
    LinkLocal,
    /// A multicast address.
    Multicast,
    /// A broadcast address.
    Broadcast,
    /// An address that is reserved for documentation or benchmarks.
    Documentation,
    /// An address that is reserved for another purpose, or not assigned to the internet.
    Reserved,
    /// Neither the address nor a name that is bound to it is on the allowlist.
    NotOnAllowlist,
    /// The name is not on the allowlist.
    NameNotOnAllowlist,
    /// The answer for a name contained an address that such a name must not have.
    DnsRebinding,
    /// The guest named another server than the one it connected to.
    ServerNameMismatch,
    /// The guest did not name a server.
    ServerNameMissing,
    /// The guest has too many connections, or opens them too fast.
    TooManyConnections,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Where something wants to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Destination<'a> {
    pub(crate) protocol: Protocol,
    /// The effective address; see [`host::effective`](crate::host::effective).
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) relation: Relation,
    /// Names that are bound to the address.
    pub(crate) names: &'a [&'a DnsName],
}

/// How a destination was judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    /// Allowed if the guest names one of these servers.
    AllowedFor(Vec<DnsName>),
    Denied(Rule),
}

/// Ports on which a server is named by the first bytes of its client.
const NAMED_PORTS: [u16; 2] = [80, 443];

impl Policy {
    /// Judges one destination.
    pub(crate) fn judge(&self, destination: &Destination<'_>) -> Verdict {
        let Destination { protocol, address, port, relation, names } = *destination;
        let denied = denial(address, relation);
        if let Some(Denied { rule: rule @ (Rule::Multicast | Rule::Broadcast), .. }) = denied {
            return Verdict::Denied(rule);
        }
        if self.allow_cidrs.iter().any(|cidr| opens(cidr, address, denied)) {
            return Verdict::Allowed;
        }
        let ported = |rule: &Option<u16>| rule.is_none_or(|rule| rule == port);
        let is_host = |rule: &HostRule| match rule.host {
            Host::Address(host) => ported(&rule.port) && opens(&host.into(), address, denied),
            Host::Name(_) => false,
        };
        let proxies = || self.proxies.iter().filter(|_| protocol == Protocol::Tcp);
        if self.allow_hosts.iter().chain(proxies()).any(is_host) {
            return Verdict::Allowed;
        }
        let by_host =
            |name: &DnsName| self.allow_hosts.iter().any(|rule| rule.is_named(name) && ported(&rule.port));
        let by_domain = |name: &DnsName| {
            let matches = |rule: &DomainRule| {
                let ported = rule.port.map_or(NAMED_PORTS.contains(&port), |rule| rule == port);
                ported && rule.pattern.matches(name)
            };
            self.egress == Egress::Allowlist
                && protocol == Protocol::Tcp
                && denied.is_none()
                && self.allow_domains.iter().any(matches)
        };
        if denied.is_none_or(|denied| denied.is_open_to_names()) {
            let is_proxy = |name: &DnsName| proxies().any(|rule| rule.is_named(name) && ported(&rule.port));
            if names.iter().any(|name| is_proxy(name)) {
                return Verdict::Allowed;
            }
            let mut named = names.iter().copied().filter(|name| by_host(name) || by_domain(name)).peekable();
            if named.peek().is_some() {
                let compared = self.egress == Egress::Allowlist
                    && protocol == Protocol::Tcp
                    && NAMED_PORTS.contains(&port);
                return if compared {
                    Verdict::AllowedFor(named.cloned().collect())
                } else {
                    Verdict::Allowed
                };
            }
        }
        match (denied, self.egress) {
            (Some(denied), _) => Verdict::Denied(denied.rule),
            (None, Egress::Public) => Verdict::Allowed,
            (None, Egress::Allowlist) => Verdict::Denied(Rule::NotOnAllowlist),
        }
    }

    /// Returns how the question for `name` is treated.
    pub(crate) fn judge_name(&self, name: &DnsName) -> NameVerdict {
        let is_host = self.is_host_name(name);
        match self.egress {
            Egress::Public if is_host => NameVerdict::Bound,
            Egress::Public => NameVerdict::Free,
            Egress::Allowlist if is_host => NameVerdict::Bound,
            Egress::Allowlist if self.allow_domains.iter().any(|rule| rule.pattern.matches(name)) => {
                NameVerdict::Bound
            }
            Egress::Allowlist => NameVerdict::Denied,
        }
    }

    /// Returns whether an answer may give `name` this address.
    pub(crate) fn may_bind(&self, name: &DnsName, address: IpAddr, relation: Relation) -> bool {
        match denial(address, relation) {
            None => true,
            Some(denied) => {
                self.allow_cidrs.iter().any(|cidr| opens(cidr, address, Some(denied)))
                    || (denied.is_open_to_names() && self.is_host_name(name))
            }
        }
    }

    fn is_host_name(&self, name: &DnsName) -> bool {
        self.allow_hosts.iter().chain(&self.proxies).any(|rule| rule.is_named(name))
    }

    /// Returns the loopback address of the host to which a port of the gateway leads, if a rule opens that port there.
    pub(crate) fn behind_gateway(&self, port: u16) -> Option<IpAddr> {
        self.allow_hosts.iter().chain(&self.proxies).find_map(|rule| match rule.host {
            Host::Address(address) if address.is_loopback() && rule.port == Some(port) => Some(address),
            _ => None,
        })
    }
}

/// How the question for a name is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameVerdict {
    /// It is forwarded, and the answer passes unchanged.
    Free,
    /// It is forwarded, and the name is bound to the addresses in the answer.
    Bound,
    Denied,
}

/// Why an address is denied without a rule that allows it.
#[derive(Clone, Copy, Debug)]
struct Denied {
    rule: Rule,
    /// The special range. `None`: an address of the host that would otherwise be public.
    range: Option<Range>,
}

impl Denied {
    /// A rule for a name opens what a local network has, and nothing of the host.
    fn is_open_to_names(self) -> bool {
        matches!(self.rule, Rule::Private | Rule::SharedAddressSpace)
    }
}

fn denial(address: IpAddr, relation: Relation) -> Option<Denied> {
    let range = Range::of(address);
    match relation {
        Relation::Broadcast => Some(Denied { rule: Rule::Broadcast, range }),
        Relation::Own => {
            let rule = match range {
                Some(Range { rule: Rule::Loopback, .. }) => Rule::Loopback,
                _ => Rule::HostAddress,
            };
            Some(Denied { rule, range })
        }
        Relation::Other => range.map(|range| Denied { rule: range.rule, range: Some(range) }),
    }
}

/// Whether a rule for a network opens an address, which is denied otherwise.
fn opens(cidr: &IpNet, address: IpAddr, denied: Option<Denied>) -> bool {
    if !cidr.contains(&address) {
        return false;
    }
    let Some(Denied { rule, range }) = denied else { return true };
    let within = range.is_none_or(|range| range.contains(cidr));
    match rule {
        Rule::HostAddress => within && cidr.prefix_len() == cidr.max_prefix_len(),
        _ => within,
    }
}

#[cfg(test)]
pub(crate) mod tests;
