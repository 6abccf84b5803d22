//! How a machine ends, and what that means for work that needs it.

use std::fmt;
use std::process::ExitStatus;

use crate::network::NetworkError;

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, or because another process killed it.
    Status(ExitStatus),
    /// Unknown: its process could not be waited for.
    Lost {
        /// Why not.
        reason: String,
    },
    /// Its VMM paused it by itself and was ended, because nothing would have made the machine go on.
    Paused {
        /// Why the VMM paused it.
        cause: String,
    },
}

impl Exit {
    /// Returns the exit status in words.
    pub fn status(&self) -> String {
        match self {
            Self::Status(status) => status.to_string(),
            Self::Lost { reason } => reason.clone(),
            Self::Paused { cause } => format!("the VMM paused it: {cause}"),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "the VMM ended: {status}"),
            Self::Lost { reason } => write!(f, "the VMM was lost: {reason}"),
            Self::Paused { cause } => write!(f, "the VMM paused the machine: {cause}"),
        }
    }
}

/// What prevents a machine from becoming the VM of a caller.
#[derive(Debug)]
pub enum Interruption {
    /// It ended.
    Exit(Exit),
    /// Its network failed; the machine may still be running.
    Network(NetworkError),
}

/// Why work that needs a living machine was not done.
#[derive(Debug, thiserror::Error)]
pub enum Interrupted<E: std::error::Error + 'static> {
    /// The work failed; the machine is alive.
    #[error(transparent)]
    Failed(E),
    /// The machine ended first.
    #[error("{0}")]
    Exited(Exit),
    /// The machine ended, which made the work fail.
    #[error("{exit}")]
    FailedByExit {
        /// How the machine ended.
        exit: Exit,
        /// How the end was noticed.
        #[source]
        cause: E,
    },
    /// The machine's network failed first. This says nothing about the machine or the work.
    #[error(transparent)]
    Network(NetworkError),
}
