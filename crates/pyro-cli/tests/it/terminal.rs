//! Text from guests, registries and other users, as it reaches a person: nothing in it controls the terminal or deceives the
//! reader, wherever it is shown. (The output of a command that a person runs is passed on unchanged.)

use std::fs;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::harness::Home;
use pyro_testkit::Session;

/// An escape sequence, an override, an isolate, a mark, a C1 control, and two invisible characters.
const HOSTILE: &str = "\u{1b}[2J\u{202e}gnp\u{2066}\u{200f}\u{9b}31m\u{200b}\u{feff}";

fn host() -> Home {
    Home::new().set("PATH", "/usr/bin:/bin").set_path("PYRO_QEMU", "no-such-qemu")
}

/// What must not be in a text that a person sees.
fn assert_harmless(place: &str, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let steers = |c: char| {
        (c.is_control() && c != '\n' && c != '\t') || "\u{202e}\u{2066}\u{200f}\u{200b}\u{feff}".contains(c)
    };
    let found: Vec<char> = text.chars().filter(|c| steers(*c)).collect();
    assert!(found.is_empty(), "{place}: {found:?} in {text:?}");
}

/// Runs `pyro` with these words and checks what it writes. The hostile text must be in it, in a harmless form.
fn check(home: &Home, place: &str, words: &[&str]) {
    let output = home.command(words).output().unwrap();
    assert_harmless(place, &output.stdout);
    assert_harmless(place, &output.stderr);
    let shown = [output.stdout, output.stderr].concat();
    let shown = String::from_utf8_lossy(&shown);
    assert!(shown.contains("\\u{202e}"), "{place}: the text is not shown at all: {shown}");
}

#[test]
fn no_place_shows_text_that_controls_the_terminal() {
    let home = host();
    let words = ["task", "create", "debian:12", "--allow-host-compat", "--json"];
    let created: Value = serde_json::from_slice(&home.pyro(words).raw_stdout).unwrap();
    let id = created["task_id"].as_str().unwrap();
    let line = format!("printf '%s\\n' '{HOSTILE}'; printf '%s\\n' '{HOSTILE}' >&2");
    home.pyro(["task", "exec", id, "--", &line]);

    // A file gets the output unchanged; the lines that pyro adds are escaped there too.
    let logs = home.pyro(["task", "logs", id]);
    assert_eq!(logs.stderr, format!("{HOSTILE}\n"));
    let heading = logs.stdout.strip_suffix(&format!("{HOSTILE}\n")).unwrap();
    assert_harmless("task logs: command", heading.as_bytes());
    check(&home, "task status: latest command", &["task", "status", id]);
    check(&home, "an unknown task", &["task", "status", HOSTILE]);
    check(&home, "an unknown environment of a run", &["run", HOSTILE, "--", "true"]);
    check(&home, "an unknown environment of a task", &["task", "create", HOSTILE]);
    check(&home, "an unknown environment to install", &["env", "pull", HOSTILE]);
    check(&home, "an unknown environment to show", &["env", "inspect", HOSTILE]);
    check(
        &home,
        "a variable of a command",
        &["task", "exec", id, "--env", &format!("{HOSTILE}=x"), "--", "true"],
    );

    // What another program has written into the registry.
    let state = Connection::open(home.path(".local/state/pyro-mcp/state.sqlite3")).unwrap();
    for column in ["environment", "last_error", "environment_version", "accelerator"] {
        state.execute(&format!("UPDATE vms SET {column} = ?1"), [HOSTILE]).unwrap();
    }
    state
        .execute("UPDATE vms SET state = 'stopped', stop_reason = 'guest_ended', owner = ?1", [HOSTILE])
        .unwrap();
    check(&home, "task list", &["task", "list"]);
    check(&home, "task status: environment and error", &["task", "status", id]);

    // What lies around on the host.
    let named = Home::new().set("PYRO_BASE_DIR", home.path(HOSTILE).to_str().unwrap());
    fs::write(home.path(HOSTILE), "").unwrap();
    check(&named, "a state directory", &["task", "list"]);
    check(&named, "doctor", &["doctor"]);
    let log = Home::new().set("PYRO_LOG", &format!("{HOSTILE}=="));
    check(&log, "a setting", &["env", "list"]);
}

/// JSON documents are for programs, but people see them too.
#[test]
fn documents_have_nothing_but_ascii() {
    let home = host();
    let document = home.pyro(["task", "status", HOSTILE, "--json"]);
    assert!(document.raw_stdout.is_ascii(), "{document:?}");
}

#[test]
fn what_a_client_of_the_server_shows_is_harmless() {
    let home = host();
    let mut session = Session::started(home.command(["mcp", "serve", "--allow-host-compat"]));
    let client = json!({
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"},
    });
    session.ask("initialize", client);
    session.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }));
    let mut check = |place: &str, method: &str, params: Value| {
        let answer = session.ask(method, params);
        let texts = [&answer["error"]["message"], &answer["result"]["content"][0]["text"]];
        let shown: Vec<&str> = texts.into_iter().filter_map(Value::as_str).collect();
        assert!(!shown.is_empty(), "{place}: {answer}");
        assert_harmless(place, shown.join("\n").as_bytes());
    };
    check(
        "an unknown task",
        "tools/call",
        json!({ "name": "task_status", "arguments": { "task_id": HOSTILE } }),
    );
    let arguments = json!({ "environment": HOSTILE, "command": "true" });
    check("an unknown environment", "tools/call", json!({ "name": "vm_run", "arguments": arguments }));
    check("an unknown tool", "tools/call", json!({ "name": HOSTILE }));
    check("an unknown resource", "resources/read", json!({ "uri": format!("pyro://{HOSTILE}") }));
    session.end();
}
