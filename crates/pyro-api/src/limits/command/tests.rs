use proptest::prelude::*;

use super::*;

fn checked(command: Command) -> Result<CheckedCommand, Error> {
    check_command(command, OutputMode::Capture)
}

fn refused(command: Command) -> String {
    let error = checked(command).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidInput);
    error.to_string()
}

#[test]
fn defaults_are_within_the_limits() {
    let command = checked(Command::new("")).unwrap();
    assert_eq!(command.timeout, Some(Duration::from_secs(30)));
    assert_eq!(command.input, CheckedInput::None);
}

#[test]
fn a_command_of_1_mib_is_taken_and_one_byte_more_is_not() {
    checked(Command::new("x".repeat(1_048_576))).unwrap();
    let message = "command is too long: it has 1048577 bytes, and the maximum is 1048576";
    assert_eq!(refused(Command::new("x".repeat(1_048_577))), message);
}

#[test]
fn a_command_with_nul_is_refused() {
    assert_eq!(refused(Command::new("printf a\0b")), "command must not contain a NUL character");
    assert_eq!(refused(Command::argv(["printf", "a\0b"])), "argv must not contain a NUL character");
}

#[test]
fn words_are_shown_as_a_shell_takes_them() {
    let command = checked(Command::argv(["printf", "%s", "it's $HOME", ""])).unwrap();
    assert_eq!(command.text, r#"printf '%s' "it's "'$HOME' ''"#);
    assert_eq!(shlex::split(&command.text).unwrap(), ["printf", "%s", "it's $HOME", ""]);
}

#[test]
fn words_have_the_limits_of_the_kernel() {
    checked(Command::argv(["x".repeat(131_071)])).unwrap();
    let message = "a word of argv is too long: it has 131072 bytes, and the maximum is 131071";
    assert_eq!(refused(Command::argv(["x".repeat(131_072)])), message);
    let message = "argv is too long: it has 1048580 bytes, and the maximum is 1048576";
    assert_eq!(refused(Command::argv(vec!["x".repeat(104_857); 10])), message);
    let message = "argv is too long: it has 65537 words, and the maximum is 65536";
    assert_eq!(refused(Command::argv(vec!["x"; 65_537])), message);
    for nothing in [Command::argv([""; 0]), Command::argv([""])] {
        assert_eq!(refused(nothing), "argv must begin with the name of a program");
    }
}

#[test]
fn exactly_one_program_is_given_except_on_a_terminal() {
    let both = Command { command: Some("true".to_owned()), ..Command::argv(["true"]) };
    assert_eq!(refused(both), "command and argv exclude each other");
    assert_eq!(refused(Command::default()), "command or argv is required");
    let shell = Some("bash".to_owned());
    assert_eq!(refused(Command { shell: shell.clone(), ..Command::argv(["true"]) }), "shell needs command");
    let on_terminal = || Command { terminal: Some(TerminalSize::default()), ..Command::default() };
    assert_eq!(refused(Command { shell, ..on_terminal() }), "shell needs command");
    let login = checked(on_terminal()).unwrap();
    assert_eq!((login.program, login.timeout), (CheckedProgram::LoginShell, None));
    let limited = checked(Command { timeout_seconds: Some(5), ..on_terminal() }).unwrap();
    assert_eq!(limited.timeout, Some(Duration::from_secs(5)));
}

#[test]
fn users_and_shells_have_names() {
    let of_user = |user: &str| Command { user: Some(user.to_owned()), ..Command::new("id") };
    for user in ["agent", "1000", "agent:staff", "0:0"] {
        checked(of_user(user)).unwrap();
    }
    for user in ["", ":", "a:", ":0", "a:b:c", "a\nb", "../x", &"x".repeat(256)] {
        assert_eq!(refused(of_user(user)), "invalid user: expected NAME, UID, NAME:GROUP or UID:GID");
    }
    let by_shell = |shell: &str| Command { shell: Some(shell.to_owned()), ..Command::new("id") };
    for shell in ["bash", "sh", "/usr/bin/zsh"] {
        checked(by_shell(shell)).unwrap();
    }
    for shell in ["", "-c", "bin/sh", "a\0b", &"x".repeat(256)] {
        let message = "invalid shell: expected a name such as bash, or an absolute path";
        assert_eq!(refused(by_shell(shell)), message);
    }
}

#[test]
fn input_is_text_or_streamed() {
    let text = |length| Command { stdin: Some("x".repeat(length)), ..Command::new("cat") };
    assert_eq!(checked(text(1)).unwrap().input, CheckedInput::Text("x".to_owned()));
    checked(text(MAX_STDIN_BYTES)).unwrap();
    let message = "stdin is too long: it has 16777217 bytes, and the maximum is 16777216";
    assert_eq!(refused(text(MAX_STDIN_BYTES + 1)), message);
    let both = Command { input: InputMode::Stream, ..text(1) };
    assert_eq!(refused(both), "stdin and a streamed input exclude each other");
}

#[test]
fn a_terminal_has_a_size() {
    let of_size =
        |columns, rows| Command { terminal: Some(TerminalSize { columns, rows }), ..Command::new("true") };
    for (columns, rows) in [(1, 1), (1000, 1000)] {
        checked(of_size(columns, rows)).unwrap();
    }
    assert_eq!(refused(of_size(0, 1)), "columns must be between 1 and 1000");
    assert_eq!(refused(of_size(1, 1001)), "rows must be between 1 and 1000");
}

proptest! {
    #[test]
    fn timeouts_are_accepted_exactly_if_positive(timeout_seconds: i64) {
        match checked(Command { timeout_seconds: Some(timeout_seconds), ..Command::new("true") }) {
            Ok(checked) => {
                let seconds = checked.timeout.unwrap().as_secs();
                prop_assert_eq!(i64::try_from(seconds).unwrap(), timeout_seconds);
            }
            Err(error) => {
                prop_assert!(timeout_seconds <= 0);
                prop_assert_eq!(error.to_string(), "timeout_seconds must be positive");
            }
        }
    }
}
