//! The two things that callers name by an id.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an id names. Both are a VM with a record; they differ in when they go and in what is said about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Goes with its command or at the end of its lifetime.
    Vm,
    /// Stays, with its disk and its journal, until it is deleted.
    Task,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vm => "vm",
            Self::Task => "task",
        })
    }
}
