//! Two clients of `pyro mcp serve --transport http` with real VMs: neither finds, enters or stops what the other one created.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::harness::{ENVIRONMENT, PYRO, Sandbox};
use pyro_testkit::http::HttpServer;

const ALICE: &str = "alice-alice-alice";
const BOB: &str = "bob-bob-bob-bob-bob";

#[test]
fn a_running_task_is_out_of_reach_for_another_client() {
    let sandbox = Sandbox::new();
    let tokens = sandbox.path("tokens");
    fs::write(&tokens, format!("alice {ALICE}\nbob {BOB}\n")).unwrap();
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = sandbox.program(PYRO);
    command.args(["mcp", "serve", "--token-file"]).arg(&tokens);
    let server = HttpServer::start(&mut command);
    let call = |token: &str, tool: &str, arguments: Value| {
        server.call_as(token, "tools/call", json!({ "name": tool, "arguments": arguments })).result()
    };
    let created =
        call(ALICE, "task_create", json!({ "environment": ENVIRONMENT }))["structuredContent"].clone();
    assert_eq!(created["owner"], "token:alice", "{created}");
    let id = created["task_id"].as_str().unwrap();
    let with = |more: Value| {
        let mut arguments = json!({ "task_id": id });
        arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        arguments
    };
    let written = with(json!({ "path": "note", "content": "a secret" }));
    assert_eq!(call(ALICE, "task_write_file", written)["structuredContent"]["bytes"], 8);
    let detached = with(json!({ "command": "sleep 300; cat note", "detach": true, "timeout_seconds": 500 }));
    assert_eq!(call(ALICE, "task_exec", detached)["structuredContent"]["sequence"], 1);

    for (tool, more) in [
        ("task_status", json!({})),
        ("task_exec", json!({ "command": "cat note" })),
        ("task_read_file", json!({ "path": "note" })),
        ("task_write_file", json!({ "path": "note", "content": "x" })),
        ("task_logs", json!({})),
        ("task_wait", json!({ "sequence": 1 })),
        ("task_kill", json!({ "sequence": 1 })),
        ("task_extend", json!({ "ttl_seconds": 3600 })),
        ("task_stop", json!({})),
        ("task_delete", json!({})),
    ] {
        let refused = call(BOB, tool, with(more));
        assert_eq!(refused["_meta"]["pyro/error"]["code"], "not_found", "{tool}: {refused}");
    }
    assert_eq!(call(BOB, "task_list", json!({}))["structuredContent"]["count"], 0);

    // The command still runs, in an unchanged task.
    let entry = &call(ALICE, "task_logs", with(json!({})))["structuredContent"]["entries"][0];
    assert_eq!((&entry["outcome"], &entry["command"]), (&"running".into(), &"sleep 300; cat note".into()));
    assert_eq!(
        call(ALICE, "task_read_file", with(json!({ "path": "note" })))["structuredContent"]["content"],
        "a secret"
    );
    assert_eq!(
        call(ALICE, "task_kill", with(json!({ "sequence": 1 })))["structuredContent"]["outcome"],
        "killed"
    );
    assert_eq!(call(ALICE, "task_delete", with(json!({})))["structuredContent"]["deleted"], true);
    drop(server);
    sandbox.wait_until_clean();
}
