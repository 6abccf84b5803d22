//! The limits of a command.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::command::DEFAULT_TIMEOUT_SECONDS;
use crate::{Command, Error, ErrorKind, Hint, InputMode, OutputMode, TerminalSize};

/// Maximum size of the text of a command, or of all words of `argv`, in bytes.
pub const MAX_COMMAND_BYTES: usize = 1 << 20;
/// Maximum size of one word of `argv`, in bytes: the kernel refuses a program argument of 128 KiB, its NUL included
/// (`MAX_ARG_STRLEN`).
pub const MAX_WORD_BYTES: usize = 128 * 1024 - 1;
/// Maximum number of words of `argv`. The kernel counts a pointer for each against its limit for all arguments.
pub const MAX_ARGV_WORDS: usize = 65_536;
/// Maximum size of a standard input that is given as text, in bytes.
pub const MAX_STDIN_BYTES: usize = 16 << 20;

/// Maximum total size of the variables of a command, in bytes, so that a request fits into a frame.
const MAX_ENV_BYTES: usize = 32 * 1024;
/// Maximum length of a working directory (`PATH_MAX`, its NUL included).
const MAX_PATH_BYTES: usize = 4095;
/// Maximum length of the name of a user with its group, or of a shell.
const MAX_NAME_BYTES: usize = 255;
/// Maximum number of columns or rows of a terminal.
const MAX_TERMINAL_SIDE: u16 = 1000;
/// What the results and the journal show as the command of a login shell.
const LOGIN_SHELL: &str = "login shell";

/// A [`Command`] after the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedCommand {
    /// The command as text, for results and the journal: the words of `argv` are quoted as a shell takes them.
    pub text: String,
    /// What to run.
    pub program: CheckedProgram,
    /// Time limit. `None`: what is left of the lifetime.
    pub timeout: Option<Duration>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Variables.
    pub env: BTreeMap<String, String>,
    /// User in the guest.
    pub user: Option<String>,
    /// Its standard input.
    pub input: CheckedInput,
    /// Its terminal.
    pub terminal: Option<TerminalSize>,
    /// What happens to the output.
    pub output: OutputMode,
}

/// What to run, after the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckedProgram {
    /// Text for a shell.
    Shell {
        /// The text.
        text: String,
        /// The shell. `None`: that of the environment.
        shell: Option<String>,
    },
    /// A program with its arguments; not empty.
    Argv(Vec<String>),
    /// An interactive login shell.
    LoginShell,
}

/// The standard input of a command, after the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckedInput {
    /// It is empty.
    None,
    /// It is this text.
    Text(String),
    /// The caller sends it while the command runs.
    Stream,
}

/// Checks `command`. An empty command is fine.
///
/// # Errors
/// [`ErrorKind::InvalidInput`].
pub fn check_command(command: Command, output: OutputMode) -> Result<CheckedCommand, Error> {
    let Command { command, argv, shell, timeout_seconds, cwd, env, user, stdin, input, terminal } = command;
    let timeout = check_timeout(timeout_seconds, terminal.is_some())?;
    let (text, program) = check_program(command, argv, shell, terminal.is_some())?;
    check_cwd(cwd.as_deref())?;
    check_env(&env)?;
    check_user(user.as_deref())?;
    let input = check_input(stdin, input)?;
    terminal.map_or(Ok(()), check_terminal)?;
    Ok(CheckedCommand { text, program, timeout, cwd, env, user, input, terminal, output })
}

