//! The messages of both phases. A structural change here must come with a new [`GENERATION`] unless it
//! only adds an optional field; the schema snapshot test asks that question.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Number of the current schema; both ends must agree on it.
pub const GENERATION: u32 = 2;

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

/// First frame of the host on each stream. Closing the stream before the reply cancels the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Run one command.
    Exec(Exec),
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
    /// Working directory; made if missing.
    pub cwd: String,
    /// Time limit in milliseconds, counted from the start of the command.
    pub timeout_ms: u64,
    /// Time between SIGTERM and SIGKILL when the limit is hit, in milliseconds.
    pub kill_grace_ms: u64,
    /// Bytes of each output stream to send; what is beyond is read, counted and dropped. Absent: all.
    pub output_limit: Option<u64>,
}

/// Last frame of the guest on a stream; output frames may come before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The command ran and ended.
    Exited(Exit),
    /// The command never started.
    NotStarted(ExecFailure),
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
