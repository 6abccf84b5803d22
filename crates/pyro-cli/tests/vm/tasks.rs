//! The life of tasks: created by one process, used by others, stopped and started again.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;

use crate::harness::{ENVIRONMENT, GONE_WITHIN, LONG, PYRO, Sandbox, Terminal, kill, scaled, wait_until};

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// The host's own check of a task's disk, which changes nothing.
fn check_disk(vm_dir: &Path) -> std::process::Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    Command::new("e2fsck").env("PATH", path).arg("-fn").arg(vm_dir.join("layer.img")).output().unwrap()
}

#[test]
fn one_process_creates_it_and_others_use_it_until_nothing_is_left() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    assert_eq!(task.exec([], "sh -c 'echo hi > note; git init -q .'").success(), "");
    let readers: Vec<_> = (0..3).map(|_| task.start_exec([], "pwd; cat note; ls -d .git")).collect();
    for reader in readers {
        assert_eq!(reader.finish().success(), "/workspace\nhi\n.git\n");
    }
    let failed = task.exec([], "exit 3");
    assert_eq!(failed.code(), 3);
    let summary = format!(
        "[task-exec] task_id={} sequence=5 cwd=/workspace execution_mode=guest_vsock exit_code=3 duration_ms=",
        task.id
    );
    assert!(failed.stderr.starts_with(&summary), "{failed:?}");

    let status = task.call("status", []);
    let text = status.success();
    let expected = format!(
        "Task ID: {}\nEnvironment: debian:12\nState: started\nWorkspace: /workspace\n\
         Execution mode: guest_vsock\nResources: 1 vCPU / 1024 MiB\nCommand count: 5\n\
         Last command: exit 3 (exit_code=3)\nDisk: ",
        task.id
    );
    assert!(text.starts_with(&expected), "{text}");
    let list = sandbox.pyro(["task", "list"]);
    let row = list.success().lines().nth(1).unwrap_or_default();
    assert!(row.starts_with(&format!("{}  started  debian:12 ", task.id)), "{list:?}");
    let logs = task.call("logs", ["--sequence", "2"]);
    assert!(logs.success().ends_with(" cwd=/workspace\n$ pwd; cat note; ls -d .git\n/workspace\nhi\n.git\n"));
    task.delete();
    sandbox.wait_until_clean();
    assert_eq!(sandbox.pyro(["task", "list"]).success(), "No tasks found.\n");
}

#[test]
fn a_stopped_task_keeps_its_files_and_goes_on_counting() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    task.exec([], "mkdir -p deep/er && echo work > deep/er/file && echo root > /root/state").success();
    let stopped = task.call("stop", ["--json"]).json();
    assert_eq!((&stopped["state"], &stopped["stop_reason"]), (&"stopped".into(), &"explicit_stop".into()));
    assert!(sandbox.processes().is_empty(), "nothing of it runs");
    let check = check_disk(&sandbox.vm_dir(&task.id));
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));

    let refused = task.exec([], "true");
    let text =
        format!("[error] task {} must be in 'started' state before a command can run in it\n", task.id);
    assert!(refused.error().starts_with(&text), "{refused:?}");
    assert_eq!(task.logs().len(), 1);
    assert_eq!(task.call("stop", []).code(), 0, "stopping a stopped task succeeds");

    let started = task.call("start", ["--json"]).json();
    assert_eq!((&started["state"], &started["stop_reason"]), (&"started".into(), &serde_json::Value::Null));
    assert_eq!(task.exec([], "cat deep/er/file /root/state").success(), "work\nroot\n");
    assert_eq!(task.logs().last().unwrap()["sequence"], 2);
    let again = task.call("start", []);
    assert!(again.error().contains("cannot be started from state 'started'"), "{again:?}");
    task.delete();
}

