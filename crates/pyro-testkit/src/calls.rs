//! Concurrent calls of a server on one [`Session`].

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::json_lines::Session;

/// Requests in flight, and answers that arrived before they were waited for.
#[derive(Debug)]
pub(crate) struct Calls {
    pub(crate) session: Session,
    pub(crate) answers: HashMap<u64, Value>,
    latest: u64,
}

impl Calls {
    pub(crate) fn on(session: Session) -> Self {
        Self { session, answers: HashMap::new(), latest: 0 }
    }

    /// Sends a request with the parameters for its id, and returns the id.
    pub(crate) fn begin(&mut self, method: &str, params: impl FnOnce(u64) -> Value) -> u64 {
        self.latest += 1;
        let params = params(self.latest);
        self.session
            .send(&json!({ "jsonrpc": "2.0", "id": self.latest, "method": method, "params": params }));
        self.latest
    }

    /// Sends a message that has no answer.
    pub(crate) fn notify(&mut self, method: &str, params: Value) {
        self.session.send(&json!({ "jsonrpc": "2.0", "method": method, "params": params }));
    }

    /// Takes the next message. Returns it if it is not an answer.
    pub(crate) fn receive(&mut self) -> Option<Value> {
        let message = self.session.receive();
        let Some(id) = message["id"].as_u64().filter(|_| message.get("method").is_none()) else {
            return Some(message);
        };
        self.answers.insert(id, message);
        None
    }
}
