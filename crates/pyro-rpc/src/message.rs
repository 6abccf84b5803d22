//! The messages of JSON-RPC 2.0: one of a client taken apart, and those of the server written.

use std::io;

use pyro_api::CallEvent;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::fault::{Fault, Problem, RpcError};
use crate::limits::{REQUEST_BYTES, RESPONSE_BYTES};

/// A result of so many bytes is written where it is, while nothing else goes on.
const SHORT_BYTES: usize = 64 << 10;

/// Parameters by name.
pub(crate) type Object = Map<String, Value>;

/// What a client calls a request: an integer or a text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Id {
    Number(i64),
    Text(String),
}

/// A message of a client.
#[derive(Debug, PartialEq)]
pub(crate) struct Message {
    /// `None`: nobody waits for an answer.
    pub(crate) id: Option<Id>,
    pub(crate) method: String,
    /// Those that are null count as not given.
    pub(crate) params: Object,
}

/// Why a line is no message, and whose answer that is, as far as it can be told.
#[derive(Debug)]
pub(crate) struct Unusable {
    pub(crate) id: Option<Id>,
    pub(crate) fault: Fault,
}

impl Message {
    /// Takes a line apart.
    pub(crate) fn read(line: &[u8]) -> Result<Self, Unusable> {
        let unusable =
            |id: Option<Id>, problem, message: String| Unusable { id, fault: Fault::new(problem, message) };
        let invalid = |id, text: &str| unusable(id, Problem::InvalidRequest, text.to_owned());
        let mut object = match serde_json::from_slice(line) {
            Ok(Value::Object(object)) => object,
            Ok(Value::Array(_)) => {
                return Err(invalid(None, "batches are not taken; send one request a line"));
            }
            Ok(_) => return Err(invalid(None, "a request is an object")),
            Err(error) => {
                return Err(unusable(None, Problem::NoJson, format!("the line is no JSON: {error}")));
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
                let text = "`params` must be an object: parameters go by name";
                return Err(unusable(id, Problem::InvalidParams, text.to_owned()));
            }
        };
        params.retain(|_, value| !value.is_null());
        Ok(Self { id, method, params })
    }
}

/// The answer to a line that was too long to be looked at.
pub(crate) fn too_long() -> Vec<u8> {
    failure(None, Fault::new(Problem::MessageTooLong, format!("a line has more than {REQUEST_BYTES} bytes")))
}

/// The line of a result.
pub(crate) fn success(id: &Id, result: &impl Serialize) -> Result<Vec<u8>, Fault> {
    success_within(RESPONSE_BYTES, id, result)
}

/// The line of a result, if it takes next to no time to write it.
pub(crate) fn short_success(id: &Id, result: &impl Serialize) -> Option<Vec<u8>> {
    success_within(SHORT_BYTES, id, result).ok()
}

fn success_within(limit: usize, id: &Id, result: &impl Serialize) -> Result<Vec<u8>, Fault> {
    #[derive(Serialize)]
    struct Answer<'a, T> {
        jsonrpc: &'static str,
        id: &'a Id,
        result: &'a T,
    }
    let mut line = Bounded { line: Vec::new(), room: limit };
    match serde_json::to_writer(&mut line, &Answer { jsonrpc: "2.0", id, result }) {
        Ok(()) => Ok(ended(line.line)),
        Err(_) => Err(Fault::new(Problem::MessageTooLong, format!("the result has more than {limit} bytes"))),
    }
}

/// The line of an error; `None` where it cannot be told whose it is.
pub(crate) fn failure(id: Option<&Id>, fault: Fault) -> Vec<u8> {
    #[derive(Serialize)]
    struct Answer<'a> {
        jsonrpc: &'static str,
        id: Option<&'a Id>,
        error: RpcError,
    }
    written(&Answer { jsonrpc: "2.0", id, error: fault.error() })
}

/// Something that happened during a call.
#[derive(Debug, JsonSchema, Serialize)]
pub(crate) struct EventParams<'a> {
    /// The call.
    pub(crate) id: &'a Id,
    /// What happened.
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

fn written(message: &impl Serialize) -> Vec<u8> {
    // Texts and numbers alone cannot fail to be written.
    ended(serde_json::to_vec(message).unwrap_or_default())
}

fn ended(mut line: Vec<u8>) -> Vec<u8> {
    line.push(b'\n');
    line
}

/// A line that takes no more than there is room for.
struct Bounded {
    line: Vec<u8>,
    room: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.room = self.room.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
