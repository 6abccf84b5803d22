//! `pyro rpc` without a VM: the handshake, and how the server handles invalid input.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Stdio;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::Home;
use pyro_testkit::{RpcClient, Session};

/// A server before any message.
fn silent(home: &Home) -> Session {
    Session::started(home.command(["rpc"]))
}

/// A server after the handshake.
fn greeted(home: &Home) -> Session {
    let mut session = silent(home);
    let hello = session.ask("initialize", hello(env!("CARGO_PKG_VERSION")));
    assert_eq!(
        hello["result"],
        json!({ "protocol": 1, "server": { "name": "pyro", "version": env!("CARGO_PKG_VERSION") } })
    );
    session
}

/// Id, code and kind of the error that answers a line.
fn refusal(session: &mut Session, line: &str) -> (Value, i64, String) {
    session.send_line(line);
    let answer = session.receive();
    let error = &answer["error"];
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer}");
    assert!(error["data"]["hints"].is_array(), "{answer}");
    let word = error["data"]["code"].as_str().unwrap().to_owned();
    (answer["id"].clone(), error["code"].as_i64().unwrap(), word)
}

fn hello(version: &str) -> Value {
    json!({ "protocol": 1, "client": { "name": "pyro-mcp", "version": version } })
}

/// No VM can run, and commands find the usual programs.
fn host() -> Home {
    Home::new().set("PATH", "/usr/bin:/bin").set_path("PYRO_QEMU", "no-such-qemu")
}

/// Parameters of `run_in_vm` for a command on the host.
fn on_host(command: &str, output: &str) -> Value {
    json!({ "environment": "debian:12", "allow_host_compat": true, "command": command, "output": output })
}

