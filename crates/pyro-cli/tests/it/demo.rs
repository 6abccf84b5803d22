//! `pyro demo` without a VM: what a model receives, how its mistakes are reported to it, and how the demo ends.

use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use rustix::net;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{Ended, Home};
use pyro_testkit::model::{Answer, Model, calls, says};

/// A model with these replies, followed by plain text.
fn saying(messages: impl IntoIterator<Item = Value>) -> Model {
    let messages: Vec<Value> = messages.into_iter().collect();
    Model::new(move |round, _| Answer::Message(messages.get(round).cloned().unwrap_or_else(|| says("Done."))))
}

fn demo(model: &Model) -> Ended {
    demo_at(&model.base_url(), &[])
}

fn demo_at(base_url: &str, flags: &[&str]) -> Ended {
    let home = Home::new();
    let mut ended =
        home.ended(home.command(["demo", "ollama", "--base-url", base_url]).args(flags).output().unwrap());
    ended.stdout = ended.stdout.replace(base_url.trim_end_matches('/'), "[URL]");
    ended
}

/// The lines of a demo that must fail; the last one is the reason.
fn failure(ended: &Ended) -> &str {
    assert_eq!((ended.code(), ended.stderr.as_str()), (1, ""), "{ended:?}");
    &ended.stdout[ended.stdout.find("[error] ").unwrap()..]
}

#[test]
fn the_document_is_all_there_is_even_of_a_failure() {
    let home = Home::new().set_path("PYRO_QEMU", "no-such-qemu");
    assert_eq!(home.pyro(["demo"]).json_error()["kind"], "vm_unavailable");
}

#[test]
fn the_request_is_what_the_protocol_says_and_no_more() {
    let model = saying([calls([("vm_list_environments", json!("{}"))])]);
    demo_at(&(model.base_url() + "/"), &["--model", "some-model"]);
    let requests = model.requests();
    assert_eq!(requests.len(), 2);
    let head = requests[0].head.to_lowercase();
    assert!(head.contains("\r\ncontent-type: application/json\r\n"), "{head}");
    assert!(!head.contains("authorization") && !head.contains("cookie"), "{head}");
    let mut body = requests[0].body.clone();
    assert_eq!(body["messages"].as_array().unwrap().len(), 1);
    body["messages"][0]["content"] =
        body["messages"][0]["content"].as_str().unwrap().replace(&requests[0].command(), "[COMMAND]").into();
    for tool in body["tools"].as_array().unwrap() {
        assert_eq!(tool["function"]["parameters"]["additionalProperties"], false, "{tool}");
    }
    insta::assert_snapshot!(serde_json::to_string_pretty(&body).unwrap());

    let messages = requests[1].body["messages"].as_array().unwrap();
    assert_eq!(
        messages[1],
        json!({ "role": "assistant", "content": "", "tool_calls": [
        { "id": "call_0", "type": "function", "function": { "name": "vm_list_environments", "arguments": "{}" } }
    ] })
    );
    assert_eq!(messages[2]["role"], "tool");
    assert_eq!(messages[2]["tool_call_id"], "call_0");
    assert_eq!(messages.len(), 3);
}

