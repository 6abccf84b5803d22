//! Bounded waits for changes without an event.

use std::thread;
use std::time::{Duration, Instant};

/// Bound on waits. Generous: the machine may be busy.
pub const LONG: Duration = Duration::from_secs(120);

/// Time between two checks. Long enough to leave the processor to the processes that are waited for.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks again and again until `reached`, at most for `limit`; whether it was. For what has no event, such as the end of
/// a process that is not a child; a descriptor, a channel or a child is waited for as such.
pub fn reached_within(limit: Duration, mut reached: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if reached() {
            return true;
        }
        if start.elapsed() >= limit {
            return false;
        }
        thread::sleep(PAUSE);
    }
}

/// The same where it has to be reached.
///
/// # Panics
/// It takes longer than `limit`.
pub fn wait_until(limit: Duration, what: &str, reached: impl FnMut() -> bool) {
    assert!(reached_within(limit, reached), "timed out waiting for {what} after {limit:?}");
}
