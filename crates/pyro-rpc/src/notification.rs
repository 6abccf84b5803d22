//! Notifications of a client.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

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

/// Sends input to the command of a call whose `input` is `stream`. A client may send `window_bytes` bytes, and as many more as each
/// `credit` grants. If it sends more, or goes on after `finished`, the call is cancelled.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Input {
    /// Id of the call.
    pub(crate) id: Id,
    /// Bytes in base64; may be cut anywhere.
    #[serde(default, deserialize_with = "from_base64")]
    #[schemars(with = "String")]
    pub(crate) data: Bytes,
    /// The input ends after these bytes.
    #[serde(default)]
    pub(crate) finished: bool,
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(deserializer)?;
    BASE64.decode(text).map(Bytes::from).map_err(serde::de::Error::custom)
}
