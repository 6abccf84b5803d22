//! `pyro mcp serve` with real VMs.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{ENVIRONMENT, LONG, Sandbox, scaled, wait_until};

#[test]
fn one_command_in_a_vm_of_its_own() {
    let sandbox = Sandbox::new();
    let mut client = sandbox.mcp([]);
    let ran =
        client.call("vm_run", json!({ "environment": ENVIRONMENT, "command": "git --version; exit 3" }));
    assert!(ran["stdout"].as_str().unwrap().starts_with("git version "), "{ran}");
    assert_eq!((&ran["exit_code"], &ran["execution_mode"]), (&3.into(), &"guest_vsock".into()));
    assert!(
        client.progress.iter().any(|message| message.starts_with("phase=create")),
        "{:?}",
        client.progress
    );
    client.end();
}

#[test]
fn the_operator_chooses_the_authorities_that_guests_trust() {
    let sandbox = Sandbox::new();
    let bundle = sandbox.path("bundle.pem");
    fs::write(&bundle, "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n").unwrap();
    let mut client = sandbox.mcp([&format!("--host-ca={}", bundle.display())]);
    // A client has no say in it.
    let command = "grep -c BEGIN $SSL_CERT_FILE";
    let count = json!({ "environment": ENVIRONMENT, "command": command, "host_ca": false });
    assert_eq!(client.call("vm_run", count)["stdout"], "1\n");
    client.end();
}

#[test]
fn a_vm_step_by_step() {
    let sandbox = Sandbox::new();
    let mut client = sandbox.mcp([]);
    let vm = client.call("vm_create", json!({ "environment": ENVIRONMENT, "mem_mib": "512" }));
    assert_eq!((&vm["state"], &vm["mem_mib"]), (&"created".into(), &512.into()));
    let id = &json!({ "vm_id": vm["vm_id"] });
    assert_eq!(client.call("vm_start", id.clone())["state"], "started");
    assert_eq!(client.call("vm_network_info", id.clone())["network_enabled"], false);
    assert_eq!(client.call("vm_stop", id.clone())["state"], "stopped");
    assert_eq!(client.call("vm_start", id.clone())["state"], "started");
    assert_eq!(client.call("vm_status", id.clone())["state"], "started");
    let ran = client.call("vm_exec", json!({ "vm_id": vm["vm_id"], "command": "echo hi" }));
    assert_eq!((&ran["stdout"], &ran["cleanup"]["deleted"]), (&"hi\n".into(), &true.into()));
    let other = client.call("vm_create", json!({ "environment": ENVIRONMENT }));
    let deleted = client.call("vm_delete", json!({ "vm_id": other["vm_id"] }));
    assert_eq!(deleted["reason"], "explicit_delete");
    assert_eq!(client.call("vm_reap_expired", json!({}))["count"], 0);
    client.end();
}

/// Each tool that runs a command takes its input, its words, its user, its shell, its directory, and its variables.
#[test]
fn commands_get_their_input_words_user_shell_directory_and_variables() {
    let sandbox = Sandbox::new();
    let mut client = sandbox.mcp([]);
    let task = client.call("task_create", json!({ "environment": ENVIRONMENT }))["task_id"].clone();
    for tool in ["vm_run", "vm_exec", "task_exec"] {
        // A VM is deleted after its command, so each call of `vm_exec` has a new one.
        let mut call = |mut arguments: Value| {
            let (name, place) = match tool {
                "vm_run" => ("environment", ENVIRONMENT.into()),
                "task_exec" => ("task_id", task.clone()),
                _ => {
                    let vm = client.call("vm_create", json!({ "environment": ENVIRONMENT }))["vm_id"].clone();
                    client.call("vm_start", json!({ "vm_id": vm }));
                    ("vm_id", vm)
                }
            };
            arguments[name] = place;
            client.call(tool, arguments)
        };
        let ran = call(json!({
            "command": "[[ x == x ]] && id -un && pwd && echo $WHO && wc -l && cat",
            "stdin": "line\n\u{20ac} without an end",
            "user": "nobody",
            "shell": "bash",
            "cwd": "/tmp",
            "env": ["WHO=me"],
        }));
        // `wc` has read all of the input.
        assert_eq!(ran["stdout"], "nobody\n/tmp\nme\n1\n", "{tool}: {ran}");
        assert_eq!((&ran["exit_code"], &ran["shell"]), (&0.into(), &"bash".into()), "{tool}: {ran}");
        let ran = call(json!({ "argv": ["tee", "$HOME", "a b"], "stdin": "line\n\u{20ac} without an end" }));
        assert_eq!(ran["stdout"], "line\n\u{20ac} without an end", "{tool}: {ran}");
        assert_eq!((&ran["exit_code"], &ran["shell"]), (&0.into(), &Value::Null), "{tool}: {ran}");
    }
    let written = json!({ "task_id": task, "argv": ["cat", "a b", "$HOME"], "user": "65534:65534" });
    let ran = client.call("task_exec", written);
    assert_eq!(ran["stdout"], "line\n\u{20ac} without an endline\n\u{20ac} without an end");
    // Nothing would wait to send it.
    let detached = json!({ "task_id": task, "command": "cat", "stdin": "lost", "detach": true });
    let refused = client.refused("task_exec", detached);
    assert_eq!(refused["code"], "invalid_input", "{refused}");
    assert_eq!(client.call("task_status", json!({ "task_id": task }))["command_count"], 3);
    client.call("task_delete", json!({ "task_id": task }));
    client.end();
}

