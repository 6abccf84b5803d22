//! States and outcomes, as the words of payloads.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A stored word is not a value of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not one of the known words")]
pub struct UnknownWord;

macro_rules! words {
    ($type:ident { $($variant:ident => $word:literal,)* }) => {
        impl $type {
            /// Every value once.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word that payloads use.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|value| value.as_str() == text).ok_or(UnknownWord)
            }
        }
    };
}

/// State of a VM that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// Prepared, never started.
    Created,
    /// Running.
    Started,
    /// Not running; its disk is kept.
    Stopped,
}

words!(VmState {
    Created => "created",
    Started => "started",
    Stopped => "stopped",
});

/// Where commands of a VM run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum ExecutionMode {
    /// Not started yet.
    Pending,
    /// In the booted guest. The name is the contract's; it says nothing about the channel in use.
    GuestVsock,
    /// On the host, without isolation.
    HostCompat,
}

words!(ExecutionMode {
    Pending => "pending",
    GuestVsock => "guest_vsock",
    HostCompat => "host_compat",
});

/// A way to execute guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// Emulation by QEMU, which works on every host.
    Tcg,
}

words!(Accelerator {
    Kvm => "kvm",
    Tcg => "tcg",
});

/// The outcome of a command of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is running.
    Running,
    /// It ended by itself or timed out.
    Exited,
    /// A kill, a stop of the task, or the cancellation of its call ended it.
    Killed,
    /// It was accepted but could not be started.
    NotRun,
    /// It may have run completely or partly: the supervisor or the host failed before its end was recorded.
    Unknown,
}

words!(Outcome {
    Running => "running",
    Exited => "exited",
    Killed => "killed",
    NotRun => "not_run",
    Unknown => "unknown",
});

/// Why a task is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// A caller stopped it.
    ExplicitStop,
    /// Its lifetime ended.
    Expired,
    /// A signal ended its supervisor, for example at a shutdown of the host.
    Terminated,
    /// Its guest powered off or crashed, or its VMM was killed.
    GuestEnded,
    /// Its supervisor ended without a record, for example at a crash of the host.
    OwnerVanished,
}

words!(StopReason {
    ExplicitStop => "explicit_stop",
    Expired => "expired",
    Terminated => "terminated",
    GuestEnded => "guest_ended",
    OwnerVanished => "owner_vanished",
});

/// Whether the disk of a task can be used. Only one that is `ok` can be started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum DiskState {
    /// Usable.
    Ok,
    /// Gone.
    Missing,
    /// Unreadable, or incomplete.
    Damaged,
}

words!(DiskState {
    Ok => "ok",
    Missing => "missing",
    Damaged => "damaged",
});

/// When a lifetime of a task begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum TtlFrom {
    /// At creation or extension.
    #[default]
    Create,
    /// Also with each use.
    Use,
}

words!(TtlFrom {
    Create => "create",
    Use => "use",
});

/// When the command of a service is run again after it has ended by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// Unless it ended with exit code 0. A service that does not become ready has failed.
    OnFailure,
    /// However it ended.
    Always,
}

words!(RestartPolicy {
    No => "no",
    OnFailure => "on-failure",
    Always => "always",
});

/// State of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Its command runs, or is about to, and is not ready.
    Starting,
    /// Its command runs. It has no check.
    Running,
    /// Its command runs and has passed its check.
    Ready,
    /// Its command has ended, and is run again after a pause.
    Restarting,
    /// Its command has failed, or was not ready in time. Nothing of it runs.
    Failed,
    /// A caller or the end of the task stopped it. Nothing of it runs.
    Stopped,
    /// Its command has ended with exit code 0. Nothing of it runs.
    Exited,
}

words!(ServiceState {
    Starting => "starting",
    Running => "running",
    Ready => "ready",
    Restarting => "restarting",
    Failed => "failed",
    Stopped => "stopped",
    Exited => "exited",
});

impl ServiceState {
    /// Its command runs, or will run again by itself.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Ready | Self::Restarting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back_and_are_those_of_the_payloads() {
        macro_rules! check {
            ($($type:ty),*) => {$(
                for word in <$type>::ALL {
                    assert_eq!(word.as_str().parse(), Ok(*word));
                    assert_eq!(serde_json::to_value(word).unwrap(), word.as_str());
                }
            )*};
        }
        check!(
            VmState,
            ExecutionMode,
            Accelerator,
            Outcome,
            StopReason,
            DiskState,
            TtlFrom,
            RestartPolicy,
            ServiceState
        );
        assert_eq!("deleted".parse::<VmState>(), Err(UnknownWord));
        assert_eq!("odd".parse::<Outcome>(), Err(UnknownWord));
    }
}
