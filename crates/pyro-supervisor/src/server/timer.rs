//! Waits for a wall-clock time.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustix::time::{timerfd_create, timerfd_settime};
use tokio::net::unix::pipe;

/// The clock of this host.
pub(super) struct WallClock;

/// Returns when the wall clock reaches `unix_seconds`. Uses a timer on the wall clock, not a sleep: a host that was
/// suspended must find the time passed when it wakes up.
pub(super) async fn wall_clock_reaches(unix_seconds: f64) -> io::Result<()> {
    let target = match Duration::try_from_secs_f64(unix_seconds) {
        Ok(target) => target,
        // It is too far away, as the end of what has none.
        Err(_) if unix_seconds > 0.0 => return std::future::pending().await,
        Err(_) => Duration::ZERO,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if target <= now {
        return Ok(());
    }
    // As far away as that.
    let Ok(it_value) = Timespec::try_from(target) else { return std::future::pending().await };
    let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
    timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME, &spec)?;
    // A timer's descriptor is read like a pipe.
    pipe::Receiver::from_owned_fd_unchecked(timer)?.readable().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_no_clock_reaches_is_not_now() {
        for never in [f64::MAX, f64::INFINITY, 1e19] {
            let reached = tokio::time::timeout(Duration::from_millis(20), wall_clock_reaches(never));
            assert!(reached.await.is_err(), "{never}");
        }
    }

    #[tokio::test]
    async fn it_waits_for_the_future_and_not_for_the_past() {
        wall_clock_reaches(0.0).await.unwrap();
        wall_clock_reaches(-1.0).await.unwrap();
        let start = std::time::Instant::now();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        wall_clock_reaches((now + Duration::from_millis(50)).as_secs_f64()).await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(45));
    }
}