/// What is written and synced survives the death of the VMM, and the disk is sound after the next stop.
#[test]
fn a_task_whose_vmm_is_killed_is_stopped_with_its_reason_and_can_be_started() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    task.exec([], "echo kept > file; sync").success();
    let running = task.start_exec(["--timeout-seconds", "500"], "echo running; sleep 1000");
    running.stdout.wait_for("running\n");
    kill(sandbox.vmm().pid, Signal::KILL);
    let lost = running.finish();
    assert!(lost.error().contains("was lost while its command ran"), "{lost:?}");
    let status = task.status();
    assert_eq!((&status["state"], &status["stop_reason"]), (&"stopped".into(), &"guest_ended".into()));
    assert!(status["last_error"].as_str().unwrap().starts_with("signal: 9"), "{status}");
    let entry = &task.logs()[1];
    assert_eq!((&entry["outcome"], &entry["stdout"]), (&"unknown".into(), &"running\n".into()));

    task.call("start", []).success();
    assert_eq!(task.exec([], "cat file").success(), "kept\n");
    task.call("stop", []).success();
    let check = check_disk(&sandbox.vm_dir(&task.id));
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    task.delete();
}

/// As after a crash of the host: no process could record anything.
#[test]
fn a_task_whose_supervisor_is_killed_is_seen_as_stopped_at_once() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let sequence = task.detach("sleep 1000");
    let supervisor = sandbox.supervisor().pid;
    kill(supervisor, Signal::KILL);
    wait_until(GONE_WITHIN, "end of the supervisor", || sandbox.processes().is_empty());
    let status = task.status();
    assert_eq!((&status["state"], &status["stop_reason"]), (&"stopped".into(), &"owner_vanished".into()));
    assert_eq!(status["last_error"], "backing guest process is no longer running");
    assert_eq!(task.logs()[0]["outcome"], "unknown");
    let waited = task.call("wait", ["--sequence", &sequence.to_string()]);
    assert_eq!(waited.code(), 1, "{waited:?}");
    assert_eq!(task.call("start", ["--json"]).json()["state"], "started");
    assert_eq!(task.logs()[0]["outcome"], "unknown");
    task.delete();
}

#[test]
fn a_supervisor_that_is_told_to_end_lets_the_guest_write_everything_out() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    task.exec([], "echo not synced > file").success();
    // To all processes, as at a shutdown.
    for process in sandbox.processes() {
        kill(process.pid, Signal::TERM);
    }
    wait_until(GONE_WITHIN, "end of the supervisor", || sandbox.processes().is_empty());
    assert_eq!(task.status()["stop_reason"], "terminated");
    task.call("start", []).success();
    assert_eq!(task.exec([], "cat file").success(), "not synced\n");
    task.delete();
}

