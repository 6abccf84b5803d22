//! Two clients of `pyro mcp serve` that must not find what the other one created. Commands run on the host, so that no VM is
//! needed; `tests/vm/mcp_owners.rs` does the same with VMs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::harness::Home;
use pyro_testkit::McpClient;
use pyro_testkit::http::HttpServer;

const ALICE: &str = "alice-alice-alice";
const BOB: &str = "bob-bob-bob-bob-bob";
const UNKNOWN: &str = "ffffffffffff";

/// No VM can run, and commands find the usual programs.
fn host() -> Home {
    Home::new().set("PATH", "/usr/bin:/bin").set_path("PYRO_QEMU", "no-such-qemu")
}

/// A server with a token for each of two clients.
fn server(home: &Home, flags: &[&str]) -> HttpServer {
    let tokens = home.path("tokens");
    fs::write(&tokens, format!("alice {ALICE}\nbob {BOB}\n")).unwrap();
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = home.command(["mcp", "serve", "--allow-host-compat", "--token-file"]);
    command.arg(tokens).args(flags);
    HttpServer::start(&mut command)
}

fn call(server: &HttpServer, token: &str, tool: &str, arguments: Value) -> Value {
    server.call_as(token, "tools/call", json!({ "name": tool, "arguments": arguments })).result()
}

fn create(server: &HttpServer, token: &str, tool: &str) -> Value {
    let created = call(server, token, tool, json!({ "environment": "debian:12", "allow_host_compat": true }));
    assert!(created["isError"] != true, "{created}");
    created["structuredContent"].clone()
}

/// Arguments with which each tool that names a VM or a task could be called.
fn calls(id: &str) -> Vec<(&'static str, Value)> {
    let vm = |more: Value| merged(json!({ "vm_id": id }), more);
    let task = |more: Value| merged(json!({ "task_id": id }), more);
    let none = || json!({});
    vec![
        ("vm_status", vm(none())),
        ("vm_network_info", vm(none())),
        ("vm_start", vm(none())),
        ("vm_exec", vm(json!({ "command": "true" }))),
        ("vm_stop", vm(none())),
        ("vm_delete", vm(none())),
        ("task_status", task(none())),
        ("task_exec", task(json!({ "command": "true" }))),
        ("task_exec", task(json!({ "command": "true", "detach": true }))),
        ("task_logs", task(none())),
        ("task_logs", task(json!({ "sequence": 1 }))),
        ("task_wait", task(json!({ "sequence": 1 }))),
        ("task_kill", task(json!({ "sequence": 1 }))),
        ("task_read_file", task(json!({ "path": "note" }))),
        ("task_write_file", task(json!({ "path": "note", "content": "x" }))),
        ("task_files", task(none())),
        ("task_files", task(json!({ "action": "stat", "path": "note" }))),
        ("task_files", task(json!({ "action": "watch", "timeout_seconds": 1 }))),
        ("task_change_files", task(json!({ "action": "move", "path": "note", "destination": "other" }))),
        ("task_change_files", task(json!({ "action": "remove", "path": "note" }))),
        ("task_change_files", task(json!({ "action": "mkdir", "path": "dir" }))),
        ("task_shell_open", task(none())),
        ("task_shell_read", task(json!({ "shell_id": 1 }))),
        ("task_shell_write", task(json!({ "shell_id": 1, "text": "x" }))),
        ("task_shell_signal", task(json!({ "shell_id": 1, "signal": "INT" }))),
        ("task_shell_close", task(json!({ "shell_id": 1 }))),
        ("task_service_start", task(json!({ "name": "web", "command": "true" }))),
        ("task_service_status", task(none())),
        ("task_service_logs", task(json!({ "name": "web" }))),
        ("task_service_stop", task(json!({ "name": "web" }))),
        ("task_extend", task(json!({ "ttl_seconds": 600 }))),
        ("task_start", task(none())),
        ("task_stop", task(none())),
        ("task_delete", task(none())),
    ]
}

fn merged(mut base: Value, more: Value) -> Value {
    base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    base
}

