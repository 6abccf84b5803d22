//! `pyro run` in host compatibility mode: the same streams, codes and signals as with a VM, without one.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Child;
use std::time::{Duration, Instant};

use pyro_testkit::{LONG, wait_until};
use rustix::io::ioctl_fionread;
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Ended, Home, PYRO};

/// No VM can run, and commands find the usual programs.
fn host() -> Home {
    Home::new().set("PATH", "/usr/bin:/bin").set_path("PYRO_QEMU", "no-such-qemu")
}

fn run<const N: usize>(home: &Home, words: [&str; N]) -> Ended {
    let fixed = ["run", "debian:12", "--allow-host-compat"];
    home.ended(home.command(fixed.into_iter().chain(words)).output().unwrap())
}

#[test]
fn guest_output_goes_where_the_guest_wrote_it() {
    let ended = run(&host(), ["--", "printf '\\377\\000 out'; echo err >&2"]);
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert_eq!(ended.raw_stdout, b"\xff\0 out");
    let lines: Vec<&str> = ended.stderr.lines().filter(|line| !line.starts_with("[warning] ")).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    [run] phase=create environment=debian:12
    [run] phase=start vm_id=[ID]
    [run] phase=execute vm_id=[ID]
    err
    [run] environment=debian:12 execution_mode=host_compat exit_code=0 duration_ms=[MS]
    ");
}

#[test]
fn much_output_comes_whole() {
    let ended = run(&host(), ["--", "head -c 3000000 /dev/zero"]);
    assert_eq!((ended.code(), ended.raw_stdout.len()), (0, 3_000_000), "{}", ended.stderr);
}

#[test]
fn the_exit_status_is_that_of_the_command() {
    let home = host();
    for code in [0, 1, 3, 127, 255] {
        let command = format!("exit {code}");
        assert_eq!(run(&home, ["--", &command]).code(), code);
        let ended = run(&home, ["--json", "--", &command]);
        assert_eq!(ended.code(), code);
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&ended.raw_stdout).unwrap()["exit_code"],
            code
        );
    }
    assert_eq!(run(&home, ["--", "no-such-program-anywhere"]).code(), 127);
}

#[test]
fn a_signal_that_ends_the_command_counts_down_from_256() {
    let home = host();
    assert_eq!(run(&home, ["--", "kill -9 $$"]).code(), 247);
    assert_eq!(run(&home, ["--json", "--", "kill -9 $$"]).code(), 247);
}

#[test]
fn a_command_that_takes_too_long_is_124_and_keeps_its_output() {
    let home = host();
    let ended = run(&home, ["--timeout-seconds", "1", "--", "echo early; sleep 30"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (124, "early\n"), "{ended:?}");
    assert!(ended.stderr.ends_with("run it with a larger --timeout-seconds\n"), "{ended:?}");
    let ended = run(&home, ["--timeout-seconds", "1", "--json", "--", "echo early; sleep 30"]);
    assert_eq!(ended.code(), 124);
    let value: serde_json::Value = serde_json::from_slice(&ended.raw_stdout).unwrap();
    assert_eq!((value["exit_code"].as_i64(), value["timed_out"].as_bool()), (Some(124), Some(true)));
    assert_eq!((&value["stdout"], &value["shell"]), (&"early\n".into(), &"bash".into()));
}

#[test]
fn words_reach_the_program_unchanged() {
    let ended = run(&host(), ["--", "printf", "%s|", "a  b", "c'd", "", "$HOME", "--", "*"]);
    assert_eq!(ended.stdout, "a  b|c'd||$HOME|--|*|");
}

#[test]
fn one_word_is_a_shell_line() {
    assert_eq!(run(&host(), ["--", "echo a && echo b | cat"]).stdout, "a\nb\n");
}

#[test]
fn the_document_holds_the_run() {
    let ended = run(&host(), ["--json", "--", "printf 'é\\377'; echo err >&2; exit 3"]);
    assert_eq!(ended.code(), 3);
    assert!(ended.raw_stdout.is_ascii());
    let value: serde_json::Value = serde_json::from_slice(&ended.raw_stdout).unwrap();
    assert_eq!(value["stdout"], "é\u{fffd}");
    assert_eq!(value["stderr"], "err\n");
    assert_eq!(value["execution_mode"], "host_compat");
    assert_eq!(value["environment"], "debian:12");
    assert_eq!(value["cleanup"]["reason"], "post_exec_cleanup");
    assert_eq!(value["cleanup"]["vm_id"], value["vm_id"]);
    assert!(!ended.stderr.contains("phase="), "{}", ended.stderr);
}

/// A run that has written its first line.
fn started(home: &Home, command: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let words = ["run", "debian:12", "--allow-host-compat", "--", command];
    let mut child = home.command(words).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    (child, stdout)
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn signals_stop_the_run_and_clean_up() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let home = host();
        let begin = Instant::now();
        let (child, _stdout) = started(&home, "echo up; sleep 60");
        send(&child, signal);
        let ended = home.ended(child.wait_with_output().unwrap());
        assert_eq!(ended.code(), code, "{ended:?}");
        assert!(ended.stderr.contains("stopping and cleaning up\n"), "{}", ended.stderr);
        assert!(ended.stderr.contains("[error] "), "{}", ended.stderr);
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn a_stopped_run_leaves_no_vm_that_counts() {
    let home = host().set("PYRO_MAX_ACTIVE_VMS", "1");
    let (child, _stdout) = started(&home, "echo up; sleep 60");
    send(&child, Signal::TERM);
    assert_eq!(home.ended(child.wait_with_output().unwrap()).code(), 143);
    assert_eq!(run(&home, ["--", "true"]).code(), 0);
}

#[test]
fn an_ignored_signal_stays_ignored() {
    let home = host();
    let script =
        format!("trap '' INT; exec {PYRO} run debian:12 --allow-host-compat -- 'echo up; sleep 1; echo end'");
    let mut child = home.program("/bin/sh").arg("-c").arg(script).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    stdout.read_line(&mut text).unwrap();
    send(&child, Signal::INT);
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text, "up\nend\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_reader_that_goes_away_stops_the_run() {
    let home = host();
    let begin = Instant::now();
    let (child, stdout) = started(&home, "echo up; yes");
    drop(stdout);
    let ended = home.ended(child.wait_with_output().unwrap());
    assert_eq!(ended.code(), 141, "{ended:?}");
    assert!(!ended.stderr.contains("[error]"), "{}", ended.stderr);
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_pipe_that_nobody_empties_does_not_hold_up_a_signal() {
    let home = host();
    let (mut child, stdout) = started(&home, "echo up; yes");
    // A pipe takes 64 KiB, and less if its writer leaves pages half empty.
    wait_until(LONG, "a full pipe", || ioctl_fionread(stdout.get_ref()).unwrap() > 32 * 1024);
    send(&child, Signal::TERM);
    let begin = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(begin.elapsed() < Duration::from_secs(20));
    drop(stdout);
}
