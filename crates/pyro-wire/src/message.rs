//! The messages of both phases. A structural change here must come with a new [`GENERATION`] unless it
//! only adds an optional field; the schema snapshot test asks that question.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::WORKSPACE;

/// Number of the current schema; both ends must agree on it.
pub const GENERATION: u32 = 3;

/// First frame of the guest: the kernel is up and the agent listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hello {
    /// The guest's [`GENERATION`].
    pub generation: u32,
    /// The agent's package version.
    pub agent_version: String,
    /// `uname -r` of the guest.
    pub kernel_release: String,
}

/// What all VMs of a kind have in common. Sent first; a guest that has applied it may be saved as a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Preparation {
    /// The host's [`GENERATION`].
    pub generation: u32,
    /// Filesystem type of the base image as the guest kernel names it. The layer is always ext4.
    pub base_filesystem: String,
    /// Run common programs once, so that a template holds their pages.
    pub warm_up: bool,
}

/// Everything that makes this VM different from its siblings. Sent once, applied before any command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Bootstrap {
    /// Wall clock of the host in nanoseconds since the epoch, taken just before sending.
    pub unix_time_ns: u64,
    /// Fresh random bytes as hex, credited to the guest's random pool. At least 32 bytes.
    pub seed: String,
    /// Host name of the guest.
    pub hostname: String,
    /// Content of `/etc/machine-id`: 32 hex digits.
    pub machine_id: String,
    /// Absent: the guest has no network interface but loopback.
    pub network: Option<NetworkConfig>,
}

/// Static network configuration of the guest's first Ethernet interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkConfig {
    /// IPv4 address of the guest.
    pub address: std::net::Ipv4Addr,
    /// Prefix length of the subnet.
    pub prefix_len: u8,
    /// Default gateway.
    pub gateway: std::net::Ipv4Addr,
    /// Name servers for `/etc/resolv.conf`.
    pub dns_servers: Vec<std::net::Ipv4Addr>,
}

/// Answer to [`Preparation`] and to [`Bootstrap`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SetupReply {
    /// It is applied. After a bootstrap the guest takes requests; yamux starts with the next byte.
    Done,
    /// The guest could not be set up and is powering off.
    Refused {
        /// What was being done, in words a user understands.
        step: String,
        /// The cause.
        cause: String,
    },
}

/// First frame of the host on each stream, and what may follow it there. Closing the stream before the reply cancels
/// the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Run one command.
    Exec(Exec),
    /// On the stream of an [`Request::Exec`]: end the command, politely first. Its reply comes as if it had ended by
    /// itself.
    Terminate,
    /// Send a file or a directory as a stream of tar in [`Frame::Output`](crate::Frame::Output) frames of the
    /// standard output. Answered by [`Reply::Archived`].
    Pack(Pack),
    /// Take a file or a directory as a stream of tar in such frames, which follow on this stream. Answered by
    /// [`Reply::Archived`].
    Unpack(Unpack),
    /// Become this machine, instead of the one that the bootstrap made. For a machine that was started before
    /// anyone wanted it; its network stays as it is. Answered by [`Reply::Identified`].
    Identify(Bootstrap),
    /// Stop every process, write everything to disk, remount read-only. Answered by [`Reply::Halted`].
    Halt,
}

/// A command to run as `/bin/sh -lc <command>` in its own process group, with stdin at end of file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Exec {
    /// Shell text.
    pub command: String,
    /// Working directory. [`WORKSPACE`] is made if it is missing; any other must exist.
    pub cwd: String,
    /// Variables for the command, beside the usual ones. A login shell's profile may change them again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Time limit in milliseconds, counted from the start of the command.
    pub timeout_ms: u64,
    /// Time between SIGTERM and SIGKILL when the limit is hit, in milliseconds.
    pub kill_grace_ms: u64,
    /// Bytes of each output stream to send; what is beyond is read, counted and dropped. Absent: all.
    pub output_limit: Option<u64>,
}

impl Exec {
    /// `command` in the workspace, with a time limit, a grace of one second, and all of its output.
    pub fn new(command: impl Into<String>, timeout: Duration) -> Self {
        Self {
            command: command.into(),
            cwd: WORKSPACE.to_owned(),
            env: BTreeMap::new(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            kill_grace_ms: 1000,
            output_limit: None,
        }
    }
}

/// What to send as tar, in the form of `pyro-archive`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pack {
    /// File or directory; below [`WORKSPACE`] unless it is absolute.
    pub path: String,
    /// What it may hold.
    pub limits: ArchiveLimits,
}

/// Where to put what comes as tar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unpack {
    /// An existing directory, to put it there under its own name, or the name it shall have; below
    /// [`WORKSPACE`] unless it is absolute.
    pub path: String,
    /// Its own name.
    pub name: String,
    /// What it may hold.
    pub limits: ArchiveLimits,
    /// [`Self::path`] is the name it shall have, also where a directory has it, and directories that are missing on the
    /// way there are made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exact: bool,
}

/// What an archive may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArchiveLimits {
    /// Most entries.
    pub max_entries: u64,
    /// Most bytes of all files together.
    pub max_bytes: u64,
}

/// What an archive held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArchiveReport {
    /// Entries that were copied.
    pub entries: u64,
    /// Bytes of all files together.
    pub bytes: u64,
    /// Entries that cannot be copied, such as sockets.
    pub left_out: u64,
    /// Names of the first of these.
    pub examples: Vec<String>,
}

/// Last frame of the guest on a stream; output frames may come before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The command ran and ended.
    Exited(Exit),
    /// The command never started.
    NotStarted(ExecFailure),
    /// [`Request::Pack`] or [`Request::Unpack`] is done.
    Archived(ArchiveReport),
    /// [`Request::Halt`] is done; the VM may be killed without loss.
    Halted,
    /// [`Request::Identify`] is done. A guest that cannot do it answers [`Reply::NotStarted`] and must not be used.
    Identified,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Exit {
    /// Status of the shell.
    pub status: Status,
    /// The time limit was hit and the process group was killed.
    pub timed_out: bool,
    /// Time from start to end of the shell in milliseconds.
    pub duration_ms: u64,
    /// Bytes of stdout beyond [`Exec::output_limit`].
    pub stdout_dropped: u64,
    /// Bytes of stderr beyond [`Exec::output_limit`].
    pub stderr_dropped: u64,
}

/// Status of an ended process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Exit code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// Why a command could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecFailure {
    /// What was being done.
    pub step: String,
    /// `errno` of the guest's kernel, 0 if there was none.
    pub errno: i32,
    /// The cause in words.
    pub cause: String,
}
