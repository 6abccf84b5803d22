//! Which requests wait for an answer.

use std::collections::{HashMap, VecDeque};

use rmcp::model::RequestId;

use super::decode::Refused;

/// Maximum number of requests in flight.
pub(super) const MAX_IN_FLIGHT: usize = 1024;
/// Maximum number of cancelled requests that are remembered.
const MAX_CANCELLED: usize = 1024;
/// Maximum length of an id in bytes.
const MAX_ID_BYTES: usize = 1024;

/// Which requests wait for an answer.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// The size of each, in bytes.
    requests: HashMap<RequestId, usize>,
    bytes: usize,
    /// They may still be answered, so a request with the same id could get that answer. Oldest first.
    cancelled: VecDeque<RequestId>,
}

impl InFlight {
    /// Requires that a request with this id can be added as soon as there is space.
    pub(super) fn check(&self, id: &RequestId) -> Result<(), Refused> {
        if matches!(id, RequestId::String(id) if id.len() > MAX_ID_BYTES) {
            return Err(Refused::invalid(
                None,
                format_args!("expected an id of at most {MAX_ID_BYTES} bytes"),
            ));
        }
        if self.requests.contains_key(id) {
            return Err(duplicate(id));
        }
        if self.cancelled.contains(id) {
            return Err(Refused::invalid(Some(id.clone()), "another request with this id was cancelled"));
        }
        Ok(())
    }

    /// Adds a request of this size.
    pub(super) fn begin(&mut self, id: &RequestId, bytes: usize) -> Result<(), Refused> {
        self.check(id)?;
        if !self.has_space() {
            let text = format_args!("expected at most {MAX_IN_FLIGHT} requests in flight");
            return Err(Refused::invalid(Some(id.clone()), text));
        }
        self.requests.insert(id.clone(), bytes);
        self.bytes += bytes;
        Ok(())
    }

    /// Returns whether there may be another request.
    pub(super) fn has_space(&self) -> bool {
        self.requests.len() < MAX_IN_FLIGHT
    }

    /// Removes a request that is answered.
    pub(super) fn end(&mut self, id: &RequestId) {
        self.bytes -= self.requests.remove(id).unwrap_or(0);
    }

    /// Removes a request that was cancelled.
    pub(super) fn cancel(&mut self, id: &RequestId) {
        if let Some(bytes) = self.requests.remove(id) {
            self.bytes -= bytes;
            self.cancelled.push_back(id.clone());
            if self.cancelled.len() > MAX_CANCELLED {
                self.cancelled.pop_front();
            }
        }
    }

    /// Returns the size of all requests in flight, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The answer to a request whose id another one has.
pub(super) fn duplicate(id: &RequestId) -> Refused {
    Refused::invalid(Some(id.clone()), "another request with this id is in flight")
}
