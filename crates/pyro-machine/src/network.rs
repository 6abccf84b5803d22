//! Networks of machines: the network settings for a guest, and what carries its packets.

mod description;
mod error;
mod messages;
mod passt;
mod provider;

pub use description::{NetworkDescription, NetworkInterface};
pub use error::NetworkError;
pub use provider::{Network, Provider};