#[test]
fn a_model_that_only_talks_has_proved_nothing() {
    let model = saying([says("Sure!\n[done] command execution succeeded")]);
    insta::assert_snapshot!(demo(&model).all(), @r"
    exit: 1
    --- stdout
    [ollama] starting tool demo with model=llama3.2:3b
    [model] input user
    [model] output assistant
    [ollama] no tool calls returned; stopping loop
    [error] demo did not execute a successful vm_run or vm_exec
    --- stderr
    ");
    let home = Home::new();
    let words = home.command(["demo", "ollama", "-v", "--base-url", &model.base_url()]).output().unwrap();
    let lines = home.ended(words).stdout;
    assert!(lines.contains("\n[model] output assistant: Done.\n"), "{lines}");
}

#[test]
fn arguments_come_in_every_form() {
    let forms = [json!("{}"), json!({}), json!(""), json!(null)];
    let model = saying([calls(forms.map(|form| ("vm_list_environments", form)))]);
    insta::assert_snapshot!(demo(&model).stdout, @r"
    [ollama] starting tool demo with model=llama3.2:3b
    [model] input user
    [model] output assistant
    [model] tool_call vm_list_environments
    [model] tool_call vm_list_environments
    [model] tool_call vm_list_environments
    [model] tool_call vm_list_environments
    [tool] calling vm_list_environments
    [tool] vm_list_environments succeeded
    [tool] result vm_list_environments
    [tool] calling vm_list_environments
    [tool] vm_list_environments succeeded
    [tool] result vm_list_environments
    [tool] calling vm_list_environments
    [tool] vm_list_environments succeeded
    [tool] result vm_list_environments
    [tool] calling vm_list_environments
    [tool] vm_list_environments succeeded
    [tool] result vm_list_environments
    [model] input tool
    [model] input tool
    [model] input tool
    [model] input tool
    [model] output assistant
    [ollama] no tool calls returned; stopping loop
    [error] demo did not execute a successful vm_run or vm_exec
    ");
    for told in model.told() {
        assert_eq!(told[0]["name"], "debian:12", "{told}");
    }
}

#[test]
fn mistakes_are_explained_to_the_model() {
    let run = |more: Value| {
        let mut arguments = json!({ "environment": "debian:12", "command": "true" });
        arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        arguments
    };
    let model = saying([calls([
        ("vm_make", json!({ "a": 1 })),
        ("vm_run", json!({ "environment": "debian:12" })),
        ("vm_run", json!({ "profile": "windows:11", "command": "true" })),
        ("vm_run", run(json!({ "profile": "debian:12" }))),
        ("vm_run", run(json!({ "network": "perhaps" }))),
        ("vm_run", run(json!({ "vcpu_count": "two" }))),
        ("vm_run", run(json!({ "vcpu_count": "9" }))),
        ("vm_run", run(json!({ "timeout_seconds": "0" }))),
        ("vm_create", json!({ "environment": "debian:12", "command": "true" })),
        ("vm_create", json!({ "environment": "debian:12", "allow_host_compat": [] })),
        ("vm_start", json!({ "vm_id": "<vm_id>" })),
        ("vm_exec", json!({ "vm_id": "9775b3af1eeb", "command": "true" })),
        ("vm_exec", json!({ "vm_id": "<vm_id>", "profile": "debian:12" })),
        ("vm_exec", json!({ "vm_id": "<vm_id>" })),
        ("vm_run", run(json!({ "vm_id": "<vm_id>" }))),
        ("vm_status", json!({})),
    ])]);
    let ended = demo(&model);
    assert_eq!(failure(&ended), "[error] demo did not execute a successful vm_run or vm_exec\n");
    let told: Vec<String> = model.told().iter().map(Value::to_string).collect();
    insta::assert_snapshot!(told.join("\n"), @r#"
    {"arguments":{"a":1},"error":"unknown tool 'vm_make'","error_type":"unknown_tool","hint":"the tools are: vm_run, vm_list_environments, vm_create, vm_start, vm_exec, vm_status","ok":false,"tool_name":"vm_make"}
    {"arguments":{"environment":"debian:12"},"error":"`command` is required","error_type":"invalid_input","ok":false,"tool_name":"vm_run"}
    {"arguments":{"command":"true","environment":"windows:11"},"error":"unknown environment 'windows:11'; expected one of: debian:12, debian:12-agent, debian:12-base, debian:12-build","error_type":"invalid_input","ok":false,"tool_name":"vm_run"}
    {"arguments":{"command":"true","environment":"debian:12","profile":"debian:12"},"error":"vm_run has no argument 'profile'","error_type":"invalid_input","hint":"use `environment` instead of `profile`","ok":false,"tool_name":"vm_run"}
    {"arguments":{"command":"true","environment":"debian:12","network":"perhaps"},"error":"network must be a boolean","error_type":"invalid_input","hint":"write network as true or false, without quotes","ok":false,"tool_name":"vm_run"}
    {"arguments":{"command":"true","environment":"debian:12","vcpu_count":"two"},"error":"vcpu_count must be an integer","error_type":"invalid_input","ok":false,"tool_name":"vm_run"}
    {"arguments":{"command":"true","environment":"debian:12","vcpu_count":"9"},"error":"vcpu_count must be between 1 and 8","error_type":"invalid_input","ok":false,"tool_name":"vm_run"}
    {"arguments":{"command":"true","environment":"debian:12","timeout_seconds":"0"},"error":"timeout_seconds must be positive","error_type":"invalid_input","hint":"set it to at least 1 second; the default is 30","ok":false,"tool_name":"vm_run"}
    {"arguments":{"command":"true","environment":"debian:12"},"error":"vm_create has no argument 'command'","error_type":"invalid_input","ok":false,"tool_name":"vm_create"}
    {"arguments":{"allow_host_compat":[],"environment":"debian:12"},"error":"allow_host_compat must be a boolean","error_type":"invalid_input","hint":"write allow_host_compat as true or false, without quotes","ok":false,"tool_name":"vm_create"}
    {"arguments":{"vm_id":"<vm_id>"},"error":"vm '<vm_id>' does not exist","error_type":"not_found","hint":"call vm_create first and use the vm_id from its result","ok":false,"tool_name":"vm_start"}
    {"arguments":{"command":"true","vm_id":"9775b3af1eeb"},"error":"vm '9775b3af1eeb' does not exist","error_type":"not_found","hint":"call vm_create first and use the vm_id from its result","ok":false,"tool_name":"vm_exec"}
    {"arguments":{"profile":"debian:12","vm_id":"<vm_id>"},"error":"vm_exec has no argument 'profile'","error_type":"invalid_input","ok":false,"tool_name":"vm_exec"}
    {"arguments":{"vm_id":"<vm_id>"},"error":"vm '<vm_id>' does not exist","error_type":"not_found","hint":"call vm_create first and use the vm_id from its result","ok":false,"tool_name":"vm_exec"}
    {"arguments":{"command":"true","environment":"debian:12","vm_id":"<vm_id>"},"error":"vm_run has no argument 'vm_id'","error_type":"invalid_input","ok":false,"tool_name":"vm_run"}
    {"arguments":{},"error":"vm_id is required","error_type":"invalid_input","ok":false,"tool_name":"vm_status"}
    "#);
    let line = "\n[tool] vm_run failed: vcpu_count must be between 1 and 8 \
                args={\"command\":\"true\",\"environment\":\"debian:12\",\"vcpu_count\":\"9\"}\n";
    assert!(ended.stdout.contains(line), "{}", ended.stdout);
}

#[test]
fn what_a_model_agrees_to_is_not_agreed() {
    let arguments = json!({ "environment": "debian:12", "command": "true", "allow_host_compat": true });
    let model = saying([calls([("vm_run", arguments)])]);
    let home = Home::new().set_path("PYRO_QEMU", "no-such-qemu");
    let ended = home.pyro(["demo", "ollama", "--base-url", &model.base_url()]);
    failure(&ended);
    let told = &model.told()[0];
    assert_eq!((&told["ok"], &told["error_type"]), (&json!(false), &json!("vm_unavailable")), "{told}");
}

#[test]
fn a_malformed_tool_call_ends_the_demo_before_any_of_its_reply() {
    let good = json!({ "id": "1", "function": { "name": "vm_list_environments", "arguments": "{}" } });
    let malformed = [
        json!({ "function": { "name": "vm_run", "arguments": "{}" } }),
        json!({ "id": "2" }),
        json!({ "id": "2", "function": { "name": "", "arguments": "{}" } }),
        json!({ "id": "2", "function": { "name": "vm_run", "arguments": "environment: debian:12" } }),
        json!({ "id": "2", "function": { "name": "vm_run", "arguments": [1] } }),
    ];
    let failures = malformed.map(|call| {
        let model = saying([json!({ "content": null, "tool_calls": [good, call] })]);
        let ended = demo(&model);
        assert!(!ended.stdout.contains("[tool]"), "{ended:?}");
        assert_eq!(model.requests().len(), 1);
        failure(&ended).to_owned()
    });
    insta::assert_snapshot!(failures.concat(), @r"
    [error] malformed tool call: it has no `id`
    [error] malformed tool call: it has no `function`
    [error] malformed tool call: its function has no `name`
    [error] malformed tool call: the arguments of vm_run are not JSON: expected value at line 1 column 1
    [error] malformed tool call: the arguments of vm_run are not an object
    ");
}

#[test]
fn a_model_that_never_comes_to_an_end_is_stopped() {
    let model = Model::new(|_, _| Answer::Message(calls([("vm_list_environments", json!({}))])));
    let ended = demo(&model);
    assert_eq!(failure(&ended), "[error] tool-calling loop exceeded maximum rounds\n");
    assert_eq!(model.requests().len(), 12);
    assert_eq!(ended.stdout.matches("[tool] vm_list_environments succeeded\n").count(), 12);
}

/// A port that no process listens on. No other process can get it while the socket exists.
fn port_without_server() -> (u16, OwnedFd) {
    let socket = net::socket(net::AddressFamily::INET, net::SocketType::STREAM, None).unwrap();
    net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = SocketAddrV4::try_from(net::getsockname(&socket).unwrap()).unwrap();
    (address.port(), socket)
}

/// Answers any request with plain HTTP, and reads all of it, because closing early might lose the answer.
fn server_without_tls() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").unwrap();
        std::io::copy(&mut stream, &mut std::io::sink())
    });
    port
}

#[test]
fn an_endpoint_that_cannot_be_called_is_named_with_the_cause() {
    let answers: [(&str, &str, &[u8]); 4] = [
        ("500 Internal Server Error", "", b"{\"error\": {\"message\": \"out of memory\"}}"),
        ("404 Not Found", "", b"{\"error\": {\"message\": \"model 'llama3.2:3b' not found\"}}"),
        ("302 Found", "location: http://127.0.0.1:9/\r\n", b""),
        ("200 OK", "", &[b' '; 5 << 20]),
    ];
    let mut failures: Vec<String> = answers
        .into_iter()
        .map(|(status, headers, body)| {
            let body = body.to_vec();
            let model = Model::new(move |_, _| Answer::Http(status, headers, body.clone()));
            failure(&demo(&model)).to_owned()
        })
        .collect();
    let (closed, _taken) = port_without_server();
    failures.push(failure(&demo_at(&format!("http://127.0.0.1:{closed}/v1"), &[])).to_owned());
    let plain = server_without_tls();
    failures.push(failure(&demo_at(&format!("https://127.0.0.1:{plain}/v1"), &[])).to_owned());
    failures.push(failure(&demo_at("https://someone:secret@example.com/v1", &[])).to_owned());
    insta::assert_snapshot!(failures.concat(), @r"
    [error] failed to call Ollama. Ensure `ollama serve` is running and the model is available.
      caused by: [URL]/chat/completions: the server returned 500 Internal Server Error: out of memory
    [error] failed to call Ollama. Ensure `ollama serve` is running and the model is available.
      caused by: [URL]/chat/completions: the server returned 404 Not Found: model 'llama3.2:3b' not found
    [error] failed to call Ollama. Ensure `ollama serve` is running and the model is available.
      caused by: [URL]/chat/completions: the server returned 302 Found
    [error] failed to call Ollama. Ensure `ollama serve` is running and the model is available.
      caused by: [URL]/chat/completions: the response is too large: the maximum is 4194304 bytes
    [error] failed to call Ollama. Ensure `ollama serve` is running and the model is available.
      caused by: [URL]/chat/completions: Connection refused (os error 111)
    [error] failed to call Ollama. Ensure `ollama serve` is running and the model is available.
      caused by: [URL]/chat/completions: received corrupt message of type InvalidContentType
    [error] failed to call Ollama. Ensure `ollama serve` is running and the model is available.
      caused by: --base-url: the address must not contain `@`: credentials are not sent
    ");
}

#[test]
fn an_answer_that_is_no_chat_completion_is_refused() {
    let bodies =
        ["", "<html></html>", "{}", "[]", "{\"choices\": []}", "{\"choices\": [{\"text\": \"hi\"}]}"];
    let failures = bodies.map(|body| {
        let model = Model::new(move |_, _| Answer::Http("200 OK", "", body.into()));
        failure(&demo(&model)).to_owned()
    });
    insta::assert_snapshot!(failures.concat(), @r"
    [error] the endpoint's response is not a chat completion: it is not JSON: EOF while parsing a value at line 1 column 0
    [error] the endpoint's response is not a chat completion: it is not JSON: expected value at line 1 column 1
    [error] the endpoint's response is not a chat completion: it has no `choices` with a `message`
    [error] the endpoint's response is not a chat completion: it has no `choices` with a `message`
    [error] the endpoint's response is not a chat completion: it has no `choices` with a `message`
    [error] the endpoint's response is not a chat completion: it has no `choices` with a `message`
    ");
}

#[test]
fn a_proxy_is_not_asked_for_this_machine() {
    let model = saying([]);
    let home = Home::new().set("http_proxy", "http://127.0.0.1:9").set("ALL_PROXY", "http://127.0.0.1:9");
    let ended = home.pyro(["demo", "ollama", "--base-url", &model.base_url()]);
    assert_eq!(failure(&ended), "[error] demo did not execute a successful vm_run or vm_exec\n");
}

#[test]
fn a_signal_ends_the_wait_for_an_answer() {
    let (sender, asked) = std::sync::mpsc::channel();
    let model = Model::new(move |_, _| {
        sender.send(()).unwrap();
        Answer::Never
    });
    let home = Home::new();
    let pyro = home.command(["demo", "ollama", "--base-url", &model.base_url()]).spawn().unwrap();
    asked.recv().unwrap();
    kill_process(Pid::from_child(&pyro), Signal::INT).unwrap();
    let ended = home.ended(pyro.wait_with_output().unwrap());
    insta::assert_snapshot!(ended.all(), @r"
    exit: 130
    --- stdout
    [ollama] starting tool demo with model=llama3.2:3b
    [model] input user
    [error] cancelled
    --- stderr
    ");
}

#[test]
fn a_reader_that_goes_away_ends_the_demo_in_silence() {
    let model = Model::new(|_, _| Answer::Message(calls([("vm_list_environments", json!({}))])));
    let home = Home::new();
    let mut command = home.command(["demo", "ollama", "--base-url", &model.base_url()]);
    let mut pyro = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(pyro.stdout.take());
    let ended = home.ended(pyro.wait_with_output().unwrap());
    assert_eq!((ended.code(), ended.stderr.as_str()), (141, ""));
}

#[test]
fn a_full_disk_does_not_hide_why_the_demo_failed() {
    let model = saying([]);
    let home = Home::new();
    let mut command = home.command(["demo", "ollama", "--base-url", &model.base_url()]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let ended = home.ended(command.stdout(full).output().unwrap());
    insta::assert_snapshot!(ended.all(), @r"
    exit: 1
    --- stdout
    --- stderr
    [error] cannot write to standard output
      caused by: No space left on device (os error 28)
    ");
}
