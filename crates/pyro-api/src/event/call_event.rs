//! Events as they are written: JSON objects with a `type`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Event, OutputStream, PullEvent, RunPhase};
use crate::{FileChange, VmId};

/// An event of a call.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum CallEvent {
    /// A one-shot run entered its next phase.
    Phase {
        /// The phase.
        phase: PhaseName,
        /// Environment of the VM; only with `create`.
        #[serde(skip_serializing_if = "Option::is_none")]
        environment: Option<String>,
        /// Id of the VM; only with `start` and `execute`.
        #[serde(skip_serializing_if = "Option::is_none")]
        vm_id: Option<VmId>,
    },
    /// The installation of an environment began.
    PullStarted {
        /// Its name.
        environment: String,
    },
    /// The installation of an environment made progress.
    PullStep {
        /// The current step, as text for people.
        text: String,
        /// Progress, out of `total`.
        done: u64,
        /// Total amount of work; 0 if unknown.
        total: u64,
    },
    /// An environment is installed and checked.
    PullReady {
        /// Its name.
        environment: String,
    },
    /// The VM is the first of its kind; it takes a few seconds longer to start than later ones.
    FirstOfKind,
    /// The VM takes long to start. Sent every few seconds.
    Starting {
        /// The current step, as text for people.
        step: String,
        /// Time since the start began, in seconds.
        seconds: u64,
    },
    /// Every change of a watched file or directory from now on is sent.
    Watching,
    /// A change of what is watched.
    FileChange {
        /// The change.
        #[serde(flatten)]
        change: FileChange,
    },
    /// A warning that does not stop the call.
    Warning {
        /// One line.
        text: String,
    },
    /// Output of a command, in order within its stream.
    Output {
        /// The stream that the command wrote to.
        stream: OutputStream,
        /// The bytes in base64 with padding, split at any position.
        data: String,
    },
}

/// Phase of a one-shot run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum PhaseName {
    /// The VM is being prepared.
    Create,
    /// The VM is being started.
    Start,
    /// The command is being run.
    Execute,
}

impl CallEvent {
    /// A piece of output.
    pub fn output(stream: OutputStream, bytes: &[u8]) -> Self {
        Self::Output { stream, data: BASE64.encode(bytes) }
    }
}

impl From<Event> for CallEvent {
    fn from(event: Event) -> Self {
        let of_vm = |phase, vm_id| Self::Phase { phase, environment: None, vm_id: Some(vm_id) };
        match event {
            Event::Phase(RunPhase::Create { environment }) => {
                Self::Phase { phase: PhaseName::Create, environment: Some(environment), vm_id: None }
            }
            Event::Phase(RunPhase::Start { vm_id }) => of_vm(PhaseName::Start, vm_id),
            Event::Phase(RunPhase::Execute { vm_id }) => of_vm(PhaseName::Execute, vm_id),
            Event::Pull(PullEvent::Started { environment }) => Self::PullStarted { environment },
            Event::Pull(PullEvent::Step { text, done, total }) => Self::PullStep { text, done, total },
            Event::Pull(PullEvent::Ready { environment }) => Self::PullReady { environment },
            Event::FirstOfKind => Self::FirstOfKind,
            Event::Starting { step, seconds } => Self::Starting { step, seconds },
            Event::Watching => Self::Watching,
            Event::FileChange(change) => Self::FileChange { change },
            Event::Warning(text) => Self::Warning { text },
            Event::Output { stream, bytes } => Self::output(stream, &bytes),
        }
    }
}

/// The serialized event is invalid.
#[derive(Debug, thiserror::Error)]
pub enum InvalidEvent {
    /// A phase without what it must name.
    #[error("invalid phase: expected {0}")]
    Phase(&'static str),
    /// Output that is not base64.
    #[error("invalid output: expected base64")]
    Output(#[source] base64::DecodeError),
}

impl TryFrom<CallEvent> for Event {
    type Error = InvalidEvent;

    fn try_from(event: CallEvent) -> Result<Self, InvalidEvent> {
        let named = |vm_id: Option<VmId>| vm_id.ok_or(InvalidEvent::Phase("vm_id"));
        Ok(match event {
            CallEvent::Phase { phase: PhaseName::Create, environment, .. } => {
                let environment = environment.ok_or(InvalidEvent::Phase("environment"))?;
                Self::Phase(RunPhase::Create { environment })
            }
            CallEvent::Phase { phase: PhaseName::Start, vm_id, .. } => {
                Self::Phase(RunPhase::Start { vm_id: named(vm_id)? })
            }
            CallEvent::Phase { phase: PhaseName::Execute, vm_id, .. } => {
                Self::Phase(RunPhase::Execute { vm_id: named(vm_id)? })
            }
            CallEvent::PullStarted { environment } => Self::Pull(PullEvent::Started { environment }),
            CallEvent::PullStep { text, done, total } => Self::Pull(PullEvent::Step { text, done, total }),
            CallEvent::PullReady { environment } => Self::Pull(PullEvent::Ready { environment }),
            CallEvent::FirstOfKind => Self::FirstOfKind,
            CallEvent::Starting { step, seconds } => Self::Starting { step, seconds },
            CallEvent::Watching => Self::Watching,
            CallEvent::FileChange { change } => Self::FileChange(change),
            CallEvent::Warning { text } => Self::Warning(text),
            CallEvent::Output { stream, data } => Self::Output {
                stream,
                bytes: BASE64.decode(data).map(Bytes::from).map_err(InvalidEvent::Output)?,
            },
        })
    }
}
