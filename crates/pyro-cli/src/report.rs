//! Failures for users: one message, its causes, and hints.

use std::error::Error;
use std::fmt::Write as _;

use pyro_engine::Reader;
use serde::Serialize;

use crate::error::CliError;
use crate::text::printable;

/// A failure ready to be shown.
#[derive(Debug)]
pub(crate) struct Report {
    kind: &'static str,
    message: String,
    causes: Vec<String>,
    hints: Vec<String>,
    /// Parameters of the contract that the message or a hint names.
    parameters: Vec<String>,
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
    /// Returns the report of a failure. `None` if the reader closed its end, as in `pyro … | head`, or does not read.
    pub(crate) fn of(error: &CliError) -> Option<Self> {
        Some(match error {
            CliError::Output(error) if error.is_broken_pipe() => return None,
            CliError::Unread(_) => return None,
            CliError::Config(cause) => Self::new("configuration", error, cause.hint.as_slice()),
            CliError::Install(cause) => Self::new("client_settings", error, cause.hint.as_slice()),
            CliError::Words(_) | CliError::Variable(_) | CliError::Options(_) => {
                Self::new("invalid_input", error, &[])
            }
            // The engine's error says that it was stopped.
            CliError::Engine(cause) | CliError::Stopped(_, cause) => {
                let report = Self::new(cause.kind.as_str(), cause, &cause.hints_for(Reader::Person));
                Self { parameters: cause.parameters.clone(), ..report }
            }
            CliError::Left(_) | CliError::LeftShell { .. } => Self::new("left_running", error, &[]),
            CliError::Demo(_) => Self::new("demo", error, &[]),
            CliError::Abandoned(_) => {
                let hint = "the state directory may still hold files of the VM";
                Self::new("cancelled", error, &[hint.to_owned()])
            }
            CliError::Output(_) => Self::new("output", error, &[]),
            CliError::Listen(_) | CliError::System(..) => Self::new("system", error, &[]),
        })
    }

    fn new(kind: &'static str, error: &dyn Error, hints: &[String]) -> Self {
        let causes = std::iter::successors(error.source(), |cause| (*cause).source());
        Self {
            kind,
            message: error.to_string(),
            causes: causes.map(ToString::to_string).collect(),
            hints: hints.to_vec(),
            parameters: Vec::new(),
        }
    }

    /// Returns lines for a person. Further lines of a text are indented.
    pub(crate) fn human(&self) -> String {
        let mut text = String::new();
        let mut add = |label: &str, content: &str| {
            let content = printable(content.trim_end()).replace('\n', "\n    ");
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{label}{content}");
        };
        add("[error] ", &self.in_words_of_options(&self.message));
        self.causes.iter().for_each(|cause| add("  caused by: ", cause));
        self.hints.iter().for_each(|hint| add("  hint: ", &self.in_words_of_options(hint)));
        text
    }

    /// Returns the same for a program. The message includes the causes, for readers of `error` alone.
    pub(crate) fn json(&self) -> JsonReport<'_> {
        let causes = self.causes.iter().map(String::as_str);
        let message: Vec<&str> = std::iter::once(self.message.as_str()).chain(causes).collect();
        JsonReport { ok: false, error: message.join(": "), kind: self.kind, hints: &self.hints }
    }

    /// Replaces the names of parameters by what a person can type.
    fn in_words_of_options(&self, text: &str) -> String {
        self.parameters.iter().fold(text.to_owned(), |text, name| match name.as_str() {
            "task_exec" => replace_word(&text, name, "a command can run in it"),
            // Lists, whose options each give one entry.
            "allow_cidrs" | "allow_hosts" | "allow_domains" => {
                replace_word(&text, name, &format!("--{}", name.trim_end_matches('s').replace('_', "-")))
            }
            option => replace_word(&text, name, &format!("--{}", option.replace('_', "-"))),
        })
    }
}

/// Replaces `word` where it stands between spaces, commas, and ends of the text.
fn replace_word(text: &str, word: &str, replacement: &str) -> String {
    let is_edge = |neighbour: Option<char>| {
        neighbour.is_none_or(|c| c.is_whitespace() || matches!(c, ',' | ';' | ':' | '`' | '=' | '(' | ')'))
    };
    let mut replaced = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(word) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        let stands_alone = is_edge(before.chars().next_back().or_else(|| replaced.chars().next_back()))
            && is_edge(after.chars().next());
        replaced.push_str(before);
        replaced.push_str(if stands_alone { replacement } else { word });
        rest = after;
    }
    replaced + rest
}

#[cfg(test)]
mod tests;
