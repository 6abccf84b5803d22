use crate::harness::Home;

#[test]
fn the_version_is_printed_and_nothing_else() {
    insta::assert_snapshot!(Home::new().pyro(["--version"]).all(), @r"
    exit: 0
    --- stdout
    pyro 2.1.0
    --- stderr
    ");
}

/// Help needs no home, so it also works in a broken setup.
fn help<const N: usize>(words: [&str; N]) -> String {
    let home = Home::new().unset("HOME").set("PYRO_ACCEL", "nonsense");
    let ended = home.pyro(words);
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert_eq!(ended.stderr, "");
    ended.stdout
}

#[test]
fn help_of_pyro() {
    insta::assert_snapshot!(help(["--help"]));
}

#[test]
fn help_of_run() {
    insta::assert_snapshot!(help(["run", "--help"]));
}

#[test]
fn help_of_task() {
    insta::assert_snapshot!(help(["task", "--help"]));
    for word in [
        "create",
        "exec",
        "status",
        "logs",
        "wait",
        "kill",
        "cp",
        "publish",
        "unpublish",
        "list",
        "extend",
        "stop",
        "start",
        "delete",
    ] {
        insta::assert_snapshot!(format!("help_of_task_{word}"), help(["task", word, "--help"]));
    }
}

#[test]
fn help_of_task_shell() {
    insta::assert_snapshot!(help(["task", "shell", "--help"]));
    for word in ["open", "list", "attach", "read", "write", "signal", "close"] {
        insta::assert_snapshot!(
            format!("help_of_task_shell_{word}"),
            help(["task", "shell", word, "--help"])
        );
    }
}

#[test]
fn help_of_task_service() {
    insta::assert_snapshot!(help(["task", "service", "--help"]));
    for word in ["start", "list", "status", "logs", "stop", "remove"] {
        insta::assert_snapshot!(
            format!("help_of_task_service_{word}"),
            help(["task", "service", word, "--help"])
        );
    }
}

#[test]
fn help_of_mcp() {
    insta::assert_snapshot!(help(["mcp", "--help"]));
    insta::assert_snapshot!("help_of_mcp_serve", help(["mcp", "serve", "--help"]));
    insta::assert_snapshot!("help_of_mcp_install", help(["mcp", "install", "--help"]));
}

#[test]
fn help_of_env() {
    insta::assert_snapshot!(help(["env", "--help"]));
}

#[test]
fn help_of_env_list() {
    insta::assert_snapshot!(help(["env", "list", "--help"]));
}

#[test]
fn help_of_env_pull() {
    insta::assert_snapshot!(help(["env", "pull", "--help"]));
}

#[test]
fn help_of_env_inspect() {
    insta::assert_snapshot!(help(["env", "inspect", "--help"]));
}

#[test]
fn help_of_env_prune() {
    insta::assert_snapshot!(help(["env", "prune", "--help"]));
}

#[test]
fn help_of_doctor() {
    insta::assert_snapshot!(help(["doctor", "--help"]));
}

#[test]
fn help_of_demo() {
    insta::assert_snapshot!(help(["demo", "--help"]));
    insta::assert_snapshot!("help_of_demo_ollama", help(["demo", "ollama", "--help"]));
}

#[test]
fn help_of_bench() {
    insta::assert_snapshot!(help(["bench", "--help"]));
}

#[test]
fn help_of_completions() {
    insta::assert_snapshot!(help(["completions", "--help"]));
}

#[test]
fn help_of_man() {
    insta::assert_snapshot!(help(["man", "--help"]));
}

#[test]
fn the_help_command_is_the_help_flag() {
    assert_eq!(help(["help", "run"]), help(["run", "--help"]));
    assert_eq!(help(["env", "help", "list"]), help(["env", "list", "--help"]));
}

#[test]
fn helper_processes_are_not_offered() {
    let text = help(["--help"]);
    assert!(!text.contains("supervise") && !text.contains("probe-kvm"), "{text}");
}
