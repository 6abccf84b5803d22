//! The result of a command, as a value.

use std::io;

use pyro_engine::OutputStream;
use serde::Serialize;

use crate::exit::Exit;
use crate::json;
use crate::printer::OutputError;

/// The result of a command: lines for stderr, then the output on stdout, and the exit status.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) notes: Vec<String>,
    pub(crate) result: Content,
    pub(crate) exit: Exit,
}

/// What goes to stdout.
#[derive(Debug)]
pub(crate) enum Content {
    Nothing,
    /// Text for people.
    Text(String),
    /// Bytes for programs.
    Bytes(Vec<u8>),
    /// Text for people that says why there is no result. It must not get lost: if stdout cannot be written to, it goes to
    /// stderr.
    Failure(String),
}

impl Reply {
    /// Success, with nothing to show.
    pub(crate) fn nothing() -> Self {
        Self::with(Content::Nothing)
    }

    /// Success, with a text for people.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::with(Content::Text(text.into()))
    }

    /// Success, with bytes for programs.
    pub(crate) fn bytes(bytes: Vec<u8>) -> Self {
        Self::with(Content::Bytes(bytes))
    }

    /// Success, with the one JSON document of `--json`.
    pub(crate) fn document<T: Serialize>(value: &T) -> Result<Self, OutputError> {
        json::document(value)
            .map(Self::bytes)
            .map_err(|error| OutputError::new(OutputStream::Stdout, io::Error::other(error)))
    }

    /// Success, with the document or the text.
    pub(crate) fn of<T: Serialize>(
        json: bool,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<Self, OutputError> {
        if json { Self::document(value) } else { Ok(Self::text(text(value))) }
    }

    /// No result, and why.
    pub(crate) fn failure(text: String, exit: Exit) -> Self {
        Self::with(Content::Failure(text)).exit(exit)
    }

    /// The same with one more line on stderr.
    pub(crate) fn note(mut self, line: impl Into<String>) -> Self {
        self.notes.push(line.into());
        self
    }

    /// The same with another exit status.
    pub(crate) fn exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    /// The same with the status of a command that has ended, and for a person what to do about that.
    pub(crate) fn of_command(self, exit: Exit, json: bool) -> Self {
        let advice = exit.advice().filter(|_| !json);
        advice.into_iter().fold(self, Self::note).exit(exit)
    }

    fn with(result: Content) -> Self {
        Self { notes: Vec::new(), result, exit: Exit::Success }
    }
}
