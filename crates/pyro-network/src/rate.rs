//! How fast a guest may open connections and flows, and ask the host's resolvers. Each leaves an entry in the host's table of
//! connections, which lasts longer than the connection and is shared by everything on the host.

use std::time::{Duration, Instant};

use crate::limits;

/// A token bucket.
#[derive(Debug)]
pub(crate) struct Rate {
    burst: u32,
    /// Time in which one more token is added.
    interval: Duration,
    left: u32,
    /// When the latest token was added.
    refilled: Instant,
}

impl Rate {
    fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        Self { burst, interval: Duration::from_secs(1) / per_second, left: burst, refilled: now }
    }

    /// For new connections and flows.
    pub(crate) fn of_flows(now: Instant) -> Self {
        Self::new(limits::NEW_FLOWS_BURST, limits::NEW_FLOWS_PER_SECOND, now)
    }

    /// For questions to the host's resolvers.
    pub(crate) fn of_questions(now: Instant) -> Self {
        Self::new(limits::DNS_BURST, limits::DNS_PER_SECOND, now)
    }

    /// Takes a token. Returns whether there was one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.refilled);
        let due = u32::try_from(elapsed.as_nanos() / self.interval.as_nanos()).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(due);
        if self.left >= self.burst {
            self.left = self.burst;
            self.refilled = now;
        } else {
            self.refilled += self.interval * due;
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
        let mut rate = Rate::of_flows(start);
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
