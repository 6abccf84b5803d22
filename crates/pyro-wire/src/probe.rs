//! Questions of the host about what a server in the machine needs to be ready.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Failure;

/// Find out whether something is there. Changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// A server accepts connections to this TCP port of the loopback interface. The connection is closed at once.
    Port(u16),
    /// A file, directory, or socket exists at this path, below [`WORKSPACE`](crate::WORKSPACE) unless it is absolute.
    File(String),
}

/// Answer to [`Probe`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProbeReply {
    /// It is there.
    Ready,
    /// It is not there, or that cannot be found out.
    NotReady(Failure),
}