fn refusal(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

fn check_timeout(seconds: Option<i64>, has_terminal: bool) -> Result<Option<Duration>, Error> {
    let seconds = match seconds {
        None if has_terminal => return Ok(None),
        seconds => seconds.unwrap_or(DEFAULT_TIMEOUT_SECONDS),
    };
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
    Ok(Some(Duration::from_secs(seconds.ok_or_else(Error::timeout_not_positive)?)))
}

fn check_program(
    command: Option<String>,
    argv: Option<Vec<String>>,
    shell: Option<String>,
    has_terminal: bool,
) -> Result<(String, CheckedProgram), Error> {
    match (command, argv) {
        (Some(_), Some(_)) => Err(refusal("command and argv exclude each other").hint(Hint::CommandOrArgv)),
        (Some(text), None) => {
            check_text(&text)?;
            check_shell(shell.as_deref())?;
            Ok((text.clone(), CheckedProgram::Shell { text, shell }))
        }
        _ if shell.is_some() => Err(refusal("shell needs command").hint(Hint::CommandOrArgv)),
        (None, Some(argv)) => Ok((check_argv(&argv)?, CheckedProgram::Argv(argv))),
        (None, None) if has_terminal => Ok((LOGIN_SHELL.to_owned(), CheckedProgram::LoginShell)),
        (None, None) => Err(refusal("command or argv is required").hint(Hint::CommandOrArgv)),
    }
}

fn check_text(text: &str) -> Result<(), Error> {
    if text.len() > MAX_COMMAND_BYTES {
        let message = format!(
            "command is too long: it has {} bytes, and the maximum is {MAX_COMMAND_BYTES}",
            text.len()
        );
        return Err(refusal(message).hint(Hint::WriteScript));
    }
    if text.contains('\0') {
        return Err(refusal("command must not contain a NUL character").hint(Hint::PrintNul));
    }
    Ok(())
}

/// Checks the words, and returns them as one line that a shell splits into them.
fn check_argv(argv: &[String]) -> Result<String, Error> {
    if argv.first().is_none_or(String::is_empty) {
        return Err(refusal("argv must begin with the name of a program"));
    }
    let bytes: usize = argv.iter().map(|word| word.len() + 1).sum();
    if bytes > MAX_COMMAND_BYTES {
        let message =
            format!("argv is too long: it has {bytes} bytes, and the maximum is {MAX_COMMAND_BYTES}");
        return Err(refusal(message).hint(Hint::ArgumentsInFile));
    }
    if argv.len() > MAX_ARGV_WORDS {
        let message =
            format!("argv is too long: it has {} words, and the maximum is {MAX_ARGV_WORDS}", argv.len());
        return Err(refusal(message).hint(Hint::ArgumentsInFile));
    }
    if let Some(word) = argv.iter().find(|word| word.len() > MAX_WORD_BYTES) {
        let message = format!(
            "a word of argv is too long: it has {} bytes, and the maximum is {MAX_WORD_BYTES}",
            word.len()
        );
        return Err(refusal(message).hint(Hint::ArgumentsInFile));
    }
    quoted(argv).ok_or_else(|| refusal("argv must not contain a NUL character"))
}

/// Returns words as one line that a shell splits into them. `None`: a word contains a NUL character.
pub fn quoted(words: &[String]) -> Option<String> {
    shlex::try_join(words.iter().map(String::as_str)).ok()
}

fn check_shell(shell: Option<&str>) -> Result<(), Error> {
    let Some(shell) = shell else { return Ok(()) };
    let is_name = !shell.contains('/') && !shell.starts_with('-');
    let is_fine = (1..=MAX_NAME_BYTES).contains(&shell.len()) && !shell.contains(char::is_control);
    match is_fine && (is_name || shell.starts_with('/')) {
        true => Ok(()),
        false => Err(refusal("invalid shell: expected a name such as bash, or an absolute path")),
    }
}

fn check_user(user: Option<&str>) -> Result<(), Error> {
    let Some(user) = user else { return Ok(()) };
    let is_part =
        |part: &str| !part.is_empty() && !part.contains([':', '/']) && !part.contains(char::is_control);
    let (name, group) = user.split_once(':').map_or((user, None), |(name, group)| (name, Some(group)));
    match user.len() <= MAX_NAME_BYTES && is_part(name) && group.is_none_or(is_part) {
        true => Ok(()),
        false => Err(refusal("invalid user: expected NAME, UID, NAME:GROUP or UID:GID")),
    }
}

fn check_input(stdin: Option<String>, input: InputMode) -> Result<CheckedInput, Error> {
    match (stdin, input) {
        (None, InputMode::None) => Ok(CheckedInput::None),
        (None, InputMode::Stream) => Ok(CheckedInput::Stream),
        (Some(_), InputMode::Stream) => {
            Err(refusal("stdin and a streamed input exclude each other").hint(Hint::StdinOrInput))
        }
        (Some(text), InputMode::None) if text.len() > MAX_STDIN_BYTES => {
            let message = format!(
                "stdin is too long: it has {} bytes, and the maximum is {MAX_STDIN_BYTES}",
                text.len()
            );
            Err(refusal(message).hint(Hint::InputInFile))
        }
        (Some(text), InputMode::None) => Ok(CheckedInput::Text(text)),
    }
}

/// Checks the size of a terminal.
///
/// # Errors
/// [`ErrorKind::InvalidInput`].
pub fn check_terminal(TerminalSize { columns, rows }: TerminalSize) -> Result<(), Error> {
    check_side("columns", columns)?;
    check_side("rows", rows)
}

fn check_side(name: &str, side: u16) -> Result<(), Error> {
    match (1..=MAX_TERMINAL_SIDE).contains(&side) {
        true => Ok(()),
        false => Err(Error::out_of_range(name, 1, MAX_TERMINAL_SIDE.into())),
    }
}

fn check_cwd(cwd: Option<&str>) -> Result<(), Error> {
    let Some(cwd) = cwd else { return Ok(()) };
    if cwd.is_empty() || cwd.len() > MAX_PATH_BYTES || cwd.contains('\0') {
        let message = format!("cwd must be a path of 1 to {MAX_PATH_BYTES} bytes without a NUL character");
        return Err(refusal(message).hint(Hint::LeaveOutCwd));
    }
    Ok(())
}

fn check_env(env: &BTreeMap<String, String>) -> Result<(), Error> {
    for (name, value) in env {
        let mut letters = name.bytes();
        let well_formed = letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
            && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == b'_');
        if !well_formed {
            let name = name.escape_debug().take(64).collect::<String>();
            return Err(
                refusal(format!("invalid environment variable name: '{name}'")).hint(Hint::VariableName)
            );
        }
        if value.contains('\0') {
            return Err(refusal(format!("the value of {name} must not contain a NUL character")));
        }
    }
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MAX_ENV_BYTES {
        let message = format!(
            "the environment variables are too large: they have {bytes} bytes, and the maximum is {MAX_ENV_BYTES}"
        );
        return Err(refusal(message).hint(Hint::ValuesInFile));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
