//! A client of `pyro mcp serve` on standard input and output, with concurrent calls.

use std::collections::{HashMap, HashSet};
use std::process::Command;

use serde_json::{Value, json};

use crate::calls::Calls;
use crate::json_lines::Session;

/// A client and its server.
#[derive(Debug)]
pub struct McpClient {
    calls: Calls,
    /// Requests whose answers were taken.
    taken: HashSet<u64>,
    /// Messages about calls in flight.
    pub progress: Vec<String>,
    /// Keys that each tool promises.
    promised: HashMap<String, Vec<String>>,
}

impl McpClient {
    /// Starts a server, shakes hands with it and asks for its tools.
    pub fn new(command: Command) -> Self {
        let calls = Calls::on(Session::started(command));
        let mut client =
            Self { calls, taken: HashSet::new(), progress: Vec::new(), promised: HashMap::new() };
        let hello = client.begin(
            "initialize",
            json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"} }),
        );
        client.answer(hello);
        client.notify("notifications/initialized", json!({}));
        let listed = client.begin("tools/list", json!({}));
        for tool in client.answer(listed)["result"]["tools"].as_array().unwrap() {
            let required = tool["outputSchema"]["required"].as_array().cloned().unwrap_or_default();
            let keys = required.iter().map(|key| key.as_str().unwrap().to_owned()).collect();
            client.promised.insert(tool["name"].as_str().unwrap().to_owned(), keys);
        }
        client
    }

    /// Sends a request, and returns its id.
    pub fn begin(&mut self, method: &str, params: Value) -> u64 {
        self.calls.begin(method, |_| params)
    }

    /// Sends a message that has no answer.
    pub fn notify(&mut self, method: &str, params: Value) {
        self.calls.notify(method, params);
    }

    /// Begins a call of a tool that reports its progress, and returns its id.
    pub fn begin_call(&mut self, tool: &str, arguments: Value) -> u64 {
        self.calls.begin(
            "tools/call",
            |id| json!({ "name": tool, "arguments": arguments, "_meta": {"progressToken": id} }),
        )
    }

    /// Takes the next message as an answer or as progress, which comes before the answer.
    pub fn receive(&mut self) {
        let Some(message) = self.calls.receive() else { return };
        assert_eq!(message["method"], "notifications/progress", "{message}");
        let call = message["params"]["progressToken"].as_u64().unwrap();
        assert!(
            !self.taken.contains(&call) && self.answered(call).is_none(),
            "progress after the answer: {message}"
        );
        self.progress.push(message["params"]["message"].as_str().unwrap_or_default().to_owned());
    }

    /// The answer to a request, if it has come.
    pub fn answered(&self, id: u64) -> Option<&Value> {
        self.calls.answers.get(&id)
    }

    /// Waits for the answer to a request.
    pub fn answer(&mut self, id: u64) -> Value {
        loop {
            match self.calls.answers.remove(&id) {
                Some(answer) => {
                    self.taken.insert(id);
                    return answer;
                }
                None => self.receive(),
            }
        }
    }

    /// The payload of a call that succeeds; it is the same as text.
    pub fn call(&mut self, tool: &str, arguments: Value) -> Value {
        let id = self.begin_call(tool, arguments);
        let result = self.answer(id)["result"].clone();
        assert_eq!(result["isError"], false, "{result}");
        let payload = result["structuredContent"].clone();
        let missing: Vec<_> = self.promised[tool].iter().filter(|key| payload.get(key).is_none()).collect();
        assert!(missing.is_empty(), "{tool} promises {missing:?}: {payload}");
        let text: Value = serde_json::from_str(result["content"][0]["text"].as_str().unwrap()).unwrap();
        // Numbers with a fraction are written the same and not always read the same.
        assert_eq!(text.as_object().unwrap().len(), payload.as_object().unwrap().len());
        payload
    }

    /// The error of a call that fails.
    pub fn refused(&mut self, tool: &str, arguments: Value) -> Value {
        let id = self.begin_call(tool, arguments);
        let result = self.answer(id)["result"].clone();
        assert_eq!(result["isError"], true, "{result}");
        result["_meta"]["pyro/error"].clone()
    }

    /// What a resource holds.
    pub fn read(&mut self, uri: &str) -> String {
        let id = self.begin("resources/read", json!({ "uri": uri }));
        let answer = self.answer(id);
        let text = answer["result"]["contents"][0]["text"].as_str();
        text.unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// Closes the input and waits for the end, which must be a success.
    pub fn end(mut self) {
        assert_eq!(self.calls.session.ended().code(), Some(0));
    }
}
