//! The entries of a policy, which are text until they are checked.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Maximum length of a host name (RFC 1035 §2.3.4, without the root's dot).
const MAX_NAME: usize = 253;
/// Maximum length of one label of a host name.
const MAX_LABEL: usize = 63;
/// The ports of a domain without a port: HTTP and HTTPS.
const WEB_PORTS: [u16; 2] = [80, 443];

/// Text that is not an entry of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// Not an address range.
    #[error("invalid address range: expected an address or ADDRESS/PREFIX, such as 10.1.0.0/16")]
    Cidr,
    /// Not a host.
    #[error("invalid host: expected NAME, NAME:PORT, ADDRESS, ADDRESS:PORT or [IPV6]:PORT")]
    Host,
    /// Not a domain.
    #[error("invalid domain: expected NAME or *.NAME, with :PORT for another port than 80 and 443")]
    Domain,
    /// Not a preset.
    #[error("invalid preset: expected @debian, @pypi, @npm or @crates")]
    Preset,
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllowedCidr(IpNet);

/// A host by name or address, and the port that is open there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedHost {
    host: Host,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Name(String),
    Address(IpAddr),
}

/// Names that are open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedDomain {
    /// This name, or these.
    Domain(Domain),
    /// Those of a package registry, as this host's package managers know them when the guest starts.
    Preset(Preset),
}

/// A package registry. Its hosts are those in the settings of this host's package managers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// The archives that apt uses.
    Debian,
    /// The indexes that pip and uv use.
    Pypi,
    /// The registries that npm uses.
    Npm,
    /// The registry that Cargo uses.
    Crates,
}

/// A name, or all names below one, and the port that is open there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// Without the wildcard.
    name: String,
    is_wildcard: bool,
    port: Option<u16>,
}

impl AllowedCidr {
    /// The range.
    pub fn range(&self) -> IpNet {
        self.0
    }
}

impl AllowedHost {
    /// Its name; `None` if it is an address.
    pub fn name(&self) -> Option<&str> {
        match &self.host {
            Host::Name(name) => Some(name),
            Host::Address(_) => None,
        }
    }

    /// Its address; `None` if it is a name.
    pub fn address(&self) -> Option<IpAddr> {
        match self.host {
            Host::Name(_) => None,
            Host::Address(address) => Some(address),
        }
    }

    /// The open port; `None`: every port.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    pub(super) fn covers(&self, other: &Self) -> bool {
        self.host == other.host && (self.port.is_none() || self.port == other.port)
    }
}

impl AllowedDomain {
    pub(super) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Domain(wide), Self::Domain(narrow)) => wide.covers(narrow),
            (Self::Preset(wide), Self::Preset(narrow)) => wide == narrow,
            // What a preset stands for is not known before a start.
            _ => false,
        }
    }
}

impl Preset {
    const ALL: [Self; 4] = [Self::Debian, Self::Pypi, Self::Npm, Self::Crates];

    fn as_str(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Pypi => "pypi",
            Self::Npm => "npm",
            Self::Crates => "crates",
        }
    }
}

impl Domain {
    /// The name, or the name above all those that are open.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All names below [`Domain::name`] are open, at any depth, but not that name itself.
    pub fn is_wildcard(&self) -> bool {
        self.is_wildcard
    }

    /// The open port; `None`: 80 and 443.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    fn covers(&self, other: &Self) -> bool {
        let names = match (self.is_wildcard, other.is_wildcard) {
            (false, false) => self.name == other.name,
            (false, true) => false,
            (true, false) => is_below(&other.name, &self.name),
            (true, true) => self.name == other.name || is_below(&other.name, &self.name),
        };
        let ports = match (self.port, other.port) {
            (None, None) => true,
            (None, Some(port)) => WEB_PORTS.contains(&port),
            (Some(port), other) => other == Some(port),
        };
        names && ports
    }
}

fn is_below(name: &str, above: &str) -> bool {
    name.strip_suffix(above).is_some_and(|rest| rest.ends_with('.'))
}

/// Returns a host name in lower case, without the root's dot.
fn host_name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
    };
    // Programs read a name whose last label is a number as an address (WHATWG URL, "ends in a number").
    let is_number = |label: &str| label.starts_with("0x") || label.bytes().all(|b| b.is_ascii_digit());
    let is_name = name.len() <= MAX_NAME
        && name.split('.').all(is_label)
        && !name.rsplit('.').next().is_some_and(is_number);
    is_name.then_some(name)
}

