//! Notifications of a client.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::message::Id;

/// Cancels a call. The response is the error `cancelled`, or the result if the call had finished.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Cancel {
    /// Id of the call.
    pub(crate) id: Id,
}

/// Acknowledges output of a call, so that more may be sent.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Ack {
    /// Id of the call.
    pub(crate) id: Id,
    /// Number of further bytes that were consumed, counted before base64.
    pub(crate) bytes: u64,
}
