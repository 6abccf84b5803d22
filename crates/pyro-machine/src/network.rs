//! Networks of machines: the network settings for a guest, and what carries its packets.

mod control;
mod denials;
mod description;
mod error;
mod messages;
mod process;
mod provider;

pub use description::{Ipv6Description, NetworkDescription, NetworkInterface};
pub use error::NetworkError;
pub use process::{GATEWAY, NetworkHelper, NetworkSettings};
pub use provider::{Network, Provider};
pub use pyro_network::{
    Denial, Denials, DnsName, DomainPattern, DomainRule, Egress, Host, HostRule, MacAddress, Policy,
    RunError, run_from_parent,
};
