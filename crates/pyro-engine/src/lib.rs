//! pyro's product API: everything a front end can ask for, and the payloads it gets back.
//!
//! [`Engine`] is the only door. The command line, the MCP server and the Python bridge call its methods
//! and render the same payload types, so the three cannot drift apart. This crate never prints, never
//! exits and never reads `$HOME` or an environment variable: all settings come in through [`Config`].
//!
//! # Invariants
//!
//! * Nothing runs on the host unless the caller set [`VmSpec::allow_host_compat`], and
//!   [`RunResult::execution_mode`] says so.
//! * A state is reported only after it is on disk.
//! * An id is checked before it can become part of a path.
//! * Reading (`list`, `inspect`, `status`, `doctor`) changes nothing on disk, except that a VM whose
//!   lifetime has ended is removed when it is touched.

mod capture;
mod config;
mod engine;
mod error;
mod event;
mod finished;
mod guest_kernel;
mod host_compat;
mod id;
mod kind;
mod limits;
mod outcome;
mod payload;
mod registry;
mod request;
mod search_path;
mod state;
mod supervise;
mod timings;

pub mod doctor;

pub use config::Config;
pub use doctor::DoctorReport;
pub use engine::{Engine, PROBE_COMMAND, SUPERVISE_COMMAND, probe_kvm};
pub use error::{EngineError, ErrorKind};
pub use event::{Event, Events, OutputStream, PullEvent, RunPhase};
pub use id::VmId;
pub use outcome::{Outcome, StopReason, UnknownWord};
pub use payload::{
    DeleteReason, Deleted, ExecutionMode, FileEncoding, LastCommand, NetworkAssignment, NetworkInfo, Output,
    Pruned, Reaped, RunResult, Task, TaskCopied, TaskDeleted, TaskDetached, TaskExec, TaskFile,
    TaskFileWritten, TaskList, TaskLogEntry, TaskLogs, Vm,
};
pub use pyro_env::{Environment, EnvironmentList, PruneReport, PulledEnvironment};
pub use pyro_machine::Accelerator;
pub use request::{Command, CopyLimits, FileContent, FileRange, OutputMode, TaskSpec, VmSpec};
pub use state::VmState;
pub use supervise::supervise;
pub use timings::Phase;
