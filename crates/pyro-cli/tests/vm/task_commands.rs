//! Commands of tasks, and their journal.

use std::collections::BTreeSet;

use rustix::process::Signal;

use crate::harness::{LONG, Sandbox, Task, wait_until};

#[test]
fn output_comes_as_it_is_written_and_both_streams_stay_apart() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let running =
        task.start_exec([], "echo out; echo err >&2; while ! [ -e go ]; do sleep 0.1; done; printf end");
    running.stdout.wait_for("out\n");
    running.stderr.wait_for("err\n");
    task.exec([], "touch go").success();
    let ended = running.finish();
    assert_eq!(ended.success(), "out\nend");
    assert!(ended.stderr.starts_with("err\n[task-exec] "), "{ended:?}");
    let entry = &task.logs()[0];
    assert_eq!((&entry["stdout"], &entry["stderr"]), (&"out\nend".into(), &"err\n".into()));
    assert_eq!(
        (&entry["stdout_file"], &entry["stderr_file"]),
        (&"000001.stdout".into(), &"000001.stderr".into())
    );
    task.delete();
}

#[test]
fn directory_and_variables_are_the_callers() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    task.exec([], "mkdir 'a b'").success();
    let flags = ["--cwd", "a b", "--env", "X=1 $HOME", "--env", "Y=", "--json"];
    let result = task.exec(flags, "pwd; echo \"[$X][$Y][${Z-unset}]\"").json();
    assert_eq!(
        (&result["cwd"], &result["stdout"]),
        (&"/workspace/a b".into(), &"/workspace/a b\n[1 $HOME][][unset]\n".into())
    );
    assert_eq!(task.exec(["--cwd", "/etc"], "pwd").success(), "/etc\n");

    let nowhere = task.exec(["--cwd", "nowhere"], "true");
    assert!(nowhere.error().contains("entering /workspace/nowhere"), "{nowhere:?}");
    let entry = task.logs().pop().unwrap();
    assert_eq!(
        (&entry["outcome"], &entry["sequence"], &entry["exit_code"]),
        (&"not_run".into(), &4.into(), &serde_json::Value::Null)
    );
    for flags in [["--env", "1X=1"], ["--env", "X Y=1"], ["--cwd", ""]] {
        assert_eq!(task.exec(flags, "true").code(), 2, "{flags:?}");
    }
    assert_eq!(task.logs().len(), 4, "what is refused is not recorded");

    // A command can empty the start directory, but not remove it.
    let removed = task.exec(["--cwd", "/"], "rm -rf /workspace; ls -A /workspace");
    assert!(removed.success().is_empty() && removed.stderr.contains("resource busy"), "{removed:?}");
    assert_eq!(task.exec([], "pwd").success(), "/workspace\n");
    task.delete();
}

#[test]
fn a_long_command_reaches_the_guest_whole() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    // More than a page at once, with nothing after it that would wake a reader.
    for length in [1000, 3000, 4000, 5000, 9000, 70_000, 130_000] {
        let line = format!("echo {} | wc -c", "x".repeat(length));
        assert_eq!(task.exec([], &line).success().trim(), (length + 1).to_string());
    }
    task.delete();
}

#[test]
fn a_detached_command_can_be_followed_waited_for_and_ended() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let first = task.detach(
        "for i in 1 2 3; do echo $i; echo e$i >&2; while ! [ -e go$i ]; do sleep 0.05; done; done; exit 7",
    );
    assert_eq!(first, 1);
    let follower = task.start("logs", ["--follow"]);
    let waiter = task.start("wait", ["--sequence", "1"]);
    follower.stdout.wait_for("1\n");
    let entry = &task.call("logs", ["--sequence", "1", "--json"]).json()["entries"][0];
    assert_eq!((&entry["outcome"], &entry["stdout"]), (&"running".into(), &"1\n".into()));
    for i in ["1", "2"] {
        task.exec([], &format!("touch go{i}")).success();
    }
    follower.stdout.wait_for("3\n");
    task.exec([], "touch go3").success();
    let followed = follower.finish();
    assert_eq!(followed.success(), "1\n2\n3\n");
    assert!(followed.stderr.starts_with("e1\ne2\ne3\n[task-exec] "), "{followed:?}");
    assert_eq!(waiter.finish().code(), 7);
    assert_eq!(task.call("wait", ["--sequence", "1"]).code(), 7, "also when it has ended");
    assert_eq!(task.call("logs", ["--follow", "--sequence", "1"]).success(), "1\n2\n3\n");

    let last =
        task.detach("trap 'echo bye; exit 9' TERM; echo begun; while :; do sleep 0.05; done").to_string();
    let follower = task.start("logs", ["--follow"]);
    follower.stdout.wait_for("begun\n");
    let killed = task.call("kill", ["--sequence", &last, "--json"]).json();
    assert_eq!(
        (&killed["outcome"], &killed["exit_code"], &killed["stdout"]),
        (&"killed".into(), &9.into(), &"begun\nbye\n".into())
    );
    assert_eq!(follower.finish().success(), "begun\nbye\n");
    assert!(task.call("kill", ["--sequence", &last]).success().starts_with("Killed: #"));
    let missing = task.call("wait", ["--sequence", "99"]);
    assert!(missing.error().contains("has no command 99"), "{missing:?}");
    task.delete();
}

