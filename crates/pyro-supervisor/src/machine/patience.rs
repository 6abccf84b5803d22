//! How long a start may take: a limit of the time without progress.
//!
//! Another step of the start is progress, and so is output on the machine's console. Time in which the machine waits for a
//! processor of the host does not count, so a start on a busy host is not given up. Without progress, a machine that uses
//! a processor has the whole limit, and one that does nothing a part of it. A machine that prints without end is given up
//! after a multiple of the limit.

use std::cell::RefCell;
use std::time::Duration;

use pyro_machine::{Console, Machine, Meter, Usage};
use tokio::time::{Instant, sleep};

use crate::BootStage;
use crate::stages::{Reporter, Stages};

/// Time between two looks at a machine that is starting. No event tells what it does.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Time limit for a machine that does nothing.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
/// A machine does nothing if it uses less than this part of a processor.
const IDLE_PART: u32 = 20;
/// How many times the limit a start may take with progress.
const MOST_LIMITS: u32 = 4;

/// Why a start is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Late {
    /// It used up the limit.
    #[error("not done after {} seconds{}", .limit.as_secs(), and_waited(*.waited))]
    Limit {
        /// The limit.
        limit: Duration,
        /// Time in which it waited for a processor, which does not count.
        waited: Duration,
    },
    /// It did nothing.
    #[error("nothing has happened for {} seconds: the VMM has neither computed nor printed anything", .0.as_secs())]
    Idle(Duration),
}

fn and_waited(waited: Duration) -> String {
    match waited.as_secs() {
        0 => String::new(),
        seconds => format!(", without {seconds} in which the host had no processor for it"),
    }
}

/// What can be seen of a start.
#[derive(Clone, Copy, Debug)]
struct Sight {
    /// Changes with progress.
    progress: (usize, u64),
    /// What the machine has used since it was launched; `None` if it is not known.
    usage: Option<Usage>,
}

/// The time that a start has used up.
#[derive(Debug)]
struct Patience {
    limit: Duration,
    /// Time that counts, in all and since the latest progress.
    total: Duration,
    without_progress: Duration,
    waited: Duration,
    idle: Duration,
    last: Sight,
}

impl Patience {
    fn new(limit: Duration, first: Sight) -> Self {
        let [total, without_progress, waited, idle] = [Duration::ZERO; 4];
        Self { limit, total, without_progress, waited, idle, last: first }
    }

    /// Takes note of what can be seen this time after the last look.
    ///
    /// # Errors
    /// The start is to be given up.
    fn note(&mut self, passed: Duration, sight: Sight) -> Result<(), Late> {
        // Who looks later than it wanted to had no processor or waited for the disk. So did the machine, perhaps.
        let passed = passed.min(LOOK_EVERY);
        let earlier = self.last.usage.unwrap_or_default();
        let used = sight.usage.map(|now| Usage {
            computed: now.computed.saturating_sub(earlier.computed),
            waited: now.waited.saturating_sub(earlier.waited).min(passed),
            is_blocked: now.is_blocked,
        });
        let waited = used.map_or(Duration::ZERO, |used| used.waited);
        self.waited += waited;
        self.total += passed - waited;
        if sight.progress == self.last.progress {
            self.without_progress += passed - waited;
        } else {
            self.without_progress = Duration::ZERO;
        }
        let is_idle = sight.progress == self.last.progress
            && used.is_some_and(|used| used.computed + used.waited < passed / IDLE_PART && !used.is_blocked);
        self.idle = if is_idle { self.idle + passed } else { Duration::ZERO };
        self.last = sight;
        let late = |limit| Late::Limit { limit, waited: self.waited };
        if self.without_progress >= self.limit {
            Err(late(self.limit))
        } else if self.total >= self.limit * MOST_LIMITS {
            Err(late(self.limit * MOST_LIMITS))
        } else if self.idle >= IDLE_LIMIT {
            Err(Late::Idle(self.idle))
        } else {
            Ok(())
        }
    }

    /// Returns when to look again.
    fn next(&self) -> Duration {
        let left = (self.limit - self.without_progress).min(self.limit * MOST_LIMITS - self.total);
        left.min(LOOK_EVERY)
    }
}

/// What a start is seen by.
pub(super) struct Watched {
    pub(super) stages: Stages,
    pub(super) console: RefCell<Option<Console>>,
    meter: RefCell<Option<Meter>>,
}

impl Watched {
    pub(super) fn new(first: BootStage, reporter: Reporter) -> Self {
        let stages = Stages::begin(first, reporter);
        Self { stages, console: RefCell::default(), meter: RefCell::default() }
    }

