//! What calls about tasks give back.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DeleteReason, Output};
use crate::{ExecutionMode, Outcome, StopReason, VmId, VmState};

/// A task as its callers see it.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Task {
    /// Id.
    pub task_id: VmId,
    /// Environment name.
    pub environment: String,
    /// Version of the environment it was made from.
    pub environment_version: Option<String>,
    /// Virtual CPUs.
    pub vcpu_count: u32,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Lifetime in seconds, counted from creation or from its last renewal.
    pub ttl_seconds: u32,
    /// When it was created, in seconds since the epoch.
    pub created_at: f64,
    /// When it is stopped, in seconds since the epoch.
    pub expires_at: f64,
    /// State.
    pub state: VmState,
    /// A network was assigned.
    pub network_enabled: bool,
    /// The caller agreed to host execution.
    pub allow_host_compat: bool,
    /// Address in its network.
    pub guest_ip: Option<String>,
    /// TAP device on the host; null with user-mode networking.
    pub tap_name: Option<String>,
    /// Where its commands run.
    pub execution_mode: ExecutionMode,
    /// Where its commands start.
    pub workspace_path: String,
    /// Commands that were accepted.
    pub command_count: u64,
    /// The latest of those that have ended.
    pub last_command: Option<LastCommand>,
    /// Diagnostics. Not a contract.
    pub metadata: BTreeMap<String, String>,
    /// `kvm` or `tcg`; null on the host.
    pub accelerator: Option<String>,
    /// Why it does not run; null while it does.
    pub stop_reason: Option<StopReason>,
    /// More about that, such as the last words of its console.
    pub last_error: Option<String>,
    /// Size of its disk in MiB; null if it has none.
    pub disk_mib: Option<u64>,
    /// Bytes of the host's disk that it takes: its disk and what is kept of its commands' output.
    pub disk_used_bytes: u64,
}

/// The latest command of a task.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct LastCommand {
    /// Its number.
    pub sequence: u64,
    /// The shell text.
    pub command: String,
    /// Where it ran.
    pub cwd: String,
    /// Exit code; −S if signal S ended the shell; 124 after the time limit.
    pub exit_code: i64,
    /// Duration in milliseconds.
    pub duration_ms: u64,
    /// Where it ran.
    pub execution_mode: ExecutionMode,
}

/// Every task.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskList {
    /// Those that can be read, oldest first.
    pub tasks: Vec<Task>,
    /// Ids of those whose record is damaged. They can be deleted.
    pub damaged_task_ids: Vec<VmId>,
    /// How many there are, damaged ones included.
    pub count: u64,
}

/// Result of a command in a task.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskExec {
    /// Id of the task.
    pub task_id: VmId,
    /// Environment name.
    pub environment: String,
    /// Version of the environment the task was made from.
    pub environment_version: Option<String>,
    /// The shell text that was run.
    pub command: String,
    /// Standard output; empty if it was streamed.
    pub stdout: Output,
    /// Standard error; empty if it was streamed.
    pub stderr: Output,
    /// Exit code; −S if signal S ended the shell; 124 after the time limit.
    pub exit_code: i64,
    /// Duration of the command alone, in milliseconds.
    pub duration_ms: u64,
    /// Where it ran.
    pub execution_mode: ExecutionMode,
    /// Number of the command in the task's journal, from 1.
    pub sequence: u64,
    /// Where it ran.
    pub cwd: String,
    /// `exited`, or `killed` if someone ended it.
    pub outcome: Outcome,
    /// Bytes of standard output beyond the limit, which were dropped.
    pub stdout_truncated: u64,
    /// Bytes of standard error beyond the limit, which were dropped.
    pub stderr_truncated: u64,
    /// The time limit ended the command.
    pub timed_out: bool,
}

/// A command that was begun and is not waited for.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskDetached {
    /// Id of the task.
    pub task_id: VmId,
    /// Number of the command in the task's journal, from 1.
    pub sequence: u64,
    /// The shell text.
    pub command: String,
    /// Where it runs.
    pub cwd: String,
    /// `running`.
    pub outcome: Outcome,
}

/// The journal of a task.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskLogs {
    /// Id of the task.
    pub task_id: VmId,
    /// How many entries.
    pub count: u64,
    /// In the order in which the commands were accepted.
    pub entries: Vec<TaskLogEntry>,
}

/// Part of the journal of a task.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[schemars(rename = "LogsPage")]
pub struct TaskLogsPage {
    /// The entries.
    pub logs: TaskLogs,
    /// `after` for the next page; null if there is none.
    pub next_after: Option<u64>,
}

/// What is known of one command of a task.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskLogEntry {
    /// Its number, from 1.
    pub sequence: u64,
    /// The shell text.
    pub command: String,
    /// Where it ran.
    pub cwd: String,
    /// Exit code; −S if signal S ended the shell; 124 after the time limit; null unless it ended and its end is known.
    pub exit_code: Option<i64>,
    /// Duration in milliseconds; null like the exit code.
    pub duration_ms: Option<u64>,
    /// Where it ran.
    pub execution_mode: ExecutionMode,
    /// When its latest change was recorded, in seconds since the epoch.
    pub recorded_at: f64,
    /// Name of the file that keeps its standard output, if it wrote any.
    pub stdout_file: String,
    /// Name of the file that keeps its standard error, if it wrote any.
    pub stderr_file: String,
    /// What is kept of its standard output.
    pub stdout: Output,
    /// What is kept of its standard error.
    pub stderr: Output,
    /// What became of it.
    pub outcome: Outcome,
    /// When it was accepted, in seconds since the epoch.
    pub started_at: f64,
    /// The time limit ended it.
    pub timed_out: bool,
    /// Bytes of standard output that are not kept.
    pub stdout_truncated: u64,
    /// Bytes of standard error that are not kept.
    pub stderr_truncated: u64,
    /// Why it was not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A task was removed.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskDeleted {
    /// Id it had.
    pub task_id: VmId,
    /// Always true.
    pub deleted: bool,
    /// Why.
    pub reason: DeleteReason,
}

/// Files were copied.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskCopied {
    /// Id of the task.
    pub task_id: VmId,
    /// Files, directories and symbolic links.
    pub entries: u64,
    /// Bytes of all files together.
    pub bytes: u64,
    /// What was not copied, such as sockets and links that lead elsewhere.
    pub left_out: u64,
    /// Names of the first of these.
    pub left_out_examples: Vec<String>,
}

/// Part of a file.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskFile {
    /// Id of the task.
    pub task_id: VmId,
    /// The path that was asked for.
    pub path: String,
    /// Bytes of the whole file.
    pub size_bytes: u64,
    /// Where the part begins, in bytes.
    pub offset: u64,
    /// The part.
    pub content: String,
    /// How `content` is written.
    pub encoding: FileEncoding,
    /// Where the rest begins; null if there is none.
    pub next_offset: Option<u64>,
}

/// How the bytes of a file are written as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum FileEncoding {
    /// They are UTF-8 and stand as they are.
    #[serde(rename = "utf-8")]
    Utf8,
    /// Base64 with padding.
    #[serde(rename = "base64")]
    Base64,
}

/// A file was written.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskFileWritten {
    /// Id of the task.
    pub task_id: VmId,
    /// The path that was asked for.
    pub path: String,
    /// Bytes of the file.
    pub bytes: u64,
}
