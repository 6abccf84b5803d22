//! What confines a VMM and its supervisor, as the host sees it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::Pid;

use crate::harness::{ENVIRONMENT, PYRO, Sandbox};

/// Bytes of an executable for the guest that writes 64 MiB of jumps to the next instruction, executes them, and starts
/// over: each jump becomes translated code of its own.
const TRANSLATED_CODE_ATTACK: [u8; 61] = [
    0xb8, 0x09, 0x00, 0x00, 0x00, 0x31, 0xff, 0xbe, 0x00, 0x00, 0x00, 0x04, 0xba, 0x07, 0x00, 0x00, 0x00,
    0x41, 0xba, 0x22, 0x00, 0x00, 0x00, 0x49, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff, 0x45, 0x31, 0xc9, 0x0f,
    0x05, 0x48, 0x89, 0xc3, 0x48, 0x89, 0xdf, 0xb9, 0xff, 0xff, 0xff, 0x01, 0xb8, 0xeb, 0x00, 0x00, 0x00,
    0x66, 0xf3, 0xab, 0xc6, 0x07, 0xc3, 0xff, 0xd3, 0xeb, 0xe9,
];
/// The stated bound of a VMM's memory beyond that of its guest: translated code, and everything else.
const BOUND_BEYOND_GUEST_MIB: u64 = 128 + 128;

fn status(pid: Pid) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid())).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

#[test]
fn a_vmm_has_no_rights_and_only_its_own_files() {
    let sandbox = Sandbox::new();
    let task = sandbox.task([]);
    let vmm = sandbox.vmm().pid;
    let status = status(vmm);
    assert_eq!((&*status["Seccomp"], &*status["NoNewPrivs"]), ("2", "1"));
    for capabilities in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status[capabilities], "0000000000000000", "{capabilities}");
    }
    for ids in ["Uid", "Gid"] {
        assert!(status[ids].split_ascii_whitespace().all(|id| id != "0"), "{ids}: {}", status[ids]);
    }
    let proc = format!("/proc/{}", vmm.as_raw_pid());
    assert_eq!(fs::read(format!("{proc}/environ")).unwrap(), b"");
    let state = sandbox.state();
    for entry in fs::read_dir(format!("{proc}/fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap();
        let is_own = target == Path::new("/dev/null")
            || target.starts_with(state.join("vms"))
            || target.starts_with(state.join("templates"))
            || target.ends_with("rootfs.erofs")
            || ["pipe:", "socket:", "anon_inode:"]
                .iter()
                .any(|kind| target.to_string_lossy().starts_with(kind));
        assert!(is_own, "{}", target.display());
    }
    // It sees neither processes nor the directories of others.
    for hidden in ["proc", "sys", "root", "home", "usr/bin/env"] {
        assert!(!Path::new(&format!("{proc}/root/{hidden}")).exists(), "{hidden}");
    }
    let own = fs::metadata("/proc/self/ns/net").unwrap();
    let of_vmm = fs::metadata(format!("{proc}/ns/net")).unwrap();
    assert_ne!(std::os::unix::fs::MetadataExt::ino(&own), std::os::unix::fs::MetadataExt::ino(&of_vmm));
    task.delete();
}

#[test]
fn a_supervisor_keeps_nothing_of_its_caller() {
    let sandbox = Sandbox::new().set("PYRO_TEST_SECRET", "hush");
    let task = sandbox.task([]);
    let supervisor = sandbox.supervisor().pid;
    let status = status(supervisor);
    assert_eq!(status["NoNewPrivs"], "1");
    let variables = fs::read(format!("/proc/{}/environ", supervisor.as_raw_pid())).unwrap_or_default();
    let variables: Vec<_> =
        variables.split(|byte| *byte == 0).filter(|variable| !variable.is_empty()).collect();
    let expected = [&b"PATH="[..], b"PYRO_BASE_DIR="];
    let is_expected = |variable: &&[u8]| expected.iter().any(|name| variable.starts_with(name));
    assert!(variables.iter().all(is_expected), "{variables:?}");
    let kept = u64::from_str_radix(&status["CapEff"], 16).unwrap();
    assert!(kept.count_ones() <= 11, "{kept:x}");
    // What only a start needs is refused from now on.
    assert_eq!(status["Seccomp"], "2");
    task.delete();
}

#[test]
fn what_was_reached_is_in_the_metadata_and_can_be_required() {
    let sandbox = Sandbox::new();
    let task = sandbox.task(["--network", "--require-confinement", "full"]);
    let status = task.status();
    let confinement = status["metadata"]["confinement"].as_str().unwrap();
    assert!(confinement.starts_with("full; user_namespace=active; "), "{confinement}");
    let network = status["metadata"]["network_confinement"].as_str().unwrap();
    assert!(network.starts_with("full; unprivileged_user=active; "), "{network}");
    task.delete();
}

#[test]
fn a_host_that_cannot_confine_fully_is_named_and_refused_on_request() {
    let sandbox = Sandbox::new();
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" \"$@\"";
    let in_poorer_host = |flags: &[&str]| {
        let mut command: Command = sandbox.program("unshare");
        command.args([
            "--user",
            "--mount",
            "--map-root-user",
            "/bin/sh",
            "-c",
            script,
            PYRO,
            "run",
            ENVIRONMENT,
        ]);
        command.args(flags).args(["--", "echo works"]).output().unwrap()
    };
    let refused = in_poorer_host(&["--require-confinement", "full"]);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{error}");
    assert!(error.contains("this host cannot confine the VMM fully: user_namespace ("), "{error}");
    let done = in_poorer_host(&[]);
    assert_eq!(String::from_utf8_lossy(&done.stdout), "works\n", "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn translated_code_is_bounded() {
    const GUEST_MIB: u64 = 256;
    let sandbox = Sandbox::new();
    let task = sandbox.task(["--mem-mib", "256"]);
    let bytes: String = executable().iter().map(|byte| format!("\\{byte:03o}")).collect();
    let line =
        format!("printf '{bytes}' > /tmp/attack && chmod +x /tmp/attack && timeout 20 /tmp/attack; echo $?");
    assert_eq!(task.exec(["--timeout-seconds", "60"], &line).text(), "124\n");
    let peak = status(sandbox.vmm().pid)["VmHWM"].trim_end_matches(" kB").parse::<u64>().unwrap() / 1024;
    assert!(peak > GUEST_MIB / 2, "the attack had no effect: {peak} MiB");
    assert!(peak <= GUEST_MIB + BOUND_BEYOND_GUEST_MIB, "{peak} MiB");
    task.delete();
}

/// An ELF file with one segment that holds [`TRANSLATED_CODE_ATTACK`].
fn executable() -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    const ADDRESS: u64 = 0x40_0000;
    let size = HEADERS + TRANSLATED_CODE_ATTACK.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |value: u16| value.to_le_bytes();
    file.extend([half(2), half(62)].concat());
    file.extend(1_u32.to_le_bytes());
    file.extend([ADDRESS + HEADERS, 64, 0].map(u64::to_le_bytes).concat());
    file.extend(0_u32.to_le_bytes());
    file.extend([64, 56, 1, 0, 0, 0].map(half).concat());
    // Readable, writable and executable.
    file.extend([1_u32, 7].map(u32::to_le_bytes).concat());
    file.extend([0, ADDRESS, ADDRESS, size, size, 4096].map(u64::to_le_bytes).concat());
    file.extend(TRANSLATED_CODE_ATTACK);
    file
}
