//! Services of a VM, as plain data.

use pyro_wire::{Exec, Status};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Maximum number of services of one VM.
pub const MAX_SERVICES: usize = 32;

/// A command that is kept running in a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceDefinition {
    /// Its name, unique in the VM: letters, digits, `-`, `_` and `.`, beginning with a letter or digit.
    pub name: String,
    /// The command. Its time limit is ignored: a service ends with its VM, if not before.
    pub exec: Exec,
    /// When it is ready. Absent: as soon as its command was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<ReadyCheck>,
    /// Time limit for becoming ready, in milliseconds, after which its command is ended.
    pub ready_timeout_ms: u64,
    /// When its command is run again.
    pub restart: Restart,
    /// It is started with its VM.
    pub start_with_vm: bool,
}

/// How to find out that a service is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadyCheck {
    /// It accepts connections to this TCP port of the guest's loopback interface.
    Tcp(u16),
    /// It answers a GET request with a status from 200 to 399.
    Http {
        /// Name or address of the loopback interface that the request is for.
        host: String,
        /// The TCP port on the guest's loopback interface.
        port: u16,
        /// Path and query, beginning with `/`.
        path: String,
    },
    /// This file exists, below `/workspace` unless it is absolute.
    File(String),
    /// This command ends with exit code 0.
    Command(Box<Exec>),
}

/// When the command of a service is run again after it has ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// Never.
    No,
    /// Unless it ended with exit code 0. A service that does not become ready counts as failed.
    OnFailure,
    /// However it ended.
    Always,
}

impl Restart {
    /// Returns whether a command that ended in this way is run again.
    pub(crate) fn applies(self, succeeded: bool) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure => !succeeded,
            Self::Always => true,
        }
    }
}

/// State of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Its command runs, or is about to, and is not ready.
    Starting,
    /// Its command runs, and there is no check of its readiness.
    Running,
    /// Its command runs, and was ready once.
    Ready,
    /// Its command has ended and is run again after a pause.
    Restarting,
    /// Its command has failed. Nothing of it runs.
    Failed,
    /// It was stopped. Nothing of it runs, unless the reason says that the guest did not confirm its end.
    Stopped,
    /// Its command has ended with exit code 0. Nothing of it runs.
    Exited,
}

/// What became of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    /// Its state.
    pub state: ServiceState,
    /// How often its command was run again since the service was started.
    pub restarts: u64,
    /// How its command ended the last time.
    #[schemars(with = "Option<pyro_wire::Status>")]
    pub end: Option<Status>,
    /// Why it is not ready or its command failed, as far as [`Self::end`] does not show it.
    pub reason: Option<String>,
}

impl ServiceStatus {
    /// That of a service that has just been started.
    pub(crate) fn starting() -> Self {
        Self { state: ServiceState::Starting, restarts: 0, end: None, reason: None }
    }
}
