//! The bounds of the protocol, in one place because clients keep to some of them.

use pyro_api::limits::{LOGS_PAGE_BYTES, MAX_FILE_BYTES};
use serde_json::{Value, json};

/// The protocol that is spoken. Raised by changes that are more than additions.
pub(crate) const PROTOCOL: u64 = 1;
/// Longest line of a client, in bytes without its end.
pub(crate) const REQUEST_BYTES: usize = 32 << 20;
/// Longest answer, in bytes.
pub(crate) const RESPONSE_BYTES: usize = 256 << 20;
/// Most calls under way at once.
pub(crate) const CALLS: usize = 4096;
/// Most bytes of output of one call that are sent and not yet acknowledged.
pub(crate) const WINDOW_BYTES: u64 = 1 << 20;

/// All of them, for the document.
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