#[test]
fn two_tokens_find_nothing_of_each_other() {
    let home = host();
    let server = server(&home, &[]);
    let task = create(&server, ALICE, "task_create");
    let vm = create(&server, ALICE, "vm_create");
    assert_eq!((&task["owner"], &vm["owner"]), (&"token:alice".into(), &"token:alice".into()));
    let (task, vm) = (task["task_id"].as_str().unwrap(), vm["vm_id"].as_str().unwrap());
    let ran = call(&server, ALICE, "task_exec", json!({ "task_id": task, "command": "echo secret" }));
    assert_eq!(ran["structuredContent"]["stdout"], "secret\n");

    // Every tool answers as for an id that was never used.
    let listed = server.call_as(BOB, "tools/list", json!({})).result();
    let mut untried: Vec<String> = listed["tools"].as_array().unwrap().iter().filter_map(named).collect();
    for ((tool, arguments), (_, for_unknown)) in
        [task, vm].into_iter().flat_map(|id| calls(id).into_iter().zip(calls(UNKNOWN)))
    {
        let id = arguments.get("vm_id").or(arguments.get("task_id")).unwrap().as_str().unwrap().to_owned();
        let refused = call(&server, BOB, tool, arguments);
        assert_eq!(refused["_meta"]["pyro/error"]["code"], "not_found", "{tool}: {refused}");
        let expected = call(&server, BOB, tool, for_unknown).to_string();
        assert_eq!(refused.to_string().replace(&id, UNKNOWN), expected, "{tool}");
        untried.retain(|name| name != tool);
    }
    assert_eq!(untried, Vec::<String>::new(), "tools that name a VM or a task");

    // Tools that name neither show nothing of them.
    for tool in listed["tools"].as_array().unwrap().iter().filter(|tool| named(tool).is_none()) {
        let tool = tool["name"].as_str().unwrap();
        let arguments = json!({ "environment": "debian:12", "command": "true", "allow_host_compat": true });
        let shown = call(&server, BOB, tool, arguments).to_string();
        assert!(!shown.contains(task) && !shown.contains(vm) && !shown.contains("alice"), "{tool}: {shown}");
    }

    // Nor are they in a list, among the resources or the completions.
    let list = call(&server, BOB, "task_list", json!({}))["structuredContent"].clone();
    assert_eq!((&list["count"], &list["tasks"][0]["owner"]), (&1.into(), &"token:bob".into()));
    let resources = |token| server.call_as(token, "resources/list", json!({})).result().to_string();
    assert!(resources(ALICE).contains(task) && !resources(BOB).contains(task));
    for uri in [
        format!("pyro://tasks/{task}"),
        format!("pyro://tasks/{task}/logs"),
        format!("pyro://tasks/{task}/commands/1/stdout"),
    ] {
        let read = |token, uri: &str| {
            let answer = server.call_as(token, "resources/read", json!({ "uri": uri, "name": uri }));
            answer.messages().pop().unwrap()
        };
        assert!(read(ALICE, &uri)["result"]["contents"].is_array(), "{uri}");
        let expected = read(BOB, &uri.replace(task, UNKNOWN))["error"].to_string();
        assert_eq!(read(BOB, &uri)["error"].to_string().replace(task, UNKNOWN), expected);
    }
    let complete = |token| {
        let argument = json!({ "name": "task_id", "value": "" });
        let of = json!({ "type": "ref/resource", "uri": "pyro://tasks/{task_id}" });
        server
            .call_as(token, "completion/complete", json!({ "ref": of, "argument": argument }))
            .result()
            .to_string()
    };
    assert!(complete(ALICE).contains(task) && !complete(BOB).contains(task));

    // Nothing has changed for their owner, and for the user of the host.
    let mine = call(&server, ALICE, "task_logs", json!({ "task_id": task }));
    assert_eq!(mine["structuredContent"]["count"], 1);
    assert_eq!(call(&server, ALICE, "task_list", json!({}))["structuredContent"]["count"], 1);
    let seen = home.pyro(["task", "list", "--json"]).json();
    assert_eq!(seen["tasks"][0]["owner"], "token:alice");
    let list = home.pyro(["task", "list"]).stdout;
    assert!(list.lines().next().unwrap().ends_with("  OWNER"), "{list}");
    assert!(list.lines().nth(1).unwrap().ends_with("  token:alice"), "{list}");
    assert!(home.pyro(["task", "status", task]).stdout.contains("\nOwner: token:alice\n"));
    for (tool, arguments) in
        [("task_delete", json!({ "task_id": task })), ("vm_delete", json!({ "vm_id": vm }))]
    {
        assert_eq!(call(&server, ALICE, tool, arguments)["structuredContent"]["deleted"], true);
    }
}

/// The name of a tool that names a VM or a task.
fn named(tool: &Value) -> Option<String> {
    let properties = tool["inputSchema"]["properties"].as_object().unwrap();
    let names = properties.contains_key("vm_id") || properties.contains_key("task_id");
    names.then(|| tool["name"].as_str().unwrap().to_owned())
}

#[test]
fn output_that_was_cut_is_kept_for_its_client_only() {
    let home = host();
    let server = server(&home, &[]);
    let arguments = json!({
        "environment": "debian:12", "allow_host_compat": true, "command": "head -c 40000 /dev/zero | tr '\\0' x",
    });
    let ran = call(&server, ALICE, "vm_run", arguments);
    let uri = ran["content"][1]["uri"].as_str().unwrap().to_owned();
    let read = |token| server.call_as(token, "resources/read", json!({ "uri": uri, "name": uri })).messages();
    assert!(read(ALICE)[0]["result"]["contents"][0]["text"].as_str().unwrap().len() == 40_000);
    assert!(read(BOB)[0]["error"].is_object(), "{:?}", read(BOB));
}

