//! `pyro rpc` with real VMs.

use serde_json::{Value, json};

use crate::harness::{ENVIRONMENT, PYRO, Sandbox};
use pyro_testkit::RpcClient;

fn client(sandbox: &Sandbox) -> RpcClient {
    let mut command = sandbox.program(PYRO);
    command.arg("rpc");
    RpcClient::new(command)
}

fn run(command: &str) -> Value {
    json!({ "environment": ENVIRONMENT, "command": command, "output": "stream", "timeout_seconds": 300 })
}

#[test]
fn output_beyond_the_window_waits_while_other_calls_go_on() {
    let sandbox = Sandbox::new();
    let mut client = client(&sandbox);
    client.acknowledges = false;
    let much = client.begin("run_in_vm", run("head -c 3000000 /dev/zero; echo end >&2"));
    while client.output(much, "stdout").len() < (1 << 20) - (256 << 10) {
        client.receive();
    }
    let task = client.call("create_task", json!({ "environment": ENVIRONMENT }))["task_id"].clone();
    let ran = client
        .call("exec_task", json!({ "task_id": task, "command": "echo hi; echo $WHO", "env": {"WHO": "me"} }));
    assert_eq!((&ran["stdout"], &ran["sequence"]), (&json!("hi\nme\n"), &json!(1)));
    assert!(client.output(much, "stdout").len() <= 1 << 20);
    client.acknowledges = true;
    client.notify("ack", json!({ "id": much, "bytes": client.output(much, "stdout").len() }));
    let answer = client.answer(much);
    assert_eq!(
        (&answer["result"]["exit_code"], &answer["result"]["execution_mode"]),
        (&json!(0), &json!("guest_vsock"))
    );
    assert_eq!(
        (client.output(much, "stdout").len(), client.output(much, "stderr")),
        (3_000_000, b"end\n".to_vec())
    );

    let detached = client.call("detach_task", json!({ "task_id": task, "command": "echo detached" }));
    let follow = client.begin("follow_task", json!({ "task_id": task, "sequence": detached["sequence"] }));
    let followed = client.answer(follow);
    assert_eq!(
        (&followed["result"]["outcome"], client.output(follow, "stdout")),
        (&json!("exited"), b"detached\n".to_vec())
    );
    let logs = client.call("logs_task", json!({ "task_id": task }));
    assert_eq!((&logs["logs"]["count"], &logs["next_after"]), (&json!(2), &Value::Null));
    assert_eq!(
        client.call("logs_task", json!({ "task_id": task, "after": 1 }))["logs"]["entries"][0]["sequence"],
        2
    );
    let exec = |command: &str| json!({ "task_id": task, "command": command });
    client.call("exec_task", exec("head -c 16777216 /dev/zero"));
    client.call("exec_task", exec("true"));
    let page = client.call("logs_task", json!({ "task_id": task }));
    assert_eq!((&page["logs"]["count"], &page["next_after"]), (&json!(3), &json!(3)));
    let rest = client.call("logs_task", json!({ "task_id": task, "after": page["next_after"] }));
    assert_eq!((&rest["logs"]["entries"][0]["command"], &rest["next_after"]), (&json!("true"), &Value::Null));
    client.call(
        "write_task_file",
        json!({ "task_id": task, "path": "a", "content": "AP8=", "encoding": "base64" }),
    );
    let file = client.call("read_task_file", json!({ "task_id": task, "path": "a" }));
    assert_eq!((&file["content"], &file["encoding"]), (&json!("AP8="), &json!("base64")));
    client.call("delete_task", json!({ "task_id": task }));
    client.end();
}

#[test]
fn commands_take_text_as_their_input() {
    let sandbox = Sandbox::new();
    let mut client = client(&sandbox);
    // More than one frame of the channel holds.
    let text = "line \u{20ac}\n".repeat(50_000);
    let ran = client.call(
        "run_in_vm",
        json!({ "environment": ENVIRONMENT, "command": "cat", "stdin": text, "timeout_seconds": 300 }),
    );
    assert!(ran["stdout"] == text, "{} bytes", ran["stdout"].as_str().unwrap().len());
    let task = client.call("create_task", json!({ "environment": ENVIRONMENT }))["task_id"].clone();
    let ran = client.call("exec_task", json!({ "task_id": task, "argv": ["cat"], "stdin": "" }));
    assert_eq!((&ran["stdout"], &ran["exit_code"]), (&json!(""), &json!(0)));
    let ran = client.call("exec_task", json!({ "task_id": task, "argv": ["wc", "-c"], "stdin": text }));
    assert_eq!(ran["stdout"], format!("{}\n", text.len()));
    let detached = json!({ "task_id": task, "command": "cat", "stdin": "lost" });
    let call = client.begin("detach_task", detached);
    let refused = client.answer(call);
    assert_eq!(refused["error"]["data"]["code"], "invalid_input", "{refused}");
    client.call("delete_task", json!({ "task_id": task }));
    client.end();
}

#[test]
fn a_run_that_is_cancelled_or_whose_client_goes_leaves_nothing() {
    let sandbox = Sandbox::new();
    let mut client = client(&sandbox);
    let call = client.begin("run_in_vm", run("echo begun; sleep 500"));
    client.event(call, |event| event["type"] == "output");
    client.notify("cancel", json!({ "id": call }));
    let answer = client.answer(call);
    assert_eq!(answer["error"]["data"]["code"], "cancelled", "{answer}");
    let call = client.begin("run_in_vm", run("echo begun; sleep 500"));
    client.event(call, |event| event["type"] == "output");
    client.end();
    // What the sandbox checks at its end.
}
