//! What one guest's network looks like, as plain data.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::host;
use crate::limits::{MAX_MTU, MIN_MTU};
use crate::policy::Policy;

/// Maximum size of a serialised [`Config`] in bytes.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What one guest's network looks like, and what it may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Hardware address of the guest. Frames from another one are dropped.
    pub guest_mac: MacAddress,
    /// IPv4 addresses on the link.
    pub v4: Ipv4Link,
    /// IPv6 addresses on the link. Absent: the guest has no IPv6.
    pub v6: Option<Ipv6Link>,
    /// Largest packet in bytes.
    pub mtu: u16,
    /// The host's resolvers, in the order in which they are asked.
    pub resolvers: Vec<SocketAddr>,
    /// What the guest may reach.
    pub policy: Policy,
}

/// IPv4 addresses on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ipv4Link {
    /// The guest's address. Packets from another one are dropped.
    pub guest: Ipv4Addr,
    /// Our address as the guest's gateway.
    pub gateway: Ipv4Addr,
    /// Our address as the guest's resolver.
    pub resolver: Ipv4Addr,
}

/// IPv6 addresses on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ipv6Link {
    /// The guest's address. Packets from another one are dropped, except for neighbour discovery.
    pub guest: Ipv6Addr,
    /// Our address as the guest's gateway.
    pub gateway: Ipv6Addr,
}

impl Config {
    /// Decodes a configuration.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn decode(text: &[u8]) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_slice(text)?;
        if !(MIN_MTU..=MAX_MTU).contains(&config.mtu) {
            return Err(ConfigError::Mtu(config.mtu));
        }
        Ok(config)
    }
}

/// Why a configuration is unusable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It could not be decoded.
    #[error("invalid network configuration")]
    Malformed(#[from] serde_json::Error),
    /// The packet size is out of its bounds.
    #[error("invalid maximum packet size: expected {MIN_MTU} to {MAX_MTU}, got {0}")]
    Mtu(u16),
}

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is not a hardware address.
#[derive(Debug, thiserror::Error)]
#[error("invalid hardware address: expected six bytes in hexadecimal, separated by colons")]
pub struct InvalidMacAddress;

impl FromStr for MacAddress {
    type Err = InvalidMacAddress;

    fn from_str(text: &str) -> Result<Self, InvalidMacAddress> {
        let mut parts = text.split(':').map(|part| match part.len() {
            2 if part.bytes().all(|byte| byte.is_ascii_hexdigit()) => u8::from_str_radix(part, 16).ok(),
            _ => None,
        });
        let mut bytes = [0; 6];
        for byte in &mut bytes {
            *byte = parts.next().flatten().ok_or(InvalidMacAddress)?;
        }
        if parts.next().is_some() { Err(InvalidMacAddress) } else { Ok(Self(bytes)) }
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Returns whether the host would send IPv6 packets to the internet. No packet is sent to find out.
pub fn host_has_ipv6() -> bool {
    /// A root name server: an address that every IPv6 network routes in the same way as others.
    const FAR: Ipv6Addr = Ipv6Addr::new(0x2001, 0x7fe, 0, 0, 0, 0, 0, 0x53);
    let source = host::source_towards(SocketAddr::new(FAR.into(), 53));
    source.is_ok_and(|source| !source.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_read_strictly() {
        let address: MacAddress = "06:00:0a:fF:00:01".parse().unwrap();
        assert_eq!(address.to_string(), "06:00:0a:ff:00:01");
        for text in [
            "",
            "06:00:0a:ff:00",
            "06:00:0a:ff:00:01:02",
            "6:0:a:f:0:1",
            "06-00-0a-ff-00-01",
            "+6:00:0a:ff:00:01",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_configuration_is_decoded_strictly() {
        let config = Config {
            guest_mac: MacAddress([6, 0, 1, 2, 3, 4]),
            v4: Ipv4Link {
                guest: [10, 0, 2, 15].into(),
                gateway: [10, 0, 2, 2].into(),
                resolver: [10, 0, 2, 3].into(),
            },
            v6: None,
            mtu: 1500,
            resolvers: vec!["192.0.2.53:53".parse().unwrap()],
            policy: Policy::default(),
        };
        let value = serde_json::to_value(&config).unwrap();
        let decode = |value: &serde_json::Value| Config::decode(value.to_string().as_bytes());
        assert_eq!(decode(&value).unwrap(), config);
        for mtu in [0, 1279, 65_521] {
            let mut value = value.clone();
            value["mtu"] = mtu.into();
            assert!(matches!(decode(&value), Err(ConfigError::Mtu(_))));
        }
        let mut value = value;
        value["more"] = true.into();
        assert!(matches!(decode(&value), Err(ConfigError::Malformed(_))));
    }
}