#[test]
fn a_time_limit_is_in_the_journal() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let ended = task.exec(["--timeout-seconds", "6", "--json"], "echo before; sleep 100").json();
    for of in [&ended, &task.logs()[0]] {
        assert_eq!(
            (&of["exit_code"], &of["timed_out"], &of["outcome"]),
            (&124.into(), &true.into(), &"exited".into())
        );
        assert_eq!(
            (&of["stdout"], &of["stderr"]),
            (&"before\n".into(), &"command timed out after 6s\n".into())
        );
    }
    let half = task.exec(["--timeout-seconds", "6"], "printf half >&2; sleep 100");
    assert!(half.stderr.starts_with("half\ncommand timed out after 6s\n"), "{half:?}");
    assert_eq!(task.exec([], "echo on").success(), "on\n");
    task.delete();
}

fn sleepers(task: &Task<'_>) -> String {
    let count = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 'sleep [4]321' | wc -l";
    task.exec([], count).success().trim().to_owned()
}

#[test]
fn a_client_that_is_told_to_stop_ends_its_command_and_one_that_is_killed_does_not() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let running = task.start_exec(["--timeout-seconds", "500"], "echo begun; sleep 4321");
    running.stdout.wait_for("begun\n");
    running.signal(Signal::INT);
    assert_eq!(running.finish().code(), 130);
    assert_eq!(task.logs()[0]["outcome"], "killed");
    assert_eq!(sleepers(&task), "0");

    let running = task.start_exec(
        ["--timeout-seconds", "500"],
        "echo begun; while ! [ -e go ]; do sleep 0.05; done; echo end",
    );
    running.stdout.wait_for("begun\n");
    running.signal(Signal::KILL);
    drop(running);
    let sequence = task.logs().len().to_string();
    task.exec([], "touch go").success();
    assert_eq!(task.call("wait", ["--sequence", &sequence]).code(), 0);
    let entry = &task.logs()[sequence.parse::<usize>().unwrap() - 1];
    assert_eq!((&entry["outcome"], &entry["stdout"]), (&"exited".into(), &"begun\nend\n".into()));
    task.delete();
}

#[test]
fn commands_run_at_the_same_time_and_leave_what_they_start() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    // Each waits for the other.
    let first = task.start_exec([], "touch a; while ! [ -e b ]; do sleep 0.05; done; echo first");
    let second = task.start_exec([], "touch b; while ! [ -e a ]; do sleep 0.05; done; echo second");
    assert_eq!(first.finish().success(), "first\n");
    assert_eq!(second.finish().success(), "second\n");
    assert_eq!(task.exec([], "sleep 4321 & echo started").success(), "started\n");
    assert_eq!(sleepers(&task), "1");
    task.delete();
}

#[test]
fn output_beyond_the_limit_is_streamed_but_not_kept() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let ended = task.exec(["--timeout-seconds", "120"], "head -c 20M /dev/zero; echo error >&2");
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(ended.stdout.len(), 20 << 20);
    let entry = &task.logs()[0];
    assert_eq!(entry["stdout"].as_str().unwrap().len(), 16 << 20);
    assert_eq!((&entry["stdout_truncated"], &entry["stderr_truncated"]), (&(4_u64 << 20).into(), &0.into()));
    assert_eq!(entry["stderr"], "error\n");
    task.delete();
}

