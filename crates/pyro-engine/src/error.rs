//! The one error type of the crate.

use std::error::Error;
use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use crate::VmState;
use crate::kind::Kind;

/// What a caller can do about an error, as a small closed set.
///
/// Front ends map it to exit codes, MCP errors and Python exceptions; [`ErrorKind::ALL`] lets a test
/// prove that none is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is wrong; the same request will always fail.
    InvalidInput,
    /// The named VM or task does not exist (any more).
    NotFound,
    /// The VM or task is in a state that does not allow this.
    WrongState,
    /// As many VMs exist as may; delete one first.
    AtCapacity,
    /// The lifetime has ended: a VM was removed, a task was stopped.
    Expired,
    /// The environment is not installed, could not be installed, or is damaged.
    EnvironmentUnavailable,
    /// VMs cannot run on this host as it is.
    VmUnavailable,
    /// The VM did not come up.
    BootFailed,
    /// The command surely did not start; asking again is safe.
    NotDelivered,
    /// The command was sent and its result is lost; it may have run.
    OutcomeUnknown,
    /// The state directory or the registry in it cannot be used.
    StateUnusable,
    /// The caller cancelled the call.
    Cancelled,
    /// A fault in pyro itself.
    Internal,
}

impl ErrorKind {
    /// Every kind once.
    pub const ALL: [Self; 13] = [
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
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

/// An error of the engine: kind, message, hints and cause, each apart from the others.
///
/// `Display` is the message with [`Self::opt_in`], which does not repeat the cause; `Error::source` gives the chain.
#[derive(Debug)]
pub struct EngineError {
    /// What the caller can do about it.
    pub kind: ErrorKind,
    /// One line; the contract's text where it gives one.
    pub message: String,
    /// Sentence of the contract that follows the message and says which right the caller could have given. Left out
    /// where the reader must not be invited to take that right.
    pub opt_in: Option<&'static str>,
    /// Lines for people that say what to do next.
    pub hints: Vec<String>,
    /// The cause.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.opt_in.map_or(Ok(()), |opt_in| write!(f, " {opt_in}"))
    }
}

impl Error for EngineError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn Error + 'static))
    }
}

