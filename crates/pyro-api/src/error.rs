//! The one error type of the contract.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::text::printable_line;
use crate::{Hint, Kind, Reader, VmState};

/// What a caller can do about an error, as a small closed set.
///
/// Front ends map it to exit codes, MCP errors and Python exceptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is wrong; the same request will always fail.
    InvalidInput,
    /// The VM or task does not exist.
    NotFound,
    /// The state of the VM or task does not allow the operation.
    WrongState,
    /// The maximum number of VMs and tasks exists already; delete one first.
    AtCapacity,
    /// The lifetime has ended: a VM was removed, a task was stopped.
    Expired,
    /// The environment is not installed, cannot be installed, or is damaged.
    EnvironmentUnavailable,
    /// VMs cannot run on this host.
    VmUnavailable,
    /// The VM failed to start.
    BootFailed,
    /// The command did not start; it is safe to retry.
    NotDelivered,
    /// The command was sent but its result is lost; it may have run.
    OutcomeUnknown,
    /// The state directory or the registry in it cannot be used.
    StateUnusable,
    /// A file or directory could not be copied, read, written, listed or changed, in the guest or on this host.
    FileFailed,
    /// The caller cancelled the call.
    Cancelled,
    /// A defect in pyro.
    Internal,
}

impl ErrorKind {
    /// Every kind once.
    pub const ALL: [Self; 14] = [
        Self::InvalidInput,
        Self::NotFound,
        Self::WrongState,
        Self::AtCapacity,
        Self::Expired,
        Self::EnvironmentUnavailable,
        Self::VmUnavailable,
        Self::BootFailed,
        Self::NotDelivered,
        Self::OutcomeUnknown,
        Self::StateUnusable,
        Self::FileFailed,
        Self::Cancelled,
        Self::Internal,
    ];

    /// The kind as a word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid_input",
            Self::NotFound => "not_found",
            Self::WrongState => "wrong_state",
            Self::AtCapacity => "at_capacity",
            Self::Expired => "expired",
            Self::EnvironmentUnavailable => "environment_unavailable",
            Self::VmUnavailable => "vm_unavailable",
            Self::BootFailed => "boot_failed",
            Self::NotDelivered => "not_delivered",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::StateUnusable => "state_unusable",
            Self::FileFailed => "file_failed",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

/// Why an operation failed: kind, message, hints, and cause.
///
/// `Display` is the message as a person reads it, which does not repeat the cause; `Error::source` gives the chain.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[error("{message}")]
pub struct Error {
    /// The kind of error.
    pub kind: ErrorKind,
    /// One line; the contract's text where it gives one.
    pub message: String,
    /// What to do next.
    pub hints: Vec<Hint>,
    /// The cause.
    #[cfg_attr(test, proptest(strategy = "tests::causes()"))]
    pub source: Option<Box<Cause>>,
    /// Why a command did not start, as a word for programs such as `user_not_found`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Parameters of the contract that the message or a hint names. Readers may know them by other names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub parameters: Vec<String>,
}

/// The cause of an error as text. Causes of other types are converted.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Cause {
    /// One or more lines.
    pub text: String,
    /// Its own cause.
    pub source: Option<Box<Cause>>,
}

impl Cause {
    /// Converts an error and its chain of causes.
    pub fn of(error: &dyn std::error::Error) -> Self {
        Self { text: error.to_string(), source: error.source().map(|source| Box::new(Self::of(source))) }
    }
}

