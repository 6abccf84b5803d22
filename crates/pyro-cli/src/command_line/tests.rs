use super::*;
use crate::commands::demo::DemoCommand;
use crate::commands::run::RunArgs;

fn run_args(words: &[&str]) -> RunArgs {
    match parse_words(words) {
        Ok(Command::Run(args)) => args,
        other => panic!("{words:?} gave {other:?}"),
    }
}

fn refusal(words: &[&str]) -> clap::Error {
    parse_words(words).expect_err("must be refused")
}

fn parse_words(words: &[&str]) -> Result<Command, clap::Error> {
    parse(std::iter::once("pyro").chain(words.iter().copied()).map(OsString::from))
}

#[test]
fn the_grammar_is_consistent() {
    grammar().debug_assert();
}

#[test]
fn run_has_the_defaults_of_the_contract() {
    let args = run_args(&["run", "debian:12", "--", "true"]);
    assert_eq!(args.machine.environment, "debian:12");
    assert_eq!((args.machine.vcpu_count, args.machine.mem_mib), (1, 1024));
    assert_eq!((args.command.timeout_seconds, args.ttl_seconds), (None, 600));
    assert!(!args.command.interactive && !args.command.tty && !args.command.context.argv);
    assert!(!args.network.network && !args.allow_host_compat && !args.json);
    assert_eq!(args.network.policy(), None);
    assert_eq!(args.words, ["true"]);
}

#[test]
fn flags_go_before_or_after_the_environment() {
    let before = run_args(&["run", "--network", "--mem-mib", "512", "--json", "e", "--", "a", "b"]);
    let after = run_args(&["run", "e", "--network", "--mem-mib", "512", "--json", "--", "a", "b"]);
    let around = run_args(&["run", "--network", "e", "--mem-mib=512", "--json", "a", "b"]);
    for args in [before, after, around] {
        assert!(args.network.network && args.json);
        assert_eq!((args.machine.environment.as_str(), args.machine.mem_mib), ("e", 512));
        assert_eq!(args.words, ["a", "b"]);
    }
}

#[test]
fn a_network_policy_needs_a_network() {
    let words = ["--egress", "allowlist", "--allow-domain", "*.example.test", "--allow-cidr", "10.1.0.0/16"];
    let all = |flag: &'static [&'static str]| [&["run", "e"], flag, &words, &["--", "true"]].concat();
    let policy = run_args(&all(&["--network"])).network.policy().unwrap();
    let expected = r#"{"egress":"allowlist","allow_cidrs":["10.1.0.0/16"],"allow_hosts":[],"allow_domains":["*.example.test"]}"#;
    assert_eq!(serde_json::to_string(&policy).unwrap(), expected);
    assert!(refusal(&all(&[])).to_string().contains("--network"));
    let error = refusal(&["run", "e", "--network", "--allow-cidr", "10.0.0.0/33", "--", "true"]);
    assert!(error.to_string().contains("invalid address range: expected"), "{error}");
}

#[test]
fn words_after_the_separator_are_never_ours() {
    let args = run_args(&["run", "e", "--", "tool", "--json", "--network", "--help", "--", "-x", ""]);
    assert!(!args.json && !args.network.network);
    assert_eq!(args.words, ["tool", "--json", "--network", "--help", "--", "-x", ""]);
    assert_eq!(run_args(&["run", "e", "--", "--", "x"]).words, ["--", "x"]);
    assert_eq!(run_args(&["run", "e", "--", "--json"]).words, ["--json"]);
}

#[test]
fn the_separator_may_be_left_out() {
    assert_eq!(run_args(&["run", "e", "ls", "-la", "--color"]).words, ["ls", "-la", "--color"]);
    assert_eq!(run_args(&["run", "e", "a", "--", "b"]).words, ["a", "--", "b"]);
}

