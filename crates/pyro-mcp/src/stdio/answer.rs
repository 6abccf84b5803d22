//! How large answers are, before they exist.

use rmcp::model::ClientRequest;
use serde_json::Value;

use crate::call::MAX_FILE_PART;
use crate::tools::{MAX_BYTES, Tool};

/// A resource can hold one stream of a command: 16 MiB, and more as JSON.
const RESOURCE_BYTES: usize = 32 << 20;
/// A list of a thousand entries, as data and as text.
const LIST_BYTES: usize = 1 << 20;
/// A result holds a part of a file as data and as text.
const COPIES: u64 = 4;

/// Returns how large the answer to a request that does not take long can be, in bytes. 0: it is small, or it comes from a command
/// or a wait. There can be many of these at once, so they are not counted.
pub(super) fn expected(request: &ClientRequest) -> usize {
    match request {
        ClientRequest::ReadResourceRequest(_) => RESOURCE_BYTES,
        ClientRequest::ListToolsRequest(_) | ClientRequest::ListResourcesRequest(_) => LIST_BYTES / 16,
        ClientRequest::CallToolRequest(call) => match Tool::named(&call.params.name) {
            Some(Tool::TaskReadFile) => {
                let given = call.params.arguments.as_ref().and_then(|given| given.get(MAX_BYTES.name));
                let bytes = match given {
                    Some(Value::Number(bytes)) => bytes.as_u64(),
                    Some(Value::String(digits)) => digits.trim().parse().ok(),
                    _ => None,
                };
                let bytes = bytes.unwrap_or_default().min(MAX_FILE_PART) * COPIES;
                usize::try_from(bytes).unwrap_or(usize::MAX)
            }
            Some(Tool::TaskLogs | Tool::TaskList) => LIST_BYTES,
            _ => 0,
        },
        _ => 0,
    }
}
