//! Every text that a model reads from a running server: none invites it to run commands on the host.

use serde_json::{Value, json};

use crate::harness::Home;
use pyro_testkit::Session;

/// How the mode is called anywhere.
const NAMES: [&str; 3] = ["host_compat", "host-compat", "compat mode"];

/// No VM can run, so errors have the most to say.
fn server(home: &Home, flags: &[&str]) -> Session {
    let mut command = home.command(["mcp", "serve"]);
    command.args(flags);
    let mut session = Session::started(command);
    let client = json!({
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"},
    });
    session.ask("initialize", client);
    session.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }));
    session
}

/// All texts of an answer. Names of properties and keys do not count: the contract fixes them.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => match serde_json::from_str::<Value>(text) {
            Ok(inner @ (Value::Object(_) | Value::Array(_))) => texts(&inner, found),
            _ => found.push(text.clone()),
        },
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(object) => {
            object.iter().filter(|(key, _)| *key != "required").for_each(|(_, item)| texts(item, found))
        }
        _ => {}
    }
}

#[test]
fn no_text_that_a_model_reads_invites_it_to_use_the_host() {
    let home = Home::new().set("PATH", "/usr/bin:/bin").set_path("PYRO_QEMU", "no-such-qemu");
    let mut found = Vec::new();
    for flags in
        [&[][..], &["--read-only"], &["--profile", "task"], &["--max-mem-mib", "512", "--no-network"]]
    {
        let mut session = server(&home, flags);
        let mut ask = |method: &str, params: Value| {
            let answer = session.ask(method, params);
            texts(&answer, &mut found);
            answer
        };
        let client = json!({
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"},
        });
        ask("initialize", client);
        let tools = ask("tools/list", json!({}))["result"]["tools"].as_array().unwrap().clone();
        let prompts = ask("prompts/list", json!({}))["result"]["prompts"].as_array().unwrap().clone();
        for prompt in prompts {
            ask("prompts/get", json!({ "name": prompt["name"], "arguments": { "goal": "x" } }));
        }
        ask("resources/templates/list", json!({}));
        let resources = ask("resources/list", json!({}))["result"]["resources"].as_array().unwrap().clone();
        for resource in resources {
            ask("resources/read", json!({ "uri": resource["uri"] }));
        }
        // Each tool with plausible arguments, with wrong ones, and with the argument that is refused.
        let plausible = json!({
            "environment": "debian:12", "command": "true", "vm_id": "ffffffffffff", "task_id": "ffffffffffff",
            "sequence": 1, "path": "x", "content": "x", "ttl_seconds": 600,
        });
        for tool in &tools {
            for more in
                [json!({}), json!({ "environment": 7, "vm_id": 7, "task_id": 7 }), json!({ "mem_mib": 1 })]
            {
                let mut arguments = plausible.clone();
                arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                ask("tools/call", json!({ "name": tool["name"], "arguments": arguments }));
            }
        }
        session.end();
    }
    found.sort();
    found.dedup();
    assert!(found.len() > 150, "the server said only {} things", found.len());
    // The word for where a command ran is part of the contract's results.
    found.retain(|text| text != "host_compat");
    let suspicious: Vec<_> =
        found.iter().filter(|text| NAMES.iter().any(|name| text.to_lowercase().contains(name))).collect();
    assert_eq!(suspicious, Vec::<&String>::new());
    // The contract fixes the beginning of this one; what it says to a person about the remedy is left out.
    let unavailable: Vec<_> = found.iter().filter(|text| text.contains("host compatibility")).collect();
    assert!(!unavailable.is_empty());
    for text in unavailable {
        let message = text.lines().next().unwrap();
        assert!(
            message.starts_with("guest boot is unavailable and host compatibility mode is disabled: "),
            "{text}"
        );
        assert!(!text.contains("Set ") && !text.contains("opt into"), "{text}");
    }
}

#[test]
fn the_environment_of_the_server_may_allow_what_its_clients_may_not() {
    let arguments =
        |allow| json!({ "environment": "debian:12", "command": "echo hi", "allow_host_compat": allow });
    let ran = |home: &Home, flags: &[&str]| {
        let mut session = server(home, flags);
        let answer = session.ask("tools/call", json!({ "name": "vm_run", "arguments": arguments(true) }));
        session.end();
        answer["result"].clone()
    };
    let home = |value: &str| {
        let home = Home::new().set("PATH", "/usr/bin:/bin").set_path("PYRO_QEMU", "no-such-qemu");
        home.set("PYRO_MCP_ALLOW_HOST_COMPAT", value)
    };
    assert_eq!(ran(&home("1"), &[])["structuredContent"]["stdout"], "hi\n");
    for (value, flags) in [("0", &[][..]), ("", &[]), ("1", &["--no-host-compat"])] {
        assert_eq!(ran(&home(value), flags)["_meta"]["pyro/error"]["code"], "not_allowed", "{value:?}");
    }
    let refused = home("yes").pyro(["mcp", "serve"]);
    let expected = "[error] PYRO_MCP_ALLOW_HOST_COMPAT is set to `yes`; expected 1 to allow it, or 0\n";
    assert_eq!((refused.code(), refused.stderr.as_str()), (1, expected));
}