    /// Looks at this machine from now on.
    pub(super) fn follow(&self, machine: &impl Machine) {
        *self.meter.borrow_mut() = machine.meter();
    }

    /// Does a part of the start, as long as that makes progress.
    ///
    /// # Errors
    /// The start was given up.
    pub(super) async fn within<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Result<T, Late> {
        // An earlier part had another machine.
        self.meter.take();
        tokio::select! {
            biased;
            done = work => Ok(done),
            late = self.late(limit) => Err(late),
        }
    }

    async fn late(&self, limit: Duration) -> Late {
        let mut patience = Patience::new(limit, self.look());
        let mut looked = Instant::now();
        loop {
            sleep(patience.next()).await;
            let now = Instant::now();
            if let Err(late) = patience.note(now - looked, self.look()) {
                return late;
            }
            looked = now;
            self.stages.report();
        }
    }

    fn look(&self) -> Sight {
        let printed = self.console.borrow().as_ref().map_or(0, Console::printed);
        let usage = self.meter.borrow().as_ref().and_then(Meter::read);
        Sight { progress: (self.stages.entered(), printed), usage }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(120);
    const STEP: Duration = Duration::from_secs(5);

    /// Looks every five seconds at a machine that uses this much in each of them, until it is given up.
    fn given_up(
        progress: impl Fn(u64) -> u64,
        computed: Duration,
        waited: Duration,
        is_blocked: bool,
    ) -> Option<(u64, Late)> {
        let sight = |step: u64| Sight {
            progress: (0, progress(step)),
            usage: Some(Usage { computed: computed * step as u32, waited: waited * step as u32, is_blocked }),
        };
        let mut patience = Patience::new(LIMIT, sight(0));
        (1..1000).find_map(|step| {
            assert!(patience.next() <= STEP && !patience.next().is_zero());
            patience.note(STEP, sight(step)).err().map(|late| (step * STEP.as_secs(), late))
        })
    }

    #[test]
    fn a_machine_that_computes_without_progress_has_the_whole_limit() {
        let late = Late::Limit { limit: LIMIT, waited: Duration::ZERO };
        assert_eq!(given_up(|_| 0, STEP, Duration::ZERO, false), Some((120, late)));
        assert_eq!(late.to_string(), "not done after 120 seconds");
    }

    #[test]
    fn time_without_a_processor_does_not_count() {
        // It gets a fifth of a processor.
        let computed = Duration::from_secs(1);
        let (after, late) = given_up(|_| 0, computed, computed * 4, false).unwrap();
        assert_eq!(after, 600);
        let text = "not done after 120 seconds, without 480 in which the host had no processor for it";
        assert_eq!(late.to_string(), text);
        // Threads that wait at the same time do not wait twice.
        assert_eq!(given_up(|_| 0, computed, STEP * 2, false), None);
    }

    #[test]
    fn a_machine_that_does_nothing_has_a_part_of_the_limit() {
        let little = Duration::from_millis(100);
        let (after, late) = given_up(|_| 0, little, Duration::ZERO, false).unwrap();
        assert_eq!((after, late), (60, Late::Idle(IDLE_LIMIT)));
        let (after, _) = given_up(|_| 0, little, Duration::ZERO, true).unwrap();
        assert_eq!(after, 120, "it waits for the host's disk");
        let (after, _) = given_up(|step| step / 4, little, Duration::ZERO, false).unwrap();
        assert_eq!(after, 480, "it prints something");
    }

    /// As if the process had been stopped, or its disk had been.
    #[test]
    fn a_look_that_comes_late_counts_as_one_in_time() {
        let sight = Sight { progress: (0, 0), usage: Some(Usage::default()) };
        let mut patience = Patience::new(LIMIT, sight);
        for _ in 0..11 {
            patience.note(LIMIT * 10, sight).unwrap();
        }
        assert_eq!(patience.note(LIMIT * 10, sight), Err(Late::Idle(IDLE_LIMIT)));
    }

    #[test]
    fn progress_extends_the_limit_but_not_forever() {
        let (after, late) = given_up(|step| step, STEP, Duration::ZERO, false).unwrap();
        assert_eq!((after, late), (480, Late::Limit { limit: LIMIT * 4, waited: Duration::ZERO }));
        let (after, _) = given_up(|step| step.min(10), STEP, Duration::ZERO, false).unwrap();
        assert_eq!(after, 50 + 120, "the last progress counts");
    }

    #[test]
    fn without_figures_the_limit_is_one_of_time() {
        let sight = Sight { progress: (0, 0), usage: None };
        let mut patience = Patience::new(LIMIT, sight);
        let steps = (1..).find(|_| patience.note(STEP, sight).is_err());
        assert_eq!(steps, Some(24));
    }
}
