//! `pyro mcp serve --transport http` with real VMs: nothing stays when a client, a session or the server goes.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpStream;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{ENVIRONMENT, LONG, PYRO, Sandbox, scaled, wait_until};
use pyro_testkit::http::{Answer, HttpServer};

fn server(sandbox: &Sandbox) -> HttpServer {
    HttpServer::start(sandbox.program(PYRO).args(["mcp", "serve"]))
}

/// A command that runs for long.
fn long_run() -> Value {
    let arguments =
        json!({ "environment": ENVIRONMENT, "command": "echo begun; sleep 1000", "timeout_seconds": 2000 });
    json!({ "name": "vm_run", "arguments": arguments, "_meta": { "progressToken": 1 } })
}

/// Reads the events of a call until its command has begun.
fn await_begin(stream: TcpStream) -> BufReader<TcpStream> {
    stream.set_read_timeout(Some(scaled(LONG))).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while !line.contains("\"begun\"") {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the answer has ended");
    }
    reader
}

fn begin_stateless(server: &HttpServer) -> BufReader<TcpStream> {
    await_begin(server.begin("tools/call", long_run()))
}

fn stop(mut server: HttpServer) {
    kill_process(Pid::from_child(&server.process), Signal::TERM).unwrap();
    assert_eq!(server.process.wait().unwrap().code(), Some(143));
    let mut rest = String::new();
    server.stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn one_command_in_a_vm_of_its_own() {
    let sandbox = Sandbox::new();
    let server = server(&sandbox);
    let call = json!({
        "name": "vm_run", "arguments": { "environment": ENVIRONMENT, "command": "git --version; exit 3" },
        "_meta": { "progressToken": 1 },
    });
    let answer = server.call("tools/call", call);
    assert_eq!(answer.result()["structuredContent"]["exit_code"], 3, "{answer:?}");
    let progress =
        answer.messages().into_iter().filter(|message| message["method"] == "notifications/progress");
    assert!(progress.count() > 0, "{answer:?}");
    stop(server);
}

#[test]
fn a_client_that_hangs_up_cancels_its_call() {
    let sandbox = Sandbox::new();
    let server = server(&sandbox);
    drop(begin_stateless(&server));
    wait_until(LONG, "end of the VM", || sandbox.processes().len() == 1);
    stop(server);
}

#[test]
fn a_session_that_ends_takes_its_calls_with_it() {
    let sandbox = Sandbox::new();
    let server = server(&sandbox);
    let hello = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } } });
    let hello = server.ask("POST /mcp", &[], &hello.to_string());
    let session = ("Mcp-Session-Id", hello.header("mcp-session-id").unwrap());
    let call = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": long_run() });
    let open = await_begin(server.send("POST /mcp", &[session], &call.to_string()));
    assert!(server.ask("DELETE /mcp", &[session], "").status < 300);
    wait_until(LONG, "end of the VM", || sandbox.processes().len() == 1);
    drop(open);
    stop(server);
}

#[test]
fn a_server_that_is_told_to_end_answers_first() {
    let sandbox = Sandbox::new();
    let server = server(&sandbox);
    let stream = begin_stateless(&server);
    stop(server);
    sandbox.wait_until_clean();
    let rest: Vec<String> = stream.lines().map_while(Result::ok).collect();
    assert!(rest.iter().any(|line| line.contains("\"code\":\"cancelled\"")), "{rest:?}");
}

#[test]
fn many_calls_of_many_clients_are_all_answered() {
    let sandbox = Sandbox::new();
    let server = server(&sandbox);
    let call = |name: &str, arguments: Value| {
        server.begin("tools/call", json!({ "name": name, "arguments": arguments }))
    };
    let created = Answer::read(call("task_create", json!({ "environment": ENVIRONMENT }))).result();
    let id = created["structuredContent"]["task_id"].clone();
    let calls: Vec<_> = (0..40)
        .map(|n| {
            call(
                "task_exec",
                json!({ "task_id": id, "command": format!("echo {n}"), "timeout_seconds": 300 }),
            )
        })
        .collect();
    for (n, stream) in calls.into_iter().enumerate() {
        assert_eq!(Answer::read(stream).result()["structuredContent"]["stdout"], format!("{n}\n"));
    }
    let deleted = Answer::read(call("task_delete", json!({ "task_id": id }))).result();
    assert_eq!(deleted["structuredContent"]["deleted"], true);
    stop(server);
}
