//! A client of `pyro rpc`, with calls beside each other.

use std::collections::HashMap;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::json_lines::Session;

/// A client and its server.
#[derive(Debug)]
pub struct RpcClient {
    /// The way to the server.
    pub session: Session,
    /// Answers that came before they were waited for, by id.
    answers: HashMap<u64, Value>,
    /// Events so far, each with the id of its call.
    pub events: Vec<(u64, Value)>,
    /// Output is acknowledged as it comes.
    pub acknowledges: bool,
    next: u64,
}

impl RpcClient {
    /// Starts a server and shakes hands with it.
    pub fn new(command: Command) -> Self {
        let mut session = Session::started(command);
        let this = json!({ "name": "test", "version": env!("CARGO_PKG_VERSION") });
        let hello = session.ask("initialize", json!({ "protocol": 1, "client": this }));
        assert_eq!(hello["result"]["server"]["name"], "pyro", "{hello}");
        let (answers, events) = Default::default();
        Self { session, answers, events, acknowledges: true, next: 0 }
    }

    /// Sends a request; its id.
    pub fn begin(&mut self, method: &str, params: Value) -> u64 {
        self.next += 1;
        self.session.send(&json!({ "jsonrpc": "2.0", "id": self.next, "method": method, "params": params }));
        self.next
    }

    /// Sends a message that has no answer.
    pub fn notify(&mut self, method: &str, params: Value) {
        self.session.send(&json!({ "jsonrpc": "2.0", "method": method, "params": params }));
    }

    /// Takes the next message as an answer or an event.
    pub fn receive(&mut self) {
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

    /// Waits for the answer to a request.
    pub fn answer(&mut self, id: u64) -> Value {
        while !self.answers.contains_key(&id) {
            self.receive();
        }
        self.answers.remove(&id).unwrap()
    }

    /// The result of a call that succeeds.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        let id = self.begin(method, params);
        let mut answer = self.answer(id);
        assert!(answer.get("error").is_none(), "{answer}");
        answer["result"].take()
    }

    /// Waits for an event of a call.
    pub fn event(&mut self, id: u64, wanted: impl Fn(&Value) -> bool) {
        while !self.events.iter().any(|(of, event)| *of == id && wanted(event)) {
            self.receive();
        }
    }

    /// What a call has written to one stream so far.
    pub fn output(&self, id: u64, stream: &str) -> Vec<u8> {
        let of_call = self.events.iter().filter(|(of, event)| *of == id && event["stream"] == stream);
        of_call.flat_map(|(_, event)| bytes(event)).collect()
    }
}

fn bytes(event: &Value) -> Vec<u8> {
    BASE64.decode(event["data"].as_str().unwrap()).unwrap()
}
