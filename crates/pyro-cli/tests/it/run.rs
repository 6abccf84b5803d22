//! `pyro run` up to the point where a VM would start.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;

use crate::harness::Home;

#[test]
fn a_command_is_required() {
    let home = Home::new();
    insta::assert_snapshot!(home.pyro(["run", "debian:12", "--"]).all(), @r"
    exit: 2
    --- stdout
    --- stderr
    [error] command is required after `--`
    ");
    insta::assert_snapshot!(home.pyro(["run", "debian:12", "--json", "--"]).all(), @r#"
    exit: 2
    --- stdout
    {
      "error": "command is required after `--`",
      "hints": [],
      "kind": "invalid_input",
      "ok": false
    }
    --- stderr
    "#);
    assert_eq!(home.pyro(["run", "debian:12"]).stderr, "[error] command is required after `--`\n");
}

#[test]
fn a_word_that_is_no_text_is_refused() {
    let home = Home::new();
    let words = ["run", "debian:12", "--", "echo"].map(OsStr::new);
    let output = home.command(words.into_iter().chain([OsStr::from_bytes(b"a\xff")])).output().unwrap();
    let ended = home.ended(output);
    assert_eq!(ended.code(), 2);
    assert_eq!(ended.stderr, "[error] a word of the command is not valid UTF-8: a\u{fffd}\n");
}

/// Flag, value and the error message.
const OUTSIDE: [(&str, &str, &str); 10] = [
    ("--vcpu-count", "0", "vcpu_count must be between 1 and 8"),
    ("--vcpu-count", "9", "vcpu_count must be between 1 and 8"),
    ("--vcpu-count", "-99999999999999999999", "vcpu_count must be between 1 and 8"),
    ("--mem-mib", "255", "mem_mib must be between 256 and 32768"),
    ("--mem-mib", "32769", "mem_mib must be between 256 and 32768"),
    ("--ttl-seconds", "59", "ttl_seconds must be between 60 and 3600"),
    ("--ttl-seconds", "3601", "ttl_seconds must be between 60 and 3600"),
    ("--ttl-seconds", "99999999999999999999", "ttl_seconds must be between 60 and 3600"),
    ("--timeout-seconds", "0", "timeout_seconds must be positive"),
    ("--timeout-seconds", "-1", "timeout_seconds must be positive"),
];

#[test]
fn limits_are_checked_before_anything_happens() {
    let home = Home::new();
    for (flag, value, message) in OUTSIDE {
        let ended = home.pyro(["run", "debian:12", flag, value, "--", "true"]);
        assert_eq!((ended.code(), ended.stdout.as_str()), (2, ""), "{ended:?}");
        let (parameter, rest) = message.split_once(' ').unwrap();
        let shown = format!("[error] --{} {rest}\n", parameter.replace('_', "-"));
        assert!(ended.stderr.contains(&shown), "{flag} {value}: {}", ended.stderr);

        let document = home.pyro(["run", "--json", flag, value, "debian:12", "--", "true"]).json_error();
        assert_eq!(document["error"], message);
        assert_eq!(document["kind"], "invalid_input");
    }
    assert!(home.entries().is_empty(), "{:?}", home.entries());
}

/// It must be reported at once, not after the environment was installed for minutes.
#[test]
fn without_vms_and_without_consent_nothing_runs() {
    let home = Home::new();
    let ended = home.pyro(["run", "debian:12", "--", "touch ran"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (1, ""), "{ended:?}");
    assert!(
        ended.stderr.contains("[error] guest boot is unavailable and host compatibility mode is disabled: "),
        "{}",
        ended.stderr
    );
    let value = home.pyro(["run", "debian:12", "--json", "--", "touch ran"]).json_error();
    assert_eq!(value["kind"], "vm_unavailable", "{value}");
    assert!(!ended.stderr.contains("[pull]"), "{}", ended.stderr);
    assert!(!home.path("ran").exists());
}

#[test]
fn a_state_directory_that_cannot_be_is_named() {
    let home = Home::new().set_path("PYRO_BASE_DIR", "file/state");
    fs::write(home.path("file"), "").unwrap();
    let ended = home.pyro(["run", "debian:12", "--allow-host-compat", "--", "true"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (1, ""), "{ended:?}");
    assert!(ended.stderr.contains("[error] "), "{}", ended.stderr);
    assert!(ended.stderr.contains("[HOME]/file/state"), "{}", ended.stderr);
    let value = home.pyro(["run", "debian:12", "--allow-host-compat", "--json", "--", "true"]).json_error();
    assert_eq!(value["kind"], "state_unusable", "{value}");
}
