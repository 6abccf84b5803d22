//! `pyro mcp serve` without a VM: how the server describes itself, and how it handles invalid input.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use serde_json::{Value, json};

use pyro_testkit::{LONG, Session, wait_until};

use crate::harness::Home;

/// A server before any message.
fn silent(home: &Home) -> Session {
    Session::started(home.command(["mcp", "serve"]))
}

/// A server after the handshake of an older client.
fn greeted(home: &Home) -> (Session, Value) {
    greeted_with(home, [""; 0])
}

/// The same with flags.
fn greeted_with(home: &Home, flags: impl IntoIterator<Item: AsRef<OsStr>>) -> (Session, Value) {
    let mut command = home.command(["mcp", "serve"]);
    command.args(flags);
    let mut session = Session::started(command);
    let client = json!({
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"},
    });
    let answer = session.ask("initialize", client);
    session.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }));
    (session, answer["result"].clone())
}

fn call(session: &mut Session, tool: &str, arguments: Value) -> Value {
    session.ask("tools/call", json!({ "name": tool, "arguments": arguments }))["result"].clone()
}

#[test]
fn it_says_who_it_is_and_what_it_is_for() {
    let (session, hello) = greeted(&Home::new());
    assert_eq!(hello["serverInfo"]["name"], "pyro_mcp");
    assert_eq!(hello["serverInfo"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(hello["protocolVersion"], "2025-06-18");
    assert!(hello["instructions"].as_str().unwrap().contains("task_create"));
    session.end();
}

#[test]
fn clients_of_the_newer_kind_need_no_handshake() {
    let home = Home::new();
    let mut session = silent(&home);
    let meta = json!({ "_meta": {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }});
    let discovered = session.ask("server/discover", meta.clone());
    let versions = discovered["result"]["supportedVersions"].as_array().unwrap();
    assert!(versions.contains(&"2026-07-28".into()), "{discovered}");
    let tools = session.ask("tools/list", meta)["result"]["tools"].as_array().unwrap().len();
    assert_eq!(tools, 34);
    session.end();
}

/// A client asks for much and does not read. Without a limit, this takes gigabytes.
#[test]
fn a_client_that_does_not_read_does_not_fill_the_memory_with_large_answers() {
    let home = Home::new().set("PATH", "/usr/bin:/bin").set_path("PYRO_QEMU", "no-such-qemu");
    let mut command = home.command(["mcp", "serve", "--allow-host-compat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = command.spawn().unwrap();
    let (mut input, mut output) =
        (server.stdin.take().unwrap(), BufReader::new(server.stdout.take().unwrap()));
    let mut line = String::new();
    let mut answer = |output: &mut BufReader<_>, id: u64| loop {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "the server has ended");
        let message: Value = serde_json::from_str(&line).unwrap();
        if message["id"] == id {
            break message["result"].clone();
        }
    };
    let message = |id: u64, method: &str, params: Value| {
        format!("{}\n", json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }))
    };
    let client = json!({
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"},
    });
    input.write_all(message(1, "initialize", client).as_bytes()).unwrap();
    answer(&mut output, 1);
    input.write_all(b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}\n").unwrap();
    let bytes = 12_000_000;
    let arguments = json!({
        "environment": "debian:12", "allow_host_compat": true,
        "command": format!("head -c {bytes} /dev/zero | tr '\\0' x"),
    });
    input
        .write_all(message(2, "tools/call", json!({ "name": "vm_run", "arguments": arguments })).as_bytes())
        .unwrap();
    let ran = answer(&mut output, 2);
    let uri = ran["content"][1]["uri"].as_str().unwrap_or_else(|| panic!("{ran}")).to_owned();

    let requests = 1024;
    let all: String =
        (0..requests).map(|id| message(100 + id, "resources/read", json!({ "uri": uri }))).collect();
    let writing = std::thread::spawn(move || {
        // The pipe has space for some of them, and the server takes the rest when it can answer.
        let _ = input.write_all(all.as_bytes());
        input
    });
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
        peak.trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    };
    let read = (0..8).map(|id| answer(&mut output, 100 + id));
    for result in read {
        assert_eq!(result["contents"][0]["text"].as_str().unwrap().len(), bytes);
    }
    let peak = peak();
    assert!(peak < 500, "{peak} MiB");
    server.kill().unwrap();
    server.wait().unwrap();
    drop((output, writing.join().unwrap()));
}

