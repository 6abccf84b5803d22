//! Large requests that wait until there is space for them, while others pass.

use std::collections::VecDeque;

use rmcp::model::{ClientRequest, JsonRpcRequest, RequestId};

use super::Size;

/// Maximum number of requests that wait.
pub(super) const MAX_WAITING: usize = 256;
/// Requests that wait, in bytes. With more, nothing further is read.
pub(super) const WAITING_BYTES: usize = 16 << 20;

/// Requests that wait, oldest first.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    requests: VecDeque<Held>,
    /// Length of all of them.
    bytes: usize,
}

/// A request that waits.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) request: JsonRpcRequest<ClientRequest>,
    pub(super) size: Size,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Returns whether another message may be read, although it may have to wait.
    pub(super) fn has_space(&self) -> bool {
        self.requests.len() < MAX_WAITING && self.bytes < WAITING_BYTES
    }

    pub(super) fn contains(&self, id: &RequestId) -> bool {
        self.requests.iter().any(|held| held.request.id == *id)
    }

    pub(super) fn push(&mut self, held: Held) {
        self.bytes += held.size.message;
        self.requests.push_back(held);
    }

    /// Removes the request that has waited longest.
    pub(super) fn pop(&mut self) -> Option<Held> {
        let held = self.requests.pop_front()?;
        self.bytes -= held.size.message;
        Some(held)
    }

    /// Removes a request that was cancelled: it is never taken.
    pub(super) fn cancel(&mut self, id: &RequestId) {
        if let Some(index) = self.requests.iter().position(|held| held.request.id == *id)
            && let Some(held) = self.requests.remove(index)
        {
            self.bytes -= held.size.message;
        }
    }
}