/// The minimum lifetime is 60 seconds, so this waits. No client is connected when it ends.
#[test]
fn a_task_is_stopped_at_the_end_of_its_lifetime_and_another_can_begin() {
    let sandbox = Sandbox::new();
    let task = sandbox.task(["--ttl-seconds", "60"]);
    let extended = sandbox.task(["--ttl-seconds", "60"]);
    let before = task.status();
    let expires_at = before["expires_at"].as_f64().unwrap();
    assert!((expires_at - before["created_at"].as_f64().unwrap() - 60.0).abs() < 0.001);
    let renewed = extended.call("extend", ["--ttl-seconds", "600", "--json"]).json();
    assert_eq!(renewed["ttl_seconds"], 600);
    assert!((renewed["expires_at"].as_f64().unwrap() - now() - 600.0).abs() < 5.0);

    task.exec([], "echo work > file").success();
    // Without `extends_lifetime`, this time limit is refused.
    let command = pyro_engine::Command {
        timeout_seconds: Some(500),
        ..pyro_engine::Command::new("echo begun; sleep 1000")
    };
    let request = pyro_engine::operations::DetachTask {
        task: task.id.as_str().into(),
        command,
        lasting: pyro_engine::Lasting { extends_lifetime: true },
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sequence = runtime.block_on(sandbox.engine().detach_task(request)).unwrap().sequence;
    wait_until(LONG, "end of the lifetime", || sandbox.processes().len() == 2);
    let late = now() - expires_at;
    println!("stopped {late:.3} s after its time");
    assert!((-0.01..2.0).contains(&late), "{late} s after its time");

    let status = task.status();
    assert_eq!((&status["state"], &status["stop_reason"]), (&"stopped".into(), &"expired".into()));
    let refused = task.exec(["--json"], "true").json();
    assert_eq!(refused["kind"], "expired");
    let text = format!("task {} must be in 'started' state before task_exec: its lifetime ended", task.id);
    assert!(refused["error"].as_str().unwrap().starts_with(&text), "{refused}");
    let entry = &task.logs()[sequence as usize - 1];
    assert_eq!((&entry["outcome"], &entry["stdout"]), (&"killed".into(), &"begun\n".into()));

    let before = now();
    let started = task.call("start", ["--json"]).json();
    let began = started["expires_at"].as_f64().unwrap() - 60.0;
    assert!((before..now()).contains(&began), "{started}");
    assert_eq!(task.exec([], "cat file").success(), "work\n");
    assert_eq!(extended.exec([], "echo alive").success(), "alive\n");
    task.delete();
    extended.delete();
}

#[test]
fn the_death_of_its_creator_before_it_is_up_leaves_nothing() {
    let sandbox = Sandbox::new().without_templates();
    let creating = sandbox.start(["task", "create", ENVIRONMENT]);
    sandbox.vmm();
    creating.signal(Signal::KILL);
    drop(creating);
    wait_until(GONE_WITHIN, "end of all processes", || sandbox.processes().is_empty());
    assert_eq!(sandbox.pyro(["task", "list"]).success(), "No tasks found.\n");
    // The next call that creates a VM or task cleans up.
    assert_eq!(sandbox.run([], "echo fine").success(), "fine\n");
    sandbox.wait_until_clean();
}

#[test]
fn a_task_that_is_being_created_can_be_deleted_and_one_that_is_starting_stopped() {
    let sandbox = Sandbox::new().without_templates();
    let creating = sandbox.start(["task", "create", ENVIRONMENT]);
    sandbox.vmm();
    let list = sandbox.pyro(["task", "list", "--json"]).json();
    let id = list["tasks"][0]["task_id"].as_str().unwrap();
    assert_eq!(sandbox.pyro(["task", "delete", id]).success(), format!("Deleted task: {id}\n"));
    let failed = creating.finish();
    assert!(failed.error().contains("was ended while it was starting"), "{failed:?}");
    sandbox.wait_until_clean();

    let task = sandbox.task([]);
    task.call("stop", []).success();
    let starting = task.start("start", []);
    sandbox.vmm();
    assert_eq!(task.call("stop", ["--json"]).json()["state"], "stopped");
    assert_eq!(starting.finish().code(), 1);
    task.call("start", []).success();
    task.delete();
}

#[test]
fn a_task_that_is_starting_says_so_and_a_second_start_is_answered_at_once() {
    let sandbox = Sandbox::new().without_templates();
    let task = sandbox.task([]);
    task.call("stop", []).success();
    assert!(task.status()["metadata"]["transition"].is_null());
    let starting = task.start("start", []);
    sandbox.vmm();
    let status = task.status();
    assert_eq!(
        (&status["state"], &status["metadata"]["transition"]),
        (&"stopped".into(), &"starting".into())
    );
    let second = task.call("start", []);
    assert!(second.error().contains("is being started by another process"), "{second:?}");
    starting.finish().success();
    assert!(task.status()["metadata"]["transition"].is_null());
    task.delete();
}

/// A killed creator leaves nothing that a later call must clean up.
#[test]
fn the_supervisor_of_a_task_whose_creator_is_killed_leaves_no_record() {
    let sandbox = Sandbox::new().without_templates();
    let creating = sandbox.start(["task", "create", ENVIRONMENT]);
    sandbox.vmm();
    creating.signal(Signal::KILL);
    drop(creating);
    sandbox.wait_until_clean();
}

#[test]
fn a_task_whose_socket_is_gone_can_be_stopped_and_deleted() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    task.exec([], "echo work > file").success();
    let socket = sandbox.vm_dir(&task.id).join("control.sock");
    std::fs::remove_file(&socket).unwrap();
    let begin = std::time::Instant::now();
    task.call("stop", []).success();
    assert!(begin.elapsed() < scaled(Duration::from_secs(20)), "{:?}", begin.elapsed());
    task.call("start", []).success();
    assert_eq!(task.exec([], "cat file").success(), "work\n");
    std::fs::remove_file(&socket).unwrap();
    task.delete();
}

