//! Limits of the protocol. Clients depend on some of them.

use pyro_api::limits::{LOGS_PAGE_BYTES, MAX_FILE_BYTES};
use serde_json::{Value, json};

/// Protocol version. Raised by incompatible changes.
pub(crate) const PROTOCOL: u64 = 1;
/// Maximum length of a client's line, in bytes without its end.
pub(crate) const REQUEST_BYTES: usize = 32 << 20;
/// Maximum size of a response, in bytes.
pub(crate) const RESPONSE_BYTES: usize = 256 << 20;
/// Maximum number of calls in flight.
pub(crate) const CALLS: usize = 4096;
/// Maximum number of bytes of a call's output that are sent and not yet acknowledged, and of its input that are sent without
/// credit.
pub(crate) const WINDOW_BYTES: u64 = 1 << 20;

/// All limits, for the document.
pub(crate) fn described() -> Value {
    json!({
        "protocol": PROTOCOL,
        "max_request_bytes": REQUEST_BYTES,
        "max_response_bytes": RESPONSE_BYTES,
        "max_calls": CALLS,
        "window_bytes": WINDOW_BYTES,
        "logs_page_bytes": LOGS_PAGE_BYTES,
        "max_file_bytes": MAX_FILE_BYTES,
    })
}
