//! Networks of machines: what a guest is told about its network, and what carries its packets.

mod description;
mod error;
mod passt;
mod provider;

pub use description::{NetworkDescription, NetworkInterface};
pub use error::NetworkError;
pub use provider::{Network, Provider};
