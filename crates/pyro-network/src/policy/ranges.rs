//! Ranges of addresses that do not belong to the public internet, from IANA's special-purpose registries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Rule;

/// A special range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) rule: Rule,
    /// Absent: everything that no other range contains.
    network: Option<IpNet>,
}

impl Range {
    /// Returns the special range that contains `address`. Addresses that carry an IPv4 address are judged by that one.
    pub(super) fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => match embedded(address) {
                // A rule for an IPv4 network must not open it in disguise.
                Some(inner) => of_v4(inner).map(|range| Self { network: None, ..range }),
                None => of_v6(address),
            },
        }
    }

    /// Returns whether `network` lies within this range.
    pub(super) fn contains(&self, network: &IpNet) -> bool {
        self.network.is_some_and(|range| range.contains(network))
    }
}

fn of_v4(address: Ipv4Addr) -> Option<Range> {
    let found = V4.iter().find(|(network, _)| network.contains(&address));
    found.map(|&(network, rule)| Range { rule, network: Some(network.into()) })
}

fn of_v6(address: Ipv6Addr) -> Option<Range> {
    if let Some(&(network, rule)) = V6.iter().find(|(network, _)| network.contains(&address)) {
        return Some(Range { rule, network: Some(network.into()) });
    }
    let is_global = GLOBAL_UNICAST.contains(&address) || NAT64.contains(&address);
    (!is_global).then_some(Range { rule: Rule::Reserved, network: None })
}

/// Returns the IPv4 address to which a translator or a tunnel would take a packet.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = address.to_bits();
    if let Some(mapped) = address.to_ipv4_mapped() {
        Some(mapped)
    } else if NAT64.contains(&address) {
        // The lowest 32 bits, by the cast.
        Some(Ipv4Addr::from_bits(bits as u32))
    } else if SIX_TO_FOUR.contains(&address) {
        Some(Ipv4Addr::from_bits((bits >> 80) as u32))
    } else {
        None
    }
}

const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);
const SIX_TO_FOUR: Ipv6Net = v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16);
const GLOBAL_UNICAST: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// The first range that contains an address counts.
const V4: [(Ipv4Net, Rule); 17] = [
    // "This network"; Linux takes 0.0.0.0 for its own loopback interface.
    (v4([0, 0, 0, 0], 8), Rule::Loopback),
    (v4([127, 0, 0, 0], 8), Rule::Loopback),
    (v4([10, 0, 0, 0], 8), Rule::Private),
    (v4([172, 16, 0, 0], 12), Rule::Private),
    (v4([192, 168, 0, 0], 16), Rule::Private),
    (v4([100, 64, 0, 0], 10), Rule::SharedAddressSpace),
    (v4([169, 254, 0, 0], 16), Rule::LinkLocal),
    // Azure's metadata and credentials of each machine: not link-local, but like it.
    (v4([168, 63, 129, 16], 32), Rule::LinkLocal),
    (v4([192, 0, 0, 0], 24), Rule::Reserved),
    (v4([192, 0, 2, 0], 24), Rule::Documentation),
    (v4([198, 51, 100, 0], 24), Rule::Documentation),
    (v4([203, 0, 113, 0], 24), Rule::Documentation),
    (v4([198, 18, 0, 0], 15), Rule::Documentation),
    // The relays of 6to4, which no longer exist.
    (v4([192, 88, 99, 0], 24), Rule::Reserved),
    (v4([224, 0, 0, 0], 4), Rule::Multicast),
    (v4([255, 255, 255, 255], 32), Rule::Broadcast),
    (v4([240, 0, 0, 0], 4), Rule::Reserved),
];

const V6: [(Ipv6Net, Rule); 14] = [
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), Rule::Loopback),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), Rule::Loopback),
    // IPv4-compatible addresses.
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 96), Rule::Reserved),
    // Translation for one network.
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), Rule::Reserved),
    // Discard only.
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), Rule::Reserved),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), Rule::Documentation),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), Rule::Documentation),
    (v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48), Rule::Documentation),
    // Protocol assignments, among them Teredo, which carries an obfuscated IPv4 address.
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), Rule::Reserved),
    // Unique local addresses.
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), Rule::Private),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), Rule::LinkLocal),
    // Site-local addresses.
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), Rule::Private),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), Rule::Multicast),
    // Segment routing.
    (v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16), Rule::Reserved),
];

const fn v4([a, b, c, d]: [u8; 4], prefix_len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_len)
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], prefix_len: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix_len)
}
