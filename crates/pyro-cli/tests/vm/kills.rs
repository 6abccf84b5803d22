//! `kill -9` of any process of a run: how the others react, and that nothing is left.

use rustix::process::Signal;

use crate::harness::{Running, Sandbox, kill, wait_until};

/// A run whose command has started and runs longer than any test.
fn busy_run(sandbox: &Sandbox) -> Running {
    let running = sandbox.start_run(["--timeout-seconds", "500"], "echo running; sleep 1000");
    running.stdout.wait_for("running\n");
    running
}

/// Proves that the other tests would notice leftovers.
#[test]
fn what_a_running_vm_consists_of_is_seen() {
    let sandbox = Sandbox::new();
    let running = busy_run(&sandbox);
    let parts = sandbox.leftovers();
    let count = |kind: &str| parts.iter().filter(|part| part.starts_with(kind)).count();
    // The command line, the supervisor and the VMM; its directory; its record.
    assert_eq!((count("process"), count("file vms/"), count("record")), (3, 1, 1), "{parts:?}");
    running.signal(Signal::TERM);
    assert_eq!(running.finish().code(), 143);
}

#[test]
fn the_death_of_the_command_line_ends_the_vm() {
    let sandbox = Sandbox::new();
    let running = busy_run(&sandbox);
    running.signal(Signal::KILL);
    sandbox.wait_until_clean();
    assert!(running.finish().status.code().is_none());
}

#[test]
fn the_death_of_the_supervisor_ends_the_vm() {
    let sandbox = Sandbox::new();
    let running = busy_run(&sandbox);
    kill(sandbox.supervisor().pid, Signal::KILL);
    let ended = running.finish();
    sandbox.wait_until_clean();
    let error = ended.error();
    assert!(error.contains("was lost while its command ran"), "{error}");
    assert!(error.contains("the VM's supervisor was lost"), "{error}");
    assert_eq!(ended.text(), "running\n");
}

#[test]
fn the_death_of_the_vmm_is_reported() {
    let sandbox = Sandbox::new();
    let running = busy_run(&sandbox);
    kill(sandbox.vmm().pid, Signal::KILL);
    let ended = running.finish();
    sandbox.wait_until_clean();
    let error = ended.error();
    assert!(error.contains("was lost while its command ran"), "{error}");
    assert!(error.contains("the VM ended by itself: signal: 9"), "{error}");
}

#[test]
fn the_json_document_tells_of_a_loss_too() {
    let sandbox = Sandbox::new().without_templates();
    let running = sandbox.start_run(["--json", "--timeout-seconds", "500"], "sleep 1000");
    kill(sandbox.vmm().pid, Signal::KILL);
    let ended = running.finish();
    assert_eq!(ended.code(), 1);
    let document = ended.json();
    assert_eq!(document["ok"], false);
    // The VMM may have died before or after the command was sent.
    let kind = document["kind"].as_str().unwrap();
    assert!(["boot_failed", "outcome_unknown", "not_delivered"].contains(&kind), "{document}");
}

#[test]
fn during_the_boot_the_death_of_the_command_line_ends_the_vm() {
    let sandbox = Sandbox::new();
    let running = sandbox.start_run([], "echo never");
    sandbox.vmm();
    running.signal(Signal::KILL);
    sandbox.wait_until_clean();
    assert_eq!(running.finish().text(), "");
}

#[test]
fn during_the_boot_the_death_of_the_supervisor_is_reported() {
    let sandbox = Sandbox::new();
    let running = sandbox.start_run([], "echo never");
    sandbox.vmm();
    kill(sandbox.supervisor().pid, Signal::KILL);
    let ended = running.finish();
    let error = ended.error();
    assert!(error.contains("was lost while it was starting"), "{error}");
    assert_eq!(ended.text(), "");
}

#[test]
fn during_the_boot_the_death_of_the_vmm_is_reported_with_its_stage() {
    let sandbox = Sandbox::new().without_templates();
    let running = sandbox.start_run([], "echo never");
    kill(sandbox.vmm().pid, Signal::KILL);
    let ended = running.finish();
    let error = ended.error();
    assert!(
        error.contains("did not come up: booting the kernel failed: the VMM ended: signal: 9"),
        "{error}"
    );
}

#[test]
fn a_run_after_a_violent_end_works() {
    let sandbox = Sandbox::new();
    let running = busy_run(&sandbox);
    // Both at once: only the next run can clean up.
    kill(sandbox.supervisor().pid, Signal::KILL);
    running.signal(Signal::KILL);
    drop(running);
    wait_until(crate::harness::GONE_WITHIN, "end of all processes", || sandbox.processes().is_empty());
    assert_eq!(sandbox.run([], "echo fine").success(), "fine\n");
}
