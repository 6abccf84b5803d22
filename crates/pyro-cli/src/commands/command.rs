//! How a command runs, as arguments of `run` and `task exec`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use clap::Args;
use pyro_engine::{Command, InputMode};

use crate::error::CliError;
use crate::printer::Printer;
use crate::session::Interaction;
use crate::stdin::{self, Passed};
use crate::terminal;
use crate::words::{self, WordsError, integer};

/// Maximum size of a file of variables, in bytes.
const MAX_ENV_FILE_BYTES: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct CommandArgs {
    /// Time limit for the command, in seconds, at least 1 [default: 30; with -t what is left of the lifetime]
    #[arg(long, value_name = "SECONDS", value_parser = integer, allow_hyphen_values = true)]
    pub(crate) timeout_seconds: Option<i64>,
    /// Pass standard input on to the command; without this, its input is empty and standard input is not read [default: off]
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Run the command on a terminal; without a command, start a login shell [default: off]
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) tty: bool,
    #[command(flatten)]
    pub(crate) context: ContextArgs,
}

/// Where, as whom, and with which variables a command runs.
#[derive(Debug, Args)]
pub(crate) struct ContextArgs {
    /// Set a variable for the command, or pass on one of yours; may be repeated
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = variable)]
    pub(crate) env: Vec<Variable>,
    /// Set the variables in this file, one NAME=VALUE or NAME in each line; may be repeated, and --env wins
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Working directory, which must exist; relative to /workspace unless it is absolute [default: /workspace]
    #[arg(short = 'w', long, value_name = "DIRECTORY")]
    pub(crate) cwd: Option<String>,
    /// User of the guest to run the command as: NAME or UID, with :GROUP or :GID if needed [default: root]
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Shell to run the command with, such as bash [default: that of the environment]
    #[arg(long, value_name = "SHELL", conflicts_with = "argv")]
    pub(crate) shell: Option<String>,
    /// Run the words of the command without a shell [default: off]
    #[arg(long)]
    pub(crate) argv: bool,
}

/// A variable on the command line or in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variable {
    name: String,
    /// `None`: that of this process; left out where it is not set.
    value: Option<String>,
}

pub(crate) fn variable(text: &str) -> Result<Variable, &'static str> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    match name.is_empty() {
        true => Err("expected NAME=VALUE, or NAME to pass on a variable"),
        false => Ok(Variable { name: name.to_owned(), value }),
    }
}

/// Why variables cannot be passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VariableError {
    /// The file cannot be read.
    #[error("cannot read the variables in {}", .0.display())]
    File(PathBuf, #[source] std::io::Error),
    /// The file has too much in it.
    #[error("the file {} is too large: the maximum is {MAX_ENV_FILE_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    /// A line of the file is not a variable.
    #[error("invalid line {line} in {}: {expected}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// What it should be.
        expected: &'static str,
    },
    /// A variable of this process is not UTF-8.
    #[error("the variable {0} is not valid UTF-8")]
    NotUtf8(String),
}

/// Why options of a command do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OptionsError {
    /// There is no command that the option could apply to.
    #[error("{0} needs a command")]
    NeedsCommand(&'static str),
    /// A login shell that nothing can be typed into.
    #[error("-t needs -i or a command; use -it for a login shell")]
    NeedsInput,
    /// A shell in a task without a terminal.
    #[error(
        "a shell needs a terminal as standard input; use `pyro task exec -i` to pass on a pipe or a file"
    )]
    ShellNeedsTerminal,
    /// Attaching without a terminal.
    #[error(
        "attach needs a terminal as standard input and output; use `pyro task shell read` and `write` without one"
    )]
    AttachNeedsTerminal,
    /// `-it` with a standard input that is not a terminal.
    #[error("-it needs a terminal as standard input; leave out -t to pass on a pipe or a file")]
    NotATerminal,
}

impl CommandArgs {
    /// Returns the command of these words.
    ///
    /// # Errors
    /// There are no words, the options do not fit together, or a word or a variable cannot be passed on.
    pub(crate) fn command(&self, words: &[OsString]) -> Result<Command, CliError> {
        self.check(words, io::stdin().is_terminal())?;
        self.command_on(words, |name| std::env::var_os(name))
    }

    fn check(&self, words: &[OsString], is_terminal: bool) -> Result<(), OptionsError> {
        if words.is_empty() && self.context.argv {
            return Err(OptionsError::NeedsCommand("--argv"));
        }
        if words.is_empty() && self.context.shell.is_some() {
            return Err(OptionsError::NeedsCommand("--shell"));
        }
        match (self.tty, self.interactive) {
            (true, true) if !is_terminal => Err(OptionsError::NotATerminal),
            (true, false) if words.is_empty() => Err(OptionsError::NeedsInput),
            _ => Ok(()),
        }
    }