/// Eight processes, 25 commands each.
#[test]
fn no_entry_is_lost_whoever_runs_commands_at_the_same_time() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let results: Vec<(u64, String)> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|client| {
                let task = &task;
                scope.spawn(move || {
                    let rounds = (0..25).map(|round| {
                        let result = task.exec(["--json"], &format!("echo {client}-{round}")).json();
                        assert_eq!(result["stdout"], format!("{client}-{round}\n"));
                        (result["sequence"].as_u64().unwrap(), format!("{client}-{round}\n"))
                    });
                    rounds.collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let entries = task.logs();
    assert_eq!(entries.len(), 200);
    for (index, entry) in entries.iter().enumerate() {
        assert_eq!((&entry["sequence"], &entry["outcome"]), (&(index + 1).into(), &"exited".into()));
    }
    let recorded: BTreeSet<(u64, String)> = entries
        .iter()
        .map(|entry| (entry["sequence"].as_u64().unwrap(), entry["stdout"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(recorded, results.into_iter().collect());
    task.delete();
}

#[test]
fn a_slow_reader_does_not_hold_up_others() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let mut reader = sandbox.program(crate::harness::PYRO);
    reader.args(["task", "exec", &task.id, "--timeout-seconds", "500", "--", "yes"]);
    let mut reader = reader.spawn().unwrap();
    // The output is not read: every buffer between the command and this test fills up.
    wait_until(LONG, "a number", || !task.logs().is_empty());
    for _ in 0..3 {
        assert_eq!(task.exec([], "echo fast").success(), "fast\n");
    }
    let killed = task.call("kill", ["--sequence", "1", "--json"]).json();
    assert_eq!(killed["outcome"], "killed");
    reader.kill().unwrap();
    reader.wait().unwrap();
    task.delete();
}

#[test]
fn a_slow_reader_does_not_suspend_the_time_limit() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let mut reader = sandbox.program(crate::harness::PYRO);
    reader.args(["task", "exec", &task.id, "--timeout-seconds", "1", "--", "yes"]);
    let mut reader = reader.spawn().unwrap();
    wait_until(LONG, "a number", || !task.logs().is_empty());
    assert_eq!(task.call("wait", ["--sequence", "1"]).code(), 124);
    // Once it reads, it learns of the end too.
    let output = reader.stdout.take().unwrap();
    let read = std::thread::spawn(move || std::io::copy(&mut { output }, &mut std::io::sink()).unwrap());
    assert_eq!(reader.wait().unwrap().code(), Some(124));
    read.join().unwrap();
    task.delete();
}

#[tokio::test]
async fn as_many_commands_as_can_run_and_no_more() {
    let sandbox = Sandbox::new();
    let task = sandbox.task(["--mem-mib", "2048"]);
    let engine = sandbox.engine();
    let sleep = || pyro_engine::operations::DetachTask {
        task: task.id.as_str().into(),
        command: pyro_engine::Command {
            timeout_seconds: Some(500),
            ..pyro_engine::Command::new("exec sleep 400")
        },
        lasting: pyro_engine::Lasting { extends_lifetime: true },
    };
    let mut begun = 0;
    let refusal = loop {
        match engine.detach_task(sleep()).await {
            Ok(detached) => begun = detached.sequence,
            Err(error) => break error,
        }
    };
    assert_eq!(begun, 250);
    assert!(refusal.to_string().contains("runs as many commands as it can"), "{refusal}");
    assert_eq!(refusal.kind, pyro_engine::ErrorKind::NotDelivered);
    assert_eq!(task.status()["command_count"], 250, "what is refused has no number");
    assert_eq!(engine.kill_task(&task.id, 1).await.unwrap().outcome, pyro_engine::Outcome::Killed);
    assert_eq!(engine.detach_task(sleep()).await.unwrap().sequence, 251);
    // They are ended in order, and recorded.
    engine.stop_task(&task.id).await.unwrap();
    let logs = engine.logs_task(&task.id, None).await.unwrap();
    assert!(logs.entries.iter().all(|entry| entry.outcome == pyro_engine::Outcome::Killed), "{logs:?}");
    task.delete();
}