#[test]
fn a_task_from_its_creation_to_its_end() {
    let sandbox = Sandbox::new();
    let mut client = sandbox.mcp([]);
    let id = client.call("task_create", json!({ "environment": ENVIRONMENT }))["task_id"].clone();
    let exec = |command: &str| json!({ "task_id": id, "command": command });
    client.call("task_exec", exec("mkdir d; echo note > d/file"));
    let read = client.call(
        "task_exec",
        json!({ "task_id": id, "command": "cat file; echo $WHO", "cwd": "d", "env": {"WHO": "me"} }),
    );
    assert_eq!((&read["stdout"], &read["sequence"]), (&"note\nme\n".into(), &2.into()));

    let late = json!({ "task_id": id, "command": "true", "timeout_seconds": 3600 });
    let refusal = client.refused("task_exec", late);
    assert_eq!(refusal["code"], "invalid_input", "{refusal}");
    assert!(refusal.to_string().contains("which is left of the task's lifetime"), "{refusal}");
    let long =
        json!({ "task_id": id, "command": "echo begun; sleep 500", "timeout_seconds": 300, "detach": true });
    let detached = client.call("task_exec", long);
    assert_eq!((&detached["sequence"], &detached["outcome"]), (&3.into(), &"running".into()));
    let wait = json!({ "task_id": id, "sequence": 3, "timeout_seconds": 1 });
    assert_eq!(client.call("task_wait", wait.clone())["outcome"], "running");
    let killed = client.call("task_kill", json!({ "task_id": id, "sequence": 3 }));
    assert_eq!((&killed["outcome"], &killed["stdout"]), (&"killed".into(), &"begun\n".into()));
    assert_eq!(client.call("task_wait", wait)["outcome"], "killed");

    assert_eq!(client.call("task_stop", json!({ "task_id": id }))["state"], "stopped");
    assert_eq!(client.call("task_start", json!({ "task_id": id }))["state"], "started");
    let extended = client.call("task_extend", json!({ "task_id": id, "ttl_seconds": 900 }));
    assert_eq!(extended["ttl_seconds"], 900);
    assert_eq!(client.call("task_list", json!({}))["count"], 1);
    assert_eq!(client.call("task_status", json!({ "task_id": id }))["command_count"], 3);
    assert_eq!(client.call("task_logs", json!({ "task_id": id }))["count"], 3);
    let one = client.call("task_logs", json!({ "task_id": id, "sequence": 1 }));
    assert_eq!(one["entries"][0]["sequence"], 1);

    let much = client.call("task_exec", exec("head -c 100000 /dev/zero | tr '\\0' x"));
    assert_eq!(much["stdout_cut_chars"], 84_000);
    assert!(
        much["stdout"].as_str().unwrap().contains("[84000 characters omitted, starting at character 8000]")
    );
    client.end();

    // It stays when its server ends; another server finds it.
    let mut client = sandbox.mcp([]);
    assert_eq!(client.call("task_exec", exec("cat d/file"))["stdout"], "note\n");
    assert_eq!(client.call("task_delete", json!({ "task_id": id }))["deleted"], true);
    client.end();
}

