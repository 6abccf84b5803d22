//! The network of one guest: a TCP/IP stack in user space that ends the guest's connections here and opens others with
//! ordinary sockets of the host, if the policy allows them. Needs no privileges and no device of the host.
//!
//! ```text
//!  guest ──frames──► Link ──► packet::Inbound ──TCP──► Stack (smoltcp) ──► TcpFlows ──► sockets of the host
//!                              │ source checked  ├─UDP─► UdpFlows ────────────────────►        ▲
//!                              └ else dropped    └─DNS─► dns::Forwarder ──► host's resolvers ──┘
//!                                                            │
//!                    Policy::judge, asked once for each connection, flow and name ──► denials ──► events
//! ```
//!
//! * The policy is asked when a connection or flow begins, with the address that the host would connect to.
//! * Nothing listens on the host. A datagram reaches the guest only from the peer that the guest sent one to.
//! * Connections, flows, queries, buffers and descriptors have fixed maximum numbers; see [`limits`].
//! * One thread, one event loop. Bytes from the guest and from the network are hostile: decoding is bounded.
//!
//! The process that runs this ([`run`]) knows nothing about virtual machine monitors: it has a stream socket on which
//! frames are exchanged, each behind its length, as QEMU's `stream` network does.

mod config;
mod confine;
mod control;
mod denials;
mod dns;
mod host;
mod icmp;
mod inspect;
pub mod limits;
mod link;
mod packet;
mod policy;
mod process;
mod random;
mod rate;
mod relay;
mod server;
mod stack;
mod tcp;
mod udp;

pub use config::{Config, ConfigError, Ipv4Link, Ipv6Link, MAX_CONFIG_BYTES, MacAddress, host_has_ipv6};
pub use confine::{ConfineError, confine};
pub use control::{MAX_MESSAGE_BYTES, Message};
pub use denials::{Denial, Denials, MAX_EVENT_BYTES};
pub use dns::ResolverList;
pub use policy::{DnsName, DomainPattern, DomainRule, Egress, Host, HostRule, Policy, Protocol, Rule};
pub use process::{CONFIG_FD, CONTROL_FD, EVENTS_FD, LINK_FD, run_from_parent};
pub use server::{RunError, Server, run};

#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