impl Error {
    /// An error without hints or cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hints: Vec::new(),
            source: None,
            reason: None,
            parameters: Vec::new(),
        }
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: Hint) -> Self {
        self.hints.push(hint);
        self
    }

    /// Records that the message or a hint names this parameter of the contract.
    #[must_use]
    pub fn naming(mut self, parameter: impl Into<String>) -> Self {
        self.parameters.push(parameter.into());
        self
    }

    /// Sets the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(Box::new(Cause::of(&*source.into())));
        self
    }

    /// Sets the causes of `error`, whose own text is already the message.
    #[must_use]
    pub fn with_causes_of(mut self, error: &dyn std::error::Error) -> Self {
        let causes =
            std::iter::successors(error.source(), |error| (*error).source()).map(ToString::to_string);
        let causes: Vec<String> = causes.collect();
        if !causes.is_empty() {
            self.source = Some(Box::new(Cause { text: causes.join(": "), source: None }));
        }
        self
    }

    /// The message with its causes, in one line.
    pub fn in_full(&self) -> String {
        let causes = std::iter::successors(self.source.as_deref(), |cause| cause.source.as_deref());
        causes.fold(self.message.clone(), |text, cause| format!("{text}: {cause}"))
    }

    /// The hints for a reader, one entry each.
    pub fn hints_for(&self, reader: Reader) -> Vec<String> {
        self.hints.iter().filter_map(|hint| hint.words(reader)).map(Into::into).collect()
    }

    /// A defect in pyro.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message).hint(Hint::ReportDefect)
    }

    /// `value` of field `name` is outside `least..=most`.
    pub fn out_of_range(name: &str, least: i64, most: i64) -> Self {
        Self::new(ErrorKind::InvalidInput, format!("{name} must be between {least} and {most}")).naming(name)
    }

    /// The time limit of a command is not positive.
    pub fn timeout_not_positive() -> Self {
        Self::new(ErrorKind::InvalidInput, "timeout_seconds must be positive")
            .hint(Hint::PositiveTimeout)
            .naming("timeout_seconds")
    }

    /// The time limit of a command is longer than its task can live, which is `most` seconds.
    pub fn timeout_beyond_lifetime(most: i64) -> Self {
        let message = format!("timeout_seconds must be at most {most}, which is left of the task's lifetime");
        Self::new(ErrorKind::InvalidInput, message).hint(Hint::ExtendLifetime).naming("timeout_seconds")
    }

    /// No VM or task has this id. `id` may be any text; it is escaped and cut before it is shown.
    pub fn not_found(kind: Kind, id: &str) -> Self {
        Self::new(ErrorKind::NotFound, format!("{kind} '{}' does not exist", shown(id))).hint(match kind {
            Kind::Vm => Hint::CreateAnotherVm,
            Kind::Task => Hint::ListTasks,
        })
    }

    /// The VM's lifetime ended.
    pub fn vm_expired(id: &str) -> Self {
        Self::new(ErrorKind::Expired, format!("vm '{}' expired and was automatically deleted", shown(id)))
            .hint(Hint::LongerLifetime)
            .naming("ttl_seconds")
    }

    /// The maximum number of VMs and tasks is reached.
    pub fn at_capacity(max_active_vms: u32) -> Self {
        let message = format!("max active VMs reached ({max_active_vms}); delete old VMs first");
        Self::new(ErrorKind::AtCapacity, message).hint(Hint::LimitCountsStopped)
    }

    /// A start in a state that does not allow it.
    pub fn cannot_start(kind: Kind, id: &str, state: VmState) -> Self {
        let message = format!("{kind} {} cannot be started from state '{state}'", shown(id));
        Self::new(ErrorKind::WrongState, message).hint(Hint::AlreadyRunning)
    }

    /// A command for a VM or task that is not running.
    pub fn not_started(kind: Kind, id: &str, state: VmState) -> Self {
        let (what_for, names) = match kind {
            Kind::Vm => ("execution", None),
            Kind::Task => ("task_exec", Some("task_exec")),
        };
        let message = format!("{kind} {} must be in 'started' state before {what_for}", shown(id));
        let error =
            Self::new(ErrorKind::WrongState, message).hint(Hint::StartFirst { state: state.to_string() });
        names.into_iter().fold(error, Self::naming)
    }

    /// A command for a task whose lifetime has ended.
    pub fn task_expired(id: &str) -> Self {
        let error = Self::not_started(Kind::Task, id, VmState::Stopped);
        Self { kind: ErrorKind::Expired, hints: Vec::new(), ..error }
            .caused_by("its lifetime ended, and it was stopped; its files and its journal are kept")
            .hint(Hint::StartTask)
    }

    /// VMs cannot boot here and the caller did not agree to run on the host.
    pub fn boot_unavailable(reason: &str) -> Self {
        let reason = reason.trim_end().trim_end_matches('.');
        let message = format!("guest boot is unavailable and host compatibility mode is disabled: {reason}.");
        Self::new(ErrorKind::VmUnavailable, message).hint(Hint::FindMissing)
    }

    /// The channel to the guest agent did not open; the command was not sent.
    pub fn transport_not_ready(cause: &str) -> Self {
        let message = format!("guest exec transport did not become ready: {cause}");
        Self::new(ErrorKind::NotDelivered, message).hint(Hint::SafeToRepeat)
    }

    /// The VM cannot be asked for something that is not a command; nothing was done.
    pub fn unreachable(cause: &str) -> Self {
        let message = format!("the VM cannot be reached: {cause}");
        Self::new(ErrorKind::NotDelivered, message).hint(Hint::NothingWasDone)
    }

    /// The command was sent and its result is lost.
    pub fn outcome_unknown(kind: Kind, id: &str) -> Self {
        let message = format!("connection to {kind} {} was lost while its command ran", shown(id));
        Self::new(ErrorKind::OutcomeUnknown, message).hint(Hint::MayHaveRun)
    }

    /// The caller cancelled.
    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "cancelled")
    }
}