#[test]
fn calls_do_not_hold_up_each_other_and_tell_how_far_they_are() {
    let sandbox = Sandbox::new();
    let mut client = sandbox.mcp([]);
    let id = client.call("task_create", json!({ "environment": ENVIRONMENT }))["task_id"].clone();
    let command = "i=0; while ! [ -e go ]; do i=$((i+1)); echo step $i; sleep 0.3; done";
    let calls: Vec<u64> = (0..8)
        .map(|_| {
            client
                .begin_call("task_exec", json!({ "task_id": id, "command": command, "timeout_seconds": 300 }))
        })
        .collect();
    while !client.progress.iter().any(|message| message.starts_with("step ")) {
        client.receive();
    }
    let start = std::time::Instant::now();
    let ping = client.begin("ping", json!({}));
    client.answer(ping);
    assert!(start.elapsed() < scaled(Duration::from_secs(2)), "{:?}", start.elapsed());
    client.call("task_exec", json!({ "task_id": id, "command": "touch go" }));
    for call in calls {
        assert_eq!(client.answer(call)["result"]["structuredContent"]["exit_code"], 0);
    }
    // Neither are characters cut, nor is lost what comes just before the end.
    client.progress.clear();
    let command = r"printf '\342'; sleep 0.1; printf '\202\254'";
    assert_eq!(client.call("task_exec", json!({ "task_id": id, "command": command }))["stdout"], "\u{20ac}");
    assert_eq!(client.progress, ["\u{20ac}"]);
    client.call("task_delete", json!({ "task_id": id }));
    client.end();
}

#[test]
fn a_cancelled_call_ends_its_command_and_is_not_answered() {
    let sandbox = Sandbox::new();
    let mut client = sandbox.mcp([]);
    let run =
        json!({ "environment": ENVIRONMENT, "command": "echo begun; sleep 1000", "timeout_seconds": 600 });
    let call = client.begin_call("vm_run", run);
    while !client.progress.iter().any(|message| message == "begun") {
        client.receive();
    }
    client.notify("notifications/cancelled", json!({ "requestId": call, "reason": "test" }));
    wait_until(LONG, "end of the VM", || sandbox.processes().len() == 1);
    let ping = client.begin("ping", json!({}));
    client.answer(ping);
    assert!(client.answered(call).is_none());
    client.end();
}

#[test]
fn a_client_that_goes_away_takes_its_one_shot_vms_with_it() {
    let sandbox = Sandbox::new();
    let mut client = sandbox.mcp([]);
    let run =
        json!({ "environment": ENVIRONMENT, "command": "echo begun; sleep 1000", "timeout_seconds": 600 });
    client.begin_call("vm_run", run);
    while !client.progress.iter().any(|message| message == "begun") {
        client.receive();
    }
    client.end();
    sandbox.wait_until_clean();
}

