use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    command: CommandArgs,
    #[arg(long)]
    json: bool,
    words: Vec<OsString>,
}

fn line(words: &[&str]) -> Line {
    Line::try_parse_from(std::iter::once("x").chain(words.iter().copied())).unwrap()
}

fn command(words: &[&str]) -> Command {
    let line = line(words);
    line.command.command_on(&line.words, |_| None).unwrap()
}

#[test]
fn variables_come_from_files_then_flags_then_this_process() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("env");
    std::fs::write(&file, "# a comment\n\nA=file\nB=file=x y\n  C=\nOWN\nUNSET\n").unwrap();
    let args = line(&["--env-file", file.to_str().unwrap(), "-e", "A=flag", "-e", "OWN2", "w"]).command;
    let own = |name: &str| name.starts_with("OWN").then(|| OsString::from(format!("own {name}")));
    let set = args.context.variables(own).unwrap();
    let set: Vec<_> = set.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expected = [("A", "flag"), ("B", "file=x y"), ("C", ""), ("OWN", "own OWN"), ("OWN2", "own OWN2")];
    assert_eq!(set, expected);
}

#[test]
fn a_file_of_variables_that_is_none_is_refused_with_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("env");
    let args = line(&["--env-file", file.to_str().unwrap(), "w"]).command;
    let refused = || args.context.variables(|_| None).unwrap_err().to_string();
    assert!(refused().starts_with("cannot read the variables in "));
    std::fs::write(&file, "A=1\n=2\n").unwrap();
    assert!(refused().contains("invalid line 2 in "), "{}", refused());
    std::fs::write(&file, "x".repeat(1 << 21)).unwrap();
    assert!(refused().contains("is too large"), "{}", refused());
    // The limit cuts a character.
    std::fs::write(&file, "€".repeat(1 << 20)).unwrap();
    assert!(refused().contains("is too large"), "{}", refused());
}

#[test]
fn words_are_a_line_or_an_argument_list_or_a_login_shell() {
    assert_eq!(command(&["a b"]).command.as_deref(), Some("a b"));
    let words = command(&["--argv", "a b", "$c"]);
    assert_eq!((words.command, words.argv), (None, Some(vec!["a b".to_owned(), "$c".to_owned()])));
    let shell = command(&["-it"]);
    assert_eq!((shell.command, shell.argv, shell.input), (None, None, InputMode::Stream));
    assert!(shell.terminal.is_some());
    let nothing = line(&["-i"]);
    let error = nothing.command.command_on(&nothing.words, |_| None).unwrap_err();
    assert_eq!(error.to_string(), "command is required after `--`");
}

#[test]
fn options_that_do_not_fit_together_are_refused() {
    let check = |words: &[&str], is_terminal| {
        let line = line(words);
        line.command.check(&line.words, is_terminal)
    };
    assert_eq!(check(&["--argv"], true), Err(OptionsError::NeedsCommand("--argv")));
    assert_eq!(check(&["-it", "--shell", "bash"], true), Err(OptionsError::NeedsCommand("--shell")));
    assert_eq!(check(&["-t"], true), Err(OptionsError::NeedsInput));
    assert_eq!(check(&["-it"], false), Err(OptionsError::NotATerminal));
    assert_eq!(check(&["-it", "x"], false), Err(OptionsError::NotATerminal));
    for words in [&["-it"][..], &["-t", "x"], &["-i", "x"], &["-it", "--argv", "x"]] {
        check(words, true).unwrap();
    }
    check(&["-i", "x"], false).unwrap();
    check(&["-t", "x"], false).unwrap();
}

#[test]
fn a_terminal_passes_its_kind_on() {
    let term = |words: &[&str]| {
        let line = line(words);
        let own = |name: &str| (name == "TERM").then(|| "tmux-256color".into());
        line.command.command_on(&line.words, own).unwrap().env.remove("TERM")
    };
    assert_eq!(term(&["-t", "x"]).as_deref(), Some("tmux-256color"));
    assert_eq!(term(&["-t", "-e", "TERM=dumb", "x"]).as_deref(), Some("dumb"));
    assert_eq!(term(&["x"]), None);
}

#[test]
fn options_reach_the_command() {
    let command = command(&["-w", "dir", "-u", "1000:100", "--shell", "bash", "--timeout-seconds", "7", "x"]);
    assert_eq!(command.cwd.as_deref(), Some("dir"));
    assert_eq!(command.user.as_deref(), Some("1000:100"));
    assert_eq!(command.shell.as_deref(), Some("bash"));
    assert_eq!((command.timeout_seconds, command.input), (Some(7), InputMode::None));
}

#[test]
fn what_excludes_each_other_is_refused() {
    for words in [&["-t", "--json", "x"][..], &["--shell", "bash", "--argv", "x"], &["-e", "=x", "x"]] {
        Line::try_parse_from(std::iter::once("x").chain(words.iter().copied())).unwrap_err();
    }
}
