//! A guest's network interface, and the network settings that the guest needs.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// A guest's network interface, as its devices have it. It is the same for all guests of a kind; a guest changes the
/// hardware address to that of its [`NetworkDescription`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkInterface {
    /// Hardware address.
    pub mac_address: String,
}

impl Default for NetworkInterface {
    /// A locally administered address.
    fn default() -> Self {
        Self { mac_address: "52:54:00:70:79:72".to_owned() }
    }
}

/// The network of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDescription {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Prefix length of its subnet.
    pub prefix_len: u8,
    /// Its gateway.
    pub gateway: Ipv4Addr,
    /// Its name servers.
    pub dns_servers: Vec<Ipv4Addr>,
    /// Hardware address of its interface.
    pub mac_address: String,
    /// Largest packet in bytes. Absent: what the interface has.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Its IPv6 network, if the host has one.
    #[serde(default)]
    pub ipv6: Option<Ipv6Description>,
}

/// The IPv6 network of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Description {
    /// The guest's address.
    pub address: Ipv6Addr,
    /// Prefix length of its subnet.
    pub prefix_len: u8,
    /// Its gateway.
    pub gateway: Ipv6Addr,
}

impl NetworkDescription {
    /// Returns the subnet in CIDR notation.
    pub fn subnet(&self) -> String {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix_len.min(32))).unwrap_or(0);
        format!("{}/{}", Ipv4Addr::from_bits(self.address.to_bits() & mask), self.prefix_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subnet_is_the_address_without_its_host_part() {
        let network = |prefix_len| NetworkDescription {
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix_len,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns_servers: Vec::new(),
            mac_address: String::new(),
            mtu: None,
            ipv6: None,
        };
        assert_eq!(network(24).subnet(), "10.0.2.0/24");
        assert_eq!(network(32).subnet(), "10.0.2.15/32");
        assert_eq!(network(0).subnet(), "0.0.0.0/0");
    }
}
