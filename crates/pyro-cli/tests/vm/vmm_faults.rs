//! VMMs that are missing or broken.

use rustix::process::Signal;

use crate::harness::Sandbox;

const MISSING: &str = "guest boot is unavailable and host compatibility mode is disabled: the configured VMM \
                       /nonexistent/qemu does not exist.";

/// Shell text that does nothing forever. A confined VMM can create neither processes nor files to wait for, and its channel
/// does not block.
const HANG: &str = "while :; do :; done";

#[test]
fn without_a_vmm_nothing_runs_and_the_text_says_why() {
    let sandbox = Sandbox::new().set("PYRO_QEMU", "/nonexistent/qemu");
    let ended = sandbox.run([], "echo never");
    assert!(ended.error().contains(MISSING), "{ended:?}");
    assert_eq!(ended.text(), "");
    let ended = sandbox.run(["--json"], "echo never");
    assert_eq!(ended.code(), 1);
    assert_eq!(ended.json()["error"], MISSING);
}

#[test]
fn without_a_vmm_the_host_is_used_only_with_consent() {
    let sandbox = Sandbox::new().set("PYRO_QEMU", "/nonexistent/qemu");
    let ended = sandbox.run(["--allow-host-compat", "--json"], "cat /proc/sys/kernel/random/boot_id; exit 4");
    assert_eq!(ended.code(), 4, "{ended:?}");
    let result = ended.json();
    assert_eq!(result["execution_mode"], "host_compat");
    assert_eq!(result["accelerator"], serde_json::Value::Null);
    let host_boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(result["stdout"], host_boot_id);
}

#[test]
fn with_a_vmm_consent_changes_nothing() {
    let sandbox = Sandbox::new();
    let ended = sandbox.run(["--allow-host-compat", "--json"], "cat /proc/sys/kernel/random/boot_id");
    let result = ended.json();
    assert_eq!(result["execution_mode"], "guest_vsock");
    let host_boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_ne!(result["stdout"], host_boot_id);
}

#[test]
fn a_failed_boot_does_not_fall_back_to_the_host() {
    let sandbox = Sandbox::new().with_vmm_script("exit 1");
    let ended = sandbox.run(["--allow-host-compat"], "echo never");
    assert!(ended.error().contains("did not come up"), "{ended:?}");
    assert_eq!(ended.text(), "");
}

#[test]
fn a_vmm_that_ends_at_once_is_reported_with_stage_and_status() {
    let sandbox = Sandbox::new().set("PYRO_QEMU", "/bin/false");
    let ended = sandbox.run([], "echo never");
    let expected = "did not come up: booting the kernel failed: the VMM ended: exit status: 1";
    assert!(ended.error().contains(expected), "{ended:?}");
    let document = sandbox.run(["--json"], "echo never").json();
    assert_eq!(document["kind"], "boot_failed");
    assert!(document["error"].as_str().unwrap().contains(expected), "{document}");
}

#[test]
fn what_a_failing_vmm_says_is_shown_and_cannot_harm_a_terminal() {
    let script = r"printf 'no \033[31mmachine\007 today\n'; echo complaint >&2; exit 3";
    let sandbox = Sandbox::new().with_vmm_script(script);
    let ended = sandbox.run([], "echo never");
    let error = ended.error();
    assert!(error.contains("the VMM ended: exit status: 3"), "{error}");
    assert!(error.contains("complaint"), "{error}");
    assert!(error.contains("no \u{fffd}[31mmachine\u{fffd} today"), "{error:?}");
}

#[test]
fn a_vmm_that_cannot_be_executed_is_reported() {
    let sandbox = Sandbox::new();
    let program = sandbox.path("no-program");
    std::fs::write(&program, "text").unwrap();
    let sandbox = sandbox.set("PYRO_QEMU", program.to_str().unwrap());
    let ended = sandbox.run([], "echo never");
    let error = ended.error();
    let expected = format!("starting the VMM failed: cannot run {}: Permission denied", program.display());
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn garbage_on_the_guests_channel_is_not_believed() {
    for garbage in
        [r"printf '\377\001\200garbage%05000d\n' 7", r"printf '\000\000\000\000%05000d' 7", "echo y"]
    {
        // Until the supervisor stops reading.
        let sandbox = Sandbox::new().with_vmm_script(&format!("while {garbage} >&3; do :; done; {HANG}"));
        let ended = sandbox.run([], "echo never");
        let error = ended.error();
        assert!(
            error.contains("did not come up: booting the kernel failed: the guest"),
            "{garbage}: {error}"
        );
        sandbox.wait_until_clean();
    }
}

#[test]
fn a_vmm_that_hangs_can_be_interrupted() {
    let sandbox = Sandbox::new().with_vmm_script(HANG);
    let running = sandbox.start_run([], "echo never");
    sandbox.vmm();
    running.signal(Signal::INT);
    let ended = running.finish();
    assert_eq!(ended.code(), 130, "{ended:?}");
    sandbox.wait_until_clean();
}

/// A forced KVM has the shorter time limit; KVM itself is not used here.
#[test]
fn a_vmm_that_hangs_is_given_up_at_the_boot_limit() {
    let sandbox = Sandbox::new().with_vmm_script(HANG).set("PYRO_ACCEL", "kvm");
    let ended = sandbox.run([], "echo never");
    let error = ended.error();
    assert!(
        error.contains("did not come up: booting the kernel failed: not done after 30 seconds"),
        "{error}"
    );
    assert_eq!(ended.text(), "");
}
