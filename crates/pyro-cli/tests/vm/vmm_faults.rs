//! VMMs that are missing or broken.

use std::time::{Duration, Instant};

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

/// Makes it known that boots take a second on this host, so that the limit is the shortest one.
fn with_short_limit(sandbox: Sandbox) -> Sandbox {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let times = serde_json::json!({ "boot_id": boot_id.trim(), "boot_ms": { "tcg": 1000, "kvm": 1000 } });
    std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
        .create(sandbox.state())
        .unwrap();
    std::fs::write(sandbox.state().join("boot-times.json"), times.to_string()).unwrap();
    sandbox
}

#[test]
fn a_vmm_that_hangs_is_given_up_at_the_limit_that_follows_from_earlier_boots() {
    let sandbox = with_short_limit(Sandbox::new().with_vmm_script(HANG));
    let ended = sandbox.run([], "echo never");
    let error = ended.error();
    assert!(
        error.contains("did not come up: booting the kernel failed: not done after 30 seconds"),
        "{error}"
    );
    assert!(ended.stderr.contains("[vm] booting the kernel (5 s)"), "{ended:?}");
    assert_eq!(ended.text(), "");
    // The next one has more time.
    let times = std::fs::read_to_string(sandbox.state().join("boot-times.json")).unwrap();
    assert!(times.contains(":6000"), "{times}");
}

/// The first limit of a host is three minutes.
#[test]
fn a_vmm_that_does_nothing_is_given_up_long_before_the_limit() {
    let sandbox = Sandbox::new().with_vmm_script("exec sleep 1000");
    let ended = sandbox.run([], "echo never");
    let error = ended.error();
    assert!(error.contains("booting the kernel failed: nothing has happened for 60 seconds"), "{error}");
}

/// QEMU with a disk that fails at this sector for this operation, and that pauses its machine then. It cannot start another
/// program to change its arguments.
fn with_failing_disk(operation: &str, sector: u64) -> Sandbox {
    let path = std::env::var("PATH").unwrap();
    let fault = format!(
        r#"{{"driver":"blkdebug","inject-error":[{{"event":"none","iotype":"{operation}","sector":{sector}}}],"image":"#
    );
    Sandbox::new().with_vmm_script(&format!(
        r#"for argument; do
            shift
            case $argument in
            *'"node-name":"layer"'*)
                rest=${{argument#*'"file":'}}
                argument=${{argument%%'"file":'*}}'"file":{fault}'${{rest%%'}}'*}}'}}}}'${{rest#*'}}'}} ;;
            *drive=layer*)
                argument=${{argument%%,rerror=*}},rerror=stop,werror=stop ;;
            esac
            set -- "$@" "$argument"
        done
        PATH={path} exec qemu-system-x86_64 "$@""#
    ))
}

#[test]
fn a_machine_that_its_vmm_pauses_ends_at_once_with_the_reason() {
    // Near the end of the disk, where the file system has nothing.
    let sandbox = with_failing_disk("write", 1900 * 2048);
    let task = sandbox.task(["--disk-mib", "2048"]);
    let line = r#"echo before
        for disk in /sys/block/vd*; do
            if grep -q pyro-layer "$disk/serial"; then
                dd if=/dev/zero of="/dev/${disk##*/}" bs=1M count=1 seek=1900 oflag=direct
            fi
        done"#;
    let begun = Instant::now();
    let ended = task.exec(["--timeout-seconds", "300"], line);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let reason =
        "the VMM paused it: a disk has failed: cannot write to its file on the host: input/output error";
    let error = ended.error();
    assert!(error.contains("was lost while its command ran"), "{error}");
    let status = task.status();
    assert_eq!((&status["state"], &status["stop_reason"]), (&"stopped".into(), &"guest_ended".into()));
    assert!(status["last_error"].as_str().unwrap().starts_with(reason), "{status}");
    let ended = sandbox.run(["--timeout-seconds", "300"], line);
    assert!(ended.error().contains(&format!("the VM ended by itself: {reason}")), "{ended:?}");
    // What it had written before is there.
    assert_eq!(task.call("start", []).code(), 0);
    assert_eq!(task.exec([], "echo again").success(), "again\n");
    task.delete();
    sandbox.wait_until_clean();
}

#[test]
fn a_machine_that_its_vmm_pauses_while_it_boots_is_a_failed_start() {
    let sandbox = with_failing_disk("read", 2);
    let begun = Instant::now();
    let ended = sandbox.run([], "echo never");
    let error = ended.error();
    let reason =
        "failed: the VMM paused the machine: a disk has failed: cannot read from its file on the host";
    assert!(error.contains("did not come up: ") && error.contains(reason), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

/// A firmware that jumps to where there is no memory. KVM, which then has to emulate the instruction that it cannot read,
/// gives up; so does one that emulates everything. It is the end of a shell script, which QEMU's confinement lets it read.
fn with_firmware_that_kvm_cannot_run(sandbox: Sandbox) -> Sandbox {
    let path = std::env::var("PATH").unwrap();
    let mut firmware = format!(
        r#"#!/bin/sh
        if [ "$1" = --version ]; then echo 'QEMU emulator version 7.2.0'; exit; fi
        for argument; do
            shift
            # Some KVM cannot set it.
            if [ "$argument" = host ]; then argument=host,-arch-capabilities; fi
            set -- "$@" "$argument"
        done
        PATH={path} exec qemu-system-x86_64 "$@" -bios "$0"
        "#
    )
    .into_bytes();
    firmware.resize(0x1_0000, b'\n');
    let mut put = |at: usize, bytes: &[u8]| firmware[at..at + bytes.len()].copy_from_slice(bytes);
    // cli; lgdt cs:[0xff90]; cr0 |= 1; ljmp 8:0xfe000000
    put(0xff00, b"\xfa\x2e\x66\x0f\x01\x16\x90\xff\x0f\x20\xc0\x0c\x01\x0f\x22\xc0");
    put(0xff10, b"\x66\xea\x00\x00\x00\xfe\x08\x00");
    // A code segment of 4 GiB, and the table that has it.
    put(0xff80, b"\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x00\x00\x00\x9a\xcf\x00");
    put(0xff90, b"\x0f\x00\x80\xff\xff\xff");
    // The first instruction: jmp 0xff00
    put(0xfff0, b"\xe9\x0d\xff");
    let script = sandbox.path("vmm-with-firmware");
    std::fs::write(&script, firmware).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let script = script.to_str().unwrap().to_owned();
    sandbox.set("PYRO_QEMU", &script).set("PYRO_ACCEL", "kvm")
}

/// Where there is no KVM, there is nothing to test.
#[test]
fn a_guest_that_kvm_cannot_run_ends_at_once_with_the_reason() {
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return;
    }
    let sandbox = with_firmware_that_kvm_cannot_run(Sandbox::new());
    let begun = Instant::now();
    let ended = sandbox.run([], "echo never");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let error = ended.error();
    let reason = "booting the kernel failed: the VMM paused the machine: internal error";
    assert!(error.contains(reason) && error.contains("KVM internal error. Suberror: 1"), "{error}");
    sandbox.wait_until_clean();
}
