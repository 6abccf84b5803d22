//! `pyro demo` with real VMs, and with a model that plays by a script.

use pyro_engine::{VmSpec, VmState};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{ENVIRONMENT, Ended, LONG, PYRO, Running, Sandbox, never, quiet, wait_until};
use crate::network::pyro_in_world;
use pyro_testkit::model::{Answer, Model, calls, says};

fn start_demo(sandbox: &Sandbox, model: &Model, flags: &[&str]) -> Running {
    Running::start(
        sandbox.program(PYRO).args(["demo", "ollama", "--base-url", &model.base_url()]).args(flags),
    )
}

fn demo(sandbox: &Sandbox, model: &Model, flags: &[&str]) -> Ended {
    start_demo(sandbox, model, flags).finish()
}

/// A model whose first replies call these tools, one each; `[COMMAND]` is the command that it is asked to run.
fn calling<const N: usize>(tools: [(&'static str, Value); N]) -> Model {
    Model::new(move |round, request| {
        let message = match tools.get(round) {
            Some((name, arguments)) => {
                let arguments = arguments.to_string().replace("[COMMAND]", &request.command());
                calls([(*name, Value::from(arguments))])
            }
            None => says("It has worked."),
        };
        Answer::Message(message)
    })
}

/// The arguments of `vm_run`.
fn run(command: &str) -> Value {
    json!({ "environment": ENVIRONMENT, "command": command })
}

/// The reason that a failed demo gives; nothing is on standard error.
fn failure(ended: &Ended) -> &str {
    assert_eq!((ended.code(), ended.stderr.as_str()), (1, ""), "{ended:?}");
    &ended.text()[ended.text().find("[error] ").unwrap()..]
}

#[test]
fn one_command_is_run_and_its_result_printed() {
    let sandbox = Sandbox::new();
    let ended = sandbox.pyro(["demo"]);
    assert_eq!(ended.code(), 0, "{ended:?}");
    let result = ended.json();
    assert_eq!((&result["command"], &result["environment"]), (&json!("git --version"), &json!(ENVIRONMENT)));
    assert_eq!((&result["exit_code"], &result["execution_mode"]), (&json!(0), &json!("guest_vsock")));
    assert!(result["stdout"].as_str().unwrap().starts_with("git version "), "{result}");
    assert_eq!(result["cleanup"]["reason"], "post_exec_cleanup");
    assert_eq!(ended.text(), format!("{result:#}\n"));
}

/// No traffic leaves this host: the demo's guest cannot reach the page, and another guest serves it to itself.
#[test]
fn the_command_for_the_network_prints_the_status_of_the_page_and_trusts_nobody_else() {
    let sandbox = Sandbox::new();
    let ended = Running::start(pyro_in_world(&sandbox).args(["demo", "--network"])).finish();
    assert_eq!(ended.code(), 0, "whatever became of the command: {ended:?}");
    assert_eq!(ended.stderr, "");
    let result: Value = serde_json::from_str(ended.text()).unwrap();
    assert_eq!(result["stdout"], "", "{result}");
    assert_ne!(result["exit_code"], 0, "{result}");
    let serve = r#"cd /tmp && {
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
            -keyout key -out certificate -subj /CN=test -addext subjectAltName=DNS:example.com
        echo 127.0.0.1 example.com >> /etc/hosts
        mkfifo started
        openssl s_server -www -accept 443 -cert certificate -key key > started &
        exec 3< started
        until [ "$word" = ACCEPT ]; do read -r word <&3 || exit 99; done
    } > /dev/null 2>&1"#;
    let command = result["command"].as_str().unwrap();
    let trust = "cp certificate /etc/ssl/certs/$(openssl x509 -noout -hash -in certificate).0";
    let line = format!("{serve}; {command}; echo untrusted: $?; {trust}; {command}; echo trusted: $?");
    let ended = sandbox.run(["--timeout-seconds", "300"], &line);
    assert_eq!(ended.success(), "untrusted: 1\n200\ntrusted: 0\n", "{ended:?}");
}

/// Every mistake of small models that the demo corrects.
fn mistaken() -> Model {
    Model::new(|round, request| {
        let command = request.command();
        let message = match round {
            0 => calls([
                ("vm_make", json!(null)),
                ("vm_run", json!({ "profile": ENVIRONMENT, "command": command, "network": "perhaps" })),
            ]),
            1 => calls([
                ("vm_list_environments", json!("")),
                (
                    "vm_create",
                    json!(
                        r#"{"profile": "debian:12", "vcpu_count": "1", "mem_mib": "512", "network": "off"}"#
                    ),
                ),
            ]),
            2 => calls([
                ("vm_status", json!({ "vm_id": "<vm_id>" })),
                ("vm_exec", json!({ "vm_id": "{vm_id_returned_by_vm_create}", "command": command })),
            ]),
            _ => says("The command has run."),
        };
        Answer::Message(message)
    })
}

/// The output that is the same in every run.
fn stable(lines: &str, model: &Model) -> String {
    let requests = model.requests();
    let command = requests[0].command();
    let told = model.told();
    let vm_id = told[3]["vm_id"].as_str().unwrap();
    let stdout = told[5]["stdout"].as_str().unwrap().trim();
    lines.replace(&command, "[COMMAND]").replace(vm_id, "[ID]").replace(stdout, "[STDOUT]")
}

#[test]
fn a_model_that_makes_mistakes_comes_to_its_proof() {
    let sandbox = Sandbox::new();
    let model = mistaken();
    let ended = demo(&sandbox, &model, &[]);
    assert_eq!((ended.code(), ended.stderr.as_str()), (0, ""), "{ended:?}");
    insta::assert_snapshot!(stable(ended.text(), &model), @r#"
    [ollama] starting tool demo with model=llama3.2:3b
    [model] input user
    [model] output assistant
    [model] tool_call vm_make
    [model] tool_call vm_run
    [tool] calling vm_make
    [tool] vm_make failed: unknown tool 'vm_make' args={}
    [tool] result vm_make
    [tool] calling vm_run
    [tool] vm_run failed: network must be a boolean args={"command":"[COMMAND]","environment":"debian:12","network":"perhaps"}
    [tool] result vm_run
    [model] input tool
    [model] input tool
    [model] output assistant
    [model] tool_call vm_list_environments
    [model] tool_call vm_create
    [tool] calling vm_list_environments
    [tool] vm_list_environments succeeded
    [tool] result vm_list_environments
    [tool] calling vm_create
    [tool] vm_create succeeded
    [tool] result vm_create
    [model] input tool
    [model] input tool
    [model] output assistant
    [model] tool_call vm_status
    [model] tool_call vm_exec
    [tool] resolved vm_id placeholder
    [tool] calling vm_status
    [tool] vm_status succeeded
    [tool] result vm_status
    [tool] resolved vm_id placeholder
    [tool] calling vm_exec
    [tool] vm_exec succeeded
    [tool] result vm_exec
    [model] input tool
    [model] input tool
    [model] output assistant
    [ollama] no tool calls returned; stopping loop
    [done] command execution succeeded
    [summary] exit_code=0 fallback_used=False execution_mode=guest_vsock
    "#);
    let told = model.told();
    assert_eq!((&told[3]["vcpu_count"], &told[3]["mem_mib"]), (&json!(1), &json!(512)));
    assert_eq!((&told[3]["network_enabled"], &told[3]["allow_host_compat"]), (&json!(false), &json!(false)));
    assert_eq!((&told[4]["state"], &told[4]["vm_id"]), (&json!("created"), &told[3]["vm_id"]));
    assert_eq!((&told[5]["exit_code"], &told[5]["vm_id"]), (&json!(0), &told[3]["vm_id"]));
}

#[test]
fn with_verbose_everything_that_was_said_is_shown() {
    let sandbox = Sandbox::new();
    let model = mistaken();
    let ended = demo(&sandbox, &model, &["-v"]);
    assert_eq!((ended.code(), ended.stderr.as_str()), (0, ""), "{ended:?}");
    let told: Vec<String> = stable(ended.text(), &model).lines().map(shortened).collect();
    insta::assert_snapshot!(told.join("\n"), @r#"
    [ollama] starting tool demo with model=llama3.2:3b
    [model] input user: Prove that you can run a command in a throw-away virtual machine. Use the tool vm_run: it makes a VM, runs one command in it and removes the VM. Use environment debian:12, vcpu_count 1, mem_mib 1024 and network false.

        Run exactly this command, unchanged:
        [COMMAND]

        It has succeeded when the result has exit_code 0 and stdout is the checksum that the command prints. Do not guess the checksum; it is compared with the result of the tool. If a tool returns an error, read it, correct the arguments and call the tool again. When the command has succeeded, say so and call no more tools.
    [model] output assistant: <empty>
    [model] tool_call vm_make args={}
    [model] tool_call vm_run args={"command":"[COMMAND]","network":"perhaps","profile":"debian:12"}
    [tool] calling vm_make with args={}
    [tool] vm_make failed: unknown tool 'vm_make' args={}
    [tool] result vm_make {"arguments":{},"error":"unknown tool 'vm_make'","error_type":"unknown_tool","hint":"the tools are: vm_run, vm_list_environments, vm_create, vm_start, vm_exec, vm_status","ok":false,"tool_name":"vm_make"}
    [tool] calling vm_run with args={"command":"[COMMAND]","environment":"debian:12","network":"perhaps"}
    [tool] vm_run failed: network must be a boolean args={"command":"[COMMAND]","environment":"debian:12","network":"perhaps"}
    [tool] result vm_run {"arguments":{"command":"[COMMAND]","environment":"debian:12","network":"perhaps"},"error":"network must be a boolean","error_type":"invalid_input","hint":"write network as true or false, without quotes","ok":false,"tool_name":"vm_run"}
    [model] input tool: {"arguments":{},"error":"unknown tool 'vm_make'","error_type":"unknown_tool","hint":"the tools are: vm_run, vm_list_environments, vm_create, vm_start, vm_exec, vm_status","ok":false,"tool_name":"vm_make"}
    [model] input tool: {"arguments":{"command":"[COMMAND]","environment":"debian:12","network":"perhaps"},"error":"network must be a boolean","error_type":"invalid_input","hint":"write network as true or false, without quotes","ok":false,"tool_name":"vm_run"}
    [model] output assistant: <empty>
    [model] tool_call vm_list_environments args={}
    [model] tool_call vm_create args={"mem_mib":"512","network":"off","profile":"debian:12","vcpu_count":"1"}
    [tool] calling vm_list_environments with args={}
    [tool] vm_list_environments succeeded
    [tool] result vm_list_environments …
    [tool] calling vm_create with args={"environment":"debian:12","mem_mib":"512","network":"off","vcpu_count":"1"}
    [tool] vm_create succeeded
    [tool] result vm_create …
    [model] input tool: …
    [model] input tool: …
    [model] output assistant: <empty>
    [model] tool_call vm_status args={"vm_id":"<vm_id>"}
    [model] tool_call vm_exec args={"command":"[COMMAND]","vm_id":"{vm_id_returned_by_vm_create}"}
    [tool] resolved vm_id placeholder to [ID]
    [tool] calling vm_status with args={"vm_id":"[ID]"}
    [tool] vm_status succeeded
    [tool] result vm_status …
    [tool] resolved vm_id placeholder to [ID]
    [tool] calling vm_exec with args={"command":"[COMMAND]","vm_id":"[ID]"}
    [tool] vm_exec succeeded
    [tool] result vm_exec …
    [model] input tool: …
    [model] input tool: …
    [model] output assistant: The command has run.
    [ollama] no tool calls returned; stopping loop
    [done] command execution succeeded
    [summary] exit_code=0 fallback_used=False execution_mode=guest_vsock
    [summary] stdout=[STDOUT]
    "#);
}

/// A line without the payload of a tool, which is long and not the same on every host.
fn shortened(line: &str) -> String {
    let has_result = line.starts_with("[tool] result ") || line.starts_with("[model] input tool: ");
    match line.find(" {").or_else(|| line.find(" [{")) {
        Some(payload) if has_result && !line.contains("\"ok\":false") => format!("{} …", &line[..payload]),
        _ => line.to_owned(),
    }
}

#[test]
fn the_usual_way_is_one_call() {
    let sandbox = Sandbox::new();
    let ended = demo(&sandbox, &calling([("vm_run", run("[COMMAND]"))]), &[]);
    let end = "[done] command execution succeeded\n[summary] exit_code=0 fallback_used=False execution_mode=guest_vsock\n";
    assert!(ended.success().ends_with(end), "{ended:?}");
}

#[test]
fn the_last_command_that_ran_has_to_be_the_right_one() {
    let sandbox = Sandbox::new();
    let proof = ("vm_run", run("[COMMAND]"));
    let ended = demo(&sandbox, &calling([proof.clone(), ("vm_run", run("exit 3"))]), &[]);
    assert_eq!(failure(&ended), "[error] vm_exec failed; expected exit_code=0\n  caused by: exit_code=3\n");
    let ended = demo(&sandbox, &calling([proof.clone(), ("vm_run", run("echo guessed"))]), &[]);
    let reason = failure(&ended);
    assert!(
        reason
            .starts_with("[error] vm_exec output did not confirm the command\n  caused by: expected stdout="),
        "{reason}"
    );
    assert!(reason.ends_with("  -, not guessed\n"), "{reason}");
    // A call that ran nothing does not count.
    let ended = demo(&sandbox, &calling([proof, ("vm_run", json!({}))]), &[]);
    assert!(
        ended.success().contains("\n[tool] vm_run failed: environment is required args={}\n"),
        "{ended:?}"
    );
}

#[test]
fn much_output_is_not_told_in_full() {
    let sandbox = Sandbox::new();
    let model = calling([("vm_run", run("printf %0100000d 0")), ("vm_run", run("[COMMAND]"))]);
    demo(&sandbox, &model, &[]).success();
    let told = model.told();
    let (kept, note) = told[0]["stdout"].as_str().unwrap().split_once('\n').unwrap();
    assert_eq!((kept, note), ("0".repeat(4000).as_str(), "[96000 more bytes omitted]"));
}

/// The one VM whose owner agreed to commands on the host.
#[tokio::test]
async fn vms_of_others_are_out_of_reach() {
    let sandbox = Sandbox::new().set("PYRO_QEMU", "/nonexistent/qemu");
    let engine = sandbox.engine_with(|config| config.vmm_program = Some("/nonexistent/qemu".into()));
    let spec = VmSpec { allow_host_compat: true, ..VmSpec::new(ENVIRONMENT) };
    let id = engine.create_vm(spec, &quiet(), &never()).await.unwrap().vm_id.to_string();
    let model = calling([
        ("vm_status", json!({ "vm_id": id })),
        ("vm_start", json!({ "vm_id": id })),
        ("vm_exec", json!({ "vm_id": id, "command": "true" })),
    ]);
    let ended = demo(&sandbox, &model, &[]);
    assert_eq!(failure(&ended), "[error] demo did not execute a successful vm_run or vm_exec\n");
    for told in model.told() {
        let error = (&told["error_type"], &told["error"]);
        assert_eq!(error, (&json!("not_found"), &json!(format!("vm '{id}' does not exist"))), "{told}");
    }
    assert_eq!(model.told().len(), 3);
    assert_eq!(engine.status_vm(&id).await.unwrap().state, VmState::Created);
    engine.delete_vm(&id).await.unwrap();
}

/// The calls that leave one VM created and another one running.
const LEAVE: [(&str, &str); 3] = [("vm_create", ""), ("vm_create", ""), ("vm_start", "<vm_id>")];

fn leaving(then: impl Fn() -> Answer + Send + 'static) -> Model {
    Model::new(move |round, _| match LEAVE.get(round) {
        Some((name, "")) => Answer::Message(calls([(*name, json!({ "environment": ENVIRONMENT }))])),
        Some((name, vm_id)) => Answer::Message(calls([(*name, json!({ "vm_id": vm_id }))])),
        None => then(),
    })
}

#[test]
fn vms_that_the_model_leaves_are_removed() {
    let sandbox = Sandbox::new();
    let ended = demo(&sandbox, &leaving(|| Answer::Message(says("I am done."))), &[]);
    assert_eq!(failure(&ended), "[error] demo did not execute a successful vm_run or vm_exec\n");
    assert!(ended.text().contains("\n[tool] vm_start succeeded\n"), "{ended:?}");
    sandbox.wait_until_clean();
    let ended = demo(&sandbox, &leaving(|| Answer::Http("500 Internal Server Error", "", Vec::new())), &[]);
    assert!(failure(&ended).starts_with("[error] failed to call Ollama."), "{ended:?}");
}

#[test]
fn a_signal_removes_them_too() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let sandbox = Sandbox::new();
        let model = leaving(|| Answer::Never);
        let demo = start_demo(&sandbox, &model, &[]);
        wait_until(LONG, "fourth request", || model.requests().len() == 4);
        demo.signal(signal);
        let ended = demo.finish();
        assert_eq!((ended.code(), ended.stderr.as_str()), (code, ""), "{ended:?}");
        sandbox.wait_until_clean();
    }
}

#[test]
fn a_signal_ends_the_command_of_the_model() {
    for (tool, arguments) in [
        ("vm_run", json!({ "environment": ENVIRONMENT, "command": "sleep 1000", "timeout_seconds": 600 })),
        ("vm_exec", json!({ "vm_id": "<vm_id>", "command": "sleep 1000", "timeout_seconds": 600 })),
    ] {
        let sandbox = Sandbox::new();
        let model = calling([("vm_create", json!({ "environment": ENVIRONMENT })), (tool, arguments)]);
        let demo = start_demo(&sandbox, &model, &[]);
        demo.stdout.wait_for(&format!("[tool] calling {tool}\n"));
        sandbox.vmm();
        demo.signal(Signal::INT);
        let ended = demo.finish();
        assert_eq!(ended.code(), 130, "{ended:?}");
        assert!(ended.text().ends_with("[error] cancelled\n"), "{ended:?}");
        assert_eq!(model.requests().len(), 2);
        sandbox.wait_until_clean();
    }
}
