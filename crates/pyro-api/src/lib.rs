//! The contract: what can be asked of pyro, and what comes back.
//!
//! One definition of each request, result, event and error, which serialise both ways and describe themselves as JSON
//! Schema; and one table of operations ([`operations`]), from which front ends make what they offer. The engine
//! implements them as [`Contract`]. This crate depends on no other of pyro's.
//!
//! # Invariants
//!
//! * Key names are public: keys may be added, never renamed.
//! * What a person, a model or a program should do about an error is a value ([`Hint`]) until a front end words it.
//! * Text from outside becomes a [`VmId`] only through its check.

mod caller;
mod command;
mod environment;
mod error;
mod event;
mod files;
mod hint;
mod host_access;
mod id;
mod input;
mod kind;
mod mount;
mod naming;
mod network;
mod payload;
mod port;
mod request;
mod service;
mod shell;
#[cfg(test)]
mod strategies;
mod words;

pub mod doctor;
pub mod limits;
pub mod operations;
pub mod text;

pub use caller::{Caller, InvalidOwner, OwnerName, Visibility};
pub use command::{Command, CommandOutput, DEFAULT_TIMEOUT_SECONDS, InputMode, OutputMode, TerminalSize};
pub use doctor::DoctorReport;
pub use environment::{Environment, EnvironmentList, PruneReport, PulledEnvironment, RemovedEnvironment};
pub use error::{Cause, Error, ErrorKind};
pub use event::{CallEvent, Event, Events, InvalidEvent, OutputStream, PhaseName, PullEvent, RunPhase};
pub use files::{
    ChangeKind, FileChange, FileInfo, FileKind, FileMove, FilePath, FileRemoval, FileWatch, Listing,
    MAX_CHANGES, MAX_LISTED, TaskFileChanged, TaskFileChanges, TaskFileInfo, TaskFileList, TaskFileMoved,
    WatchEnd, WatchLimits,
};
pub use hint::{Hint, Reader};
pub use host_access::HostAccess;
pub use id::VmId;
pub use input::{Input, InputEvent};
pub use kind::Kind;
pub use mount::{DirectoryMount, InvalidMount, MAX_MOUNTS, MountRoot, MountTarget, check_mounts};
pub use naming::{MAX_LABELS, MIN_PREFIX_DIGITS, Naming, TaskChanges, TaskFilter, check_labels};
pub use network::{
    AllowedCidr, AllowedDomain, AllowedHost, Domain, Egress, InvalidPattern, NetworkDenial, NetworkPolicy,
    PolicyError, Preset,
};
pub use operations::{
    Access, CallContext, Contract, InvalidRequest, LocalFuture, OPERATIONS, Object, Operation, OperationInfo,
    Reply, Target,
};
pub use payload::{
    DeleteReason, Deleted, FileEncoding, LastCommand, NetworkAssignment, NetworkInfo, Output, Phase, Pruned,
    PublishedPort, Reaped, RunResult, ShellReadReason, Task, TaskCopied, TaskDeleted, TaskDetached, TaskExec,
    TaskFile, TaskFileWritten, TaskInput, TaskList, TaskLogEntry, TaskLogs, TaskLogsPage, TaskPublished,
    TaskShell, TaskShellOutput, TaskShells, Vm,
};
pub use port::{InvalidPortMapping, PortMapping};
pub use request::{
    CopyIn, CopyLimits, CopyOut, Disk, Entries, EnvironmentName, FileContent, FilePart, FileRange, HostCa,
    HostPort, Lasting, Lifetime, NewFile, Platform, PortToPublish, Ports, Renewal, Sequence, TaskName,
    TaskSpec, VmName, VmSpec,
};
pub use service::{
    LogPart, LogTail, Service, ServiceCommand, ServiceList, ServiceLog, ServiceName, ServiceOptions,
    ServiceRemoved, TaskService,
};
pub use shell::{
    CheckedRead, MAX_KEYS, MAX_READ_BYTES, MAX_TYPED_BYTES, ShellCommand, ShellFormat, ShellName, ShellRead,
    ShellSignal, ShellText,
};
pub use words::{
    Accelerator, DiskState, ExecutionMode, Outcome, RestartPolicy, ServiceState, StopReason, TtlFrom,
    UnknownWord, VmState,
};
