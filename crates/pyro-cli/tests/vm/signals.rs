//! Ctrl-C and SIGTERM at any moment of a run: the exit status shows it, and nothing is left.

use std::time::Duration;

use pyro_testkit::Seed;
use rustix::process::Signal;

use crate::harness::{Ended, Sandbox};

const SIGNALS: [(Signal, i32); 2] = [(Signal::INT, 130), (Signal::TERM, 143)];

fn check(sandbox: &Sandbox, ended: &Ended, code: i32) {
    assert_eq!(ended.code(), code, "{ended:?}");
    sandbox.wait_until_clean();
}

/// The moment is named by a line that the run prints.
fn at_line(line: &str) {
    for (signal, code) in SIGNALS {
        let sandbox = Sandbox::new();
        let running = sandbox.start_run(["--timeout-seconds", "500"], "echo running; sleep 1000");
        match line.strip_prefix('[') {
            Some(_) => running.stderr.wait_for(line),
            None => running.stdout.wait_for(line),
        }
        running.signal(signal);
        check(&sandbox, &running.finish(), code);
    }
}

#[test]
fn while_the_vm_is_being_created() {
    at_line("[run] phase=create");
}

#[test]
fn when_the_vm_starts() {
    at_line("[run] phase=start");
}

#[test]
fn when_the_command_is_sent() {
    at_line("[run] phase=execute");
}

#[test]
fn while_the_command_runs() {
    at_line("running\n");
}

#[test]
fn while_the_guest_boots() {
    for (signal, code) in SIGNALS {
        let sandbox = Sandbox::new();
        let running = sandbox.start_run([], "echo never");
        sandbox.vmm();
        running.signal(signal);
        let ended = running.finish();
        check(&sandbox, &ended, code);
        assert_eq!(ended.text(), "");
    }
}

#[test]
fn while_output_pours_out() {
    let sandbox = Sandbox::new();
    let running = sandbox.start_run(["--timeout-seconds", "500"], "yes");
    running.stdout.wait_for("y\n");
    running.signal(Signal::INT);
    check(&sandbox, &running.finish(), 130);
}

#[test]
fn a_json_run_that_is_interrupted_still_gives_one_document() {
    let sandbox = Sandbox::new();
    let running = sandbox.start_run(["--json"], "sleep 1000");
    sandbox.vmm();
    running.signal(Signal::INT);
    let ended = running.finish();
    assert_eq!(ended.json()["ok"], false);
    check(&sandbox, &ended, 130);
}

/// Random moments, most of them within creation and boot.
#[test]
fn at_any_moment() {
    let mut seed = Seed::of_test();
    for round in 0..8 {
        let delay = Duration::from_millis(seed.below(4000));
        let (signal, code) = SIGNALS[round % 2];
        println!("round {round}: {signal:?} after {delay:?}");
        let sandbox = Sandbox::new();
        let running = sandbox.start_run(["--timeout-seconds", "500"], "sleep 1000");
        // Not a wait for an event: the test varies the moment.
        std::thread::sleep(delay);
        running.signal(signal);
        let ended = running.finish();
        // Before the program has set up its handlers the signal simply ends it.
        if ended.status.code().is_some() {
            check(&sandbox, &ended, code);
        }
    }
}
