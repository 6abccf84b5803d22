//! A command: what to run, where, as whom, and what happens to its input and its output.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Time limit of a command that has no terminal, unless its caller sets another, in seconds.
pub const DEFAULT_TIMEOUT_SECONDS: i64 = 30;

/// A command for a VM or a task: either `command`, or `argv`, or with a terminal neither, which is a login shell.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Command {
    /// Text for the shell, at most 1 MiB. May be empty.
    pub command: Option<String>,
    /// Program and its arguments, run without a shell instead of `command`; at most 1 MiB in total and 128 KiB each.
    #[cfg_attr(test, proptest(strategy = "proptest::option::of(crate::strategies::few())"))]
    pub argv: Option<Vec<String>>,
    /// Shell that runs `command`, such as `bash`: a name that is looked up in `PATH`, or an absolute path. Default:
    /// `/bin/sh`, or what the environment uses.
    pub shell: Option<String>,
    /// Time limit in seconds, at least 1. A command that times out is ended with everything that it started, and its exit
    /// code is 124. Default: 30; with a terminal, what is left of the lifetime.
    pub timeout_seconds: Option<i64>,
    /// Working directory, which must exist; below `/workspace` unless it is absolute. Default: `/workspace`. Only in a guest.
    pub cwd: Option<String>,
    /// Additional environment variables, at most 32 KiB in total. They win over those that the image sets, such as `PATH`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// User of the guest to run it as: `NAME`, `UID`, `NAME:GROUP` or `UID:GID`. Default: root. Only in a guest.
    pub user: Option<String>,
    /// Text for its standard input, which ends after it; at most 16 MiB. Default: none, and the input is empty.
    pub stdin: Option<String>,
    /// Where its standard input comes from, if `stdin` is not given.
    #[serde(default)]
    pub input: InputMode,
    /// Run it on a terminal of this size. Its output is then all standard output.
    pub terminal: Option<TerminalSize>,
}

impl Command {
    /// Text for the shell, with the contract's defaults.
    pub fn new(command: impl Into<String>) -> Self {
        Self { command: Some(command.into()), ..Self::default() }
    }

    /// A program and its arguments, without a shell, with the contract's defaults.
    pub fn argv(words: impl IntoIterator<Item: Into<String>>) -> Self {
        Self { argv: Some(words.into_iter().map(Into::into).collect()), ..Self::default() }
    }
}

/// Where the standard input of a command comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum InputMode {
    /// It is empty.
    #[default]
    None,
    /// The caller sends it while the command runs; to a detached command with `input_task`.
    Stream,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TerminalSize {
    /// Columns, 1 to 1000.
    #[serde(default = "default_columns")]
    pub columns: u16,
    /// Rows, 1 to 1000.
    #[serde(default = "default_rows")]
    pub rows: u16,
}

fn default_columns() -> u16 {
    120
}

fn default_rows() -> u16 {
    30
}

impl Default for TerminalSize {
    /// 120 columns and 30 rows.
    fn default() -> Self {
        Self { columns: default_columns(), rows: default_rows() }
    }
}

/// What happens to the output of a command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct CommandOutput {
    /// `capture` returns the output in the result, at most 16 MiB per stream; `stream` sends it as events instead;
    /// `capture_and_stream` does both. Events are sent as fast as they are acknowledged.
    #[serde(default)]
    pub output: OutputMode,
}

/// What happens to the output of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum OutputMode {
    /// Returned in the result, at most 16 MiB per stream; the rest is counted and dropped.
    #[default]
    Capture,
    /// Returned in the result and sent as `output` events.
    CaptureAndStream,
    /// Sent as `output` events only. If the caller stops reading, the command blocks, as on a full pipe.
    Stream,
}

impl From<OutputMode> for CommandOutput {
    fn from(output: OutputMode) -> Self {
        Self { output }
    }
}
