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

/// Otherwise it would become the first word of the command.
#[test]
fn an_unknown_flag_before_the_command_is_refused_before_anything_is_started() {
    let home = Home::new();
    for words in [
        &["run", "debian:12", "--nosuch", "--", "true"][..],
        &["run", "debian:12", "-x", "true"],
        &["task", "exec", "9775b3af1eeb", "--nosuch", "--", "true"],
        &["task", "exec", "9775b3af1eeb", "--cwdd=/", "true"],
        &["task", "shell", "9775b3af1eeb", "--nosuch", "--", "vi"],
        &["task", "shell", "open", "9775b3af1eeb", "--nosuch", "--", "vi"],
        &["task", "service", "start", "9775b3af1eeb", "web", "--nosuch", "--", "true"],
    ] {
        let ended = home.ended(home.command(words).output().unwrap());
        assert_eq!((ended.code(), ended.stdout.as_str()), (2, ""), "{ended:?}");
        assert!(ended.stderr.starts_with("error: unexpected argument `-"), "{ended:?}");
    }
    assert_eq!(home.entries(), Vec::<std::path::PathBuf>::new());
}

/// A person knows options, not parameters of tools.
#[test]
fn messages_name_what_a_person_types() {
    let home = Home::new().set("PATH", "/usr/bin:/bin").set_path("PYRO_QEMU", "no-such-qemu");
    home.pyro(["task", "create", "debian:12", "--allow-host-compat", "--name", "site"]);
    for (words, status) in [
        ("run debian:12 --mem-mib 1 -- true", 2),
        ("run debian:12 --ttl-seconds 1 -- true", 2),
        ("run debian:12 --timeout-seconds 0 -- true", 2),
        ("run debian:12 --network --allow-domain example.com -- true", 2),
        ("run debian:12 --mount /tmp:relative -- true", 2),
        ("run debian:12 --argv", 2),
        ("run nosuch -- true", 2),
        ("run debian:12 -- true", 1),
        ("task create debian:12 --disk-mib 1", 2),
        ("task create debian:12 --name a/b", 2),
        ("task create debian:12 --label =", 2),
        ("task exec site --timeout-seconds 0 -- true", 2),
        ("task exec site --timeout-seconds 3000 -- true", 2),
        ("task exec site --cwd / -- true", 2),
        ("task exec site --user www-data -- true", 2),
        ("task exec site --shell bash -- true", 2),
        ("task exec site -i -- true", 2),
        ("task exec site -t -- true", 2),
        ("task exec site -- false", 1),
        ("task exec site --timeout-seconds 1 -- sleep 100", 124),
        ("task exec nosuch -- true", 1),
        ("task shell site", 2),
        ("task shell open site", 2),
        ("task shell read site 1 --max-bytes 1", 2),
        ("task service start site web --ready-tcp 0 -- true", 2),
        ("task service start site web --ready-http ftp:x -- true", 2),
        ("task service start site web --ready-tcp 1 --ready-timeout-seconds 0 -- true", 2),
        ("task extend site --ttl-seconds 1", 2),
        ("task cp a b", 2),
        ("task cp site:a site:b", 2),
        ("task file list site", 2),
        ("task wait site --sequence 99", 1),
        ("task kill site --sequence 99", 1),
        ("task stdin site --sequence 1", 2),
        ("task publish site 1:1", 1),
        ("mcp serve --allow-mount no-such-directory", 2),
        ("mcp serve --max-ttl-seconds 1", 2),
        ("env rm debian:12", 1),
        ("env rm nosuch", 2),
    ] {
        let ended = home.ended(home.command(words.split(' ')).output().unwrap());
        assert_eq!(ended.code(), status, "{words}: {ended:?}");
        // Each of these words is part of a line that programs read.
        let known = ["task_id=", "vm_id=", "exit_code=", "duration_ms=", "execution_mode="];
        let text = known.iter().fold(ended.stderr.clone(), |text, word| text.replace(word, ""));
        let internal = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').find(|word| {
            word.contains('_') && word.chars().next().is_some_and(|first| first.is_ascii_lowercase())
        });
        assert!(internal.is_none_or(|word| word == "host_compat"), "{words}: {internal:?}: {text}");
    }
}