/// The kernel accepts connections for a process that is stopped, so its clients have to notice by themselves.
#[test]
fn a_task_whose_supervisor_is_frozen_can_be_stopped_and_deleted() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    task.exec([], "echo work > file").success();
    for end in ["stop", "delete"] {
        let supervisor = sandbox.supervisor().pid;
        kill(supervisor, Signal::STOP);
        let begin = std::time::Instant::now();
        task.call(end, []).success();
        assert!(begin.elapsed() < scaled(Duration::from_secs(8)), "{:?}", begin.elapsed());
        if end == "stop" {
            task.call("start", []).success();
            assert_eq!(task.exec([], "cat file").success(), "work\n");
        }
    }
    sandbox.wait_until_clean();
}

/// The supervisor learns of a lifetime that was renewed while it was starting.
#[test]
fn a_lifetime_renewed_during_the_start_holds() {
    let sandbox = Sandbox::new().without_templates();
    let task = sandbox.task(["--ttl-seconds", "60"]);
    task.call("stop", []).success();
    let begin = std::time::Instant::now();
    let starting = task.start("start", []);
    sandbox.vmm();
    task.call("extend", ["--ttl-seconds", "600"]).success();
    starting.finish().success();
    // Its first lifetime would have ended.
    wait_until(LONG, "a minute", || begin.elapsed() > Duration::from_secs(62));
    assert_eq!(task.exec([], "echo alive").success(), "alive\n");
    task.delete();
}

#[test]
fn a_creator_that_is_stopped_leaves_nothing() {
    let sandbox = Sandbox::new().without_templates();
    let creating = sandbox.start(["task", "create", ENVIRONMENT]);
    sandbox.vmm();
    creating.signal(Signal::INT);
    assert_eq!(creating.finish().code(), 130);
    sandbox.wait_until_clean();
}

#[tokio::test]
async fn vms_and_tasks_do_not_see_each_other_and_count_together() {
    let sandbox = Sandbox::new();
    let engine = sandbox.engine_with(|config| config.max_active_vms = 2);
    let vm = sandbox.started_vm(&engine).await;
    let task = sandbox.task([]);
    let not_found = |error: pyro_engine::Error| error.to_string();
    assert_eq!(
        not_found(engine.status_vm(&task.id).await.unwrap_err()),
        format!("vm '{}' does not exist", task.id)
    );
    engine.delete_vm(&task.id).await.unwrap_err();
    engine.stop_vm(&task.id).await.unwrap_err();
    for word in ["status", "logs", "delete", "stop", "start"] {
        let refused = sandbox.pyro(["task", word, vm.vm_id.as_str()]);
        let text = format!("[error] task '{}' does not exist", vm.vm_id);
        assert!(refused.error().starts_with(&text), "{refused:?}");
    }
    let full = engine
        .create_task(
            pyro_engine::TaskSpec::new(ENVIRONMENT),
            &crate::harness::quiet(),
            &crate::harness::never(),
        )
        .await;
    assert_eq!(full.unwrap_err().to_string(), "max active VMs reached (2); delete old VMs first");
    assert_eq!(engine.reap_expired().await.unwrap().count, 0);
    engine.delete_vm(vm.vm_id.as_str()).await.unwrap();
    task.delete();
}

#[test]
fn an_id_that_is_none_is_refused_before_it_becomes_a_path() {
    let sandbox = Sandbox::new();
    let outside = sandbox.path("victim");
    std::fs::create_dir(&outside).unwrap();
    let task = sandbox.task([]);
    for id in ["../victim", "../../victim", "/etc", "1234567890123", "12345678901", "DE259A89B184", ".", ""] {
        for word in ["delete", "status", "logs", "stop", "start"] {
            let refused = sandbox.pyro(["task", word, id]);
            assert!(refused.error().contains(&format!("task '{id}' does not exist")), "{refused:?}");
        }
    }
    assert!(outside.exists());
    let other = Sandbox::new();
    let refused = other.pyro(["task", "delete", &task.id]);
    assert!(refused.error().contains("does not exist"), "{refused:?}");
    task.delete();
}

