//! Invalid environment variables.

use crate::harness::Home;

#[test]
fn a_bad_accelerator_is_named() {
    let home = Home::new().set("PYRO_ACCEL", "xen");
    insta::assert_snapshot!(home.pyro(["env", "list"]).all(), @r"
    exit: 1
    --- stdout
    --- stderr
    [error] PYRO_ACCEL is set to `xen`; expected `kvm` or `tcg`
    ");
    let value = home.pyro(["run", "debian:12", "--json", "--", "true"]).json_error();
    insta::assert_snapshot!(format!("{value:#}"), @r#"
    {
      "error": "PYRO_ACCEL is set to `xen`; expected `kvm` or `tcg`",
      "hints": [],
      "kind": "configuration",
      "ok": false
    }
    "#);
}

#[test]
fn every_command_that_uses_settings_checks_them() {
    let home = Home::new().set("PYRO_MAX_ACTIVE_VMS", "0");
    for ended in [
        home.pyro(["env", "list"]),
        home.pyro(["env", "pull", "debian:12"]),
        home.pyro(["env", "inspect", "debian:12"]),
        home.pyro(["env", "prune"]),
        home.pyro(["doctor"]),
        home.pyro(["run", "debian:12", "--", "true"]),
    ] {
        assert_eq!(ended.code(), 1);
        assert_eq!(
            ended.stderr,
            "[error] PYRO_MAX_ACTIVE_VMS is set to `0`; expected a whole number of at least 1\n"
        );
    }
}

#[test]
fn without_a_home_the_message_says_what_to_set() {
    let home = Home::new().unset("HOME");
    insta::assert_snapshot!(home.pyro(["env", "list"]).all(), @r"
    exit: 1
    --- stdout
    --- stderr
    [error] cannot choose a directory for files: none of PYRO_BASE_DIR, XDG_STATE_HOME and HOME is set to an absolute path
      hint: set PYRO_BASE_DIR to a directory of your own
    ");
}

#[test]
fn directories_can_be_given_instead_of_a_home() {
    let home =
        Home::new().unset("HOME").set_path("PYRO_BASE_DIR", "b").set_path("PYRO_ENVIRONMENT_CACHE_DIR", "e");
    let ended = home.pyro(["env", "inspect", "debian:12"]);
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(ended.stdout.contains("\nCache dir: [HOME]/e\n"), "{}", ended.stdout);
}

#[test]
fn xdg_directories_are_honoured() {
    let home = Home::new().set_path("XDG_CACHE_HOME", "xdg");
    let ended = home.pyro(["env", "inspect", "debian:12"]);
    assert!(ended.stdout.contains("\nCache dir: [HOME]/xdg/pyro-mcp/environments\n"), "{ended:?}");
}

#[test]
fn a_bad_log_filter_is_named() {
    let ended = Home::new().set("PYRO_LOG", "pyro=loud=very").pyro(["env", "list"]);
    assert_eq!(ended.code(), 1);
    assert!(
        ended.stderr.starts_with("[error] PYRO_LOG is set to `pyro=loud=very`; expected a log filter"),
        "{ended:?}"
    );
}

#[test]
fn the_log_stays_off_stdout() {
    let ended = Home::new().set("PYRO_LOG", "trace").pyro(["env", "list", "--json"]);
    assert_eq!(ended.code(), 0, "{ended:?}");
    serde_json::from_slice::<serde_json::Value>(&ended.raw_stdout).unwrap();
}
