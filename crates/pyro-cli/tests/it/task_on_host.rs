//! Tasks in host compatibility mode: the same journal, kept by the processes that run the commands.

use std::io::Read as _;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{Ended, Home, PYRO};

/// No VM can run, and commands find the usual programs.
fn host() -> Home {
    Home::new().set("PATH", "/usr/bin:/bin").set_path("PYRO_QEMU", "no-such-qemu")
}

fn task<'a>(home: &Home, word: &'a str, more: impl IntoIterator<Item = &'a str>) -> Ended {
    let words = ["task", word].into_iter().chain(more);
    home.ended(home.command(words).output().unwrap())
}

fn created(home: &Home) -> String {
    let words = ["debian:12", "--allow-host-compat", "--json"];
    let document: Value = serde_json::from_slice(&task(home, "create", words).raw_stdout).unwrap();
    assert_eq!((&document["state"], &document["execution_mode"]), (&"started".into(), &"host_compat".into()));
    document["task_id"].as_str().unwrap().to_owned()
}

fn entries(home: &Home, id: &str) -> Vec<Value> {
    task(home, "logs", [id, "--json"]).json()["entries"].as_array().unwrap().clone()
}

#[test]
fn without_the_opt_in_there_is_no_task() {
    let home = host();
    let refused = task(&home, "create", ["debian:12", "--json"]).json_error();
    assert_eq!(refused["kind"], "vm_unavailable");
    assert_eq!(task(&home, "list", []).stdout, "No tasks found.\n");
}

