//! What a caller asks for.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::FileEncoding;

/// Size, lifetime and rights of a VM to create.
///
/// The numbers are as the caller gave them; the engine refuses those outside the contract's limits with
/// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) before anything else happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// Environment name, such as `debian:12`.
    pub environment: String,
    /// Virtual CPUs, 1 to 8.
    pub vcpu_count: i64,
    /// Guest memory in MiB, 256 to 32768.
    pub mem_mib: i64,
    /// Lifetime in seconds from creation, 60 to 3600. Using the VM does not extend it.
    pub ttl_seconds: i64,
    /// Gives the guest outbound network.
    pub network: bool,
    /// Agrees to run commands on the host, without isolation, when no VM can be had.
    pub allow_host_compat: bool,
}

impl VmSpec {
    /// `environment` with the contract's defaults: 1 vCPU, 1024 MiB, 600 s, no network, no host mode.
    pub fn new(environment: impl Into<String>) -> Self {
        Self {
            environment: environment.into(),
            vcpu_count: 1,
            mem_mib: 1024,
            ttl_seconds: 600,
            network: false,
            allow_host_compat: false,
        }
    }
}

/// A task to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSpec {
    /// Its VM. The lifetime can be renewed.
    pub vm: VmSpec,
    /// Size of its disk in MiB, 256 to 1048576. Space is taken as it is used. `None`: 8192, or less if the host's disk
    /// could not hold that.
    pub disk_mib: Option<i64>,
}

impl TaskSpec {
    /// `environment` with the contract's defaults, and a disk of the usual size.
    pub fn new(environment: impl Into<String>) -> Self {
        Self { vm: VmSpec::new(environment), disk_mib: None }
    }
}

/// What a copy may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyLimits {
    /// Most files, directories and symbolic links together.
    pub max_entries: u64,
    /// Most bytes of all files together.
    pub max_bytes: u64,
}

impl Default for CopyLimits {
    /// A million entries and 8 GiB.
    fn default() -> Self {
        Self { max_entries: 1_000_000, max_bytes: 8 << 30 }
    }
}

/// Which part of a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRange {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Most bytes.
    pub max_bytes: u64,
}

/// What a file shall hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    /// It as text.
    pub text: String,
    /// How it is written there.
    pub encoding: FileEncoding,
}

/// A command for a VM or a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Text for the shell (`/bin/sh -lc`). May be empty, which runs an empty script.
    pub command: String,
    /// Longest time the command may take, in seconds; at least 1. When it is over the command is ended
    /// and the result has exit code 124.
    pub timeout_seconds: i64,
    /// What happens to the output.
    pub output: OutputMode,
    /// Working directory, which must exist; below `/workspace` unless it is absolute. `None`: `/workspace`. Only in a
    /// guest.
    pub cwd: Option<String>,
    /// Variables for the command, beside the usual ones, at most 32 KiB. The shell is a login shell: what
    /// `/etc/profile` sets, such as `PATH`, wins.
    pub env: BTreeMap<String, String>,
}

impl Command {
    /// `command` with the contract's default of 30 s and its output kept in the result.
    pub fn new(command: impl Into<String>) -> Self {
        Self {
            command: command.into(),
            timeout_seconds: 30,
            output: OutputMode::Capture,
            cwd: None,
            env: BTreeMap::new(),
        }
    }
}

/// What happens to the output of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputMode {
    /// Kept in the result, at most 16 MiB per stream; what is beyond is counted and dropped.
    #[default]
    Capture,
    /// Kept like that, and sent as [`Event::Output`](crate::Event::Output) while it comes.
    CaptureAndStream,
    /// Sent as [`Event::Output`](crate::Event::Output) while it comes, and not kept. A caller that stops
    /// reading stops the command, as a full pipe would.
    Stream,
}
