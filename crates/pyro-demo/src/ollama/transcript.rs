//! The lines that the demo prints.

use serde_json::Value;

use super::arguments::Object;
use super::chat::Reply;

/// Reports messages and tool calls, line by line.
pub(super) struct Transcript<L> {
    lines: L,
    verbose: bool,
}

impl<L: AsyncFn(String)> Transcript<L> {
    pub(super) fn new(lines: L, verbose: bool) -> Self {
        Self { lines, verbose }
    }

    pub(super) async fn starts(&self, model: &str) {
        self.line(format!("[ollama] starting tool demo with model={model}")).await;
    }

    pub(super) async fn input(&self, role: &str, content: &str) {
        self.detailed(format!("[model] input {role}"), ": ", || or_empty(content)).await;
    }

    pub(super) async fn output(&self, reply: &Reply) {
        self.detailed(format!("[model] output {}", reply.role), ": ", || or_empty(&reply.text())).await;
        for call in &reply.calls {
            self.detailed(format!("[model] tool_call {}", call.name), " args=", || compact(&call.arguments))
                .await;
        }
    }

    pub(super) async fn resolved(&self, id: &str) {
        self.detailed("[tool] resolved vm_id placeholder".to_owned(), " to ", || id.to_owned()).await;
    }

    pub(super) async fn calling(&self, name: &str, arguments: &Object) {
        self.detailed(format!("[tool] calling {name}"), " with args=", || compact(arguments)).await;
    }

    pub(super) async fn succeeded(&self, name: &str) {
        self.line(format!("[tool] {name} succeeded")).await;
    }

    pub(super) async fn failed(&self, name: &str, error: &str, arguments: &Object) {
        self.line(format!("[tool] {name} failed: {error} args={}", compact(arguments))).await;
    }

    pub(super) async fn result(&self, name: &str, answer: &Value) {
        self.detailed(format!("[tool] result {name}"), " ", || answer.to_string()).await;
    }

    pub(super) async fn no_tool_calls(&self) {
        self.line("[ollama] no tool calls returned; stopping loop".to_owned()).await;
    }

    pub(super) async fn done(&self) {
        self.line("[done] command execution succeeded".to_owned()).await;
    }

    pub(super) async fn warning(&self, text: &str) {
        self.line(format!("[warning] {text}")).await;
    }

    /// A line, with the detail if the transcript is verbose.
    async fn detailed(&self, line: String, lead: &str, detail: impl FnOnce() -> String) {
        let line = if self.verbose { line + lead + &detail() } else { line };
        self.line(line).await;
    }

    async fn line(&self, text: String) {
        (self.lines)(text).await;
    }
}

fn or_empty(text: &str) -> String {
    if text.trim().is_empty() { "<empty>".to_owned() } else { text.to_owned() }
}

fn compact(arguments: &Object) -> String {
    Value::Object(arguments.clone()).to_string()
}
