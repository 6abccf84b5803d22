//! A server's entry in a client's file.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Fields in the order in which they are written.
pub(crate) type Entry = Vec<(String, Value)>;

/// The maximum duration of `task_wait`, plus a minute; pyro limits every command itself.
const CODEX_CALL_SECONDS: u32 = 3660;

/// The form of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// `command`, `args`, `env`.
    Plain,
    /// As `Plain`, preceded by `type`.
    Typed,
    /// As `Plain`, with a time limit for calls. Without it Codex ends a call after 300 seconds.
    Codex,
    /// Program and arguments in one list.
    Opencode,
}

impl Shape {
    /// Returns the entry for a server that is started as `program` with `args`.
    pub(super) fn describe(self, program: &str, args: &[&str], env: &BTreeMap<String, String>) -> Entry {
        let mut entry = match self {
            Shape::Plain | Shape::Codex => vec![("command", json!(program)), ("args", json!(args))],
            Shape::Typed => {
                vec![("type", json!("stdio")), ("command", json!(program)), ("args", json!(args))]
            }
            Shape::Opencode => {
                let words: Vec<&str> = std::iter::once(program).chain(args.iter().copied()).collect();
                vec![("type", json!("local")), ("command", json!(words)), ("enabled", json!(true))]
            }
        };
        if let Shape::Codex = self {
            entry.push(("tool_timeout_sec", json!(CODEX_CALL_SECONDS)));
        }
        if !env.is_empty() {
            let name = if let Shape::Opencode = self { "environment" } else { "env" };
            entry.push((name, json!(env)));
        }
        entry.into_iter().map(|(name, value): (&str, Value)| (name.to_owned(), value)).collect()
    }
}
