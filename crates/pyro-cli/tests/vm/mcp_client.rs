//! A client of `pyro mcp serve` on standard input and output.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc;

use serde_json::{Value, json};

use crate::harness::{LONG, PYRO, Sandbox};

/// A client of a server that runs in a sandbox.
pub(crate) struct Client {
    server: Child,
    input: Option<ChildStdin>,
    messages: mpsc::Receiver<Value>,
    /// Answers that came before they were waited for.
    pub(crate) answers: HashMap<u64, Value>,
    /// Messages about calls under way.
    pub(crate) progress: Vec<String>,
    next: u64,
    /// Keys that each tool promises.
    promised: HashMap<String, Vec<String>>,
}

impl Client {
    pub(crate) fn new(sandbox: &Sandbox) -> Self {
        Self::with(sandbox, &[])
    }

    /// A server with flags.
    pub(crate) fn with(sandbox: &Sandbox, flags: &[&str]) -> Self {
        let mut command = sandbox.program(PYRO);
        let mut server = command.args(["mcp", "serve"]).args(flags).stdin(Stdio::piped()).spawn().unwrap();
        let (sender, messages) = mpsc::channel();
        let output = BufReader::new(server.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let message = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
                let _ = sender.send(message);
            }
        });
        let input = server.stdin.take();
        let mut client = Self {
            server,
            input,
            messages,
            answers: HashMap::new(),
            progress: Vec::new(),
            next: 0,
            promised: HashMap::new(),
        };
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

    pub(crate) fn begin(&mut self, method: &str, params: Value) -> u64 {
        self.next += 1;
        let message = json!({ "jsonrpc": "2.0", "id": self.next, "method": method, "params": params });
        writeln!(self.input.as_mut().unwrap(), "{message}").unwrap();
        self.next
    }

    pub(crate) fn notify(&mut self, method: &str, params: Value) {
        let message = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        writeln!(self.input.as_mut().unwrap(), "{message}").unwrap();
    }

    pub(crate) fn begin_call(&mut self, tool: &str, arguments: Value) -> u64 {
        let token = self.next + 1;
        self.begin(
            "tools/call",
            json!({ "name": tool, "arguments": arguments, "_meta": {"progressToken": token} }),
        )
    }

    pub(crate) fn receive(&mut self) {
        let message = self.messages.recv_timeout(LONG).unwrap();
        if message["method"] == "notifications/progress" {
            self.progress.push(message["params"]["message"].as_str().unwrap_or_default().to_owned());
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

    /// The payload of a call that succeeds; it is the same as text.
    pub(crate) fn call(&mut self, tool: &str, arguments: Value) -> Value {
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
    pub(crate) fn refused(&mut self, tool: &str, arguments: Value) -> Value {
        let id = self.begin_call(tool, arguments);
        let result = self.answer(id)["result"].clone();
        assert_eq!(result["isError"], true, "{result}");
        result["_meta"]["pyro/error"].clone()
    }

    /// What a resource holds.
    pub(crate) fn read(&mut self, uri: &str) -> String {
        let id = self.begin("resources/read", json!({ "uri": uri }));
        let answer = self.answer(id);
        let text = answer["result"]["contents"][0]["text"].as_str();
        text.unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    pub(crate) fn end(mut self) {
        drop(self.input.take());
        assert_eq!(self.server.wait().unwrap().code(), Some(0));
    }
}
