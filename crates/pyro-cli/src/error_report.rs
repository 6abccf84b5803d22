//! Failures as users see them: one message, its causes, hints, and an exit status.

use std::error::Error;
use std::fmt::Write as _;
use std::io;

use pyro_engine::{EngineError, ErrorKind, Reader};
use serde::Serialize;

use crate::client_config::InstallError;
use crate::commands::DemoError;
use crate::config::ConfigError;
use crate::exit::Exit;
use crate::printer::{OutputError, printable};
use crate::signals::Signal;
use crate::words::WordsError;

/// Whatever can end a command early.
#[derive(Debug)]
pub(crate) enum CliError {
    /// An environment variable is wrong.
    Config(ConfigError),
    /// The settings of a client cannot be read or written.
    Install(InstallError),
    /// The words after the environment are no command.
    Words(WordsError),
    /// The engine refused or failed.
    Engine(EngineError),
    /// The demo with a model did not show what it should.
    Demo(DemoError),
    /// The engine was told to stop by a signal and has cleaned up.
    Stopped(Signal, EngineError),
    /// The user gave up waiting for the clean-up.
    Abandoned(Signal),
    /// Nobody read the output, and a signal ended the wait for that.
    Unread(Signal),
    /// Our own output could not be written.
    Output(OutputError),
    /// The operating system refused something of ours; the text says what.
    System(String, io::Error),
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<InstallError> for CliError {
    fn from(error: InstallError) -> Self {
        Self::Install(error)
    }
}

impl From<WordsError> for CliError {
    fn from(error: WordsError) -> Self {
        Self::Words(error)
    }
}

impl From<EngineError> for CliError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl From<DemoError> for CliError {
    fn from(error: DemoError) -> Self {
        Self::Demo(error)
    }
}

impl From<OutputError> for CliError {
    fn from(error: OutputError) -> Self {
        Self::Output(error)
    }
}

impl CliError {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Stopped(signal, _) | Self::Abandoned(signal) | Self::Unread(signal) => {
                Exit::Stopped(*signal)
            }
            Self::Output(error) if error.is_broken_pipe() => Exit::BrokenPipe,
            Self::Engine(error) => exit_of(error.kind),
            Self::Config(_)
            | Self::Install(_)
            | Self::Words(_)
            | Self::Demo(_)
            | Self::Output(_)
            | Self::System(..) => Exit::Failure,
        }
    }

    /// What to tell the user. Nothing when a reader went away, which is how `pyro … | head` ends, or does
    /// not read.
    pub(crate) fn report(&self) -> Option<Report> {
        Some(match self {
            Self::Output(error) if error.is_broken_pipe() => return None,
            Self::Unread(_) => return None,
            Self::Config(error) => Report::new("configuration", error, error.hint.as_slice()),
            Self::Install(error) => Report::new("client_settings", error, error.hint.as_slice()),
            Self::Words(error) => Report::new("invalid_input", error, &[]),
            Self::Engine(error) | Self::Stopped(_, error) => {
                Report::new(error.kind.as_str(), error, &error.hints_for(Reader::Person))
            }
            Self::Demo(error) => Report::new("demo", error, &[]),
            Self::Abandoned(signal) => Report {
                kind: "cancelled",
                message: format!("stopped by {signal} before the clean-up had finished"),
                causes: Vec::new(),
                hints: vec!["parts of the VM may be left in the state directory".to_owned()],
            },
            Self::Output(error) => Report::new("output", error, &[]),
            Self::System(doing, error) => Report {
                kind: "system",
                message: doing.clone(),
                causes: vec![error.to_string()],
                hints: Vec::new(),
            },
        })
    }
}

/// The exit status of each kind. All are 1 by contract; the match is spelled out so that a new kind has to
/// be thought about.
fn exit_of(kind: ErrorKind) -> Exit {
    match kind {
        ErrorKind::InvalidInput
        | ErrorKind::NotFound
        | ErrorKind::WrongState
        | ErrorKind::AtCapacity
        | ErrorKind::Expired
        | ErrorKind::EnvironmentUnavailable
        | ErrorKind::VmUnavailable
        | ErrorKind::BootFailed
        | ErrorKind::NotDelivered
        | ErrorKind::OutcomeUnknown
        | ErrorKind::StateUnusable
        | ErrorKind::Cancelled
        | ErrorKind::Internal => Exit::Failure,
    }
}

/// A failure ready to be printed.
#[derive(Debug)]
pub(crate) struct Report {
    kind: &'static str,
    message: String,
    causes: Vec<String>,
    hints: Vec<String>,
}

/// The document of `--json` for a failure.
#[derive(Debug, Serialize)]
pub(crate) struct JsonReport<'a> {
    ok: bool,
    error: String,
    kind: &'a str,
    hints: &'a [String],
}

impl Report {
    fn new(kind: &'static str, error: &dyn Error, hints: &[String]) -> Self {
        let causes = std::iter::successors(error.source(), |cause| (*cause).source());
        Self {
            kind,
            message: error.to_string(),
            causes: causes.map(ToString::to_string).collect(),
            hints: hints.to_vec(),
        }
    }

    /// Lines for a person. Texts of several lines stay together by their indent.
    pub(crate) fn human(&self) -> String {
        let mut text = String::new();
        let mut add = |label: &str, content: &str| {
            let content = printable(content.trim_end()).replace('\n', "\n    ");
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{label}{content}");
        };
        add("[error] ", &self.message);
        self.causes.iter().for_each(|cause| add("  caused by: ", cause));
        self.hints.iter().for_each(|hint| add("  hint: ", hint));
        text
    }

    /// The same for a program; the message holds the causes, as readers of `error` alone expect.
    pub(crate) fn json(&self) -> JsonReport<'_> {
        let causes = self.causes.iter().map(String::as_str);
        let message: Vec<&str> = std::iter::once(self.message.as_str()).chain(causes).collect();
        JsonReport { ok: false, error: message.join(": "), kind: self.kind, hints: &self.hints }
    }
}

#[cfg(test)]
mod tests;