#[test]
fn files_of_a_task_are_written_and_read() {
    let sandbox = Sandbox::new();
    let mut client = sandbox.mcp([]);
    let id = client.call("task_create", json!({ "environment": ENVIRONMENT }))["task_id"].clone();
    let with = |extra: Value| {
        let mut arguments = json!({ "task_id": id });
        arguments.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        arguments
    };
    let script = "#!/bin/sh\necho \"it's $1 'quoted' ä\"\n";
    let write = with(json!({ "path": "new/dir/script", "content": script, "executable": true }));
    assert_eq!(client.call("task_write_file", write.clone())["bytes"], script.len());
    client.call("task_write_file", write);
    let ran =
        client.call("task_exec", with(json!({ "command": "new/dir/script x; stat -c %a new/dir/script" })));
    assert_eq!(ran["stdout"], "it's x 'quoted' ä\n755\n");
    let names = || {
        let dir = std::fs::read_dir(sandbox.vm_dir(id.as_str().unwrap())).unwrap();
        let mut names: Vec<_> = dir.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let read = client.call("task_read_file", with(json!({ "path": "/workspace/new/dir/script" })));
    assert_eq!(
        (&read["content"], &read["encoding"], &read["next_offset"]),
        (&script.into(), &"utf-8".into(), &Value::Null)
    );

    // A file that is replaced keeps its mode and owner, also through a link.
    let made = "printf old >s.sh; chmod 750 s.sh; chown daemon s.sh; ln -s s.sh l";
    client.call("task_exec", with(json!({ "command": made })));
    for (path, word) in [("s.sh", "one"), ("l", "two")] {
        let content = format!("#!/bin/sh\necho {word}\n");
        client.call("task_write_file", with(json!({ "path": path, "content": content })));
        let line = "stat -c '%a %U' s.sh; ./s.sh; readlink l";
        let ran = client.call("task_exec", with(json!({ "command": line })));
        assert_eq!(ran["stdout"], format!("750 daemon\n{word}\ns.sh\n"), "{ran}");
    }

    let binary = with(json!({ "path": "/etc/binary", "content": "AP8=", "encoding": "base64" }));
    assert_eq!(client.call("task_write_file", binary)["bytes"], 2);
    let read = client.call("task_read_file", with(json!({ "path": "/etc/binary" })));
    assert_eq!((&read["content"], &read["encoding"]), (&"AP8=".into(), &"base64".into()));

    client.call("task_exec", with(json!({ "command": "seq 1 20000 > numbers; mkdir -m 000 shut" })));
    let (mut text, mut offset) = (String::new(), json!(0));
    while !offset.is_null() {
        let part = client.call(
            "task_read_file",
            with(json!({ "path": "numbers", "offset": offset, "max_bytes": 50_000 })),
        );
        text.push_str(part["content"].as_str().unwrap());
        offset = part["next_offset"].clone();
    }
    assert!(text.starts_with("1\n2\n") && text.ends_with("\n20000\n") && text.lines().count() == 20_000);

    let faults = [
        ("file_failed", "task_read_file", json!({ "path": "nosuch" })),
        ("file_failed", "task_read_file", json!({ "path": "new" })),
        // No directory may be made on the host: its mode would prevent its removal.
        ("file_failed", "task_read_file", json!({ "path": "shut" })),
        ("file_failed", "task_read_file", json!({ "path": "/dev/null" })),
        ("invalid_input", "task_read_file", json!({ "path": "" })),
        ("invalid_input", "task_read_file", json!({ "path": "numbers", "max_bytes": 0 })),
        ("file_failed", "task_write_file", json!({ "path": "new", "content": "a directory is there" })),
        ("file_failed", "task_write_file", json!({ "path": "numbers/x", "content": "a file is there" })),
        ("file_failed", "task_write_file", json!({ "path": "..", "content": "no name" })),
        ("invalid_input", "task_write_file", json!({ "path": "x", "content": "?", "encoding": "base64" })),
    ];
    let expected: Vec<_> = faults.iter().map(|(code, ..)| *code).collect();
    let codes = faults.map(|(_, tool, arguments)| client.refused(tool, with(arguments))["code"].clone());
    assert_eq!(codes.to_vec(), expected);
    // File tools leave no trace in the journal, which records only commands.
    assert_eq!(names(), before);
    assert_eq!(client.call("task_status", with(json!({})))["command_count"], 5);
    client.call("task_delete", with(json!({})));
    client.end();
}

#[test]
fn a_file_of_the_maximum_size_is_written_and_a_larger_one_is_refused() {
    let sandbox = Sandbox::new();
    let mut client = sandbox.mcp([]);
    let id = client.call("task_create", json!({ "environment": ENVIRONMENT }))["task_id"].clone();
    // `ABC` again and again, and what is left of it.
    let write = |bytes: usize| {
        let content = "QUJD".repeat(bytes / 3) + ["", "QQ==", "QUI="][bytes % 3];
        json!({ "task_id": id, "path": "file", "encoding": "base64", "content": content })
    };
    for mib in [12, 16] {
        let bytes = mib << 20;
        assert_eq!(client.call("task_write_file", write(bytes))["bytes"], bytes);
        let line = format!("yes ABC | tr -d '\\n' | head -c {bytes} | cmp - file && stat -c %s file");
        let same =
            client.call("task_exec", json!({ "task_id": id, "command": line, "timeout_seconds": 200 }));
        assert_eq!(same["stdout"], format!("{bytes}\n"), "{same}");
    }
    let refused = client.refused("task_write_file", write((16 << 20) + 1));
    assert!(refused.to_string().contains("16777216"), "{refused}");
    let ping = client.begin("ping", json!({}));
    client.answer(ping);
    client.call("task_delete", json!({ "task_id": id }));
    client.end();
}

#[test]
fn what_is_cut_can_be_read_all_the_same() {
    let sandbox = Sandbox::new();
    let mut client = sandbox.mcp([]);
    let command = "seq 1 10000; seq 1 6000 >&2";
    let whole = |last| (1..=last).map(|number| format!("{number}\n")).collect::<String>();
    let call = client.begin_call("vm_run", json!({ "environment": ENVIRONMENT, "command": command }));
    let result = client.answer(call)["result"].clone();
    let payload = &result["structuredContent"];
    assert_eq!(payload["stdout_cut_chars"], whole(10_000).len() - 16_000);
    for (link, last) in [(1, 10_000), (2, 6000)] {
        assert_eq!(result["content"][link]["type"], "resource_link");
        assert_eq!(client.read(result["content"][link]["uri"].as_str().unwrap()), whole(last));
    }

    let id = client.call("task_create", json!({ "environment": ENVIRONMENT }))["task_id"].clone();
    let call = client.begin_call("task_exec", json!({ "task_id": id, "command": command }));
    let result = client.answer(call)["result"].clone();
    assert_eq!(client.read(result["content"][1]["uri"].as_str().unwrap()), whole(10_000));
    assert_eq!(client.read(result["content"][2]["uri"].as_str().unwrap()), whole(6000));
    let (mut read, mut rest) = (String::new(), 1);
    while rest > 0 {
        let page = json!({ "task_id": id, "sequence": 1, "offset": read.chars().count() });
        let entry = client.call("task_logs", page)["entries"][0].clone();
        read.push_str(entry["stdout"].as_str().unwrap());
        rest = entry["stdout_cut_chars"].as_u64().unwrap_or(0);
    }
    assert_eq!(read, whole(10_000));
    client.call("task_exec", json!({ "task_id": id, "command": "true" }));
    let last = client.call("task_logs", json!({ "task_id": id, "last": 1 }));
    assert_eq!((&last["count"], &last["entries"][0]["sequence"]), (&1.into(), &2.into()));
    let uri = format!("pyro://tasks/{}", id.as_str().unwrap());
    assert!(client.read(&uri).contains("\"command_count\": 2"));
    assert!(client.read(&format!("{uri}/logs")).contains("_cut_chars"));
    client.call("task_delete", json!({ "task_id": id }));
    client.end();
}

#[test]
fn limits_hold_for_machines_of_others_too() {
    let sandbox = Sandbox::new();
    let mut other = sandbox.mcp(["--allow-host-compat"]);
    let create = json!({ "environment": ENVIRONMENT, "allow_host_compat": true });
    let id = other.call("task_create", create.clone())["task_id"].clone();
    let vm = other.call("vm_create", create)["vm_id"].clone();
    let mut client = sandbox.mcp(["--max-ttl-seconds", "120", "--tasks", "all"]);
    let calls = [
        ("task_exec", json!({ "task_id": id, "command": "true" })),
        ("task_exec", json!({ "task_id": id, "command": "true", "detach": true })),
        ("task_read_file", json!({ "task_id": id, "path": "x" })),
        ("task_write_file", json!({ "task_id": id, "path": "x", "content": "" })),
        ("task_start", json!({ "task_id": id })),
        ("task_extend", json!({ "task_id": id, "ttl_seconds": 600 })),
        ("vm_start", json!({ "vm_id": vm })),
        ("vm_exec", json!({ "vm_id": vm, "command": "true" })),
    ];
    for (tool, arguments) in calls {
        assert_eq!(client.refused(tool, arguments)["code"], "not_allowed", "{tool}");
    }
    assert_eq!(client.call("task_status", json!({ "task_id": id }))["command_count"], 0);
    client.call("task_delete", json!({ "task_id": id }));
    client.call("vm_delete", json!({ "vm_id": vm }));
    client.end();
    other.end();
}

#[test]
fn a_server_with_spares_has_one_before_it_is_asked() {
    let sandbox = Sandbox::new();
    let mut client = sandbox.mcp(["--warm", "1"]);
    let spares = sandbox.state().join("spares");
    let waiting = || {
        let in_dir = |dir: std::path::PathBuf| {
            std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path())
        };
        in_dir(spares.clone()).flat_map(in_dir).filter(|spare| spare.join("control.sock").exists()).count()
    };
    wait_until(LONG, "spare", || waiting() == 1);
    let ran = client.call("vm_run", json!({ "environment": ENVIRONMENT, "command": "echo hi" }));
    assert_eq!(ran["stdout"], "hi\n");
    let phases: Vec<_> =
        ran["timings"].as_array().unwrap().iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    assert!(phases.contains(&"identity"), "not a spare: {phases:?}");
    wait_until(LONG, "successor", || waiting() == 1);
    client.end();
    // It waits for other messages for a while; none arrive here.
    for process in sandbox.processes() {
        crate::harness::kill(process.pid, rustix::process::Signal::TERM);
    }
    sandbox.wait_until_clean();
}