    fn command_on(
        &self,
        words: &[OsString],
        own: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Command, CliError> {
        let mut command = match words {
            [] if self.tty => self.context.around(Command::default(), &own)?,
            words => self.context.command_on(words, &own)?,
        };
        // Programs in the guest draw on this terminal.
        if self.tty
            && !command.env.contains_key("TERM")
            && let Some(term) =
                own("TERM").and_then(|term| term.into_string().ok()).filter(|term| !term.is_empty())
        {
            command.env.insert("TERM".to_owned(), term);
        }
        Ok(Command {
            timeout_seconds: self.timeout_seconds,
            stdin: None,
            input: if self.interactive { InputMode::Stream } else { InputMode::None },
            terminal: self.tty.then(|| terminal::size().unwrap_or_default()),
            ..command
        })
    }

    /// Returns how the command is connected to this process.
    pub(crate) fn interaction(&self, json: bool) -> Interaction {
        Interaction {
            quiet: json,
            passed: Passed { input: self.interactive, sizes: self.tty, detachable: false },
            is_raw: self.tty && self.interactive,
            on_terminal: self.tty,
            puts_back: self.tty && io::stdout().is_terminal(),
            ends_line: false,
        }
    }

    /// Reports to a person that standard input is not passed on, where it seems to be meant for the command.
    pub(crate) fn note_ignored_input(&self, json: bool, printer: &Printer) {
        if !self.interactive && is_input_unused(json) {
            printer.note("[pyro] standard input is not passed on to the command; use -i to pass it on");
        }
    }

    /// The same for a command that takes input but is not waited for.
    pub(crate) fn note_unsent_input(&self, task: &str, sequence: u64, json: bool, printer: &Printer) {
        if self.interactive && is_input_unused(json) {
            printer.note(&format!(
                "[pyro] standard input is not passed on to a detached command; \
                 send it with pyro task stdin {task} --sequence {sequence}"
            ));
        }
    }
}

/// Returns whether a person should know that standard input, which is a pipe or a file, is not used.
fn is_input_unused(json: bool) -> bool {
    !json && stdin::is_pipe_or_file()
}

impl ContextArgs {
    /// Returns the command of these words.
    ///
    /// # Errors
    /// There are no words, or a word or a variable cannot be passed on.
    pub(crate) fn command(&self, words: &[OsString]) -> Result<Command, CliError> {
        self.command_on(words, &|name| std::env::var_os(name))
    }

    fn command_on(
        &self,
        words: &[OsString],
        own: &impl Fn(&str) -> Option<OsString>,
    ) -> Result<Command, CliError> {
        let command = match words {
            [] => return Err(WordsError::Missing.into()),
            words if self.argv => Command::argv(words::texts(words)?),
            words => Command::new(words::join(words)?),
        };
        self.around(command, own)
    }

    /// Returns the command with these options.
    fn around(&self, command: Command, own: &impl Fn(&str) -> Option<OsString>) -> Result<Command, CliError> {
        let (shell, cwd, user) = (self.shell.clone(), self.cwd.clone(), self.user.clone());
        Ok(Command { shell, cwd, env: self.variables(own)?, user, ..command })
    }

    /// Refuses options that need a command.
    ///
    /// # Errors
    /// The first option that is given.
    pub(crate) fn refuse_without_command(&self) -> Result<(), OptionsError> {
        let given = [
            ("--argv", self.argv),
            ("--shell", self.shell.is_some()),
            ("--env", !self.env.is_empty()),
            ("--env-file", !self.env_file.is_empty()),
            ("--cwd", self.cwd.is_some()),
            ("--user", self.user.is_some()),
        ];
        let first = given.into_iter().find(|(_, is_given)| *is_given);
        first.map_or(Ok(()), |(name, _)| Err(OptionsError::NeedsCommand(name)))
    }

    fn variables(
        &self,
        own: impl Fn(&str) -> Option<OsString>,
    ) -> Result<BTreeMap<String, String>, VariableError> {
        let mut all = Vec::new();
        for path in &self.env_file {
            all.extend(variables_in(path)?);
        }
        all.extend(self.env.iter().cloned());
        variables(all, own)
    }
}

/// Returns variables by their names; the last one with a name counts. Those without a value are taken from `own`.
pub(crate) fn variables(
    all: Vec<Variable>,
    own: impl Fn(&str) -> Option<OsString>,
) -> Result<BTreeMap<String, String>, VariableError> {
    let mut set = BTreeMap::new();
    for Variable { name, value } in all {
        let value = match value {
            Some(value) => Some(value),
            None => own(&name)
                .map(|value| value.into_string().map_err(|_| VariableError::NotUtf8(name.clone())))
                .transpose()?,
        };
        if let Some(value) = value {
            set.insert(name, value);
        }
    }
    Ok(set)
}

fn variables_in(path: &Path) -> Result<Vec<Variable>, VariableError> {
    let unreadable = |error| VariableError::File(path.to_owned(), error);
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_ENV_FILE_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(unreadable)?;
    if bytes.len() as u64 > MAX_ENV_FILE_BYTES {
        return Err(VariableError::TooLarge(path.to_owned()));
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| unreadable(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    let lines = text.lines().enumerate().filter(|(_, line)| {
        let line = line.trim_start();
        !line.is_empty() && !line.starts_with('#')
    });
    lines
        .map(|(index, line)| {
            variable(line.trim_start()).map_err(|expected| VariableError::Line {
                path: path.to_owned(),
                line: index + 1,
                expected,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
