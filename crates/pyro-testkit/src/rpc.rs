//! A client of `pyro rpc`, with concurrent calls.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::calls::Calls;
use crate::json_lines::Session;

/// A client and its server.
#[derive(Debug)]
pub struct RpcClient {
    calls: Calls,
    /// Events so far, each with the id of its call.
    pub events: Vec<(u64, Value)>,
    /// Output is acknowledged as it comes.
    pub acknowledges: bool,
}

impl RpcClient {
    /// Starts a server and shakes hands with it.
    pub fn new(command: Command) -> Self {
        let mut session = Session::started(command);
        let this = json!({ "name": "test", "version": env!("CARGO_PKG_VERSION") });
        let hello = session.ask("initialize", json!({ "protocol": 1, "client": this }));
        assert_eq!(hello["result"]["server"]["name"], "pyro", "{hello}");
        Self { calls: Calls::on(session), events: Vec::new(), acknowledges: true }
    }

    /// The connection to the server.
    pub fn session(&mut self) -> &mut Session {
        &mut self.calls.session
    }

    /// Sends a request, and returns its id.
    pub fn begin(&mut self, method: &str, params: Value) -> u64 {
        self.calls.begin(method, |_| params)
    }

    /// Sends a message that has no answer.
    pub fn notify(&mut self, method: &str, params: Value) {
        self.calls.notify(method, params);
    }

    /// Closes the input and waits for the end.
    pub fn end(self) {
        self.calls.session.end();
    }

    /// Takes the next message as an answer or an event.
    pub fn receive(&mut self) {
        let Some(message) = self.calls.receive() else { return };
        assert_eq!(message["method"], "event", "{message}");
        let (id, event) = (message["params"]["id"].as_u64().unwrap(), message["params"]["event"].clone());
        assert!(!self.calls.answers.contains_key(&id), "an event after the answer");
        if self.acknowledges && event["type"] == "output" {
            self.notify("ack", json!({ "id": id, "bytes": bytes(&event).len() }));
        }
        self.events.push((id, event));
    }

    /// Waits for the answer to a request.
    pub fn answer(&mut self, id: u64) -> Value {
        loop {
            match self.calls.answers.remove(&id) {
                Some(answer) => return answer,
                None => self.receive(),
            }
        }
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
