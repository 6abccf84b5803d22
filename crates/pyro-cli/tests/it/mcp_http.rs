//! `pyro mcp serve --transport http` without a VM: access control, and resistance to invalid clients.

use std::fs;
use std::io::{BufRead as _, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::harness::Home;
use pyro_testkit::http::{Answer, HttpServer};

const HELLO: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;

fn server(home: &Home, flags: &[&str]) -> HttpServer {
    HttpServer::start(home.command(["mcp", "serve"]).args(flags))
}

/// Writes a file that only its owner can read.
fn private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn stop(mut server: HttpServer, signal: Signal, status: i32) {
    kill_process(Pid::from_child(&server.process), signal).unwrap();
    assert_eq!(server.process.wait().unwrap().code(), Some(status));
    let mut rest = String::new();
    server.stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    let mut output = String::new();
    server.process.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert_eq!(output, "", "stdout is not for messages of ours");
}

#[test]
fn clients_of_both_kinds_are_served() {
    let home = Home::new();
    let server = server(&home, &[]);
    let tools = server.call("tools/list", json!({})).result();
    assert_eq!(tools["tools"].as_array().unwrap().len(), 34);
    let listed = server.call("tools/call", json!({ "name": "task_list", "arguments": {} })).result();
    assert_eq!(listed["structuredContent"]["count"], 0);

    let hello = server.ask("POST /mcp", &[], HELLO);
    assert_eq!(hello.result()["protocolVersion"], "2025-06-18");
    let session = hello.header("mcp-session-id").unwrap();
    let ask = |line, body: &str| server.ask(line, &[("Mcp-Session-Id", session)], body);
    assert_eq!(ask("POST /mcp", r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).status, 202);
    assert_eq!(ask("POST /mcp", r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#).result(), json!({}));
    assert_eq!(ask("DELETE /mcp", "").status, 204);
    assert_eq!(ask("POST /mcp", r#"{"jsonrpc":"2.0","id":3,"method":"ping"}"#).status, 404);
    stop(server, Signal::TERM, 143);
}

#[test]
fn names_and_pages_of_others_are_refused() {
    let home = Home::new();
    let server = server(&home, &["--allow-host", "sandbox.example"]);
    let status = |name: &str, value: &str| server.ask("POST /mcp", &[(name, value)], HELLO).status;
    for host in ["localhost", "127.0.0.1:8722", "[::1]", "sandbox.example"] {
        assert_eq!(status("Host", host), 200, "{host}");
        assert_eq!(status("Origin", &format!("http://{host}")), 200, "{host}");
    }
    for host in ["rebound.example", "localhost.example", "127.0.0.2", "sandbox.example.com", ""] {
        assert!(matches!(status("Host", host), 400 | 403), "{host}");
    }
    for origin in ["http://rebound.example", "https://localhost.example", "null", "file://"] {
        assert_eq!(status("Origin", origin), 403, "{origin}");
    }
    stop(server, Signal::INT, 130);
}

#[test]
fn a_token_is_asked_for() {
    let home = Home::new();
    let token = "0123456789abcdef0123456789abcdef";
    let file = home.path("token");
    private(&file, &format!("{token}\n"));
    let server = server(&home, &["--token-file", file.to_str().unwrap()]);
    let answer = |value: &str| server.ask("POST /mcp", &[("Authorization", value)], HELLO);
    assert_eq!(answer(&format!("Bearer {token}")).status, 200);
    assert_eq!(answer(&format!("bearer {token}")).status, 200);
    for wrong in [
        "",
        "Bearer ",
        "Bearer 0123456789abcdef",
        token,
        &format!("Basic {token}"),
        &format!("Bearer {token}0"),
    ] {
        let refused = answer(wrong);
        assert_eq!(refused.status, 401, "{wrong}");
        assert_eq!(refused.header("www-authenticate"), Some("bearer"));
    }
    assert_eq!(server.ask("POST /mcp", &[], HELLO).status, 401);
    stop(server, Signal::TERM, 143);
}

#[test]
fn an_open_server_is_refused_from_the_start() {
    let home = Home::new();
    private(&home.path("short"), "secret");
    private(&home.path("good"), "0123456789abcdef");
    fs::write(home.path("open"), "0123456789abcdef").unwrap();
    fs::set_permissions(home.path("open"), fs::Permissions::from_mode(0o644)).unwrap();
    let refusals = [
        vec!["--transport", "http", "--no-token", "--listen", "0.0.0.0:0"],
        vec!["--transport", "http", "--no-token", "--listen", "192.0.2.1:0"],
        vec!["--transport", "http", "--listen", "0.0.0.0:0"],
        vec!["--transport", "http", "--listen", "0.0.0.0:0", "--token-file", "good"],
        vec!["--transport", "http", "--token-file", "short"],
        vec!["--transport", "http", "--token-file", "none"],
        vec!["--transport", "http", "--token-file", "open"],
        vec!["--transport", "http", "--allow-host", "a b"],
        vec!["--listen", "127.0.0.1:0"],
        vec!["--environment", "windows:11"],
    ];
    let told: Vec<String> = refusals
        .into_iter()
        .map(|flags| {
            let output = home.command(["mcp", "serve"]).args(flags).output().unwrap();
            let ended = home.ended(output);
            // That a file is missing is not a matter of the command line alone.
            let expected = if ended.stderr.contains("No such file") { 1 } else { 2 };
            assert_eq!((ended.code(), ended.stdout.as_str()), (expected, ""), "{ended:?}");
            ended.stderr
        })
        .collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn a_token_is_generated_by_default_and_shown_once() {
    let home = Home::new();
    let file = home.path(".local/state/pyro-mcp/mcp-token");
    let mut shown = String::new();
    let mut first = HttpServer::start_as_it_is(&mut home.command(["mcp", "serve"]));
    first.stderr.read_line(&mut shown).unwrap();
    let token = fs::read_to_string(&file).unwrap().trim_end().to_owned();
    assert!(shown.contains(&token) && shown.contains(file.to_str().unwrap()), "{shown}");
    assert_eq!(token.len(), 64);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(first.ask("POST /mcp", &[], HELLO).status, 401);
    assert_eq!(first.call_as(&token, "tools/list", json!({})).status, 200);
    stop(first, Signal::TERM, 143);
    // The next server accepts the same one, and does not show it.
    let mut second = HttpServer::start_as_it_is(&mut home.command(["mcp", "serve"]));
    shown.clear();
    second.stderr.read_line(&mut shown).unwrap();
    assert!(!shown.contains(&token) && shown.contains(file.to_str().unwrap()), "{shown}");
    assert_eq!(second.call_as(&token, "tools/list", json!({})).status, 200);
    stop(second, Signal::TERM, 143);
}

#[test]
fn sessions_that_are_never_deleted_keep_no_client_out() {
    let home = Home::new();
    let mut server = server(&home, &[]);
    let open = |server: &HttpServer| {
        let hello = server.ask("POST /mcp", &[], HELLO);
        assert_eq!(hello.status, 200);
        hello.header("mcp-session-id").unwrap().to_owned()
    };
    let ping = |server: &HttpServer, session: &str| {
        let body = r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#;
        server.ask("POST /mcp", &[("Mcp-Session-Id", session)], body).status
    };
    let first = open(&server);
    let sessions: Vec<_> = (0..300).map(|_| open(&server)).collect();
    let new = open(&server);
    assert_eq!(ping(&server, &new), 200);
    assert_eq!(ping(&server, sessions.last().unwrap()), 200);
    assert_eq!(ping(&server, &first), 404, "the longest idle one has ended");
    assert!(server.process.try_wait().unwrap().is_none());
    stop(server, Signal::TERM, 143);
}

#[test]
fn connections_without_a_token_keep_no_client_out() {
    let home = Home::new();
    let token = "0123456789abcdef0123456789abcdef";
    private(&home.path("token"), token);
    let server = server(&home, &["--token-file", home.path("token").to_str().unwrap()]);
    // More than the server serves at once. None of them sends a whole request.
    let strangers: Vec<_> = (0..600)
        .map(|_| {
            let mut stream = server.connect();
            let _ = stream.write_all(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n");
            stream
        })
        .collect();
    let begun = Instant::now();
    assert_eq!(server.call_as(token, "tools/list", json!({})).status, 200);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(strangers);
    stop(server, Signal::TERM, 143);
}

#[test]
fn it_bears_what_hostile_clients_send() {
    let home = Home::new();
    let mut server = server(&home, &[]);
    let large =
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{"x":"{}"}}}}"#, "x".repeat(10 << 20));
    assert_eq!(server.ask("POST /mcp", &[], &large).status, 413);
    for body in ["", "this is not JSON", "[]", "{}", r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, "\u{0}"] {
        let status = server.ask("POST /mcp", &[], body).status;
        assert!((400..500).contains(&status), "{body:?}: {status}");
    }
    assert_eq!(server.ask("POST /mcp", &[("Mcp-Session-Id", "nosuch")], HELLO).status, 404);
    assert_eq!(server.ask("GET /", &[], "").status, 404);
    assert_eq!(server.ask("GET /mcp/../secret", &[], "").status, 404);
    assert_eq!(server.ask("PUT /mcp", &[], "").status, 405);
    assert_eq!(server.ask("POST /mcp", &[("Content-Type", "text/plain")], HELLO).status, 415);
    // Endless headers, and an enormous declared length.
    let mut endless = server.connect();
    let sent = (0..100).take_while(|_| endless.write_all(&[b'x'; 64 << 10]).is_ok()).count();
    assert!(sent < 100, "a head of 6 MiB was read");
    let idle: Vec<_> = (0..50).map(|_| server.connect()).collect();
    // Other clients are still served.
    assert_eq!(server.ask("POST /mcp", &[], HELLO).status, 200);
    let many: Vec<_> = (0..200).map(|_| server.send("POST /mcp", &[], HELLO)).collect();
    for stream in many {
        assert_eq!(Answer::read(stream).status, 200);
    }
    // A client without a session is still served.
    assert!(server.call("tools/list", json!({})).result()["tools"].is_array());
    drop(idle);
    assert!(server.process.try_wait().unwrap().is_none());
    stop(server, Signal::TERM, 143);
}
