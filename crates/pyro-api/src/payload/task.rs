//! Results of operations on tasks.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DeleteReason, Output};
use crate::{
    DirectoryMount, DiskState, ExecutionMode, NetworkDenial, NetworkPolicy, Outcome, StopReason, TaskService,
    TtlFrom, VmId, VmState,
};

/// A task.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Task {
    /// Id.
    pub task_id: VmId,
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Environment name.
    pub environment: String,
    /// Version of its environment.
    pub environment_version: Option<String>,
    /// Virtual CPUs.
    pub vcpu_count: u32,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Lifetime in seconds, from creation or the latest extension.
    pub ttl_seconds: u32,
    /// When a lifetime begins.
    pub ttl_from: TtlFrom,
    /// Creation time, in seconds since the epoch.
    pub created_at: f64,
    /// When its lifetime ends and it is stopped, in seconds since the epoch.
    pub expires_at: f64,
    /// State.
    pub state: VmState,
    /// It has a network.
    pub network_enabled: bool,
    /// What it may reach; null without a network.
    pub network_policy: Option<NetworkPolicy>,
    /// The caller allowed commands on the host.
    pub allow_host_compat: bool,
    /// Address in its network.
    pub guest_ip: Option<String>,
    /// TAP device on the host; null with user-mode networking.
    pub tap_name: Option<String>,
    /// Where its commands run.
    pub execution_mode: ExecutionMode,
    /// Default working directory of its commands.
    pub workspace_path: String,
    /// Number of commands that it was given. Its journal has the latest of them.
    pub command_count: u64,
    /// The latest command that has ended.
    pub last_command: Option<LastCommand>,
    /// Diagnostics. Keys and values may change between versions.
    pub metadata: BTreeMap<String, String>,
    /// `kvm` or `tcg`; null on the host.
    pub accelerator: Option<String>,
    /// Why it is stopped; null while it runs.
    pub stop_reason: Option<StopReason>,
    /// Details of why it is stopped, such as the last output of its console.
    pub last_error: Option<String>,
    /// Size of its disk in MiB; null if it has none.
    pub disk_mib: Option<u64>,
    /// State of its disk; null if it has none.
    pub disk_state: Option<DiskState>,
    /// Space that its disk and its journal use on the host, in bytes.
    pub disk_used_bytes: u64,
    /// Its published ports; absent without any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub published_ports: Vec<PublishedPort>,
    /// Its services, in short; absent without any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub services: Vec<TaskService>,
    /// The directories of this host that it has mounted; absent without any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub mounts: Vec<DirectoryMount>,
    /// Mount points whose server has ended; absent without any. What uses one of them gets errors until it is unmounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub lost_mounts: Vec<String>,
    /// What its guest tried to reach since its start and was refused, the latest last; absent if nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub network_denials: Vec<NetworkDenial>,
    /// Name of the client that created it; absent if this host's user did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// A port of a guest that is published on this host while its task runs.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct PublishedPort {
    /// Address on this host.
    pub host_ip: String,
    /// Port on this host. 0 while the task is stopped, if the system chooses it at each start.
    pub host_port: u16,
    /// Port in the guest.
    pub guest_port: u16,
}

/// A port that was published.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskPublished {
    /// Id of the task.
    pub task_id: VmId,
    /// Address on this host.
    pub host_ip: String,
    /// Port on this host.
    pub host_port: u16,
    /// Port in the guest.
    pub guest_port: u16,
}

/// The latest command of a task that has ended.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct LastCommand {
    /// Number of the command.
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

/// All tasks.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskList {
    /// The tasks, oldest first, without damaged ones.
    pub tasks: Vec<Task>,
    /// Ids of tasks with a damaged record. They can only be deleted.
    pub damaged_task_ids: Vec<VmId>,
    /// Number of tasks, including damaged ones.
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
    /// Version of the task's environment.
    pub environment_version: Option<String>,
    /// The shell text that was run.
    pub command: String,
    /// The shell that ran it, such as `sh`; null if no shell text was run.
    pub shell: Option<String>,
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
    /// `exited`; or `killed` if a kill, a stop of the task, or the cancellation of its call ended it.
    pub outcome: Outcome,
    /// Number of bytes of standard output that were dropped.
    pub stdout_truncated: u64,
    /// Number of bytes of standard error that were dropped.
    pub stderr_truncated: u64,
    /// The command timed out.
    pub timed_out: bool,
    /// What the task's guest tried to reach and was refused while it ran, the latest last; absent if nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub network_denials: Vec<NetworkDenial>,
}

