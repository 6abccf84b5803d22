//! Services of a task: commands that are kept running without a client.

mod check;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::check::{
    CheckedService, MAX_READY_COMMAND_SECONDS, MAX_SERVICES, Readiness, check_service, check_service_name,
};
use crate::{Command, Output, RestartPolicy, ServiceState, VmId};

/// One service of a task.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ServiceName {
    /// Name of the service. 1 to 63 letters, digits, `-`, `_` and `.`, beginning with a letter or digit.
    pub name: String,
}

impl From<&str> for ServiceName {
    fn from(name: &str) -> Self {
        Self { name: name.to_owned() }
    }
}

/// What a service runs: either `command`, or `argv`, or neither to start a service that exists and does not run.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ServiceCommand {
    /// Text for the shell. The definition of a service may have 128 KiB in total.
    pub command: Option<String>,
    /// Program and its arguments, run without a shell instead of `command`.
    #[cfg_attr(test, proptest(strategy = "proptest::option::of(crate::strategies::few())"))]
    pub argv: Option<Vec<String>>,
    /// Shell that runs `command`, such as `bash`. Default: `/bin/sh`, or what the environment uses.
    pub shell: Option<String>,
    /// Working directory, which must exist; below `/workspace` unless it is absolute. Default: `/workspace`.
    pub cwd: Option<String>,
    /// Additional environment variables, at most 32 KiB in total.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// User of the guest to run it as: `NAME`, `UID`, `NAME:GROUP` or `UID:GID`. Default: root.
    pub user: Option<String>,
}

impl ServiceCommand {
    /// Returns whether it names nothing to run.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl From<Command> for ServiceCommand {
    fn from(command: Command) -> Self {
        let Command { command, argv, shell, cwd, env, user, .. } = command;
        Self { command, argv, shell, cwd, env, user }
    }
}

/// When a service is ready, and when its command is run again.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ServiceOptions {
    /// The service is ready when it accepts connections to this TCP port of the guest's loopback interface. At most one of
    /// the four checks can be given; without one, a service is never waited for.
    pub ready_tcp: Option<u16>,
    /// The service is ready when it answers a GET request with a status from 200 to 399: `http://localhost:PORT/PATH`.
    pub ready_http: Option<String>,
    /// The service is ready when this file exists; below `/workspace` unless it is absolute.
    pub ready_file: Option<String>,
    /// The service is ready when this shell command ends with exit code 0. It runs as the service does, for at most 30
    /// seconds.
    pub ready_command: Option<String>,
    /// Time limit for becoming ready, in seconds, 1 to 3600. A service that is not ready by then is ended and has failed.
    /// Default: 60.
    pub ready_timeout_seconds: Option<i64>,
    /// When its command is run again after it has ended, with pauses from 1 second to 1 minute.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Start it again with the task. How it starts is in its status; the start of the task does not wait for it.
    #[serde(default)]
    pub start_with_task: bool,
    /// Wait until it is ready, or has ended or failed before that.
    #[serde(default = "default_wait")]
    pub wait: bool,
}

fn default_wait() -> bool {
    true
}

impl Default for ServiceOptions {
    /// No check, no restart; waits.
    fn default() -> Self {
        Self {
            ready_tcp: None,
            ready_http: None,
            ready_file: None,
            ready_command: None,
            ready_timeout_seconds: None,
            restart: RestartPolicy::default(),
            start_with_task: false,
            wait: default_wait(),
        }
    }
}

/// The end of a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct LogTail {
    /// Begin with this many last lines. Default: everything that is kept.
    pub tail: Option<u64>,
}

/// Part of the log of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct LogPart {
    /// Begin with this many last lines. Default: everything that is kept.
    pub tail: Option<u64>,
    /// Begin at this offset instead, such as `next_offset` of an earlier result.
    pub offset: Option<u64>,
    /// Maximum number of bytes to return, 1 to 16777216. Default: 1 MiB.
    pub max_bytes: Option<u64>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Service {
    /// Id of the task.
    pub task_id: VmId,
    /// Name of the service.
    pub name: String,
    /// Its command, as text for a shell.
    pub command: String,
    /// Its state.
    pub state: ServiceState,
    /// It runs and has passed its check; null without a check.
    pub ready: Option<bool>,
    /// How often its command was run again since the service was started.
    pub restarts: u64,
    /// Exit code of its command when it ended last, -S if signal S ended it; null if it has not ended.
    pub exit_code: Option<i64>,
    /// Why it is not ready, failed, or did not start; null if nothing is wrong or `exit_code` says it.
    pub reason: Option<String>,
    /// When it got into this state, in seconds since the epoch.
    pub since: f64,
    /// When its command is run again.
    pub restart: RestartPolicy,
    /// It is started with the task.
    pub start_with_task: bool,
    /// Its last lines of output, if its command has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_output: Option<Output>,
}

/// A service of a task, in short.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct TaskService {
    /// Name of the service.
    pub name: String,
    /// Its state.
    pub state: ServiceState,
}

/// The services of a task.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ServiceList {
    /// Id of the task.
    pub task_id: VmId,
    /// Its services, in the order in which they were first started.
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub services: Vec<Service>,
    /// Number of services.
    pub count: u64,
}

/// Part of what a service has written, to its standard output and its standard error together.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ServiceLog {
    /// Id of the task.
    pub task_id: VmId,
    /// Name of the service.
    pub name: String,
    /// Offset of the part, in bytes, in everything that the service ever wrote. Larger than the requested one if that is not
    /// kept any more: about the last 8 MiB are.
    pub offset: u64,
    /// The part.
    pub output: Output,
    /// Offset behind the part.
    pub next_offset: u64,
    /// Offset behind the last byte that the service has written.
    pub end_offset: u64,
}

/// A service was removed.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ServiceRemoved {
    /// Id of the task.
    pub task_id: VmId,
    /// Name that the service had.
    pub name: String,
    /// Always true.
    pub removed: bool,
}