#[test]
fn a_damaged_record_affects_only_its_own_task() {
    let sandbox = Sandbox::new();
    let (damaged, sound) = (sandbox.task([]), sandbox.task([]));
    let file = sandbox.state().join("state.sqlite3");
    let connection = rusqlite::Connection::open(file).unwrap();
    connection.execute("UPDATE vms SET state = 'odd' WHERE vm_id = ?1", [&damaged.id]).unwrap();
    drop(connection);

    let list = sandbox.pyro(["task", "list", "--json"]).json();
    assert_eq!((&list["count"], &list["tasks"][0]["task_id"]), (&2.into(), &sound.id.as_str().into()));
    assert_eq!(list["damaged_task_ids"][0], damaged.id.as_str());
    assert!(sandbox.pyro(["task", "list"]).success().contains(&format!("{} damaged\n", damaged.id)));
    assert!(damaged.call("status", []).error().contains("damaged"), "it says so");
    assert_eq!(sound.exec([], "echo fine").success(), "fine\n");
    let third = sandbox.task([]);
    damaged.delete();
    third.delete();
    sound.delete();
}

#[test]
fn a_disk_has_the_size_that_was_asked_for_and_gives_its_space_back() {
    let sandbox = Sandbox::new();
    let task = sandbox.task(["--disk-mib", "300"]);
    let full = task.exec(["--timeout-seconds", "120"], "head -c 400M /dev/zero > big; echo $?; rm big");
    assert_eq!(full.success(), "1\n", "{full:?}");
    task.exec([], "head -c 50M /dev/urandom > file; sync").success();
    let status = task.status();
    assert_eq!(status["disk_mib"], 300);
    let used = status["disk_used_bytes"].as_u64().unwrap();
    assert!((50 << 20..310 << 20).contains(&used), "{used}");
    let doctor = sandbox.pyro(["doctor", "--json"]).json();
    assert!(doctor["disk"]["vms_used_mib"].as_u64().unwrap() >= 50, "{}", doctor["disk"]);
    let refused = sandbox.pyro(["task", "create", ENVIRONMENT, "--disk-mib", "255"]);
    assert!(refused.usage_error().contains("--disk-mib must be between 256 and 1048576"), "{refused:?}");
    let vast = sandbox.pyro(["task", "create", ENVIRONMENT, "--disk-mib", "1048576"]);
    assert!(vast.error().contains("a writable layer needs at least"), "{vast:?}");
    task.delete();
    assert!(!sandbox.state().join("vms").read_dir().is_ok_and(|mut entries| entries.next().is_some()));
}

/// A client that waits for a long time must not keep a task from stopping.
#[test]
fn stopping_ends_commands_and_tells_those_who_wait() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let running =
        task.start_exec(["--timeout-seconds", "500"], "trap 'echo bye' EXIT; echo begun; sleep 1000");
    running.stdout.wait_for("begun\n");
    let start = std::time::Instant::now();
    task.call("stop", []).success();
    assert!(start.elapsed() < scaled(Duration::from_secs(15)), "{:?}", start.elapsed());
    let ended = running.finish();
    assert!(ended.code() > 128, "ended by a signal: {ended:?}");
    let entry = &task.logs()[0];
    assert_eq!(entry["outcome"], "killed", "{entry}");
    task.delete();
}

