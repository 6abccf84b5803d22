//! What methods take. A method takes some of these parts; their fields together are its parameters.

use std::collections::BTreeMap;
use std::path::Path;

use pyro_engine::{
    Command, EngineError, ErrorKind, FileContent, FileEncoding, FileRange, OutputMode, TaskSpec, VmSpec,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::document;
use crate::fault::{Fault, Problem};
use crate::limits::FILE_BYTES;
use crate::message::Object;

/// Reads one part of the parameters.
pub(crate) fn read<'a, P: Deserialize<'a>>(given: &'a Object) -> Result<P, Fault> {
    serde_path_to_error::deserialize(given).map_err(|error| {
        let name = match error.path().iter().next() {
            Some(_) => format!("`{}`: ", error.path()),
            None => String::new(),
        };
        Fault::new(Problem::InvalidParams, format!("{name}{}", error.inner()))
    })
}

/// Refuses parameters that the method does not have.
pub(crate) fn refuse_unknown(method: &str, given: &Object) -> Result<(), Fault> {
    let known = document::parameters(method);
    match given.keys().find(|name| !known.contains(name)) {
        None => Ok(()),
        Some(name) => {
            let message = format!("{method} has no parameter `{}`", name.escape_debug());
            let all = match known {
                [] => "it has none".to_owned(),
                _ => format!("it has {}", known.join(", ")),
            };
            Err(Fault::new(Problem::InvalidParams, message).hint(all))
        }
    }
}

/// An environment by its name.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct EnvironmentName {
    /// Environment name, such as `debian:12`.
    pub(crate) environment: String,
}

/// Size, lifetime and rights of a VM to create.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Spec {
    /// Environment name, such as `debian:12`.
    environment: String,
    /// Virtual CPUs, 1 to 8.
    #[serde(default = "usual_vcpu_count")]
    vcpu_count: i64,
    /// Guest memory in MiB, 256 to 32768.
    #[serde(default = "usual_mem_mib")]
    mem_mib: i64,
    /// Lifetime in seconds from creation, 60 to 3600. Then a VM is removed, and a task is stopped.
    #[serde(default = "usual_ttl_seconds")]
    ttl_seconds: i64,
    /// Gives the guest outbound network.
    #[serde(default)]
    network: bool,
    /// Agrees to run commands on the host, without isolation, when no VM can be had.
    #[serde(default)]
    allow_host_compat: bool,
}

fn usual_vcpu_count() -> i64 {
    VmSpec::new("").vcpu_count
}

fn usual_mem_mib() -> i64 {
    VmSpec::new("").mem_mib
}

fn usual_ttl_seconds() -> i64 {
    VmSpec::new("").ttl_seconds
}

impl From<Spec> for VmSpec {
    fn from(spec: Spec) -> Self {
        let Spec { environment, vcpu_count, mem_mib, ttl_seconds, network, allow_host_compat } = spec;
        Self { environment, vcpu_count, mem_mib, ttl_seconds, network, allow_host_compat }
    }
}

/// The disk of a task to create.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Disk {
    /// Size of the disk in MiB, 256 to 1048576. Space is taken as it is used. Default: 8192, or less if the host's disk could
    /// not hold that.
    disk_mib: Option<i64>,
}

impl Spec {
    pub(crate) fn with(self, disk: Disk) -> TaskSpec {
        TaskSpec { vm: self.into(), disk_mib: disk.disk_mib }
    }
}

/// A command.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Shell {
    /// Text for the shell (`/bin/sh -lc`). May be empty.
    command: String,
    /// Longest time the command may take, in seconds; at least 1. Then it is ended, and the exit code is 124.
    #[serde(default = "usual_timeout_seconds")]
    timeout_seconds: i64,
    /// Working directory, which must exist; below `/workspace` unless it is absolute. Default: `/workspace`. Only in a guest.
    cwd: Option<String>,
    /// Variables for the command, beside the usual ones, at most 32 KiB. The shell is a login shell: what `/etc/profile` sets,
    /// such as `PATH`, wins.
    #[serde(default)]
    env: BTreeMap<String, String>,
}

fn usual_timeout_seconds() -> i64 {
    Command::new("").timeout_seconds
}