#[test]
fn an_operator_may_let_all_clients_find_everything() {
    let home = host();
    let server = server(&home, &["--tasks", "all"]);
    let task = create(&server, ALICE, "task_create")["task_id"].clone();
    let seen = call(&server, BOB, "task_status", json!({ "task_id": task }));
    assert_eq!(seen["structuredContent"]["owner"], "token:alice");
    assert_eq!(
        call(&server, BOB, "task_delete", json!({ "task_id": task }))["structuredContent"]["deleted"],
        true
    );
}

#[test]
fn sessions_find_nothing_of_each_other() {
    let home = host();
    let server = HttpServer::start(&mut home.command(["mcp", "serve", "--allow-host-compat"]));
    let hello = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } } });
    let open = || {
        let answer = server.ask("POST /mcp", &[], &hello.to_string());
        let session = answer.header("mcp-session-id").unwrap().to_owned();
        let initialized = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(server.ask("POST /mcp", &[("Mcp-Session-Id", &session)], initialized).status, 202);
        session
    };
    let call = |session: &str, tool: &str, arguments: Value| {
        let params = json!({ "name": tool, "arguments": arguments });
        let body = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params }).to_string();
        server.ask("POST /mcp", &[("Mcp-Session-Id", session)], &body).result()["structuredContent"].clone()
    };
    let (one, other) = (open(), open());
    let created = call(&one, "task_create", json!({ "environment": "debian:12", "allow_host_compat": true }));
    assert!(created["owner"].as_str().unwrap().starts_with("session:"), "{created}");
    assert!(!created["owner"].as_str().unwrap().contains(&one[..8]), "the id of a session is a secret");
    let count = |session: &str| call(session, "task_list", json!({}))["count"].clone();
    assert_eq!((count(&one), count(&other)), (1.into(), 0.into()));
    // A client of the newer kind has no session.
    let listed = server.call("tools/call", json!({ "name": "task_list", "arguments": {} })).result();
    assert_eq!(listed["structuredContent"]["count"], 0);
    assert_eq!(call(&one, "task_delete", json!({ "task_id": created["task_id"] }))["deleted"], true);
}

#[test]
fn a_session_is_of_no_use_with_another_token() {
    let home = host();
    let server = server(&home, &[]);
    let hello = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } } });
    let bearer = |token: &str| format!("Bearer {token}");
    let answer = server.ask("POST /mcp", &[("Authorization", &bearer(ALICE))], &hello.to_string());
    let session = answer.header("mcp-session-id").unwrap();
    let ping = |token: &str| {
        let headers = [("Authorization", bearer(token)), ("Mcp-Session-Id", session.to_owned())];
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        server.ask("POST /mcp", &headers, r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#).status
    };
    assert_eq!((ping(ALICE), ping(BOB)), (200, 404));
}

/// A server on standard input and output.
fn stdio(home: &Home, flags: &[&str]) -> McpClient {
    let mut command = home.command(["mcp", "serve", "--allow-host-compat"]);
    command.args(flags);
    McpClient::new(command)
}

#[test]
fn a_server_with_limits_finds_its_own_and_one_without_finds_all() {
    let home = host();
    let arguments = || json!({ "environment": "debian:12", "allow_host_compat": true });
    let mut free = stdio(&home, &[]);
    let created = free.call("task_create", arguments());
    assert!(created["owner"].as_str().unwrap().starts_with("mcp:"), "{created}");
    let count = |client: &mut McpClient| client.call("task_list", json!({}))["count"].clone();
    let mut limited = stdio(&home, &["--max-mem-mib", "1024"]);
    assert_eq!((count(&mut free), count(&mut limited)), (1.into(), 0.into()));
    let mut other_free = stdio(&home, &[]);
    assert_eq!(count(&mut other_free), 1);
    // A label finds again what an earlier server with it created.
    let label = ["--max-mem-mib", "1024", "--label", "reviewer"];
    let own = stdio(&home, &label).call("task_create", arguments());
    assert_eq!(own["owner"], "reviewer");
    let mut again = stdio(&home, &label);
    assert_eq!((count(&mut again), count(&mut limited)), (1.into(), 0.into()));
    // What the user of the host creates has no owner.
    let words = ["task", "create", "debian:12", "--allow-host-compat", "--json"];
    let by_user: Value = serde_json::from_slice(&home.pyro(words).raw_stdout).unwrap();
    assert!(by_user.get("owner").is_none(), "{by_user}");
    assert_eq!((count(&mut again), count(&mut free)), (1.into(), 3.into()));
}
