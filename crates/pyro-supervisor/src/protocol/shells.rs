//! What clients ask about shells, and what they are answered.

use pyro_wire::TerminalSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conversation::CommandOutcome;

/// Maximum number of shells that run in a VM at once.
pub const MAX_OPEN_SHELLS: usize = 16;
/// Maximum number of bytes that are kept of what a shell's terminal wrote.
pub const SCROLLBACK_BYTES: u64 = 1 << 20;

/// Read what a shell's terminal wrote. The bytes are counted from the start of the shell, and a cursor is such a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadShell {
    /// Number of the shell in the journal.
    pub sequence: u64,
    /// Where to begin. Absent: [`Self::max_bytes`] before the end of what was written so far; with [`Self::fresh`], there.
    pub cursor: Option<u64>,
    /// Only what is written from now on ends the wait.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
    /// Maximum number of bytes to return, at most [`SCROLLBACK_BYTES`].
    pub max_bytes: u64,
    /// Maximum time to wait, in milliseconds.
    pub wait_ms: u64,
    /// Wait until there are bytes to return and the terminal has written none for this time, in milliseconds. Zero: wait for
    /// the first byte.
    pub idle_ms: u64,
    /// Send at most this number of bytes before the first one as well. They are not waited for.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub before: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What follows the bytes that were read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShellPart {
    /// Offset of the first byte that was returned.
    pub start: u64,
    /// Number of bytes that were sent before that one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub before: u64,
    /// Number of bytes from the requested cursor on that the scrollback no longer has.
    pub dropped: u64,
    /// Why the read ended.
    pub reason: ReadReason,
    /// The shell.
    pub shell: ShellState,
}

/// Why a read of a shell ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadReason {
    /// There is output, and the caller did not ask to wait for the end of it.
    Output,
    /// There is output, and then there was none for the requested time.
    Idle,
    /// There are as many bytes as requested, or more.
    Full,
    /// The shell has ended, and this is the rest of its output.
    Ended,
    /// It has timed out.
    Time,
}

/// A shell, as its supervisor knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShellState {
    /// Its number in the journal.
    pub sequence: u64,
    /// Size of its terminal.
    pub size: TerminalSize,
    /// Number of bytes that its terminal has written.
    pub written: u64,
    /// What became of it. Absent while it runs.
    pub outcome: Option<CommandOutcome>,
}
