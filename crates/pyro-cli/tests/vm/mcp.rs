//! `pyro mcp serve` with real VMs.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{ENVIRONMENT, LONG, PYRO, Sandbox, wait_until};

/// A client of a server that runs in a sandbox.
struct Client {
    server: Child,
    input: Option<ChildStdin>,
    messages: mpsc::Receiver<Value>,
    /// Answers that came before they were waited for.
    answers: HashMap<u64, Value>,
    progress: Vec<String>,
    next: u64,
    /// Keys that each tool promises.
    promised: HashMap<String, Vec<String>>,
}

impl Client {
    fn new(sandbox: &Sandbox) -> Self {
        let mut server = sandbox.program(PYRO).args(["mcp", "serve"]).stdin(Stdio::piped()).spawn().unwrap();
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

    fn begin(&mut self, method: &str, params: Value) -> u64 {
        self.next += 1;
        let message = json!({ "jsonrpc": "2.0", "id": self.next, "method": method, "params": params });
        writeln!(self.input.as_mut().unwrap(), "{message}").unwrap();
        self.next
    }

    fn notify(&mut self, method: &str, params: Value) {
        let message = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        writeln!(self.input.as_mut().unwrap(), "{message}").unwrap();
    }

    fn begin_call(&mut self, tool: &str, arguments: Value) -> u64 {
        let token = self.next + 1;
        self.begin(
            "tools/call",
            json!({ "name": tool, "arguments": arguments, "_meta": {"progressToken": token} }),
        )
    }

    fn receive(&mut self) {
        let message = self.messages.recv_timeout(LONG).unwrap();
        if message["method"] == "notifications/progress" {
            self.progress.push(message["params"]["message"].as_str().unwrap_or_default().to_owned());
        } else {
            self.answers.insert(message["id"].as_u64().unwrap(), message);
        }
    }

    fn answer(&mut self, id: u64) -> Value {
        while !self.answers.contains_key(&id) {
            self.receive();
        }
        self.answers.remove(&id).unwrap()
    }

    /// The payload of a call that succeeds; it is the same as text.
    fn call(&mut self, tool: &str, arguments: Value) -> Value {
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

    fn end(mut self) {
        drop(self.input.take());
        assert_eq!(self.server.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn one_command_in_a_vm_of_its_own() {
    let sandbox = Sandbox::new();
    let mut client = Client::new(&sandbox);
    let ran =
        client.call("vm_run", json!({ "environment": ENVIRONMENT, "command": "git --version; exit 3" }));
    assert!(ran["stdout"].as_str().unwrap().starts_with("git version "), "{ran}");
    assert_eq!((&ran["exit_code"], &ran["execution_mode"]), (&3.into(), &"guest_vsock".into()));
    assert!(
        client.progress.iter().any(|message| message.starts_with("phase=create")),
        "{:?}",
        client.progress
    );
    client.end();
}

#[test]
fn a_vm_step_by_step() {
    let sandbox = Sandbox::new();
    let mut client = Client::new(&sandbox);
    let vm = client.call("vm_create", json!({ "environment": ENVIRONMENT, "mem_mib": "512" }));
    assert_eq!((&vm["state"], &vm["mem_mib"]), (&"created".into(), &512.into()));
    let id = &json!({ "vm_id": vm["vm_id"] });
    assert_eq!(client.call("vm_start", id.clone())["state"], "started");
    assert_eq!(client.call("vm_network_info", id.clone())["network_enabled"], false);
    assert_eq!(client.call("vm_stop", id.clone())["state"], "stopped");
    assert_eq!(client.call("vm_start", id.clone())["state"], "started");
    assert_eq!(client.call("vm_status", id.clone())["state"], "started");
    let ran = client.call("vm_exec", json!({ "vm_id": vm["vm_id"], "command": "echo hi" }));
    assert_eq!((&ran["stdout"], &ran["cleanup"]["deleted"]), (&"hi\n".into(), &true.into()));
    let other = client.call("vm_create", json!({ "environment": ENVIRONMENT }));
    let deleted = client.call("vm_delete", json!({ "vm_id": other["vm_id"] }));
    assert_eq!(deleted["reason"], "explicit_delete");
    assert_eq!(client.call("vm_reap_expired", json!({}))["count"], 0);
    client.end();
}

#[test]
fn a_task_from_its_creation_to_its_end() {
    let sandbox = Sandbox::new();
    let mut client = Client::new(&sandbox);
    let id = client.call("task_create", json!({ "environment": ENVIRONMENT }))["task_id"].clone();
    let exec = |command: &str| json!({ "task_id": id, "command": command });
    client.call("task_exec", exec("mkdir d; echo note > d/file"));
    let read = client.call(
        "task_exec",
        json!({ "task_id": id, "command": "cat file; echo $WHO", "cwd": "d", "env": {"WHO": "me"} }),
    );
    assert_eq!((&read["stdout"], &read["sequence"]), (&"note\nme\n".into(), &2.into()));

    let long =
        json!({ "task_id": id, "command": "echo begun; sleep 500", "timeout_seconds": 600, "detach": true });
    let detached = client.call("task_exec", long);
    assert_eq!((&detached["sequence"], &detached["outcome"]), (&3.into(), &"running".into()));
    let wait = json!({ "task_id": id, "sequence": 3, "timeout_seconds": 1 });
    assert_eq!(client.call("task_wait", wait.clone())["outcome"], "running");
    let killed = client.call("task_kill", json!({ "task_id": id, "sequence": 3 }));
    assert_eq!((&killed["outcome"], &killed["stdout"]), (&"killed".into(), &"begun\n".into()));
    assert_eq!(client.call("task_wait", wait)["outcome"], "killed");

    assert_eq!(client.call("task_stop", json!({ "task_id": id }))["state"], "stopped");
    assert_eq!(client.call("task_start", json!({ "task_id": id }))["state"], "started");
    let extended = client.call("task_extend", json!({ "task_id": id, "ttl_seconds": 900 }));
    assert_eq!(extended["ttl_seconds"], 900);
    assert_eq!(client.call("task_list", json!({}))["count"], 1);
    assert_eq!(client.call("task_status", json!({ "task_id": id }))["command_count"], 3);
    assert_eq!(client.call("task_logs", json!({ "task_id": id }))["count"], 3);
    let one = client.call("task_logs", json!({ "task_id": id, "sequence": 1 }));
    assert_eq!(one["entries"][0]["sequence"], 1);

    let much = client.call("task_exec", exec("head -c 100000 /dev/zero | tr '\\0' x"));
    assert_eq!(much["stdout_cut_chars"], 84_000);
    assert!(much["stdout"].as_str().unwrap().contains("[84000 characters cut here]"));
    client.end();

    // It stays when its server goes; another one knows it.
    let mut client = Client::new(&sandbox);
    assert_eq!(client.call("task_exec", exec("cat d/file"))["stdout"], "note\n");
    assert_eq!(client.call("task_delete", json!({ "task_id": id }))["deleted"], true);
    client.end();
}

#[test]
fn calls_do_not_hold_up_each_other_and_tell_how_far_they_are() {
    let sandbox = Sandbox::new();
    let mut client = Client::new(&sandbox);
    let id = client.call("task_create", json!({ "environment": ENVIRONMENT }))["task_id"].clone();
    let command = "i=0; while ! [ -e go ]; do i=$((i+1)); echo step $i; sleep 0.3; done";
    let calls: Vec<u64> = (0..8)
        .map(|_| {
            client
                .begin_call("task_exec", json!({ "task_id": id, "command": command, "timeout_seconds": 300 }))
        })
        .collect();
    while !client.progress.iter().any(|message| message.starts_with("step ")) {
        client.receive();
    }
    let start = std::time::Instant::now();
    let ping = client.begin("ping", json!({}));
    client.answer(ping);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    client.call("task_exec", json!({ "task_id": id, "command": "touch go" }));
    for call in calls {
        assert_eq!(client.answer(call)["result"]["structuredContent"]["exit_code"], 0);
    }
    client.call("task_delete", json!({ "task_id": id }));
    client.end();
}

#[test]
fn a_cancelled_call_ends_its_command_and_is_not_answered() {
    let sandbox = Sandbox::new();
    let mut client = Client::new(&sandbox);
    let run =
        json!({ "environment": ENVIRONMENT, "command": "echo begun; sleep 1000", "timeout_seconds": 600 });
    let call = client.begin_call("vm_run", run);
    while !client.progress.iter().any(|message| message == "begun") {
        client.receive();
    }
    client.notify("notifications/cancelled", json!({ "requestId": call, "reason": "test" }));
    wait_until(LONG, "end of the VM", || sandbox.processes().len() == 1);
    let ping = client.begin("ping", json!({}));
    client.answer(ping);
    assert!(!client.answers.contains_key(&call));
    client.end();
}

#[test]
fn a_client_that_goes_away_takes_its_one_shot_vms_with_it() {
    let sandbox = Sandbox::new();
    let mut client = Client::new(&sandbox);
    let run =
        json!({ "environment": ENVIRONMENT, "command": "echo begun; sleep 1000", "timeout_seconds": 600 });
    client.begin_call("vm_run", run);
    while !client.progress.iter().any(|message| message == "begun") {
        client.receive();
    }
    client.end();
    sandbox.wait_until_clean();
}