#[test]
fn a_flag_of_ours_after_a_bare_command_is_refused() {
    for flag in ["--json", "--network", "--mem-mib=5", "--vcpu-count"] {
        let error = refusal(&["run", "e", "ls", flag]);
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("write `--` before the command"), "{error}");
    }
    let error = refusal(&["task", "exec", "9775b3af1eeb", "ls", "--detach"]);
    assert!(error.to_string().contains("write `--` before the command"), "{error}");
}

/// `--netwrok` would be the first word of the command.
#[test]
fn an_unknown_flag_before_the_separator_is_refused() {
    for words in [
        &["run", "e", "--netwrok", "--", "true"][..],
        &["run", "e", "-x", "true"],
        &["run", "e", "--no-such-flag"],
        &["task", "exec", "9775b3af1eeb", "--detatch", "--", "true"],
        &["task", "shell", "9775b3af1eeb", "--usr=x", "--", "true"],
        &["task", "shell", "open", "9775b3af1eeb", "--usr=x", "--", "true"],
        &["task", "service", "start", "9775b3af1eeb", "web", "--redy-tcp=80", "--", "true"],
    ] {
        let error = refusal(words);
        assert_eq!(error.exit_code(), 2, "{words:?}");
        assert!(error.to_string().contains("unexpected argument"), "{error}");
    }
    assert_eq!(run_args(&["run", "e", "--", "-x"]).words, ["-x"]);
}

#[test]
fn short_flags_of_commands_may_be_joined() {
    let args = run_args(&["run", "-it", "e"]);
    assert!(args.command.interactive && args.command.tty && args.words.is_empty());
    let args = run_args(&["run", "e", "-i", "-e", "A=b", "-w", "d", "-u", "u", "--", "cat", "-t"]);
    assert!(args.command.interactive && !args.command.tty);
    assert_eq!(args.words, ["cat", "-t"]);
    let words = ["task", "exec", "--detach", "-i", "9775b3af1eeb", "--", "cat"];
    let Ok(Command::Task(TaskCommand::Exec(args))) = parse_words(&words) else { panic!("not a command") };
    assert!(args.detach && args.command.interactive);
    assert_eq!(refusal(&["task", "exec", "--detach", "-t", "9775b3af1eeb", "--", "sh"]).exit_code(), 2);
    assert_eq!(refusal(&["run", "-t", "--json", "e", "--", "sh"]).exit_code(), 2);
}

#[test]
fn a_task_has_the_defaults_of_the_contract() {
    let Ok(Command::Task(TaskCommand::Create(args))) = parse_words(&["task", "create", "debian:12"]) else {
        panic!("not a task");
    };
    assert_eq!(
        (args.machine.vcpu_count, args.machine.mem_mib, args.ttl_seconds, args.disk_mib),
        (1, 1024, 600, None)
    );
    assert!(!args.network.network && !args.allow_host_compat && !args.json);
    assert_eq!(args.network.policy(), None);
    let words = ["task", "exec", "9775b3af1eeb", "--env", "A=b=c", "--env", "D=", "--", "x", "--json"];
    let Ok(Command::Task(TaskCommand::Exec(args))) = parse_words(&words) else { panic!("not a command") };
    assert_eq!((args.command.timeout_seconds, args.detach, args.json), (None, false, false));
    assert_eq!(args.command.context.cwd, None);
    let env = args.command.command(&args.words).unwrap().env;
    assert_eq!(env, [("A".to_owned(), "b=c".to_owned()), ("D".to_owned(), String::new())].into());
    assert_eq!(args.words, ["x", "--json"]);
    assert_eq!(refusal(&["task", "exec", "9775b3af1eeb", "--env", "=A", "--", "x"]).exit_code(), 2);
}

