use crate::harness::Home;

/// The message for an invalid command line, which exits with 2 and prints nothing on stdout.
fn usage_error<const N: usize>(words: [&str; N]) -> String {
    let ended = Home::new().pyro(words);
    assert_eq!(ended.code(), 2, "{ended:?}");
    assert_eq!(ended.stdout, "");
    ended.stderr
}

#[test]
fn a_command_line_that_stops_short_gets_the_help() {
    for text in [usage_error([]), usage_error(["env"])] {
        assert!(text.contains("Usage: pyro"), "{text}");
        assert!(text.contains("Examples:"), "{text}");
    }
}

#[test]
fn missing_words_are_named() {
    insta::assert_snapshot!(usage_error(["env", "pull"]), @r"
    error: the following required arguments were not provided:
      <ENVIRONMENT>

    Usage: pyro env pull <ENVIRONMENT>

    For more information, try '--help'.
    ");
    assert!(usage_error(["run"]).contains("<ENVIRONMENT>"));
    assert!(usage_error(["env", "inspect"]).contains("<ENVIRONMENT>"));
}

#[test]
fn a_number_that_is_none_is_refused() {
    insta::assert_snapshot!(usage_error(["run", "debian:12", "--vcpu-count", "x", "--", "true"]), @r"
    error: invalid value 'x' for '--vcpu-count <COUNT>': not an integer

    For more information, try '--help'.
    ");
}

#[test]
fn unknown_words_are_refused() {
    insta::assert_snapshot!(usage_error(["env", "lst"]), @r"
    error: unrecognized subcommand 'lst'

      tip: a similar subcommand exists: 'list'

    Usage: pyro env <COMMAND>

    For more information, try '--help'.
    ");
    for text in [
        usage_error(["nosuch"]),
        usage_error(["env", "list", "--nosuch"]),
        usage_error(["env", "list", "word"]),
        usage_error(["doctor", "word"]),
        usage_error(["run", "--nosuch", "debian:12", "--", "true"]),
        usage_error(["completions", "tcsh"]),
    ] {
        assert!(text.starts_with("error: "), "{text}");
    }
}

#[test]
fn a_flag_of_ours_behind_a_bare_command_is_refused() {
    insta::assert_snapshot!(usage_error(["run", "debian:12", "ls", "--json"]), @r"
    error: `--json` after the command is ambiguous: it could be a flag of pyro or of the command; write `--` before the command, and flags of pyro before `--`

    Usage: pyro run [OPTIONS] <ENVIRONMENT> -- <COMMAND>...

    For more information, try '--help'.
    ");
}

#[test]
fn a_copy_is_either_into_a_task_or_out_of_one() {
    for words in [["task", "cp", "a", "b"], ["task", "cp", "abc:a", "def:b"]] {
        let text = usage_error(words);
        assert!(text.contains("exactly one of SOURCE and DESTINATION must be in a task"), "{text}");
    }
}
