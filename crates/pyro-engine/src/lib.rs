//! The implementation of the contract (`pyro-api`) on this host.
//!
//! [`Engine`] is the only entry point. It implements [`Contract`], which the MCP server and the RPC server are written
//! against, so that they do not depend on this crate. This crate never prints, never exits, and never reads `$HOME` or
//! an environment variable: all settings come in through [`Config`].
//!
//! # Invariants
//!
//! * Nothing runs on the host unless the caller agreed to it ([`HostAccess`]), and [`RunResult::execution_mode`] says
//!   so.
//! * A state is reported only after it is on disk.
//! * An id is validated before it can become part of a path.
//! * Read operations (`list`, `inspect`, `status`, `doctor`) change nothing on disk, except that they remove a VM whose
//!   lifetime has ended when they access it.

mod boot_times;
mod capture;
mod clock;
mod config;
mod contract;
mod convert;
mod engine;
mod exit_code;
mod guest_kernel;
mod host_compat;
mod host_file;
mod host_settings;
mod pool;
mod presets;
mod registry;
mod search_path;
mod state;
mod state_dir;
mod supervise;
mod terminal;

pub mod doctor;

pub use config::{Config, MountRoots, SecretVariables};
pub use engine::{CopyFromGuest, CopyToGuest, Engine, MOUNT_COMMAND, PROBE_COMMAND, probe_kvm, serve_mount};
pub use presets::PackageClients;
pub use pyro_api::Error;
pub use pyro_api::MountRoot;
pub use pyro_api::operations;
pub use pyro_api::text;
pub use pyro_api::{
    Accelerator, AllowedCidr, AllowedDomain, AllowedHost, CallContext, Caller, ChangeKind, CheckedRead,
    Command, CommandOutput, Contract, CopyLimits, DeleteReason, Deleted, DirectoryMount, DiskState,
    DoctorReport, Domain, Egress, Environment, EnvironmentList, ErrorKind, Event, Events, ExecutionMode,
    FileChange, FileContent, FileEncoding, FileInfo, FileKind, FileMove, FileRange, FileRemoval, FileWatch,
    Hint, HostAccess, HostCa, Input, InputEvent, InputMode, Kind, LastCommand, Lasting, Listing, LogPart,
    MIN_PREFIX_DIGITS, Naming, NetworkAssignment, NetworkDenial, NetworkInfo, NetworkPolicy, Outcome, Output,
    OutputMode, OutputStream, OwnerName, Phase, PortMapping, Preset, PruneReport, Pruned, PublishedPort,
    PullEvent, PulledEnvironment, Reader, Reaped, RemovedEnvironment, RestartPolicy, RunPhase, RunResult,
    Service, ServiceCommand, ServiceList, ServiceLog, ServiceOptions, ServiceRemoved, ServiceState,
    ShellCommand, ShellFormat, ShellName, ShellRead, ShellReadReason, ShellSignal, ShellText, StopReason,
    Task, TaskChanges, TaskCopied, TaskDeleted, TaskDetached, TaskExec, TaskFile, TaskFileChanged,
    TaskFileChanges, TaskFileInfo, TaskFileList, TaskFileMoved, TaskFileWritten, TaskFilter, TaskInput,
    TaskList, TaskLogEntry, TaskLogs, TaskLogsPage, TaskPublished, TaskService, TaskShell, TaskShellOutput,
    TaskShells, TaskSpec, TerminalSize, TtlFrom, UnknownWord, Visibility, Vm, VmId, VmSpec, VmState,
    WatchEnd, WatchLimits,
};
pub use pyro_machine::Vmm;
pub use pyro_machine::disk::Overcommit;
pub use pyro_machine::network::RunError as NetworkRunError;
pub use pyro_mount::RunError as MountRunError;
pub use registry::names::{KnownNames, KnownTask, known_names};
pub use supervise::{NETWORK_COMMAND, SUPERVISE_COMMAND, carry_network, supervise};

pub(crate) use pyro_api::check_labels;
pub(crate) use pyro_api::limits;
