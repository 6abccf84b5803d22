//! The process that carries packets lives as long as its VM, and its end is the end of the network alone.

use rustix::process::Signal;

use super::world::start_in_world;
use crate::harness::{ENVIRONMENT, LONG, Process, Sandbox, kill, wait_until};

pub(super) fn helper(sandbox: &Sandbox) -> Process {
    sandbox.wait_for_process("network process", |process| process.has_argument("network"))
}

#[test]
fn the_helper_goes_with_the_vm() {
    for victim in [Sandbox::supervisor, Sandbox::vmm] {
        let sandbox = Sandbox::new();
        let running = start_in_world(&sandbox, ["--network"], "echo running; sleep 1000");
        running.stdout.wait_for("running\n");
        helper(&sandbox);
        kill(victim(&sandbox).pid, Signal::KILL);
        assert!(running.finish().error().contains("was lost while its command ran"));
    }
}

#[test]
fn the_loss_of_the_helper_is_the_loss_of_the_network_only() {
    let sandbox = Sandbox::new();
    let line = "echo running; head -c 100000000 /dev/zero | md5sum > /dev/null; echo done";
    let running = start_in_world(&sandbox, ["--network"], line);
    running.stdout.wait_for("running\n");
    kill(helper(&sandbox).pid, Signal::KILL);
    assert_eq!(running.finish().success(), "running\ndone\n");
}

#[test]
fn the_console_log_says_why_the_network_was_lost() {
    let sandbox = Sandbox::new();
    let created = sandbox.pyro(["task", "create", ENVIRONMENT, "--network"]);
    let id = created.success().lines().find_map(|line| line.strip_prefix("Task ID: ")).unwrap();
    kill(helper(&sandbox).pid, Signal::KILL);
    let log = sandbox.vm_dir(id).join("serial.log");
    let report = "[the network is lost: the network process ended (signal: 9 (SIGKILL)): ";
    let reported = || std::fs::read_to_string(&log).unwrap().contains(report);
    wait_until(LONG, "report of the lost network", reported);
    let still = sandbox.pyro(["task", "exec", id, "--", "echo still running"]);
    assert_eq!(still.success(), "still running\n");
    sandbox.pyro(["task", "delete", id]).success();
}
