//! What a client says without waiting for an answer.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::message::Id;

/// A call is not wanted any more. Its answer is then the error `cancelled`, or its result if it was done.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Cancel {
    /// The call.
    pub(crate) id: Id,
}

/// Output of a call was consumed, so that more may be sent.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Ack {
    /// The call.
    pub(crate) id: Id,
    /// How many bytes more, counted as the command wrote them, before base64.
    pub(crate) bytes: u64,
}
