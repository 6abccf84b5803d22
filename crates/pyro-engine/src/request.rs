//! What a caller asks for.

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

/// A command for a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Text for the shell (`/bin/sh -lc`). May be empty, which runs an empty script.
    pub command: String,
    /// Longest time the command may take, in seconds; at least 1. When it is over the command is ended
    /// and the result has exit code 124.
    pub timeout_seconds: i64,
    /// What happens to the output.
    pub output: OutputMode,
}

impl Command {
    /// `command` with the contract's default of 30 s and its output kept in the result.
    pub fn new(command: impl Into<String>) -> Self {
        Self { command: command.into(), timeout_seconds: 30, output: OutputMode::Capture }
    }
}

/// What happens to the output of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutputMode {
    /// Kept in the result, at most 16 MiB per stream; what is beyond is counted and dropped.
    #[default]
    Capture,
    /// Sent as [`Event::Output`](crate::Event::Output) while it comes, and not kept. A caller that stops
    /// reading stops the command, as a full pipe would.
    Stream,
}
