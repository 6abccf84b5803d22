//! Commands: what to run, and what may be sent to it while it runs.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::WORKSPACE;

/// Maximum length of a command's text, or of all words of its argument list together, in bytes of UTF-8.
pub const MAX_COMMAND_BYTES: usize = 1024 * 1024;

/// A command to run, in a process group of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Exec {
    /// Number of the command in this guest, by which later requests name it. Higher than that of every command before.
    /// Zero: no later request names it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub id: u64,
    /// What to run.
    pub program: Program,
    /// Working directory. [`WORKSPACE`] is made if it is missing; any other must exist.
    pub cwd: String,
    /// The caller's variables. They win over those of the user's login environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Whom to run it as: `NAME`, `UID`, `NAME:GROUP` or `UID:GID`. Absent: root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its standard input comes by [`Input`]. Otherwise, it is at its end from the start.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub input: bool,
    /// Run it on a terminal of this size, which is its standard input, output and error. What it writes is sent as standard
    /// output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// Report its start with [`ExecReply::Started`](crate::ExecReply::Started).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub report_start: bool,
    /// Time limit in milliseconds, counted from the start of the command.
    pub timeout_ms: u64,
    /// Time between SIGTERM and SIGKILL when the limit is hit, in milliseconds.
    pub kill_grace_ms: u64,
    /// Bytes of each output stream to send; what is beyond is read, counted and dropped. Absent: all.
    pub output_limit: Option<u64>,
}

fn is_zero(id: &u64) -> bool {
    *id == 0
}

impl Exec {
    /// Shell text in the workspace as root, with a time limit, a grace of one second, no input and all of its output.
    pub fn new(text: impl Into<String>, timeout: Duration) -> Self {
        Self {
            id: 0,
            program: Program::Shell { text: text.into(), shell: None },
            cwd: WORKSPACE.to_owned(),
            env: BTreeMap::new(),
            user: None,
            input: false,
            terminal: None,
            report_start: false,
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            kill_grace_ms: 1000,
            output_limit: None,
        }
    }
}

/// What a command runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// `SHELL -c -- TEXT`, with the environment of a login shell.
    Shell {
        /// Shell text of at most [`MAX_COMMAND_BYTES`].
        text: String,
        /// The shell, a path or a name that is looked up in the command's `PATH`. Absent: `/bin/sh`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shell: Option<String>,
    },
    /// A program and its arguments, at least one word and together at most [`MAX_COMMAND_BYTES`]. No shell reads them.
    Argv(Vec<String>),
    /// An interactive login shell: the user's of `/etc/passwd`, or Bash where that is `/bin/sh` and Bash exists.
    LoginShell,
}

impl Program {
    /// The command as people know it: the shell text, the words with spaces between them, or `login shell`.
    pub fn label(&self) -> String {
        match self {
            Self::Shell { text, .. } => text.clone(),
            Self::Argv(words) => words.join(" "),
            Self::LoginShell => "login shell".to_owned(),
        }
    }
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TerminalSize {
    /// Characters in a row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// What the host may send while a command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExecInput {
    /// End the command and everything that it started with SIGTERM and, after its grace, SIGKILL. Its reply comes as if it
    /// had ended by itself.
    Terminate,
}

/// Write to the standard input of a command. The bytes follow in [`Frame::Output`](crate::Frame::Output) frames of the
/// standard output. A stream that closes before [`InputEnd::Finished`] leaves the standard input open for a later request.
/// The request may arrive before its command does, and then waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Input {
    /// [`Exec::id`] of the command.
    pub command: u64,
}

/// What follows the bytes of an [`Input`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InputEnd {
    /// The standard input ends here. On a terminal, no more is typed for now.
    Finished,
}

/// Change the size of a command's terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resize {
    /// [`Exec::id`] of the command.
    pub command: u64,
    /// The new size.
    pub size: TerminalSize,
}

/// Send a signal to the foreground process group of a command's terminal or, without a terminal, to the command's process
/// group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Signal {
    /// [`Exec::id`] of the command.
    pub command: u64,
    /// Number of the signal, 1 to 31.
    pub signal: i32,
}
