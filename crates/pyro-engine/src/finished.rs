//! The result of a finished command.

use std::time::Duration;

/// Exit code of a command that reached its time limit.
pub(crate) const TIMED_OUT: i64 = 124;

/// Exit code of a command that was killed.
pub(crate) const KILLED: i64 = -9;

/// How a command ended, in a guest or on the host.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Exit code; −S after signal S; 124 after the time limit.
    pub(crate) exit_code: i64,
    /// Kept output; empty if it was streamed.
    pub(crate) stdout: Vec<u8>,
    /// Kept output; empty if it was streamed.
    pub(crate) stderr: Vec<u8>,
    /// Bytes dropped beyond the capture limit.
    pub(crate) stdout_truncated: u64,
    /// Bytes dropped beyond the capture limit.
    pub(crate) stderr_truncated: u64,
    /// The command reached its time limit.
    pub(crate) timed_out: bool,
    /// Time from the command's start to its end.
    pub(crate) duration: Duration,
}
