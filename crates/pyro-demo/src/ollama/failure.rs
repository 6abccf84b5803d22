//! Failed tool calls, and their results for the model.

use pyro_api::ErrorKind;
use serde_json::{Map, Value, json};

/// Why a tool call failed.
#[derive(Debug, PartialEq)]
pub(super) struct Failure {
    kind: &'static str,
    pub(super) error: String,
    pub(super) hint: Option<String>,
}

impl Failure {
    /// The arguments are wrong.
    pub(super) fn arguments(error: String) -> Self {
        Self { kind: ErrorKind::InvalidInput.as_str(), error, hint: None }
    }

    /// The tool does not exist.
    pub(super) fn unknown_tool(name: &str) -> Self {
        Self { kind: "unknown_tool", error: format!("unknown tool '{name}'"), hint: None }
    }

    pub(super) fn hint(mut self, hint: String) -> Self {
        self.hint = Some(hint);
        self
    }

    /// The result for the model.
    pub(super) fn answer(&self, name: &str, arguments: &Map<String, Value>) -> Value {
        let mut answer = json!({
            "ok": false, "tool_name": name, "arguments": arguments, "error_type": self.kind, "error": self.error,
        });
        if let Some(hint) = &self.hint {
            answer["hint"] = hint.as_str().into();
        }
        answer
    }
}

impl From<pyro_mcp::Failure> for Failure {
    fn from(failure: pyro_mcp::Failure) -> Self {
        let hint = Some(failure.hints().join("; ")).filter(|hints| !hints.is_empty());
        Self { kind: failure.code(), error: failure.message(), hint }
    }
}
