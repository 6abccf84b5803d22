//! A client of `pyro rpc`, with calls beside each other.

use std::collections::HashMap;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::json_lines::Session;

/// A client and its server.
pub(crate) struct Client {
    pub(crate) session: Session,
    /// Answers that came before they were waited for, by id.
    answers: HashMap<u64, Value>,
    /// Events so far, each with the id of its call.
    pub(crate) events: Vec<(u64, Value)>,
    /// Output is acknowledged as it comes.
    pub(crate) acknowledges: bool,
    next: u64,
}

impl Client {
    /// Starts a server and shakes hands with it.
    pub(crate) fn new(command: Command) -> Self {
        let mut session = Session::started(command);
        let this = json!({ "name": "test", "version": env!("CARGO_PKG_VERSION") });
        let hello = session.ask("initialize", json!({ "protocol": 1, "client": this }));
        assert_eq!(hello["result"]["server"]["name"], "pyro", "{hello}");
        let (answers, events) = Default::default();
        Self { session, answers, events, acknowledges: true, next: 0 }
    }

    pub(crate) fn begin(&mut self, method: &str, params: Value) -> u64 {
        self.next += 1;
        self.session.send(&json!({ "jsonrpc": "2.0", "id": self.next, "method": method, "params": params }));
        self.next
    }

    pub(crate) fn notify(&mut self, method: &str, params: Value) {
        self.session.send(&json!({ "jsonrpc": "2.0", "method": method, "params": params }));
    }

    /// Takes the next message as an answer or an event.
    pub(crate) fn receive(&mut self) {
        let message = self.session.receive();
        if message["method"] == "event" {
            let (id, event) = (message["params"]["id"].as_u64().unwrap(), message["params"]["event"].clone());
            assert!(!self.answers.contains_key(&id), "an event after the answer");
            if self.acknowledges && event["type"] == "output" {
                self.notify("ack", json!({ "id": id, "bytes": bytes(&event).len() }));
            }
            self.events.push((id, event));
        } else {
            self.answers.insert(message["id"].as_u64().unwrap(), message);
        }
    }

    pub(crate) fn answer(&mut self, id: u64) -> Value {
        while !self.answers.contains_key(&id) {
            self.receive();
        }
        self.answers.remove(&id).unwrap()
    }

    /// The result of a call that succeeds.
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        let id = self.begin(method, params);
        let mut answer = self.answer(id);
        assert!(answer.get("error").is_none(), "{answer}");
        answer["result"].take()
    }

    /// Waits for an event of a call.
    pub(crate) fn event(&mut self, id: u64, wanted: impl Fn(&Value) -> bool) {
        while !self.events.iter().any(|(of, event)| *of == id && wanted(event)) {
            self.receive();
        }
    }

    /// What a call has written to one stream so far.
    pub(crate) fn output(&self, id: u64, stream: &str) -> Vec<u8> {
        let of_call = self.events.iter().filter(|(of, event)| *of == id && event["stream"] == stream);
        of_call.flat_map(|(_, event)| bytes(event)).collect()
    }
}

fn bytes(event: &Value) -> Vec<u8> {
    BASE64.decode(event["data"].as_str().unwrap()).unwrap()
}
