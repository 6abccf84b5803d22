//! Questions of the host about servers in the machine.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Failure;

/// Find out whether a server accepts connections to a port. The connection is closed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Probe {
    /// The TCP port on the loopback interface.
    pub port: u16,
}

/// Answer to [`Probe`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProbeReply {
    /// One does.
    Ready,
    /// None does.
    NotReady(Failure),
}
