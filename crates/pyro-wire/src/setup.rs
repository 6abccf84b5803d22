//! Messages of the first phase: the guest introduces itself and is set up.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::bounded::{self, MAX_LABEL_BYTES};

/// Number of the current schema; both ends must agree on it.
pub const GENERATION: u32 = 7;

/// First frame of the guest: the kernel is up and the agent listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hello {
    /// The guest's [`GENERATION`].
    pub generation: u32,
    /// The agent's package version, in printable ASCII.
    #[serde(deserialize_with = "bounded::label")]
    #[schemars(length(max = MAX_LABEL_BYTES))]
    pub agent_version: String,
    /// `uname -r` of the guest, in printable ASCII.
    #[serde(deserialize_with = "bounded::label")]
    #[schemars(length(max = MAX_LABEL_BYTES))]
    pub kernel_release: String,
}

/// What all VMs of a kind have in common. Sent first; a guest that has applied it may be saved as a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Preparation {
    /// The host's [`GENERATION`].
    pub generation: u32,
    /// Filesystem type of the base image as the guest kernel names it. The layer is always ext4.
    pub base_filesystem: String,
    /// Run common programs once, so that a template holds their pages.
    pub warm_up: bool,
}

/// Everything that makes this VM different from its siblings. Sent once, applied before any command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Bootstrap {
    /// Wall clock of the host in nanoseconds since the epoch, taken just before sending.
    pub unix_time_ns: u64,
    /// Fresh random bytes as hex, credited to the guest's random pool. At least 32 bytes.
    pub seed: String,
    /// Host name of the guest.
    pub hostname: String,
    /// Content of `/etc/machine-id`: 32 hex digits.
    pub machine_id: String,
    /// Absent: the guest has no network interface but loopback.
    pub network: Option<NetworkConfig>,
    /// What the guest gets of its host's settings.
    #[serde(default)]
    pub host: HostSettings,
}

/// What a guest gets of its host's settings, at its caller's request. Together less than [`MAX_HOST_SETTINGS_BYTES`].
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostSettings {
    /// Variables of commands, unless their caller sets them. They may contain credentials.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    /// Certificates of the certification authorities that commands trust, in PEM. Absent: those of the guest's image.
    #[serde(default)]
    pub ca_bundle: Option<String>,
}

/// Maximum size of a guest's [`HostSettings`] in bytes, so that they fit into a frame with everything else in it.
pub const MAX_HOST_SETTINGS_BYTES: usize = 800 * 1024;

/// Shows no values: they may contain credentials.
impl fmt::Debug for HostSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { variables, ca_bundle } = self;
        f.debug_struct("HostSettings")
            .field("variables", &variables.keys())
            .field("ca_bundle", &ca_bundle.as_ref().map(String::len))
            .finish()
    }
}

/// Static network configuration of the guest's first Ethernet interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkConfig {
    /// IPv4 address of the guest.
    pub address: std::net::Ipv4Addr,
    /// Prefix length of the subnet.
    pub prefix_len: u8,
    /// Default gateway.
    pub gateway: std::net::Ipv4Addr,
    /// Name servers for `/etc/resolv.conf`.
    pub dns_servers: Vec<std::net::Ipv4Addr>,
    /// Hardware address that the interface gets: six bytes in hexadecimal, separated by colons. Absent: it keeps its own.
    #[serde(default)]
    pub mac_address: Option<String>,
    /// Largest packet in bytes. Absent: what the interface has.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// IPv6 configuration. Absent: the interface has none.
    #[serde(default)]
    pub ipv6: Option<Ipv6Config>,
}

/// Static IPv6 configuration of the guest's first Ethernet interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ipv6Config {
    /// IPv6 address of the guest.
    pub address: std::net::Ipv6Addr,
    /// Prefix length of the subnet.
    pub prefix_len: u8,
    /// Default gateway.
    pub gateway: std::net::Ipv6Addr,
}

/// Answer to [`Preparation`] and to [`Bootstrap`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SetupReply {
    /// It is applied. After a bootstrap the guest takes requests; yamux starts with the next byte.
    Done,
    /// The guest could not be set up and ends its machine.
    Failed(Failure),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_hosts_settings_are_not_shown() {
        let variables = [("HTTPS_PROXY".to_owned(), "http://user:secret@proxy.test".to_owned())].into();
        let settings = HostSettings { variables, ca_bundle: Some("certificates".to_owned()) };
        assert_eq!(
            format!("{settings:?}"),
            "HostSettings { variables: [\"HTTPS_PROXY\"], ca_bundle: Some(12) }"
        );
    }
}