#[test]
fn a_client_of_another_version_is_refused() {
    let home = Home::new();
    let mut session = silent(&home);
    let early = session.ask("list_tasks", json!({}));
    assert_eq!(early["error"]["message"], "the first request must be `initialize`");
    let refused = session.ask("initialize", hello("1.9.3"));
    let message = format!(
        "pyro-mcp 1.9.3 cannot work with pyro {}: both must have the same version",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(refused["error"]["message"], message);
    assert_eq!(refused["error"]["data"]["code"], "version_mismatch");
    assert_eq!(session.ask("list_tasks", json!({}))["error"]["code"], -32600, "still unknown");
    session.end();
}

#[test]
fn what_makes_no_sense_is_told_and_the_server_goes_on() {
    let home = Home::new();
    let mut session = greeted(&home);
    let (null, id) = (Value::Null, Value::from(3));
    let invalid = |word: &str| word.to_owned();
    assert_eq!(refusal(&mut session, "{"), (null.clone(), -32700, invalid("invalid_request")));
    assert_eq!(refusal(&mut session, "[]"), (null.clone(), -32600, invalid("invalid_request")));
    let refusals = [
        (r#""method": 5"#, -32600, "invalid_request"),
        (r#""method": "none""#, -32601, "unknown_method"),
        (r#""method": "list_tasks", "params": []"#, -32602, "invalid_input"),
        (r#""method": "list_tasks", "params": {"more": 1}"#, -32602, "invalid_input"),
        (r#""method": "start_vm", "params": {}"#, -32602, "invalid_input"),
        (r#""method": "start_vm", "params": {"vm_id": 5}"#, -32602, "invalid_input"),
        (r#""method": "status_task", "params": {"task_id": "9775b3af1eeb"}"#, -32000, "not_found"),
        (r#""method": "initialize", "params": {}"#, -32600, "invalid_request"),
    ];
    for (rest, number, word) in refusals {
        let line = format!(r#"{{"jsonrpc": "2.0", "id": 3, {rest}}}"#);
        assert_eq!(refusal(&mut session, &line), (id.clone(), number, word.to_owned()), "{line}");
    }
    session.send_line(r#"{"jsonrpc": "2.0", "method": "cancel", "params": {"id": 99}}"#);
    session.send_line(r#"{"jsonrpc": "2.0", "method": "nonsense"}"#);
    let long = "x".repeat((32 << 20) + 1);
    assert_eq!(refusal(&mut session, &long), (null, -32000, invalid("message_too_long")));
    assert_eq!(session.ask("list_tasks", json!({}))["result"]["count"], 0);
    session.end();
}

#[test]
fn the_document_is_the_one_that_is_checked_in() {
    let home = Home::new();
    let checked_in =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../pyro-rpc/openrpc.json")).unwrap();
    assert_eq!(home.pyro(["rpc", "--schema"]).stdout, checked_in);
    let mut session = silent(&home);
    let discovered = session.ask("rpc.discover", json!({}))["result"].clone();
    assert_eq!(discovered, serde_json::from_str::<Value>(&checked_in).unwrap());
    session.end();
}

#[test]
fn a_signal_ends_it() {
    let home = Home::new();
    let session = greeted(&home);
    kill_process(Pid::from_child(&session.server), Signal::TERM).unwrap();
    let ended = session.server.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(143));
}

#[test]
fn it_ends_when_nobody_reads_what_it_says() {
    let home = Home::new();
    let mut server = home.command(["rpc"]).stdin(Stdio::piped()).spawn().unwrap();
    drop(server.stdout.take());
    // The input stays open.
    let mut input = server.stdin.take().unwrap();
    writeln!(input, "this is not JSON").unwrap();
    assert_eq!(server.wait().unwrap().code(), Some(141));
}

#[test]
fn what_is_no_pipe_serves_as_well() {
    let home = Home::new();
    let (requests, answers) = (home.path("requests"), home.path("answers"));
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello(env!("CARGO_PKG_VERSION")) });
    fs::write(&requests, format!("{request}\n")).unwrap();
    let mut command = home.command(["rpc"]);
    command.stdin(fs::File::open(requests).unwrap()).stdout(fs::File::create(&answers).unwrap());
    assert!(command.status().unwrap().success());
    let answer: Value = serde_json::from_str(&fs::read_to_string(answers).unwrap()).unwrap();
    assert_eq!(answer["result"]["server"]["name"], "pyro");
}

#[test]
fn output_that_is_not_consumed_holds_up_its_own_call_only() {
    let home = host();
    let mut client = RpcClient::new(home.command(["rpc"]));
    client.acknowledges = false;
    let window = 1 << 20;
    let much = client.begin("run_in_vm", on_host("head -c 5000000 /dev/zero; echo end >&2", "stream"));
    // A piece that does not fit as a whole waits, so slightly less than the window arrives.
    while client.output(much, "stdout").len() < window - (256 << 10) {
        client.receive();
    }
    let other = client.call("run_in_vm", on_host("echo hi", "capture"));
    assert_eq!((&other["stdout"], &other["execution_mode"]), (&json!("hi\n"), &json!("host_compat")));
    assert!(client.output(much, "stdout").len() <= window);
    client.acknowledges = true;
    client.notify("ack", json!({ "id": much, "bytes": client.output(much, "stdout").len() }));
    let answer = client.answer(much);
    assert_eq!(answer["result"]["exit_code"], 0, "{answer}");
    assert_eq!((&answer["result"]["stdout"], client.output(much, "stdout").len()), (&json!(""), 5_000_000));
    assert_eq!(client.output(much, "stderr"), b"end\n");
    let phases = client.events.iter().filter(|(id, event)| *id == much && event["type"] == "phase");
    let phases: Vec<_> = phases.map(|(_, event)| event["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["create", "start", "execute"]);
    client.end();
}

#[test]
fn a_call_that_is_cancelled_or_whose_client_goes_leaves_nothing() {
    let home = host();
    let mut client = RpcClient::new(home.command(["rpc"]));
    client.acknowledges = false;
    let vms = home.path(".local/state/pyro-mcp/vms");
    let has_vm = || fs::read_dir(&vms).unwrap().count();
    let long = "echo begun; cat /dev/zero";
    let call = client.begin("run_in_vm", on_host(long, "stream"));
    client.event(call, |event| event["type"] == "output");
    assert_eq!(has_vm(), 1);
    client.notify("cancel", json!({ "id": call }));
    let answer = client.answer(call);
    assert_eq!(answer["error"]["data"]["code"], "cancelled", "{answer}");
    assert_eq!(has_vm(), 0);

    let call = client.begin("run_in_vm", on_host(long, "stream"));
    client.event(call, |event| event["type"] == "output");
    client.session().close();
    let answer = client.answer(call);
    assert_eq!(answer["error"]["data"]["code"], "cancelled", "{answer}");
    client.end();
    assert_eq!(has_vm(), 0);
}

#[test]
fn an_mcp_server_ends_with_its_lifeline() {
    let home = Home::new();
    let (lifeline, held): (OwnedFd, OwnedFd) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    fcntl_setfd(&lifeline, FdFlags::empty()).unwrap();
    let number = lifeline.as_raw_fd().to_string();
    let mut command = home.command(["mcp", "serve", "--lifeline-fd", &number]);
    let mut server = command.stdin(Stdio::piped()).spawn().unwrap();
    // Otherwise waiting would close it, which also ends the server.
    let _input = server.stdin.take();
    drop(lifeline);
    assert!(server.try_wait().unwrap().is_none());
    drop(held);
    assert_eq!(server.wait().unwrap().code(), Some(143));
    let wrong = home.pyro(["mcp", "serve", "--lifeline-fd", "77"]);
    assert_eq!(wrong.code(), 2);
    assert!(
        wrong.stderr.contains("--lifeline-fd: 77 is not the number of an inherited pipe"),
        "{}",
        wrong.stderr
    );
}
