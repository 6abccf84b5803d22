//! Results of operations on shells.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Outcome, VmId};

/// A shell of a task.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskShell {
    /// Id of the task.
    pub task_id: VmId,
    /// Number of the shell, which is its number in the task's journal.
    pub shell_id: u64,
    /// The shell text, or `login shell`.
    pub command: String,
    /// Where it was started.
    pub cwd: String,
    /// Columns of its terminal.
    pub columns: u16,
    /// Rows of its terminal.
    pub rows: u16,
    /// Number of bytes that its terminal has written: the cursor of what it writes next.
    pub cursor: u64,
    /// It runs.
    pub running: bool,
    /// `running`, or how it ended.
    pub outcome: Outcome,
    /// Exit code; −S if signal S ended it; null while it runs, and if it is not known.
    pub exit_code: Option<i64>,
}

/// The shells of a task.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskShells {
    /// Id of the task.
    pub task_id: VmId,
    /// Number of shells.
    pub count: u64,
    /// Those that run, and the latest 16 that have ended since the task was started, in the order of their numbers.
    pub shells: Vec<TaskShell>,
}

/// Output of a shell.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskShellOutput {
    /// Id of the task.
    pub task_id: VmId,
    /// Number of the shell.
    pub shell_id: u64,
    /// The output. Bytes that are not UTF-8 are replaced; a character or an escape sequence that is not complete yet comes with
    /// the next read.
    pub text: String,
    /// Where the next read continues.
    pub cursor: u64,
    /// Number of bytes after the requested cursor that are no longer kept.
    pub dropped_bytes: u64,
    /// Why the text ends here.
    pub reason: ShellReadReason,
    /// The shell runs, or has ended and there is more of its output.
    pub running: bool,
    /// Exit code; −S if signal S ended it; null while `running` is true, and if it is not known.
    pub exit_code: Option<i64>,
}

/// Why a read of a shell ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum ShellReadReason {
    /// There is output, and the read was not to wait for more.
    Output,
    /// The terminal wrote nothing for `idle_seconds`.
    Idle,
    /// There are `max_bytes`, and there may be more.
    Full,
    /// The shell has ended, and this is the rest of its output.
    Ended,
    /// `wait_seconds` are over.
    Time,
}