#[test]
fn the_tools_are_those_of_the_contract_and_more() {
    let (mut session, _) = greeted(&Home::new());
    let tools = session.ask("tools/list", json!({}))["result"]["tools"].as_array().unwrap().clone();
    for tool in &tools {
        for schema in ["inputSchema", "outputSchema"] {
            assert_eq!(tool[schema]["type"], "object", "{}: {schema}", tool["name"]);
            // JSON Schema defines no formats for numbers, and clients complain about unknown ones.
            assert!(!tool[schema].to_string().contains("\"format\""), "{}: {}", tool["name"], tool[schema]);
        }
        for hint in ["readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"] {
            assert!(tool["annotations"][hint].is_boolean(), "{}: {hint}", tool["name"]);
        }
    }
    // Other tests check payloads; this one checks what a model sees.
    let seen: Vec<Value> = tools
        .into_iter()
        .map(|mut tool| {
            tool.as_object_mut().unwrap().remove("outputSchema");
            tool
        })
        .collect();
    insta::assert_snapshot!(serde_json::to_string_pretty(&seen).unwrap());
    session.end();
}

#[test]
fn faults_are_told_in_a_way_that_a_model_can_use() {
    let (mut session, _) = greeted(&Home::new().set_path("PYRO_QEMU", "no-such-qemu"));
    let cases = [
        ("vm_run", json!({ "environment": "debian:12" })),
        ("vm_run", json!({ "environment": "debian:12", "command": "true", "vcpu_count": "many" })),
        ("vm_run", json!({ "environment": "debian:12", "command": "true", "vcpu_count": "9" })),
        ("vm_run", json!({ "environment": "debian:12", "command": "true", "unknown": 1 })),
        ("vm_run", json!({ "environment": "windows:11", "command": "true" })),
        ("task_status", json!({ "task_id": "../x" })),
        ("task_wait", json!({ "task_id": "9775b3af1eeb", "sequence": -1 })),
    ];
    let told: Vec<String> = cases
        .into_iter()
        .map(|(tool, arguments)| {
            let result = call(&mut session, tool, arguments);
            assert_eq!(result["isError"], true, "{result}");
            let error = &result["_meta"]["pyro/error"];
            assert!(
                result["content"][0]["text"]
                    .as_str()
                    .unwrap()
                    .starts_with(error["message"].as_str().unwrap())
            );
            // Some clients validate it against the schema of results.
            assert!(result.get("structuredContent").is_none(), "{result}");
            let message = error["message"].as_str().unwrap();
            format!(
                "{}: {}",
                error["code"].as_str().unwrap(),
                message.split(": the configured").next().unwrap()
            )
        })
        .collect();
    insta::assert_snapshot!(told.join("\n"));
    let unknown = session.ask("tools/call", json!({ "name": "nosuch", "arguments": {} }));
    assert_eq!(unknown["error"]["message"], "Unknown tool: nosuch");
    let listed = call(&mut session, "vm_list_environments", json!({}));
    assert_eq!(listed["structuredContent"]["result"].as_array().unwrap().len(), 4);
    assert_eq!(call(&mut session, "task_list", json!({}))["structuredContent"]["count"], 0);
    session.end();
}

#[test]
fn it_ends_with_its_input_whatever_was_said() {
    let home = Home::new();
    silent(&home).end();
    let mut session = silent(&home);
    // Unknown before the handshake: answered at once, so that a client can try another way.
    session.send(&json!({ "jsonrpc": "2.0", "id": 1, "method": "no/such", "params": {} }));
    assert!(session.receive()["error"].is_object());
    session.end();
    let (mut session, _) = greeted(&home);
    session.send_line("this is not JSON");
    assert_eq!(session.receive()["error"]["code"], -32700);
    assert_eq!(session.ask("ping", json!({}))["result"], json!({}));
    session.end();
}