/// The terminal is in raw mode when the engine refuses the command.
#[test]
fn a_shell_that_cannot_start_leaves_the_terminal_as_it_was() {
    let home = host();
    let id = created(&home);
    let line = format!("stty -a > before; {PYRO} task shell {id}; echo status=$?; stty -a > after");
    let output = home.program("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("standard input is not available in host compatibility mode"), "{text}");
    assert!(text.contains("status=2"), "{text}");
    let mode = |name: &str| std::fs::read_to_string(home.path(name)).unwrap();
    assert!(mode("before").contains(" icanon"), "{}", mode("before"));
    assert_eq!(mode("before"), mode("after"));
}

/// As those of a first run.
#[test]
fn a_new_task_shows_its_phases() {
    let home = host();
    let created = task(&home, "create", ["debian:12", "--allow-host-compat"]);
    let phases: Vec<&str> = created.stderr.lines().filter(|line| line.contains("phase=")).collect();
    assert_eq!(phases, ["[run] phase=create environment=debian:12", "[run] phase=start vm_id=[ID]"]);
}

/// A file gets every byte, and a terminal nothing that controls it.
#[test]
fn logs_are_the_bytes_in_a_file_and_text_on_a_terminal() {
    let home = host();
    let id = &created(&home);
    task(&home, "exec", [id, "--", r"printf 'a\033[2J\377\000b\303\244'; printf 'e\377' >&2"]);
    for flags in [&[][..], &["--follow"]] {
        let ended = task(&home, "logs", [&[&**id], flags].concat());
        let (stdout, end) = (&ended.raw_stdout, if flags.is_empty() { "\n" } else { "" });
        let expected = [&b"a\x1b[2J\xff\0b\xc3\xa4"[..], end.as_bytes()].concat();
        assert!(stdout.ends_with(&expected), "{flags:?}: {}", stdout.escape_ascii());

        let line = format!("{PYRO} task logs {id} {}", flags.concat());
        let output = home.program("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        assert!(shown.contains("a\\u{1b}[2J\u{fffd}\\u{0}b\u{e4}"), "{flags:?}: {shown:?}");
        assert!(shown.contains("e\u{fffd}"), "{flags:?}: {shown:?}");
    }
}

/// `while read` loops keep their input.
#[test]
fn standard_input_stays_with_the_caller_without_the_flag() {
    let home = host();
    let id = created(&home);
    let line = format!(
        "printf '1\\n2\\n3\\n' | while read n; do {PYRO} task exec {id} -- echo got $n; done 2>notes"
    );
    let output = home.program("/bin/sh").args(["-c", &line]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "got 1\ngot 2\ngot 3\n");
    let notes = std::fs::read_to_string(home.path("notes")).unwrap();
    assert!(
        notes.contains("[pyro] standard input is not passed on to the command; use -i to pass it on\n"),
        "{notes}"
    );
    // One that is not waited for gets none either, which host compatibility does not have.
    let line = format!("echo x | {PYRO} task exec {id} --detach -- cat");
    let output = home.program("/bin/sh").args(["-c", &line]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("use -i to pass it on\n"), "{output:?}");
    // Neither without input, nor in a document.
    let quiet = task(&home, "exec", [&*id, "--", "true"]);
    assert!(!quiet.stderr.contains("standard input"), "{quiet:?}");
    let line = format!("echo x | {PYRO} task exec {id} --json -- true");
    let output = home.program("/bin/sh").args(["-c", &line]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn what_only_a_guest_has_is_refused_before_anything_is_recorded() {
    let home = host();
    let id = created(&home);
    for (flags, what) in [
        (&["-i"][..], "standard input is not available in host compatibility mode"),
        (&["-u", "nobody"], "--user cannot be chosen in host compatibility mode"),
        (&["--shell", "bash"], "--shell cannot be chosen in host compatibility mode"),
        (&["-w", "/tmp"], "--cwd cannot be chosen in host compatibility mode"),
        (&["-t"], "terminals are not available in host compatibility mode"),
    ] {
        let words = [&[&*id], flags, &["--", "true"]].concat();
        let refused = task(&home, "exec", words);
        assert_eq!(refused.code(), 2, "{refused:?}");
        assert!(refused.stderr.contains(what), "{refused:?}");
    }
    assert!(entries(&home, &id).is_empty());
    let words = task(&home, "exec", [&*id, "--argv", "--", "printf", "%s|", "a b", "$HOME"]);
    assert_eq!(words.stdout, "a b|$HOME|");
}

#[test]
fn files_and_journal_stay_until_the_task_is_deleted() {
    let home = host();
    let id = &created(&home);
    assert_eq!(task(&home, "exec", [id, "--", "echo hi > note; echo out; echo err >&2"]).stdout, "out\n");
    let read = task(&home, "exec", [id, "--json", "--env", "WHO=me", "--", "echo $WHO; cat note; exit 3"]);
    assert_eq!(read.code(), 3);
    let read = read.json();
    assert_eq!((&read["stdout"], &read["sequence"]), (&"me\nhi\n".into(), &2.into()));
    assert_eq!(task(&home, "exec", [id, "--timeout-seconds", "1", "--", "sleep 30"]).code(), 124);

    let entries = entries(&home, id);
    let outcomes: Vec<_> = entries.iter().map(|entry| (&entry["exit_code"], &entry["outcome"])).collect();
    let exited = &Value::from("exited");
    assert_eq!(outcomes, [(&0.into(), exited), (&3.into(), exited), (&124.into(), exited)]);
    assert_eq!((&entries[0]["stdout"], &entries[0]["stderr"]), (&"out\n".into(), &"err\n".into()));
    assert_eq!(entries[2]["stderr"], "command timed out after 1s\n");

    let stopped = task(&home, "stop", [id.as_str(), "--json"]).raw_stdout;
    assert_eq!(serde_json::from_slice::<Value>(&stopped).unwrap()["stop_reason"], "explicit_stop");
    let refused = task(&home, "exec", [id, "--json", "--", "true"]).json_error();
    assert_eq!(refused["kind"], "wrong_state");
    task(&home, "start", [id.as_str()]);
    assert_eq!(task(&home, "exec", [id, "--", "cat note"]).stdout, "hi\n");
    assert_eq!(task(&home, "delete", [id.as_str()]).stdout, format!("Deleted task: {id}\n"));
    assert_eq!(task(&home, "list", []).stdout, "No tasks found.\n");
}

#[test]
fn what_needs_a_supervisor_is_refused() {
    let home = host();
    let id = &created(&home);
    let detached = task(&home, "exec", [id, "--detach", "--json", "--", "true"]).json_error();
    assert!(
        detached["error"].as_str().unwrap().contains("run on the host and cannot be detached"),
        "{detached}"
    );
    let elsewhere = task(&home, "exec", [id, "--cwd", "/", "--json", "--", "true"]).json_error();
    assert!(elsewhere["error"].as_str().unwrap().starts_with("cwd cannot be chosen"), "{elsewhere}");
    assert!(entries(&home, id).is_empty(), "what is refused is not recorded");
    let copied = task(&home, "cp", [&format!("{id}:a"), "b", "--json"]).json_error();
    assert!(copied["hints"][0].as_str().unwrap().contains("its workspace is /"), "{copied}");
    task(&home, "delete", [id.as_str()]);
}

#[test]
fn a_command_whose_process_was_killed_is_unknown_and_others_can_wait_for_one_that_runs() {
    let home = host();
    let id = &created(&home);
    let words = ["task", "exec", id, "--timeout-seconds", "60", "--", "echo $$; sleep 50"];
    let mut running = home.command(words).spawn().unwrap();
    let mut shell = Vec::new();
    let mut stdout = running.stdout.take().unwrap();
    while shell.last() != Some(&b'\n') {
        let mut byte = [0];
        stdout.read_exact(&mut byte).unwrap();
        shell.extend(byte);
    }
    assert_eq!(entries(&home, id)[0]["outcome"], "running");
    for word in ["stop", "delete"] {
        let busy = task(&home, word, [id.as_str(), "--json"]).json_error();
        assert!(busy["error"].as_str().unwrap().contains("runs command 1 on the host"), "{busy}");
    }
    let waiting = home.command(["task", "wait", id, "--sequence", "1", "--json"]).spawn().unwrap();
    running.kill().unwrap();
    running.wait().unwrap();
    let waited = waiting.wait_with_output().unwrap();
    assert_eq!(waited.status.code(), Some(1));
    let entry: Value = serde_json::from_slice(&waited.stdout).unwrap();
    assert_eq!(entry["outcome"], "unknown");
    assert_eq!(entries(&home, id)[0]["outcome"], "unknown");
    let shell = String::from_utf8(shell).unwrap().trim().parse().unwrap();
    // No process was left to end it.
    let _ = kill_process(Pid::from_raw(shell).unwrap(), Signal::KILL);
    task(&home, "delete", [id.as_str()]);
}
