//! Pauses between the runs of a service's command.

use std::time::Duration;

/// Pause before the first restart. It doubles with each, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// A command that has run for this long, since it was ready, has its first pause again.
const STEADY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Backoff {
    pause: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { pause: FIRST_PAUSE }
    }

    /// Returns the pause after a command that ran for this long since it was ready.
    pub(super) fn after(&mut self, ran: Duration) -> Duration {
        if ran >= STEADY {
            self.pause = FIRST_PAUSE;
        }
        let pause = self.pause;
        self.pause = MAX_PAUSE.min(pause * 2);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_until_a_command_runs_for_one() {
        let mut backoff = Backoff::new();
        let pauses = [0; 8].map(|ran| backoff.after(Duration::from_secs(ran)).as_secs());
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff.after(Duration::from_secs(59)), MAX_PAUSE);
        assert_eq!(backoff.after(STEADY), FIRST_PAUSE);
        assert_eq!(backoff.after(Duration::ZERO).as_secs(), 2);
    }
}
