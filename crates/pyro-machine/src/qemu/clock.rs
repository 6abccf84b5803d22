//! Rate of the host's time stamp counter, which an emulated guest sees as its own.
//!
//! A guest kernel measures that rate against the emulated PC timer. On a busy host the emulated timer comes
//! too late for that, and the kernel, left without any clock, hangs forever. So pyro passes it the rate.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Enough for a rate that is right to a few parts per million.
const SPAN: Duration = Duration::from_millis(10);
/// Maximum time between two readings. One clock continues while the host sleeps; the other may not.
const MAX_SPAN: Duration = Duration::from_secs(1);
/// A reading of both clocks that took longer was interrupted.
const MAX_READING_TICKS: u64 = 10_000;
const MAX_ATTEMPTS: usize = 100;

/// One reading of both clocks.
#[derive(Debug)]
struct Reading {
    ticks: u64,
    nanos: u128,
}

/// The counter's rate, from a first reading on.
#[derive(Debug)]
pub(crate) struct Clock(Reading);

impl Clock {
    /// Takes the first reading. Other work can be done until the second one.
    pub(crate) fn start() -> Self {
        Self(read())
    }

    /// Ticks per millisecond. Waits up to 10 ms if the first reading is too recent, and takes another one if it is so old
    /// that the host may have slept in between.
    pub(crate) async fn khz(&self) -> Option<u32> {
        let again;
        let mut start = &self.0;
        let mut elapsed = start.nanos_until(&read())?;
        if elapsed > MAX_SPAN {
            again = read();
            (start, elapsed) = (&again, Duration::ZERO);
        }
        tokio::time::sleep(SPAN.saturating_sub(elapsed)).await;
        let end = read();
        let ticks = u128::from(end.ticks.checked_sub(start.ticks)?);
        u32::try_from((ticks * 1_000_000).checked_div(end.nanos.checked_sub(start.nanos)?)?).ok()
    }
}

impl Reading {
    fn nanos_until(&self, end: &Self) -> Option<Duration> {
        Some(Duration::from_nanos(u64::try_from(end.nanos.checked_sub(self.nanos)?).ok()?))
    }
}

fn read() -> Reading {
    let attempt = || {
        let before = ticks();
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
        let after = ticks();
        let nanos = u128::from(tv_sec.unsigned_abs()) * 1_000_000_000 + u128::from(tv_nsec.unsigned_abs());
        (after.saturating_sub(before), Reading { ticks: before / 2 + after / 2, nanos })
    };
    let mut best = attempt();
    for _ in 0..MAX_ATTEMPTS {
        if best.0 <= MAX_READING_TICKS {
            break;
        }
        let next = attempt();
        if next.0 < best.0 {
            best = next;
        }
    }
    best.1
}

#[expect(unsafe_code, reason = "processor instruction")]
fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn two_measurements_agree() {
        let first = Clock::start().khz().await.unwrap();
        let second = Clock::start().khz().await.unwrap();
        let old = Clock(Reading { ticks: 0, nanos: 0 }).khz().await.unwrap();
        assert!(first.abs_diff(old) < first / 1000, "an old reading is not used: {first} and {old} kHz");
        assert!(first > 100_000, "{first} kHz is not a plausible clock rate");
        assert!(first.abs_diff(second) < first / 1000, "{first} and {second} kHz");
    }
}
