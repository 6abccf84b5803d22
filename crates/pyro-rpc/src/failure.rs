//! Errors of requests.

use pyro_api::{Error, ErrorKind, Reader};
use schemars::JsonSchema;
use serde::Serialize;

/// The kind of error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The line is not JSON.
    NoJson,
    /// The message is not a request, or is not allowed now.
    InvalidRequest,
    /// The method does not exist.
    UnknownMethod,
    /// The parameters are invalid.
    InvalidParams,
    /// Client and server have different versions.
    VersionMismatch,
    /// The maximum number of calls is in flight.
    TooManyCalls,
    /// A message is too large.
    MessageTooLong,
    /// The operation failed.
    Engine(ErrorKind),
}

impl Problem {
    /// The protocol's own kinds.
    pub(crate) const OURS: [Self; 7] = [
        Self::NoJson,
        Self::InvalidRequest,
        Self::UnknownMethod,
        Self::InvalidParams,
        Self::VersionMismatch,
        Self::TooManyCalls,
        Self::MessageTooLong,
    ];

    /// The JSON-RPC number, the code in the error's data, and the description.
    pub(crate) fn row(self) -> (i32, &'static str, &'static str) {
        match self {
            Self::NoJson => (-32700, "invalid_request", "The message is not JSON"),
            Self::InvalidRequest => (
                -32600,
                "invalid_request",
                "The message is not a valid request, or is not allowed at this time",
            ),
            Self::UnknownMethod => (-32601, "unknown_method", "The method does not exist"),
            Self::InvalidParams => (-32602, ErrorKind::InvalidInput.as_str(), "The parameters are invalid"),
            Self::VersionMismatch => {
                (-32000, "version_mismatch", "Client and server have different versions")
            }
            Self::TooManyCalls => (-32000, "too_many_calls", "Too many calls in flight"),
            Self::MessageTooLong => (-32000, "message_too_long", "The request or the response is too large"),
            Self::Engine(kind) => (-32000, kind.as_str(), "The operation failed"),
        }
    }
}

/// Why a request failed, with hints.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) problem: Problem,
    message: String,
    reason: Option<String>,
    hints: Vec<String>,
}

impl Failure {
    pub(crate) fn new(problem: Problem, message: impl Into<String>) -> Self {
        Self { problem, message: message.into(), reason: None, hints: Vec::new() }
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub(crate) fn error(self) -> RpcError {
        let (code, word, _) = self.problem.row();
        let data = ErrorData { code: word.to_owned(), reason: self.reason, hints: self.hints };
        RpcError { code, message: self.message, data }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.in_full();
        let hints = error.hints_for(Reader::Program);
        Self { problem: Problem::Engine(error.kind), message, reason: error.reason, hints }
    }
}

/// The error of a response.
#[derive(Debug, PartialEq, Eq, JsonSchema, Serialize)]
pub(crate) struct RpcError {
    /// JSON-RPC number: -32700 not JSON, -32600 invalid request, -32601 unknown method, -32602 invalid parameters, -32000
    /// all other errors.
    pub(crate) code: i32,
    /// The message with its causes, in one line.
    pub(crate) message: String,
    /// Code and hints.
    pub(crate) data: ErrorData,
}

/// The code and the hints of an error.
#[derive(Debug, PartialEq, Eq, JsonSchema, Serialize)]
pub(crate) struct ErrorData {
    /// The kind of error: a value of `ErrorKind` or a code of `x-errors`.
    pub(crate) code: String,
    /// Why a command did not start, as a word: `command_not_found`, `not_executable`, `shell_not_found`, `user_not_found`,
    /// `group_not_found`, `invalid_user`, `directory_not_found`, `not_a_directory`, `permission_denied`,
    /// `argument_list_too_long`, `out_of_memory`, `no_space`, `too_many_processes`, and others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// What to do about it, one line each.
    pub(crate) hints: Vec<String>,
}

#[cfg(test)]
mod tests {
    use pyro_api::Hint;

    use super::*;

    #[test]
    fn every_kind_of_the_engine_keeps_its_word_its_causes_and_its_hints() {
        for kind in ErrorKind::ALL {
            let mut error = Error::new(kind, "outer").hint(Hint::ListTasks).caused_by("inner");
            error.reason = Some("user_not_found".to_owned());
            let expected = RpcError {
                code: -32000,
                message: "outer: inner".to_owned(),
                data: ErrorData {
                    code: kind.as_str().to_owned(),
                    reason: Some("user_not_found".to_owned()),
                    hints: vec!["call list_tasks() to see the tasks that exist".to_owned()],
                },
            };
            assert_eq!(Failure::from(error).error(), expected);
            // The document describes the words by their serialized form.
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }
}
