//! Replies of a guest: one type per request, the last frame on the request's stream.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::bounded::{self, MAX_COUNT, MAX_EXAMPLES};

/// Answer to [`Exec`](crate::Exec), after the command's output. A guest that cannot tell how its command ended closes
/// the stream instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExecReply {
    /// The command was started. Sent before everything else, and only with [`Exec::report_start`](crate::Exec::report_start).
    Started,
    /// The command ran and ended.
    Exited(Exit),
    /// The command never started.
    NotStarted(Failure),
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Exit {
    /// Status of the process that was started.
    pub status: Status,
    /// The time limit was hit, and everything that the command had started was ended.
    pub timed_out: bool,
    /// Time from start to end of that process in milliseconds.
    #[serde(deserialize_with = "bounded::count")]
    #[schemars(range(max = MAX_COUNT))]
    pub duration_ms: u64,
    /// Bytes of stdout beyond [`Exec::output_limit`](crate::Exec::output_limit).
    #[serde(deserialize_with = "bounded::count")]
    #[schemars(range(max = MAX_COUNT))]
    pub stdout_dropped: u64,
    /// Bytes of stderr beyond [`Exec::output_limit`](crate::Exec::output_limit).
    #[serde(deserialize_with = "bounded::count")]
    #[schemars(range(max = MAX_COUNT))]
    pub stderr_dropped: u64,
}

/// Status of an ended process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Exit code, 0 to 255.
    Code(#[serde(deserialize_with = "bounded::exit_code")] i32),
    /// Killed by this signal, 1 to 64.
    Signal(#[serde(deserialize_with = "bounded::signal")] i32),
}

/// Answer to [`Input`](crate::Input).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InputReply {
    /// Everything was written, and the command's standard input is closed.
    Taken,
    /// The command takes no input, or closed its standard input or ended before everything was written.
    Closed,
    /// No command with this number runs.
    NotRunning,
    /// Another [`Input`](crate::Input) is attached to the command.
    Busy,
    /// Writing failed for another reason.
    Failed(Failure),
}

/// Answer to [`Resize`](crate::Resize) and [`Signal`](crate::Signal).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SteerReply {
    /// It is done.
    Done,
    /// No command with this number runs.
    NotRunning,
    /// The guest's kernel refused it, or the command has no terminal.
    Failed(Failure),
}

/// Answer to [`Pack`](crate::Pack) and [`Unpack`](crate::Unpack).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ArchiveReply {
    /// Everything was copied.
    Archived(ArchiveReport),
    /// Nothing, or not everything, was copied.
    Failed(Failure),
}

/// What an archive held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArchiveReport {
    /// Entries that were copied.
    #[serde(deserialize_with = "bounded::count")]
    #[schemars(range(max = MAX_COUNT))]
    pub entries: u64,
    /// Total size of all files, in bytes.
    #[serde(deserialize_with = "bounded::count")]
    #[schemars(range(max = MAX_COUNT))]
    pub bytes: u64,
    /// Entries that cannot be copied, such as sockets.
    #[serde(deserialize_with = "bounded::count")]
    #[schemars(range(max = MAX_COUNT))]
    pub left_out: u64,
    /// Names of the first of these.
    #[serde(deserialize_with = "bounded::examples")]
    #[schemars(length(max = MAX_EXAMPLES))]
    pub examples: Vec<String>,
}

/// Answer to [`Connect`](crate::Connect), after what the server has sent. A connection that was reset closes the stream
/// instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConnectReply {
    /// The server sends nothing more. What the client sends still reaches it.
    Finished,
    /// There is no connection.
    Failed(Failure),
}

/// Answer to [`Identify`](crate::Identify).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdentifyReply {
    /// The guest is the new machine.
    Identified,
    /// The guest is neither the old nor the new machine, and must not be used.
    Failed(Failure),
}

/// Answer to [`Halt`](crate::Halt).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HaltReply {
    /// Everything is on disk; the VM may be killed without loss.
    Halted,
    /// Some data may not be on disk.
    Failed(Failure),
}
