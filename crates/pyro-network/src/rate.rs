//! How fast a guest may open connections and flows. Each leaves an entry in the host's table of connections, which lasts
//! longer than the connection and is shared by everything on the host.

use std::time::{Duration, Instant};

use crate::limits;

/// Time in which one more may be opened.
const INTERVAL: Duration = Duration::from_micros(1_000_000 / limits::NEW_FLOWS_PER_SECOND as u64);

/// A token bucket for new connections and flows.
#[derive(Debug)]
pub(crate) struct Rate {
    left: u32,
    /// When the latest token was added.
    refilled: Instant,
}

impl Rate {
    pub(crate) fn new(now: Instant) -> Self {
        Self { left: limits::NEW_FLOWS_BURST, refilled: now }
    }

    /// Takes a token. Returns whether there was one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.refilled);
        let due = u32::try_from(elapsed.as_nanos() / INTERVAL.as_nanos()).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(due);
        if self.left >= limits::NEW_FLOWS_BURST {
            self.left = limits::NEW_FLOWS_BURST;
            self.refilled = now;
        } else {
            self.refilled += INTERVAL * due;
        }
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_followed_by_a_steady_rate() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let mut taken = |milliseconds: u64| {
            let now = start + Duration::from_millis(milliseconds);
            (0..10_000).filter(|_| rate.take(now)).count()
        };
        let burst = limits::NEW_FLOWS_BURST as usize;
        assert_eq!(taken(0), burst);
        // Parts of an interval are not lost.
        assert_eq!((15..=1005).step_by(15).map(&mut taken).sum::<usize>(), 100);
        assert_eq!(taken(2005), 100);
        // What is not used adds up to a burst.
        assert_eq!(taken(3_600_000), burst);
    }
}