#[test]
fn a_demo_needs_no_subcommand_and_its_network_is_its_own() {
    let demo = |words: &[&str]| match parse_words(words) {
        Ok(Command::Demo(args)) => args,
        other => panic!("{words:?} gave {other:?}"),
    };
    assert!(!demo(&["demo"]).network && demo(&["demo"]).command.is_none());
    assert!(demo(&["demo", "--network"]).network);
    let Some(DemoCommand::Ollama(args)) = demo(&["demo", "ollama"]).command else { panic!("no ollama") };
    assert_eq!((args.base_url.as_str(), args.model.as_str()), ("http://localhost:11434/v1", "llama3.2:3b"));
    assert!(!args.verbose);
    // The flag is then without effect.
    let Some(DemoCommand::Ollama(args)) = demo(&["demo", "--network", "ollama", "-v"]).command else {
        panic!("no ollama")
    };
    assert!(args.verbose);
    for words in [&["demo", "ollama", "--network"][..], &["demo", "--json"], &["demo", "nosuch"]] {
        assert_eq!(refusal(words).exit_code(), 2, "{words:?}");
    }
}

#[test]
fn no_words_at_all_parse() {
    assert!(run_args(&["run", "e"]).words.is_empty());
    assert!(run_args(&["run", "e", "--"]).words.is_empty());
}

#[test]
fn any_integer_parses() {
    for (text, value) in [
        ("-1", -1),
        ("0", 0),
        ("+7", 7),
        ("99999999999999999999999", i64::MAX),
        ("-99999999999999999999999", i64::MIN),
    ] {
        assert_eq!(run_args(&["run", "e", "--vcpu-count", text, "--", "x"]).machine.vcpu_count, value);
        assert_eq!(run_args(&["run", "e", &format!("--ttl-seconds={text}"), "--", "x"]).ttl_seconds, value);
    }
}

#[test]
fn other_numbers_are_usage_errors() {
    for text in ["x", "1.5", "", "0x10", "1k"] {
        let error = refusal(&["run", "e", "--timeout-seconds", text, "--", "x"]);
        assert_eq!((error.kind(), error.exit_code()), (ErrorKind::ValueValidation, 2), "{text}");
    }
}

#[test]
fn a_command_line_that_stops_short_is_a_usage_error() {
    for words in [
        &[][..],
        &["env"],
        &["run"],
        &["env", "pull"],
        &["env", "inspect"],
        &["nosuch"],
        &["task"],
        &["task", "exec"],
    ] {
        assert_eq!(refusal(words).exit_code(), 2, "{words:?}");
    }
}

#[test]
fn every_command_of_people_has_examples_and_every_flag_a_text() {
    fn check(command: &clap::Command) {
        let name = command.get_name();
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains("Examples:"), "{name} has no examples");
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{name}: {} has no text", argument.get_id());
        }
        command.get_subcommands().filter(|sub| !sub.is_hide_set()).for_each(check);
    }
    check(&grammar());
}

/// A task may have the name of a subcommand.
#[test]
fn a_shell_is_opened_on_a_terminal_or_named_by_a_subcommand() {
    let shell = |words: &[&str]| match parse_words(&[&["task", "shell"], words].concat()) {
        Ok(Command::Task(TaskCommand::Shell(args))) => args,
        other => panic!("{words:?} gave {other:?}"),
    };
    let args = shell(&["9775b3af1eeb", "--user", "agent", "--", "vi", "list"]);
    assert_eq!((args.task_id.as_deref(), args.words.len()), (Some("9775b3af1eeb"), 2));
    assert!(args.detached.is_none());
    assert!(matches!(shell(&["list", "build"]).detached, Some(ShellCommand::List(_))));
    let Some(ShellCommand::Open(args)) = shell(&["open", "build", "--", "list", "-x"]).detached else {
        panic!()
    };
    assert_eq!(args.words, ["list", "-x"]);
    let args = shell(&["--", "list", "true"]);
    assert_eq!((args.task_id.as_deref(), args.detached.is_none()), (Some("list"), true));
    for words in
        [&["task", "shell"][..], &["task", "shell", "list"], &["task", "shell", "open", "x", "--jsno"]]
    {
        assert_eq!(refusal(words).exit_code(), 2, "{words:?}");
    }
}
