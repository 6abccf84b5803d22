//! Ports of guests on this host, which are text until they are checked.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Maximum number of published ports of one task.
pub const MAX_PORTS: usize = 32;

/// A TCP port of a guest, and where this host listens for it: `[HOST_IP:]HOST_PORT:GUEST_PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortMapping {
    /// Where this host listens. Port 0: one that the system chooses.
    pub host: SocketAddr,
    /// The port in the guest.
    pub guest_port: u16,
}

/// Text that is not a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid port mapping: expected [HOST_IP:]HOST_PORT:GUEST_PORT, such as 8080:80 or [::1]:0:80")]
pub struct InvalidPortMapping;

impl PortMapping {
    /// Only programs of this host can connect.
    pub fn is_loopback(&self) -> bool {
        self.host.ip().to_canonical().is_loopback()
    }
}

impl FromStr for PortMapping {
    type Err = InvalidPortMapping;

    fn from_str(text: &str) -> Result<Self, InvalidPortMapping> {
        let (host, guest_port) = text.rsplit_once(':').ok_or(InvalidPortMapping)?;
        let (address, host_port) = match host.rsplit_once(':') {
            Some((address, port)) => (address_of(address)?, port),
            None => (Ipv4Addr::LOCALHOST.into(), host),
        };
        let host = SocketAddr::new(address, number(host_port)?);
        match number(guest_port)? {
            0 => Err(InvalidPortMapping),
            guest_port => Ok(Self { host, guest_port }),
        }
    }
}

/// An IPv6 address stands in brackets.
fn address_of(text: &str) -> Result<IpAddr, InvalidPortMapping> {
    let address = match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some(text) => text.parse().map(IpAddr::V6),
        None => text.parse().map(IpAddr::V4),
    };
    address.map_err(|_| InvalidPortMapping)
}

fn number(text: &str) -> Result<u16, InvalidPortMapping> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten().ok_or(InvalidPortMapping)
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.guest_port)
    }
}

impl Serialize for PortMapping {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortMapping {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for PortMapping {
    fn schema_name() -> Cow<'static, str> {
        "PortMapping".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
impl proptest::arbitrary::Arbitrary for PortMapping {
    type Parameters = ();
    type Strategy = proptest::strategy::BoxedStrategy<Self>;

    fn arbitrary_with((): ()) -> Self::Strategy {
        use proptest::prelude::*;
        (any::<IpAddr>(), any::<u16>(), 1..=u16::MAX)
            .prop_map(|(address, port, guest_port)| Self { host: SocketAddr::new(address, port), guest_port })
            .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_strictly() {
        for (text, host, guest_port) in [
            ("8080:80", "127.0.0.1:8080", 80),
            ("0:80", "127.0.0.1:0", 80),
            ("0.0.0.0:8080:80", "0.0.0.0:8080", 80),
            ("[::1]:8080:80", "[::1]:8080", 80),
        ] {
            let mapping: PortMapping = text.parse().unwrap();
            assert_eq!(mapping, PortMapping { host: host.parse().unwrap(), guest_port });
            assert_eq!(mapping.to_string().parse(), Ok(mapping));
        }
        for text in [
            "",
            "80",
            "8080:",
            ":80",
            "8080:0",
            "8080:65536",
            "x:80",
            "+1:80",
            "::1:8080:80",
            "[::1]:80",
            "localhost:8080:80",
            "[127.0.0.1]:1:2",
            "8080:80/udp",
            "1.2.3.4:80",
        ] {
            assert_eq!(text.parse::<PortMapping>(), Err(InvalidPortMapping), "{text}");
        }
    }

    #[test]
    fn loopback_is_told_from_other_addresses() {
        for (text, is_loopback) in [
            ("1:2", true),
            ("127.9.9.9:1:2", true),
            ("[::1]:1:2", true),
            ("[::ffff:127.0.0.1]:1:2", true),
            ("0.0.0.0:1:2", false),
            ("[::]:1:2", false),
            ("192.0.2.1:1:2", false),
        ] {
            assert_eq!(text.parse::<PortMapping>().unwrap().is_loopback(), is_loopback, "{text}");
        }
    }
}