impl EngineError {
    /// An error without hints or cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), opt_in: None, hints: Vec::new(), source: None }
    }

    /// The same with one more line that says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The same with its cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same with the causes of `error`, whose own text is the message already.
    #[must_use]
    pub(crate) fn with_causes_of(mut self, error: &dyn Error) -> Self {
        let causes =
            std::iter::successors(error.source(), |error| (*error).source()).map(ToString::to_string);
        let causes: Vec<String> = causes.collect();
        if !causes.is_empty() {
            self.source = Some(causes.join(": ").into());
        }
        self
    }

    /// The message and its causes, in one line.
    pub fn in_full(&self) -> String {
        self.with_causes(self.to_string())
    }

    /// The same without [`Self::opt_in`].
    pub fn in_full_without_opt_in(&self) -> String {
        self.with_causes(self.message.clone())
    }

    fn with_causes(&self, text: String) -> String {
        let causes = std::iter::successors(self.source(), |cause| (*cause).source());
        causes.fold(text, |text, cause| format!("{text}: {cause}"))
    }

    /// A fault in pyro itself.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message).hint("this is a fault in pyro; please report it")
    }

    /// `value` of field `name` is outside `least..=most`.
    pub fn out_of_range(name: &str, least: i64, most: i64) -> Self {
        Self::new(ErrorKind::InvalidInput, format!("{name} must be between {least} and {most}"))
    }

    /// The time limit of a command is not positive.
    pub fn timeout_not_positive() -> Self {
        Self::new(ErrorKind::InvalidInput, "timeout_seconds must be positive")
            .hint("give at least 1 second; the default is 30")
    }

    /// No VM or task has this id. `id` may be any text; it is escaped and cut before it is shown.
    pub(crate) fn not_found(kind: Kind, id: &str) -> Self {
        Self::new(ErrorKind::NotFound, format!("{kind} '{}' does not exist", shown(id))).hint(match kind {
            Kind::Vm => "a VM is deleted after its command has run; create a new one",
            Kind::Task => "`pyro task list` shows those that do",
        })
    }

    /// The VM's lifetime ended.
    pub(crate) fn vm_expired(id: &str) -> Self {
        Self::new(ErrorKind::Expired, format!("vm '{}' expired and was automatically deleted", shown(id)))
            .hint("create a new one, with a larger ttl_seconds (at most 3600) if it must live longer")
    }

    /// The ceiling on VMs is reached.
    pub fn at_capacity(max_active_vms: u32) -> Self {
        let message = format!("max active VMs reached ({max_active_vms}); delete old VMs first");
        Self::new(ErrorKind::AtCapacity, message)
            .hint("VMs and tasks of every process that uses this state directory count, stopped ones too")
    }

    /// A start in a state that does not allow it.
    pub(crate) fn cannot_start(kind: Kind, id: &str, state: VmState) -> Self {
        let message = format!("{kind} {} cannot be started from state '{state}'", shown(id));
        Self::new(ErrorKind::WrongState, message).hint("it is running already; use it as it is")
    }

    /// A command for a VM or task that is not running.
    pub(crate) fn not_started(kind: Kind, id: &str, state: VmState) -> Self {
        let what_for = match kind {
            Kind::Vm => "execution",
            Kind::Task => "task_exec",
        };
        let message = format!("{kind} {} must be in 'started' state before {what_for}", shown(id));
        Self::new(ErrorKind::WrongState, message).hint(format!("its state is '{state}'; start it first"))
    }

    /// A command for a task whose lifetime is over.
    pub(crate) fn task_expired(id: &str) -> Self {
        let error = Self::not_started(Kind::Task, id, VmState::Stopped);
        Self { kind: ErrorKind::Expired, hints: Vec::new(), ..error }
            .caused_by("its lifetime ended, and it was stopped; its files and its journal are kept")
            .hint("`pyro task start` begins another lifetime")
    }

    /// VMs cannot boot here and the caller did not agree to run on the host.
    pub fn boot_unavailable(reason: &str) -> Self {
        let reason = reason.trim_end().trim_end_matches('.');
        let message = format!("guest boot is unavailable and host compatibility mode is disabled: {reason}.");
        let opt_in = "Set allow_host_compat=True (CLI: --allow-host-compat) to opt into host execution.";
        let error = Self::new(ErrorKind::VmUnavailable, message).hint("`pyro doctor` says what is missing");
        Self { opt_in: Some(opt_in), ..error }
    }

    /// The channel to the guest agent did not open; the command was not sent.
    pub fn transport_not_ready(cause: &str) -> Self {
        let message = format!("guest exec transport did not become ready: {cause}");
        Self::new(ErrorKind::NotDelivered, message)
            .hint("the command was not started; it is safe to try again")
    }

    /// The command was sent and its result is lost.
    pub(crate) fn outcome_unknown(kind: Kind, id: &str) -> Self {
        let message = format!("connection to {kind} {} was lost while its command ran", shown(id));
        Self::new(ErrorKind::OutcomeUnknown, message)
            .hint("the command may have run, wholly or in part; it was not repeated")
    }

    /// The caller cancelled.
    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "cancelled")
    }
}

/// Longest part of a caller's text that a message repeats, in characters.
const SHOWN_CHARS: usize = 64;

/// `text` fit for a one-line message: control characters escaped, cut to [`SHOWN_CHARS`].
fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(SHOWN_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARS).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Texts that callers of the contract may match on.
    #[test]
    fn texts_are_the_contracts() {
        let id = "de259a89b184";
        let errors = [
            EngineError::out_of_range("vcpu_count", 1, 8),
            EngineError::timeout_not_positive(),
            EngineError::not_found(Kind::Vm, id),
            EngineError::not_found(Kind::Task, id),
            EngineError::vm_expired(id),
            EngineError::at_capacity(4),
            EngineError::cannot_start(Kind::Vm, id, VmState::Started),
            EngineError::not_started(Kind::Vm, id, VmState::Stopped),
            EngineError::not_started(Kind::Task, id, VmState::Stopped),
            EngineError::task_expired(id),
            EngineError::boot_unavailable("no VMM was found"),
            EngineError::transport_not_ready("no answer within 10 s"),
            EngineError::outcome_unknown(Kind::Vm, id),
            EngineError::cancelled(),
            EngineError::internal("no random numbers"),
        ];
        let lines: Vec<String> =
            errors.iter().map(|error| format!("{:?}: {error} {:?}", error.kind, error.hints)).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn the_message_does_not_repeat_the_cause() {
        let error = EngineError::new(ErrorKind::StateUnusable, "outer").caused_by(io::Error::other("inner"));
        assert_eq!(error.to_string(), "outer");
        assert_eq!(error.source().unwrap().to_string(), "inner");
    }

    #[test]
    fn text_from_outside_cannot_break_a_message() {
        let hostile = "\u{1b}[2J\n\u{202e}".repeat(500);
        for error in [EngineError::not_found(Kind::Task, &hostile), EngineError::vm_expired(&hostile)] {
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
