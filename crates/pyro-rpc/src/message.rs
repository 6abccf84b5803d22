//! Messages of JSON-RPC 2.0: parses those of the client and writes those of the server.

use std::io;

use pyro_api::CallEvent;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::failure::{Failure, Problem, RpcError};
use crate::limits::{REQUEST_BYTES, RESPONSE_BYTES};

/// Maximum size of a result that is serialized on the event loop, in bytes.
const SHORT_BYTES: usize = 64 << 10;

/// Parameters by name.
pub(crate) type Object = Map<String, Value>;

/// Id of a request: an integer or a string.
#[derive(Debug, Clone, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Id {
    Number(i64),
    Text(String),
}

/// A message of a client.
#[derive(Debug, PartialEq)]
pub(crate) struct Message {
    /// `None`: a notification.
    pub(crate) id: Option<Id>,
    pub(crate) method: String,
    /// Parameters that are null are removed.
    pub(crate) params: Object,
}

/// Why a line is not a valid message, and the id of the request, if it is known.
#[derive(Debug)]
pub(crate) struct Unusable {
    pub(crate) id: Option<Id>,
    pub(crate) failure: Failure,
}

impl Message {
    /// Parses a line.
    pub(crate) fn read(line: &[u8]) -> Result<Self, Unusable> {
        let unusable = |id: Option<Id>, problem, message: String| Unusable {
            id,
            failure: Failure::new(problem, message),
        };
        let invalid = |id, text: &str| unusable(id, Problem::InvalidRequest, text.to_owned());
        let mut object = match serde_json::from_slice(line) {
            Ok(Value::Object(object)) => object,
            Ok(Value::Array(_)) => {
                return Err(invalid(None, "batches are not supported; send one request per line"));
            }
            Ok(_) => return Err(invalid(None, "a request must be an object")),
            Err(error) => {
                return Err(unusable(None, Problem::NoJson, format!("invalid JSON: {error}")));
            }
        };
        let id = match object.remove("id").map(serde_json::from_value).transpose() {
            Ok(id) => id,
            Err(_) => return Err(invalid(None, "`id` must be an integer or a string")),
        };
        if object.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
            return Err(invalid(id, "`jsonrpc` must be \"2.0\""));
        }
        let Some(Value::String(method)) = object.remove("method") else {
            return Err(invalid(id, "`method` must be a string"));
        };
        let mut params = match object.remove("params") {
            None => Object::new(),
            Some(Value::Object(params)) => params,
            Some(_) => {
                let text = "`params` must be an object";
                return Err(unusable(id, Problem::InvalidParams, text.to_owned()));
            }
        };
        params.retain(|_, value| !value.is_null());
        Ok(Self { id, method, params })
    }
}

/// The response to a line that is too long.
pub(crate) fn too_long() -> Vec<u8> {
    error(
        None,
        Failure::new(
            Problem::MessageTooLong,
            format!("request is too large: the maximum is {REQUEST_BYTES} bytes"),
        ),
    )
}

/// The line of a result.
pub(crate) fn success(id: &Id, result: &impl Serialize) -> Result<Vec<u8>, Failure> {
    success_within(RESPONSE_BYTES, id, result)
}

/// The line of a result, if it is short.
pub(crate) fn short_success(id: &Id, result: &impl Serialize) -> Option<Vec<u8>> {
    success_within(SHORT_BYTES, id, result).ok()
}

fn success_within(limit: usize, id: &Id, result: &impl Serialize) -> Result<Vec<u8>, Failure> {
    #[derive(Serialize)]
    struct Answer<'a, T> {
        jsonrpc: &'static str,
        id: &'a Id,
        result: &'a T,
    }
    let mut line = Bounded { line: Vec::new(), remaining: limit };
    match serde_json::to_writer(&mut line, &Answer { jsonrpc: "2.0", id, result }) {
        Ok(()) => Ok(ended(line.line)),
        Err(_) => Err(Failure::new(
            Problem::MessageTooLong,
            format!("result is too large: the maximum is {limit} bytes"),
        )),
    }
}

/// The line of an error; `id` is `None` if the id of the request is unknown.
pub(crate) fn error(id: Option<&Id>, failure: Failure) -> Vec<u8> {
    #[derive(Serialize)]
    struct Answer<'a> {
        jsonrpc: &'static str,
        id: Option<&'a Id>,
        error: RpcError,
    }
    written(&Answer { jsonrpc: "2.0", id, error: failure.error() })
}

/// An event of a call.
#[derive(Debug, JsonSchema, Serialize)]
pub(crate) struct EventParams<'a> {
    /// Id of the call.
    pub(crate) id: &'a Id,
    /// The event.
    pub(crate) event: CallEvent,
}

/// The line of an event.
pub(crate) fn event(id: &Id, event: CallEvent) -> Vec<u8> {
    #[derive(Serialize)]
    struct Notification<'a> {
        jsonrpc: &'static str,
        method: &'static str,
        params: EventParams<'a>,
    }
    written(&Notification { jsonrpc: "2.0", method: "event", params: EventParams { id, event } })
}

/// The client may send more input.
#[derive(Debug, JsonSchema, Serialize)]
pub(crate) struct Credit<'a> {
    /// Id of the call.
    pub(crate) id: &'a Id,
    /// Number of further bytes of input, counted before base64.
    pub(crate) bytes: u64,
}

/// The line that lets the client send more input.
pub(crate) fn credit(id: &Id, bytes: u64) -> Vec<u8> {
    #[derive(Serialize)]
    struct Notification<'a> {
        jsonrpc: &'static str,
        method: &'static str,
        params: Credit<'a>,
    }
    written(&Notification { jsonrpc: "2.0", method: "credit", params: Credit { id, bytes } })
}

fn written(message: &impl Serialize) -> Vec<u8> {
    // Serializing strings and numbers cannot fail.
    ended(serde_json::to_vec(message).unwrap_or_default())
}

fn ended(mut line: Vec<u8>) -> Vec<u8> {
    line.push(b'\n');
    line
}

/// A line with a maximum size.
struct Bounded {
    line: Vec<u8>,
    remaining: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.remaining = self.remaining.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