#[test]
fn a_task_is_used_by_its_name_by_digits_of_its_id_and_with_others() {
    let sandbox = Sandbox::new();
    let task = sandbox.task(["--name", "build", "--label", "team=infra", "--ttl-from", "use"]);
    let pyro = |words: &[&str]| sandbox.pyro(words.iter().copied());
    let second = pyro(&["task", "create", ENVIRONMENT, "--name", "build"]);
    let taken = format!("[error] task name 'build' is in use by task {}\n", task.id);
    assert!(second.error().starts_with(&taken), "{second:?}");
    assert_eq!(
        pyro(&["task", "exec", "build", "--timeout-seconds", "60", "--", "echo by name"]).success(),
        "by name\n"
    );
    let before = task.status()["expires_at"].as_f64().unwrap();
    let digits = &task.id[..4];
    assert_eq!(
        pyro(&["task", "exec", digits, "--timeout-seconds", "60", "--", "echo by digits"]).success(),
        "by digits\n"
    );
    assert!(task.status()["expires_at"].as_f64().unwrap() > before, "a use begins a new lifetime");
    let copied = pyro(&["task", "cp", "build:/etc/hostname", sandbox.state().join("name").to_str().unwrap()]);
    assert_eq!(copied.code(), 0, "{copied:?}");
    std::fs::remove_file(sandbox.state().join("name")).unwrap();
    assert_eq!(pyro(&["task", "ps", "-q", "--label", "team"]).success(), format!("{}\n", task.id));
    assert_eq!(pyro(&["task", "update", "build", "--name", "web", "--remove-label", "team"]).code(), 0);
    assert_eq!(pyro(&["task", "list", "--label", "team"]).success(), "No tasks found.\n");
    let removed = pyro(&["task", "rm", "build", "web"]);
    assert_eq!(
        (removed.code(), String::from_utf8_lossy(&removed.stdout).as_ref()),
        (1, format!("Deleted task: {}\n", task.id).as_str()),
        "{removed:?}"
    );
    assert!(removed.stderr.starts_with("[error] task 'build' does not exist\n"), "{removed:?}");
    sandbox.wait_until_clean();
}

/// A person who types into a program uses its task the whole time. A command without a terminal has a time limit, and its
/// task lasts until then.
#[test]
fn what_is_typed_renews_the_lifetime_of_its_task() {
    let sandbox = Sandbox::new();
    let task = sandbox.task(["--ttl-seconds", "60", "--ttl-from", "use"]);
    let mut terminal = Terminal::run(&sandbox, &format!("{PYRO} task exec -it {} -- cat", task.id));
    terminal.press("begun\r");
    // The echo, and what the program writes.
    terminal.until("begun");
    terminal.until("begun");
    let begun = task.status()["expires_at"].as_f64().unwrap();
    terminal.press("more\r");
    wait_until(LONG, "a new lifetime", || task.status()["expires_at"].as_f64().unwrap() > begun + 10.0);
    terminal.press("\x04");
    let shown = terminal.finish();
    assert!(shown.contains("status=0"), "{shown}");
    task.delete();
}

/// Starting with an empty disk instead would lose the task's work in silence.
#[test]
fn a_task_whose_disk_is_gone_does_not_start_with_an_empty_one() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    task.exec(["--timeout-seconds", "60"], "echo work > file").success();
    task.call("stop", []).success();
    let layer = sandbox.state().join("vms").join(&task.id).join("layer.img");
    let kept = layer.with_extension("kept");
    std::fs::rename(&layer, &kept).unwrap();
    assert_eq!(task.status()["disk_state"], "missing");
    let refused = task.call("start", []);
    assert_eq!(refused.code(), 1, "{refused:?}");
    let error = format!("[error] the disk of task {} is missing: {}\n", task.id, layer.display());
    assert!(refused.stderr.contains(&error), "{refused:?}");
    assert!(!layer.exists());
    std::fs::rename(&kept, &layer).unwrap();
    task.call("start", []).success();
    assert_eq!(task.exec(["--timeout-seconds", "60"], "cat file").success(), "work\n");
    task.delete();
    sandbox.wait_until_clean();
}

#[test]
fn a_task_whose_supervisor_has_lost_its_socket_is_stopped_and_deleted() {
    let sandbox = Sandbox::new();
    for word in ["stop", "delete"] {
        let task = sandbox.task([]);
        let vm_dir = sandbox.state().join("vms").join(&task.id);
        let mut sockets: Vec<_> = std::fs::read_dir(&vm_dir).unwrap().map(|entry| entry.unwrap()).collect();
        sockets.retain(|entry| {
            use std::os::unix::fs::FileTypeExt as _;
            entry.file_type().unwrap().is_socket()
        });
        assert!(!sockets.is_empty());
        sockets.iter().for_each(|socket| std::fs::remove_file(socket.path()).unwrap());
        let began = std::time::Instant::now();
        task.call(word, []).success();
        assert!(began.elapsed() < scaled(Duration::from_secs(20)), "{word}: {:?}", began.elapsed());
        if word == "stop" {
            assert_eq!(task.status()["state"], "stopped");
            task.delete();
        }
    }
    sandbox.wait_until_clean();
}