/// Maximum length of a caller's text in a message, in characters.
const SHOWN_CHARS: usize = 64;

/// `text` fit for a one-line message: control characters escaped, cut to [`SHOWN_CHARS`].
fn shown(text: &str) -> String {
    printable_line(text, SHOWN_CHARS)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io;

    use proptest::prelude::*;

    use super::*;

    /// Some chains of causes.
    pub(crate) fn causes() -> impl Strategy<Value = Option<Box<Cause>>> {
        proptest::collection::vec(any::<String>(), 0..4).prop_map(|texts| {
            let chain = |source, text| Some(Box::new(Cause { text, source }));
            texts.into_iter().fold(None, chain)
        })
    }

    /// Texts that callers of the contract may match on.
    #[test]
    fn texts_are_the_contracts() {
        let id = "de259a89b184";
        let errors = [
            Error::out_of_range("vcpu_count", 1, 8),
            Error::timeout_not_positive(),
            Error::not_found(Kind::Vm, id),
            Error::not_found(Kind::Task, id),
            Error::vm_expired(id),
            Error::at_capacity(4),
            Error::cannot_start(Kind::Vm, id, VmState::Started),
            Error::not_started(Kind::Vm, id, VmState::Stopped),
            Error::not_started(Kind::Task, id, VmState::Stopped),
            Error::task_expired(id),
            Error::boot_unavailable("no VMM was found"),
            Error::transport_not_ready("no answer within 10 s"),
            Error::outcome_unknown(Kind::Vm, id),
            Error::cancelled(),
            Error::internal("no random numbers"),
        ];
        let lines: Vec<String> = errors
            .iter()
            .map(|error| format!("{:?}: {error} {:?}", error.kind, error.hints_for(Reader::Person)))
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn the_message_does_not_repeat_the_cause() {
        let error = Error::new(ErrorKind::StateUnusable, "outer").caused_by(io::Error::other("inner"));
        assert_eq!(error.to_string(), "outer");
        assert_eq!(error.source.unwrap().to_string(), "inner");
    }

    #[test]
    fn text_from_outside_cannot_break_a_message() {
        let hostile = "\u{1b}[2J\n\u{202e}".repeat(500);
        for error in [Error::not_found(Kind::Task, &hostile), Error::vm_expired(&hostile)] {
            assert!(error.message.len() < 2000);
            assert!(!error.message.contains(['\u{1b}', '\n', '\u{202e}']), "{error}");
        }
    }

    #[test]
    fn all_kinds_are_listed_once() {
        for (index, kind) in ErrorKind::ALL.into_iter().enumerate() {
            // `ALL` is in the order of the declaration, so a kind that was forgotten shifts the rest.
            assert_eq!(kind as usize, index);
        }
        assert_eq!(ErrorKind::ALL.last(), Some(&ErrorKind::Internal));
    }
}
