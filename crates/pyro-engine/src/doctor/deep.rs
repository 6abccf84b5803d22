//! The report of `doctor --deep`.

use std::fmt;

use serde::Serialize;

/// What was read, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeepReport {
    /// No check has found a problem.
    pub intact: bool,
    /// Everything that was examined, in a fixed order, and everything that should not exist.
    pub checks: Vec<DeepCheck>,
}

impl DeepReport {
    pub(crate) fn of(checks: Vec<DeepCheck>) -> Self {
        Self { intact: checks.iter().all(|check| check.problem.is_none()), checks }
    }
}

/// One thing that was examined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeepCheck {
    /// What it is.
    pub subject: DeepSubject,
    /// Its name, or its path.
    pub name: String,
    /// What is wrong with it; null if nothing is.
    pub problem: Option<String>,
}

impl DeepCheck {
    pub(crate) fn new(subject: DeepSubject, name: impl fmt::Display, problem: Option<String>) -> Self {
        Self { subject, name: name.to_string(), problem }
    }
}

/// Kinds of things that are examined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeepSubject {
    /// An installed environment: digests of its files, and who can change them.
    Environment,
    /// A template: digests of its files, and who can change them.
    Template,
    /// The configured guest kernel: whether it is one, and who can change it.
    Kernel,
    /// The state directory and its parents: who can change them.
    State,
    /// A file, socket, or mount of a VM or build that is gone.
    Leftover,
}

impl fmt::Display for DeepSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Environment => "environment",
            Self::Template => "template",
            Self::Kernel => "kernel",
            Self::State => "state",
            Self::Leftover => "leftover",
        })
    }
}