/// A command that runs is ended soon after the client's last message.
#[test]
fn it_ends_soon_after_its_input_during_a_call() {
    let home = Home::new().set("PATH", "/usr/bin:/bin").set_path("PYRO_QEMU", "no-such-qemu");
    let (mut session, _) = greeted_with(&home, ["--allow-host-compat"]);
    let (started, finished) = (home.path("started"), home.path("finished"));
    let arguments = json!({
        "environment": "debian:12", "allow_host_compat": true, "timeout_seconds": 100,
        "command": format!("echo >'{}'; sleep 60; echo >'{}'", started.display(), finished.display()),
    });
    session.send(&json!({
        "jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": { "name": "vm_run", "arguments": arguments },
    }));
    wait_until(LONG, "start of the command", || started.exists());
    session.ended();
    assert!(!finished.exists(), "the server has waited for the command");
}

#[test]
fn many_calls_at_once_are_all_answered() {
    let (mut session, _) = greeted(&Home::new());
    for id in 0..1000 {
        session.send(&json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call",
            "params": { "name": "task_list", "arguments": {} } }));
    }
    let mut ids: Vec<_> = (0..1000).map(|_| session.receive()["id"].as_u64().unwrap()).collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..1000));
    session.end();
}

#[test]
fn it_bears_what_hostile_clients_send() {
    let (mut session, _) = greeted(&Home::new());
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let large = "x".repeat(16 << 20);
    let call = |id: u64, rest: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},{rest}}}"#);
    // Each line, and the code and the id of its answer, if it has one.
    let lines = [
        ("this is not JSON".to_owned(), Some((-32700, json!(null)))),
        ("\u{0}\u{1}".to_owned(), Some((-32700, json!(null)))),
        ("[]".to_owned(), Some((-32600, json!(null)))),
        ("{}".to_owned(), Some((-32600, json!(null)))),
        ("null".to_owned(), Some((-32600, json!(null)))),
        (deep, Some((-32700, json!(null)))),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#.to_owned(), Some((-32600, json!(null)))),
        (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#.to_owned(), Some((-32600, json!(null)))),
        (r#"{"jsonrpc":"2.0","id":{"a":1},"method":"ping"}"#.to_owned(), Some((-32600, json!(null)))),
        (r#"{"jsonrpc":"2.0","id":99,"result":{"answer":"to nothing"}}"#.to_owned(), None),
        (
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":12345}}"#.to_owned(),
            None,
        ),
        (r#"{"jsonrpc":"2.0","method":"notifications/nosuch"}"#.to_owned(), None),
        (call(2, r#""method":"ping","params":{"x":"\ud800"}"#), Some((-32700, json!(2)))),
        (
            call(3, r#""method":"tools/call","params":{"name":"vm_run","arguments":[1]}"#),
            Some((-32602, json!(3))),
        ),
        (
            call(3, r#""method":"tools/call","params":{"name":"task_list","arguments":{"n":1e400}}"#),
            Some((-32700, json!(3))),
        ),
        // One that fits, and one that does not.
        (call(4, &format!(r#""method":"nosuch","params":{{"x":"{large}"}}"#)), Some((-32601, json!(4)))),
        (
            call(5, &format!(r#""method":"tools/call","params":{{"x":"{large}{large}"}}"#)),
            Some((-32600, json!(5))),
        ),
    ];
    for (line, answer) in lines {
        session.send_line(&line);
        if let Some((code, id)) = answer {
            let answered = session.receive();
            assert_eq!((&answered["error"]["code"], &answered["id"]), (&code.into(), &id), "{answered}");
        }
        // The output holds only protocol messages, and the next request is answered.
        session.send(&json!({ "jsonrpc": "2.0", "id": 7, "method": "ping" }));
        assert_eq!(session.receive()["id"], 7);
    }
    session.end();
}

#[test]
fn limits_are_told_and_kept() {
    let flags = ["--profile", "task", "--environment", "debian:12", "--no-network", "--no-host-compat"];
    let sizes = ["--max-mem-mib", "512", "--max-ttl-seconds", "300", "--max-active-vms", "2"];
    let home = Home::new().set_path("PYRO_QEMU", "no-such-qemu");
    let (mut session, _) = greeted_with(&home, flags.iter().chain(&sizes).chain(&["--label", "test"]));
    let tools = session.ask("tools/list", json!({}))["result"]["tools"].as_array().unwrap().clone();
    let run = tools.iter().find(|tool| tool["name"] == "vm_run").unwrap();
    insta::assert_snapshot!(run["description"].as_str().unwrap());
    assert_eq!(run["annotations"]["openWorldHint"], false);
    assert!(tools.iter().all(|tool| tool["name"] != "vm_create"));

    let asked = |extra: Value| {
        let mut arguments = json!({ "environment": "debian:12", "command": "true" });
        arguments.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        arguments
    };
    for extra in
        [json!({"network": true}), json!({"mem_mib": 1024}), json!({"environment": "debian:12-build"})]
    {
        let refused = call(&mut session, "vm_run", asked(extra.clone()));
        assert_eq!(refused["_meta"]["pyro/error"]["code"], "not_allowed", "{extra}");
        assert_eq!(refused["isError"], true);
    }
    let refused = call(&mut session, "vm_create", json!({ "environment": "debian:12" }));
    assert_eq!(refused["_meta"]["pyro/error"]["message"], "this server does not offer vm_create");
    // An allowed request passes the policy.
    assert_eq!(
        call(&mut session, "vm_run", asked(json!({})))["_meta"]["pyro/error"]["code"],
        "vm_unavailable"
    );
    let listed = call(&mut session, "vm_list_environments", json!({}));
    assert_eq!(listed["structuredContent"]["result"].as_array().unwrap().len(), 1);
    let policy = session.ask("resources/read", json!({ "uri": "pyro://policy" }));
    insta::assert_snapshot!(policy["result"]["contents"][0]["text"].as_str().unwrap());
    session.end();
}

#[test]
fn what_there_is_can_be_found_and_read() {
    let (mut session, _) = greeted(&Home::new());
    let resources = session.ask("resources/list", json!({}))["result"]["resources"].clone();
    let uris: Vec<_> =
        resources.as_array().unwrap().iter().map(|resource| resource["uri"].as_str().unwrap()).collect();
    assert_eq!(
        uris,
        [
            "pyro://policy",
            "pyro://environments/debian:12",
            "pyro://environments/debian:12-agent",
            "pyro://environments/debian:12-base",
            "pyro://environments/debian:12-build"
        ]
    );
    let read = |session: &mut Session, uri: &str| session.ask("resources/read", json!({ "uri": uri }));
    for uri in uris {
        let contents = read(&mut session, uri)["result"]["contents"][0].clone();
        assert_eq!((&contents["uri"], &contents["mimeType"]), (&uri.into(), &"application/json".into()));
        serde_json::from_str::<Value>(contents["text"].as_str().unwrap()).unwrap();
    }
    for uri in [
        "pyro://nosuch",
        "pyro://tasks/../x",
        "pyro://tasks/9775b3af1eeb",
        "file:///etc/passwd",
        "pyro://environments/x",
    ] {
        // The code in revisions of that time; newer ones use -32602.
        assert_eq!(read(&mut session, uri)["error"]["code"], -32002, "{uri}");
    }
    let templates = session.ask("resources/templates/list", json!({}));
    assert_eq!(templates["result"]["resourceTemplates"].as_array().unwrap().len(), 4);
    session.end();
}

#[test]
fn prompts_teach_and_names_are_completed() {
    let (mut session, _) = greeted(&Home::new());
    let prompts = session.ask("prompts/list", json!({}))["result"]["prompts"].clone();
    let mut told = String::new();
    for prompt in prompts.as_array().unwrap() {
        let asked =
            json!({ "name": prompt["name"], "arguments": { "goal": "Find out which kernel it has." } });
        let got = session.ask("prompts/get", asked)["result"]["messages"].clone();
        told += &format!(
            "{}: {}\n{}\n\n",
            prompt["name"],
            prompt["description"],
            got[0]["content"]["text"].as_str().unwrap()
        );
    }
    insta::assert_snapshot!(told);
    for wrong in [json!({ "name": "nosuch" }), json!({ "name": "run_in_vm" })] {
        assert_eq!(session.ask("prompts/get", wrong)["error"]["code"], -32602);
    }
    let mut complete = |name: &str, value: &str| {
        let reference = json!({ "type": "ref/prompt", "name": "run_in_vm" });
        let asked = json!({ "ref": reference, "argument": { "name": name, "value": value } });
        session.ask("completion/complete", asked)["result"]["completion"]["values"].clone()
    };
    assert_eq!(complete("environment", "debian:12-b"), json!(["debian:12-base", "debian:12-build"]));
    assert_eq!(complete("task_id", ""), json!([]));
    assert_eq!(complete("goal", "x"), json!([]));
    session.end();
}

#[test]
fn only_the_operator_lets_commands_run_on_the_host() {
    let home = Home::new().set("PATH", "/usr/bin:/bin").set_path("PYRO_QEMU", "no-such-qemu");
    let asked = |agrees: bool| json!({ "environment": "debian:12", "command": "echo hi", "allow_host_compat": agrees });
    let (mut session, _) = greeted(&home);
    let refused = call(&mut session, "vm_run", asked(true));
    assert_eq!(refused["_meta"]["pyro/error"]["code"], "not_allowed", "{refused}");
    assert_eq!(refused["_meta"]["pyro/error"]["message"], "allow_host_compat is turned off on this server");
    let unavailable = call(&mut session, "vm_run", asked(false));
    assert_eq!(unavailable["_meta"]["pyro/error"]["code"], "vm_unavailable", "{unavailable}");
    assert!(!unavailable.to_string().contains("allow"), "{unavailable}");
    session.end();

    let (mut session, _) = greeted_with(&home, ["--allow-host-compat"]);
    let ran = call(&mut session, "vm_run", asked(true))["structuredContent"].clone();
    assert_eq!((&ran["stdout"], &ran["execution_mode"]), (&json!("hi\n"), &json!("host_compat")));
    session.end();
}

/// The input stays open. The server notices at its next message.
#[test]
fn it_ends_when_its_client_reads_no_more() {
    let home = Home::new().set("PATH", "/usr/bin:/bin").set_path("PYRO_QEMU", "no-such-qemu");
    let start = || {
        let mut command = home.command(["mcp", "serve", "--allow-host-compat"]);
        let mut server = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut input = server.stdin.take().unwrap();
        let hello = json!({
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"},
        });
        for message in [
            json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello }),
            json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }),
        ] {
            writeln!(input, "{message}").unwrap();
        }
        let mut output = BufReader::new(server.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert!(line.contains("serverInfo"), "{line}");
        (server, input, output)
    };
    let ping = json!({ "jsonrpc": "2.0", "id": 2, "method": "ping" });

    let (mut server, mut input, output) = start();
    drop(output);
    writeln!(input, "{ping}").unwrap();
    assert_eq!(ended(&mut server), Some(0));

    // A command in flight ends with it.
    let (mut server, mut input, output) = start();
    let place = home.path("place");
    let command = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600", place.display());
    let arguments = json!({ "environment": "debian:12", "command": command, "allow_host_compat": true,
        "timeout_seconds": 600 });
    let call = json!({ "jsonrpc": "2.0", "id": 3, "method": "tools/call",
        "params": { "name": "vm_run", "arguments": arguments } });
    writeln!(input, "{call}").unwrap();
    wait_until(LONG, "the command", || place.exists());
    let running = format!("/proc/{}", std::fs::read_to_string(&place).unwrap().trim());
    assert!(std::path::Path::new(&running).exists());
    drop(output);
    writeln!(input, "{ping}").unwrap();
    assert_eq!(ended(&mut server), Some(0));
    wait_until(LONG, "the end of the command", || !std::path::Path::new(&running).exists());
}

/// Exit status of a server whose input and output this test has closed or keeps open.
fn ended(server: &mut std::process::Child) -> Option<i32> {
    let mut status = None;
    wait_until(LONG, "the end of the server", || {
        status = server.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap().code()
}
