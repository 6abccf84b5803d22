//! `pyro run`: the result of a command, in both forms of output.

use serde_json::json;

use crate::harness::{ENVIRONMENT, Sandbox};

#[test]
fn streams_are_separate_and_the_exit_status_is_that_of_the_command() {
    let sandbox = Sandbox::new();
    let words = ["run", ENVIRONMENT, "--", "sh", "-c", "echo out; echo err >&2; exit 3"];
    let ended = sandbox.pyro(words);
    assert_eq!(ended.code(), 3, "{ended:?}");
    assert_eq!(ended.text(), "out\n");
    // A start that takes long says what it does.
    let mut lines = ended.stderr.lines().filter(|line| !line.starts_with("[vm] "));
    assert_eq!(lines.next(), Some("[run] phase=create environment=debian:12"));
    let vm_id = lines.next().unwrap().strip_prefix("[run] phase=start vm_id=").unwrap();
    assert_eq!(lines.next(), Some(&*format!("[run] phase=execute vm_id={vm_id}")));
    assert_eq!(lines.next(), Some("err"));
    let summary = "[run] environment=debian:12 execution_mode=guest_vsock exit_code=3 duration_ms=";
    assert!(lines.next().unwrap().starts_with(summary), "{}", ended.stderr);
    assert_eq!(lines.next(), None);
}

#[test]
fn the_json_document_says_the_same() {
    let sandbox = Sandbox::new();
    let words = ["run", ENVIRONMENT, "--json", "--", "sh", "-c", "echo out; echo err >&2; exit 3"];
    let ended = sandbox.pyro(words);
    assert_eq!(ended.code(), 3, "{ended:?}");
    let result = ended.json();
    for (key, expected) in [
        ("environment", json!("debian:12")),
        ("environment_version", json!("1.3.0")),
        ("command", json!("sh -c 'echo out; echo err >&2; exit 3'")),
        ("shell", json!("sh")),
        ("stdout", json!("out\n")),
        ("stderr", json!("err\n")),
        ("exit_code", json!(3)),
        ("execution_mode", json!("guest_vsock")),
        ("channel", json!("virtio-serial")),
        ("timed_out", json!(false)),
        ("stdout_truncated", json!(0)),
        ("stderr_truncated", json!(0)),
        ("cleanup", json!({"vm_id": result["vm_id"], "deleted": true, "reason": "post_exec_cleanup"})),
    ] {
        assert_eq!(result[key], expected, "{key}");
    }
    assert!(["kvm", "tcg"].contains(&result["accelerator"].as_str().unwrap()), "{result}");
    assert_eq!(sandbox.leftovers(), Vec::<String>::new(), "everything is deleted when the result is there");
}

#[test]
fn the_kernel_is_the_guests_own() {
    let sandbox = Sandbox::new();
    let line = "uname -r; cat /proc/sys/kernel/random/boot_id";
    let result = sandbox.run(["--json"], line).json();
    let (release, boot_id) = result["stdout"].as_str().unwrap().split_once('\n').unwrap();
    assert_eq!(result["kernel_release"], release);
    let host_boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_ne!(boot_id, host_boot_id);
    // The host may run the same kernel as its guests; otherwise the names differ too.
    let host = rustix::system::uname();
    let host_release = host.release().to_str().unwrap();
    assert!(release != host_release || release.contains("cloud"), "{release}");
}

#[test]
fn a_single_word_is_a_shell_line_and_several_words_are_kept_apart() {
    let sandbox = Sandbox::new();
    let ended = sandbox.pyro(["run", ENVIRONMENT, "--", "cd /tmp && pwd && nosuchprogram"]);
    assert_eq!(ended.code(), 127, "{ended:?}");
    assert_eq!(ended.text(), "/tmp\n");
    let ended = sandbox.pyro(["run", ENVIRONMENT, "--", "printf", "<%s>", "a  b", "", "$HOME", "--", "'"]);
    assert_eq!(ended.success(), "<a  b><><$HOME><--><'>");
}

#[test]
fn the_machine_is_as_large_as_was_asked_for() {
    let sandbox = Sandbox::new();
    let flags = ["--vcpu-count", "2", "--mem-mib", "256"];
    let ended = sandbox.run(flags, "nproc; sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo");
    let numbers: Vec<u64> = ended.success().lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers[0], 2);
    // The kernel keeps a part for itself.
    assert!((150 * 1024..=256 * 1024).contains(&numbers[1]), "{numbers:?}");
}

/// The memory size at which the initrd would be damaged where it is loaded.
#[test]
fn two_gibibytes_are_no_obstacle() {
    let sandbox = Sandbox::new();
    let memory =
        sandbox.run(["--mem-mib", "2048"], "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo");
    let mib: u32 = memory.success().trim().parse().unwrap();
    assert!((1900..=2048).contains(&mib), "{mib}");
}

#[test]
fn commands_start_in_an_empty_workspace_on_a_writable_root() {
    let sandbox = Sandbox::new();
    let line =
        "pwd; ls -A; echo new > /etc/motd && cat /etc/motd; id -u; git init -q . && git status --short";
    assert_eq!(sandbox.run([], line).success(), "/workspace\nnew\n0\n");
}