fn port(text: &str) -> Option<u16> {
    let is_plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten().filter(|port| *port != 0)
}

/// Splits `NAME:PORT`. `None`: the port is invalid.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    match text.rsplit_once(':') {
        Some((name, number)) => Some((name, Some(port(number)?))),
        None => Some((text, None)),
    }
}

impl FromStr for AllowedCidr {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let range = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        range.map(|range: IpNet| Self(range.trunc())).map_err(|_| InvalidPattern::Cidr)
    }
}

impl FromStr for AllowedHost {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // An IPv6 address contains colons, so with a port it stands in brackets.
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Ok(Self { host: Host::Address(address.into()), port: None });
        }
        if let Some((address, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let address: Ipv6Addr = address.parse().map_err(|_| InvalidPattern::Host)?;
            let port = match rest.strip_prefix(':') {
                Some(number) => Some(port(number).ok_or(InvalidPattern::Host)?),
                None if rest.is_empty() => None,
                None => return Err(InvalidPattern::Host),
            };
            return Ok(Self { host: Host::Address(address.into()), port });
        }
        let (host, port) = split_port(text).ok_or(InvalidPattern::Host)?;
        let address = host.parse().ok().map(Host::Address);
        let host = address.or_else(|| host_name(host).map(Host::Name)).ok_or(InvalidPattern::Host)?;
        Ok(Self { host, port })
    }
}

impl FromStr for AllowedDomain {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(word) = text.strip_prefix('@') else { return text.parse().map(Self::Domain) };
        let preset = Preset::ALL.into_iter().find(|preset| preset.as_str() == word);
        preset.map(Self::Preset).ok_or(InvalidPattern::Preset)
    }
}

impl FromStr for Domain {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (pattern, port) = split_port(text).ok_or(InvalidPattern::Domain)?;
        let (name, is_wildcard) = match pattern.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (pattern, false),
        };
        let name = host_name(name).ok_or(InvalidPattern::Domain)?;
        Ok(Self { name, is_wildcard, port })
    }
}

impl fmt::Display for AllowedCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (Host::Name(name), None) => f.write_str(name),
            (Host::Name(name), Some(port)) => write!(f, "{name}:{port}"),
            (Host::Address(address), None) => address.fmt(f),
            (Host::Address(address), Some(port)) => std::net::SocketAddr::new(*address, port).fmt(f),
        }
    }
}

impl fmt::Display for AllowedDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(domain) => domain.fmt(f),
            Self::Preset(preset) => write!(f, "@{preset}"),
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wildcard = if self.is_wildcard { "*." } else { "" };
        write!(f, "{wildcard}{}", self.name)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// Text in JSON and in its schema.
macro_rules! as_text {
    ($($type:ident: $description:literal),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $description })
            }
        }
    )*};
}

as_text! {
    AllowedCidr: "An address range, such as `10.1.0.0/16`.",
    AllowedHost: "`NAME`, `NAME:PORT`, `ADDRESS` or `ADDRESS:PORT`.",
    AllowedDomain: "`NAME` or `*.NAME`, and `:PORT` for another port than 80 and 443, or a package registry: `@debian`, `@pypi`, `@npm` or `@crates`."
}

#[cfg(test)]
mod arbitrary {
    use proptest::prelude::*;

    use super::*;

    macro_rules! from_texts {
        ($($type:ident: $texts:literal),*) => {$(
            impl Arbitrary for $type {
                type Parameters = ();
                type Strategy = BoxedStrategy<Self>;

                fn arbitrary_with((): ()) -> Self::Strategy {
                    $texts.prop_filter_map("an entry", |text| text.parse().ok()).boxed()
                }
            }
        )*};
    }

    from_texts! {
        AllowedCidr: "(10\\.[0-9]\\.0\\.0/1[6-9]|fd00:[0-9]::/48|192\\.0\\.2\\.[0-9])",
        AllowedHost: "([a-z]{1,3}\\.test|10\\.0\\.0\\.[0-9]|\\[::[1-9]\\])(:[1-9][0-9]{0,3})?",
        AllowedDomain: "(\\*\\.)?([a-c]\\.){0,2}test(:[1-9][0-9]{0,3})?"
    }
}
