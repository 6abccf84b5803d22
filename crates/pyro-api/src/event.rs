//! Progress that a caller may follow while a call runs.

mod call_event;

use std::fmt;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub use call_event::{CallEvent, InvalidEvent, PhaseName};

use crate::{FileChange, VmId};

/// An event of a call. Serialized as a [`CallEvent`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "CallEvent", try_from = "CallEvent")]
pub enum Event {
    /// A one-shot run entered its next phase.
    Phase(RunPhase),
    /// Progress of making an environment available.
    Pull(PullEvent),
    /// The VM is the first of its kind: it is booted and saved as a template, which takes some seconds more than later starts.
    FirstOfKind,
    /// A VM takes long to start. Sent every few seconds.
    Starting {
        /// The current step, as text for people.
        step: String,
        /// Time since the start began, in seconds.
        seconds: u64,
    },
    /// Output of a command, in order within its stream; only with
    /// [`OutputMode::Stream`](crate::OutputMode::Stream).
    Output {
        /// Where the command wrote it.
        stream: OutputStream,
        /// What it wrote; any bytes, cut anywhere.
        bytes: Bytes,
    },
    /// Every change of a watched file or directory from now on is sent.
    Watching,
    /// A change of what is watched.
    FileChange(FileChange),
    /// A warning that does not stop the call. One line of text.
    Warning(String),
}

/// Phase of a one-shot run. `Display` gives the contract's `phase=… key=value` text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunPhase {
    /// The VM is being prepared.
    Create {
        /// Environment it is made from.
        environment: String,
    },
    /// The VM is being started.
    Start {
        /// Id of the VM.
        vm_id: VmId,
    },
    /// The command is being run.
    Execute {
        /// Id of the VM.
        vm_id: VmId,
    },
}

impl fmt::Display for RunPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { environment } => write!(f, "phase=create environment={environment}"),
            Self::Start { vm_id } => write!(f, "phase=start vm_id={vm_id}"),
            Self::Execute { vm_id } => write!(f, "phase=execute vm_id={vm_id}"),
        }
    }
}

/// Progress of making an environment available.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullEvent {
    /// The installation began. Not sent if the environment is already installed.
    Started {
        /// Name of the environment.
        environment: String,
    },
    /// The installation made progress.
    Step {
        /// The current step, as text for people.
        text: String,
        /// Progress, out of `total`.
        done: u64,
        /// Total amount of work; 0 if unknown.
        total: u64,
    },
    /// The environment is installed and checked.
    Ready {
        /// Name of the environment.
        environment: String,
    },
}

/// One of a command's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Where a call sends its [`Event`]s.
#[derive(Debug, Clone, Default)]
pub struct Events(Option<mpsc::Sender<Event>>);

impl Events {
    /// Events go nowhere.
    pub fn none() -> Self {
        Self(None)
    }

    /// Events go to `sender`. The channel is bounded, so a slow reader slows the call down instead of
    /// filling memory. If the receiver is dropped, events are lost without an error.
    pub fn to(sender: mpsc::Sender<Event>) -> Self {
        Self(Some(sender))
    }

    /// Returns whether the caller receives events.
    pub fn are_heard(&self) -> bool {
        self.0.is_some()
    }

    /// Sends one event and waits for room in the channel.
    pub async fn send(&self, event: Event) {
        if let Some(sender) = &self.0 {
            // A receiver that went away has lost interest; the call itself goes on.
            let _ = sender.send(event).await;
        }
    }

    /// Sends one event from a thread that may block.
    ///
    /// # Panics
    ///
    /// Inside an asynchronous context, where blocking would stop the runtime.
    pub fn send_blocking(&self, event: Event) {
        if let Some(sender) = &self.0 {
            let _ = sender.blocking_send(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_print_as_the_contract_says() {
        let vm_id = VmId::parse("de259a89b184").unwrap();
        let phases = [
            RunPhase::Create { environment: "debian:12".to_owned() },
            RunPhase::Start { vm_id: vm_id.clone() },
            RunPhase::Execute { vm_id },
        ];
        let texts: Vec<String> = phases.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "phase=create environment=debian:12",
                "phase=start vm_id=de259a89b184",
                "phase=execute vm_id=de259a89b184"
            ]
        );
    }

    #[tokio::test]
    async fn a_dropped_receiver_is_no_error() {
        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        Events::to(sender).send(Event::Warning("lost".to_owned())).await;
        Events::none().send(Event::Warning("lost".to_owned())).await;
    }
}
