//! What the kernel does when memory runs out.

use std::fs;
use std::io::ErrorKind;

use crate::fault::{During, Fault};

/// How long pages that were used must stay in memory, in milliseconds. If they cannot, a process is killed.
const MIN_TTL_MS: &str = "1000";

/// Has the kernel kill a process when there is too little memory for what is in use. Left to itself it keeps
/// dropping and reading back the pages of programs, and a greedy command in a small machine may hang for ever instead
/// of being killed (seen in a fourth of the runs of `tail /dev/zero` with 256 MiB).
pub(crate) fn prevent_thrashing() -> Result<(), Fault> {
    for (file, value) in [("enabled", "y"), ("min_ttl_ms", MIN_TTL_MS)] {
        match fs::write(format!("/sys/kernel/mm/lru_gen/{file}"), value) {
            // A kernel without multi-generational LRU does what it can.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            outcome => outcome.during("setting up the reclaim of memory")?,
        }
    }
    Ok(())
}