/// A command that was started without waiting for it.
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

/// Input was sent to a command.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskInput {
    /// Id of the task.
    pub task_id: VmId,
    /// Number of the command in the task's journal.
    pub sequence: u64,
    /// The input was sent completely. False if the command had closed its input or ended before that.
    pub complete: bool,
}

/// The journal of a task.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskLogs {
    /// Id of the task.
    pub task_id: VmId,
    /// Number of entries.
    pub count: u64,
    /// The entries, in the order of their numbers.
    pub entries: Vec<TaskLogEntry>,
    /// Number of older commands that the journal no longer has; absent if it has all. It keeps the latest 1,000.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: u64,
    /// Numbers of commands whose entries are damaged and left out; absent if all can be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub damaged: Vec<u64>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Part of the journal of a task.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[schemars(rename = "LogsPage")]
pub struct TaskLogsPage {
    /// The entries.
    pub logs: TaskLogs,
    /// `after` for the next page; null on the last page.
    pub next_after: Option<u64>,
}

/// A journal entry: one command of a task.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskLogEntry {
    /// Number of the command, from 1.
    pub sequence: u64,
    /// The shell text.
    pub command: String,
    /// Where it ran.
    pub cwd: String,
    /// Exit code; −S if signal S ended the shell; 124 after the time limit; null unless `outcome` is
    /// `exited` or `killed`.
    pub exit_code: Option<i64>,
    /// Duration in milliseconds; null if the exit code is.
    pub duration_ms: Option<u64>,
    /// Where it ran.
    pub execution_mode: ExecutionMode,
    /// Time of the latest update of the entry, in seconds since the epoch.
    pub recorded_at: f64,
    /// Name of the file with its standard output; empty if it wrote none.
    pub stdout_file: String,
    /// Name of the file with its standard error; empty if it wrote none.
    pub stderr_file: String,
    /// Standard output, as far as it is kept.
    pub stdout: Output,
    /// Standard error, as far as it is kept.
    pub stderr: Output,
    /// The outcome of the command.
    pub outcome: Outcome,
    /// Start time, in seconds since the epoch.
    pub started_at: f64,
    /// The command timed out.
    pub timed_out: bool,
    /// Number of bytes of standard output that were dropped.
    pub stdout_truncated: u64,
    /// Number of bytes of standard error that were dropped.
    pub stderr_truncated: u64,
    /// Why the command was not run.
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
    /// The reason.
    pub reason: DeleteReason,
}

/// Files were copied.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskCopied {
    /// Id of the task.
    pub task_id: VmId,
    /// Number of files, directories, and symbolic links.
    pub entries: u64,
    /// Total size of the files, in bytes.
    pub bytes: u64,
    /// Number of entries that were not copied, such as sockets and links that lead out of the copy.
    pub left_out: u64,
    /// Some of the entries that were not copied, each with its path and the reason.
    pub left_out_examples: Vec<String>,
}

/// Part of a file.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskFile {
    /// Id of the task.
    pub task_id: VmId,
    /// The requested path.
    pub path: String,
    /// Size of the whole file, in bytes.
    pub size_bytes: u64,
    /// Offset of the part, in bytes.
    pub offset: u64,
    /// The content of the part.
    pub content: String,
    /// Encoding of `content`.
    pub encoding: FileEncoding,
    /// Offset of the next part, in bytes; null at the end of the file.
    pub next_offset: Option<u64>,
}

/// Encoding of the bytes of a file as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum FileEncoding {
    /// UTF-8 text, unchanged.
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
    /// The requested path.
    pub path: String,
    /// Size of the file, in bytes.
    pub bytes: u64,
}
