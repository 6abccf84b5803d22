//! Why a request has no result.

use pyro_api::{Error, ErrorKind, Reader};
use schemars::JsonSchema;
use serde::Serialize;

/// What went wrong, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The line is no JSON.
    NoJson,
    /// It is no request, or comes at the wrong time.
    InvalidRequest,
    /// There is no such method.
    UnknownMethod,
    /// The parameters are not those of the method.
    InvalidParams,
    /// Client and server do not belong together.
    VersionMismatch,
    /// As many calls are under way as may.
    TooManyCalls,
    /// A message is longer than it may be.
    MessageTooLong,
    /// The engine could not do it.
    Engine(ErrorKind),
}

impl Problem {
    /// Those that are not the engine's.
    pub(crate) const OURS: [Self; 7] = [
        Self::NoJson,
        Self::InvalidRequest,
        Self::UnknownMethod,
        Self::InvalidParams,
        Self::VersionMismatch,
        Self::TooManyCalls,
        Self::MessageTooLong,
    ];

    /// JSON-RPC's number, the word of the error's data, and what it says.
    pub(crate) fn row(self) -> (i32, &'static str, &'static str) {
        match self {
            Self::NoJson => (-32700, "invalid_request", "The line is no JSON"),
            Self::InvalidRequest => {
                (-32600, "invalid_request", "It is no request, or comes at the wrong time")
            }
            Self::UnknownMethod => (-32601, "unknown_method", "There is no such method"),
            Self::InvalidParams => {
                (-32602, ErrorKind::InvalidInput.as_str(), "The parameters are not those of the method")
            }
            Self::VersionMismatch => {
                (-32000, "version_mismatch", "Client and server are not of the same version")
            }
            Self::TooManyCalls => (-32000, "too_many_calls", "As many calls are under way as may"),
            Self::MessageTooLong => {
                (-32000, "message_too_long", "A request or an answer is longer than it may be")
            }
            Self::Engine(kind) => (-32000, kind.as_str(), "The engine could not do it"),
        }
    }
}

/// Why a request has no result: what happened, in words, and what to do.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) problem: Problem,
    message: String,
    hints: Vec<String>,
}

impl Fault {
    pub(crate) fn new(problem: Problem, message: impl Into<String>) -> Self {
        Self { problem, message: message.into(), hints: Vec::new() }
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub(crate) fn error(self) -> RpcError {
        let (code, word, _) = self.problem.row();
        RpcError { code, message: self.message, data: ErrorData { code: word.to_owned(), hints: self.hints } }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let message = error.in_full(Reader::Program);
        Self { problem: Problem::Engine(error.kind), message, hints: error.hints_for(Reader::Program) }
    }
}

/// The error of an answer.
#[derive(Debug, PartialEq, Eq, JsonSchema, Serialize)]
pub(crate) struct RpcError {
    /// JSON-RPC's number: -32700 no JSON, -32600 no valid request, -32601 unknown method, -32602 wrong parameters, -32000
    /// everything else.
    pub(crate) code: i32,
    /// What happened, with its causes; one line.
    pub(crate) message: String,
    /// The rest.
    pub(crate) data: ErrorData,
}

/// What programs and people need besides the message of an error.
#[derive(Debug, PartialEq, Eq, JsonSchema, Serialize)]
pub(crate) struct ErrorData {
    /// What it is, as a word: those of `ErrorKind` and of `x-errors`.
    pub(crate) code: String,
    /// What to do, one line each.
    pub(crate) hints: Vec<String>,
}

#[cfg(test)]
mod tests {
    use pyro_api::Hint;

    use super::*;

    #[test]
    fn every_kind_of_the_engine_keeps_its_word_its_causes_and_its_hints() {
        for kind in ErrorKind::ALL {
            let error = Error::new(kind, "outer").hint(Hint::ListTasks).caused_by("inner");
            let expected = RpcError {
                code: -32000,
                message: "outer: inner".to_owned(),
                data: ErrorData {
                    code: kind.as_str().to_owned(),
                    hints: vec!["list_tasks() shows those that do".to_owned()],
                },
            };
            assert_eq!(Fault::from(error).error(), expected);
            // The document describes the words by their serialized form.
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }
}
