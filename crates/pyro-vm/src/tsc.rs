//! Rate of the host's time stamp counter, which an emulated guest sees as its own.
//!
//! A guest kernel measures that rate against the emulated PC timer. On a busy host the emulated timer comes
//! too late for that, the kernel is left without any clock and hangs for ever, so it is told instead.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Enough for a rate that is right to a few parts per million.
const SPAN: Duration = Duration::from_millis(10);
/// A reading of both clocks that took longer was interrupted.
const MAX_READING_TICKS: u64 = 10_000;
const MAX_ATTEMPTS: usize = 100;

/// One reading of both clocks.
struct Reading {
    ticks: u64,
    nanos: u128,
}

/// A measurement under way.
pub(crate) struct Measurement(Reading);

impl Measurement {
    pub(crate) fn start() -> Self {
        Self(read())
    }

    /// Ticks per millisecond. Waits if the start was too recent.
    pub(crate) async fn finish(self) -> Option<u32> {
        let Self(start) = self;
        let elapsed = Duration::from_nanos(u64::try_from(read().nanos - start.nanos).ok()?);
        tokio::time::sleep(SPAN.saturating_sub(elapsed)).await;
        let end = read();
        let ticks = u128::from(end.ticks.checked_sub(start.ticks)?);
        u32::try_from((ticks * 1_000_000).checked_div(end.nanos.checked_sub(start.nanos)?)?).ok()
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
        let first = Measurement::start().finish().await.unwrap();
        let second = Measurement::start().finish().await.unwrap();
        assert!(first > 100_000, "{first} kHz is no processor of this century");
        assert!(first.abs_diff(second) < first / 1000, "{first} and {second} kHz");
    }
}
