//! The guest's resolver: forwards questions to the resolvers of the host, by UDP and TCP, and knows which names the guest
//! was given addresses for.

mod bindings;
mod connection;
mod forward;
mod message;
mod resolvers;

pub(crate) use bindings::Bindings;
pub(crate) use connection::Connections;
pub(crate) use forward::{Forwarder, Origin};
pub use resolvers::ResolverList;

#[cfg(fuzzing)]
pub(crate) use message::{Question, addresses};

#[cfg(test)]
pub(crate) mod tests {
    pub(crate) use super::message::tests::{answer, ask};
    pub(crate) use super::message::{addresses, code};
}
