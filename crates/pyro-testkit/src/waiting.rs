//! Bounded waits for changes without an event, and limits of time for slow machines.

#![expect(clippy::disallowed_methods, reason = "the factor is set by the program that runs the tests")]

use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

/// Environment variable with the number of times that this machine is slower than those for which limits were chosen.
const FACTOR: &str = "PYRO_TEST_TIME_FACTOR";

/// Bound on waits. Generous: the machine may be busy. What waits for it multiplies it by the factor of this machine.
pub const LONG: Duration = Duration::from_secs(120);

/// Time between two checks. Long enough to leave the processor to the processes that are waited for.
const PAUSE: Duration = Duration::from_millis(10);

/// Returns a limit of time on this machine: the given one, or a multiple of it if `PYRO_TEST_TIME_FACTOR` says that the
/// machine is slower than usual.
///
/// # Panics
/// The variable is not a number from 1 to 1000.
pub fn scaled(limit: Duration) -> Duration {
    static HERE: LazyLock<u32> = LazyLock::new(|| factor(std::env::var(FACTOR).ok().as_deref()));
    limit * *HERE
}

fn factor(value: Option<&str>) -> u32 {
    let Some(value) = value else { return 1 };
    let factor = value.parse().ok().filter(|factor| (1..=1000).contains(factor));
    factor.unwrap_or_else(|| panic!("invalid {FACTOR}: expected a number from 1 to 1000, not {value}"))
}

/// Looks again and again until `reached`, at most for `limit`, scaled; whether it was. For what has no event, such as the
/// end of a process that is not a child; a descriptor, a channel or a child is waited for as such.
pub fn reached_within(limit: Duration, mut reached: impl FnMut() -> bool) -> bool {
    let limit = scaled(limit);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_is_a_positive_number() {
        assert_eq!(factor(None), 1);
        assert_eq!(factor(Some("7")), 7);
        for wrong in ["0", "-1", "1.5", "", "1001"] {
            assert!(std::panic::catch_unwind(|| factor(Some(wrong))).is_err(), "{wrong}");
        }
    }
}