/// What happens to the output of a command.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct OutputTo {
    /// What happens to the output: `capture` keeps it in the result, at most 16 MiB per stream; `stream` sends it as events
    /// while it comes and does not keep it; `capture_and_stream` does both. Events are sent as fast as they are acknowledged.
    #[serde(default)]
    output: OutputMode,
}

impl Shell {
    pub(crate) fn with(self, to: OutputTo) -> Command {
        let Self { command, timeout_seconds, cwd, env } = self;
        Command { command, timeout_seconds, cwd, env, output: to.output }
    }
}

/// A VM by its id.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct VmName {
    /// Id of the VM.
    pub(crate) vm_id: String,
}

/// A task by its id.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct TaskName {
    /// Id of the task.
    pub(crate) task_id: String,
}

/// Another lifetime of a task.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Lifetime {
    /// Lifetime in seconds from now, 60 to 3600.
    pub(crate) ttl_seconds: i64,
}

/// One command of a task.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Sequence {
    /// Number of the command in the task's journal, from 1.
    pub(crate) sequence: u64,
}

/// Part of a journal.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Entries {
    /// Number of the one command to show. Default: several are shown.
    pub(crate) sequence: Option<u64>,
    /// Without `sequence`: show those whose number is larger, one page of them.
    #[serde(default)]
    pub(crate) after: u64,
}

/// A copy out of a task.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct CopyOut {
    /// File or directory in the task; below `/workspace` unless it is absolute.
    pub(crate) path: String,
    /// Absolute path on this host. If it is a directory, the copy goes there under its own name, else it gets that name.
    target: String,
}

/// A copy into a task.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct CopyIn {
    /// Absolute path of a file or directory on this host.
    source: String,
    /// Where it goes in the task; below `/workspace` unless it is absolute. If it is a directory, the copy goes there under its
    /// own name, else it gets that name.
    pub(crate) path: String,
}

impl CopyOut {
    pub(crate) fn target(&self) -> Result<&Path, EngineError> {
        absolute("target", &self.target)
    }
}

impl CopyIn {
    pub(crate) fn source(&self) -> Result<&Path, EngineError> {
        absolute("source", &self.source)
    }
}

/// The client may be in another directory than this process.
fn absolute<'a>(name: &str, path: &'a str) -> Result<&'a Path, EngineError> {
    let path = Path::new(path);
    match path.is_absolute() {
        true => Ok(path),
        false => Err(EngineError::new(ErrorKind::InvalidInput, format!("{name} must be an absolute path"))),
    }
}

/// Part of a file of a task.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct FilePart {
    /// File in the task, of at most 16 MiB; below `/workspace` unless it is absolute.
    pub(crate) path: String,
    /// Where the part begins, in bytes.
    #[serde(default)]
    offset: u64,
    /// Most bytes, 1 to 16777216.
    #[serde(default = "most_file_bytes")]
    max_bytes: u64,
}

fn most_file_bytes() -> u64 {
    FILE_BYTES
}

impl FilePart {
    pub(crate) fn range(&self) -> Result<FileRange, EngineError> {
        match (1..=FILE_BYTES).contains(&self.max_bytes) {
            true => Ok(FileRange { offset: self.offset, max_bytes: self.max_bytes }),
            false => Err(EngineError::out_of_range("max_bytes", 1, FILE_BYTES as i64)),
        }
    }
}

/// A file of a task to make or replace.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct NewFile {
    /// Where it goes in the task, with directories that are made if they are missing; below `/workspace` unless it is absolute.
    pub(crate) path: String,
    /// What it holds, at most 16 MiB.
    content: String,
    /// How the bytes are written in `content`.
    #[serde(default = "usual_encoding")]
    encoding: FileEncoding,
    /// Gives it mode 0755 instead of 0644.
    #[serde(default)]
    pub(crate) executable: bool,
}

fn usual_encoding() -> FileEncoding {
    FileEncoding::Utf8
}

impl NewFile {
    pub(crate) fn content(&self) -> FileContent {
        FileContent { text: self.content.clone(), encoding: self.encoding }
    }
}

/// A platform to report on.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Platform {
    /// Platform to report on.
    #[serde(default = "usual_platform")]
    pub(crate) platform: String,
}

fn usual_platform() -> String {
    "linux-x86_64".to_owned()
}
