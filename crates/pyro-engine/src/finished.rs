//! The end of a command.

use std::time::Duration;

/// Exit code of a command that reached its time limit.
pub(crate) const TIMED_OUT: i64 = 124;

/// Exit code of a command that was ended by force.
pub(crate) const KILLED: i64 = -9;

/// How a command ended, wherever it ran.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Exit code; −S after signal S; 124 after the time limit.
    pub(crate) exit_code: i64,
    /// Kept output; empty if it was streamed.
    pub(crate) stdout: Vec<u8>,
    /// Kept output; empty if it was streamed.
    pub(crate) stderr: Vec<u8>,
    /// Bytes beyond the limit of what is kept.
    pub(crate) stdout_truncated: u64,
    /// Bytes beyond the limit of what is kept.
    pub(crate) stderr_truncated: u64,
    /// The time limit ended it.
    pub(crate) timed_out: bool,
    /// From its start to its end.
    pub(crate) duration: Duration,
}
