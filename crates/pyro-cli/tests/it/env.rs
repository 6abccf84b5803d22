use std::fs;
use std::fs::File;
use std::io;

use crate::harness::Home;

#[test]
fn list_of_an_empty_cache() {
    let home = Home::new();
    insta::assert_snapshot!(home.pyro(["env", "list"]).all(), @r"
    exit: 0
    --- stdout
    Catalog version: 2.1.0
    debian:12 [not installed] Debian 12 with git, curl and the usual small tools: the usual choice (shell: sh)
    debian:12-agent [not installed] Debian 12 with what agents ask for: bash as the shell of commands, Python, Node, ripgrep, jq, tmux, compilers (shell: bash)
    debian:12-base [not installed] Debian 12, as small as it stays useful (shell: sh)
    debian:12-build [not installed] Debian 12 with compilers, make, cmake and Python with pip and venv (shell: sh)
    --- stderr
    ");
    assert!(home.entries().is_empty(), "looking must not leave files: {:?}", home.entries());
}

#[test]
fn list_as_json() {
    let value = Home::new().pyro(["env", "list", "--json"]).json();
    assert_eq!(value["catalog_version"], "2.1.0");
    let environments = value["environments"].as_array().unwrap();
    let names: Vec<&str> = environments.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["debian:12", "debian:12-agent", "debian:12-base", "debian:12-build"]);
}

#[test]
fn inspect_of_what_is_not_installed() {
    let home = Home::new();
    insta::assert_snapshot!(home.pyro(["env", "inspect", "debian:12"]).all(), @r"
    exit: 0
    --- stdout
    Environment: debian:12
    Version: 1.3.0
    Distribution: debian 12
    Installed: no
    Shell: sh
    Cache dir: [HOME]/.cache/pyro-mcp/environments
    Default packages: bash, coreutils, git
    Description: Debian 12 with git, curl and the usual small tools: the usual choice
    --- stderr
    ");
    assert!(home.entries().is_empty(), "looking must not leave files: {:?}", home.entries());
}

#[test]
fn inspect_as_json() {
    let ended = Home::new().pyro(["env", "inspect", "--json", "debian:12"]);
    ended.json();
    insta::assert_snapshot!(ended.stdout, @r#"
    {
      "cache_dir": "[HOME]/.cache/pyro-mcp/environments",
      "catalog_version": "2.1.0",
      "compatibility": ">=2.0.0,<3.0.0",
      "default_packages": [
        "bash",
        "coreutils",
        "git"
      ],
      "description": "Debian 12 with git, curl and the usual small tools: the usual choice",
      "distribution": "debian",
      "distribution_version": "12",
      "install_dir": "[HOME]/.cache/pyro-mcp/environments/linux-x86_64/debian_12-1.3.0",
      "installed": false,
      "name": "debian:12",
      "oci_reference": null,
      "oci_registry": null,
      "oci_repository": null,
      "platform": "linux-x86_64",
      "shell": "sh",
      "source_digest": null,
      "version": "1.3.0"
    }
    "#);
}

const UNKNOWN: &str = "unknown environment 'nosuch'; expected one of: debian:12, debian:12-agent, debian:12-base, debian:12-build";

#[test]
fn an_unknown_environment_is_refused_by_every_command_that_takes_one() {
    let home = Home::new();
    for ended in [
        home.pyro(["env", "inspect", "nosuch"]),
        home.pyro(["env", "pull", "nosuch"]),
        home.pyro(["run", "nosuch", "--", "true"]),
        home.pyro(["run", "nosuch", "--allow-host-compat", "--", "true"]),
    ] {
        assert_eq!((ended.code(), ended.stdout.as_str()), (2, ""), "{ended:?}");
        assert!(ended.stderr.contains(&format!("[error] {UNKNOWN}\n")), "{}", ended.stderr);
    }
    for ended in [
        home.pyro(["env", "inspect", "nosuch", "--json"]),
        home.pyro(["env", "pull", "nosuch", "--json"]),
        home.pyro(["run", "nosuch", "--json", "--", "true"]),
    ] {
        let value = ended.json_error();
        assert_eq!((value["error"].as_str(), value["kind"].as_str()), (Some(UNKNOWN), Some("invalid_input")));
    }
}

#[test]
fn prune_of_an_empty_cache() {
    let home = Home::new();
    insta::assert_snapshot!(home.pyro(["env", "prune"]).all(), @r"
    exit: 0
    --- stdout
    Deleted 0 cached environment entries.
    --- stderr
    ");
    insta::assert_snapshot!(home.pyro(["env", "prune", "--json"]).stdout, @r#"
    {
      "count": 0,
      "deleted_environment_dirs": [],
      "deleted_templates": 0
    }
    "#);
}

#[test]
fn prune_removes_what_is_no_environment() {
    let home = Home::new();
    let platform = home.path(".cache/pyro-mcp/environments/linux-x86_64");
    let make = || {
        fs::create_dir_all(platform.join("debian_12-0.0.1")).unwrap();
        fs::create_dir_all(platform.join("junk")).unwrap();
        fs::write(platform.join("junk/environment.json"), "{ not json").unwrap();
    };
    make();
    insta::assert_snapshot!(home.pyro(["env", "prune"]).all(), @r"
    exit: 0
    --- stdout
    Deleted 2 cached environment entries.
    - debian_12-0.0.1
    - junk
    --- stderr
    ");
    make();
    insta::assert_snapshot!(home.pyro(["env", "prune", "--json"]).stdout, @r#"
    {
      "count": 2,
      "deleted_environment_dirs": [
        "debian_12-0.0.1",
        "junk"
      ],
      "deleted_templates": 0
    }
    "#);
}

#[test]
fn a_pull_that_cannot_work_fails_in_both_forms() {
    let home = Home::new().set_path("PYRO_ENVIRONMENT_CACHE_DIR", "file/cache");
    fs::write(home.path("file"), "").unwrap();
    let ended = home.pyro(["env", "pull", "debian:12-base"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (1, ""), "{ended:?}");
    assert!(
        ended.stderr.contains("[error] ") && ended.stderr.contains("[HOME]/file/cache"),
        "{}",
        ended.stderr
    );
    assert!(!ended.stderr.contains("phase=ready"), "{}", ended.stderr);
    let value = home.pyro(["env", "pull", "debian:12-base", "--json"]).json_error();
    assert_eq!(value["kind"], "environment_unavailable", "{value}");
}

#[test]
fn a_reader_that_went_away_ends_pyro_in_silence() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let home = Home::new();
    let ended = home.ended(home.command(["env", "list"]).stdout(writer).output().unwrap());
    assert_eq!((ended.code(), ended.stderr.as_str()), (141, ""), "{ended:?}");
}

#[test]
fn a_full_disk_behind_stdout_is_a_failure() {
    let home = Home::new();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    for words in [&["env", "list"][..], &["env", "list", "--json"]] {
        let ended = home.ended(home.command(words).stdout(full()).output().unwrap());
        assert_eq!(ended.code(), 1);
        assert_eq!(
            ended.stderr,
            "[error] cannot write to standard output\n  caused by: No space left on device (os error 28)\n"
        );
    }
}
