//! Time: the wall clock, and how long each phase of a run takes.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use pyro_supervisor::BootInfo;

use crate::Phase;

/// Returns the wall-clock time in seconds since the epoch.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A stopwatch.
#[derive(Debug)]
pub(crate) struct Timings {
    since: Instant,
    phases: Vec<Phase>,
}

impl Timings {
    pub(crate) fn start() -> Self {
        Self { since: Instant::now(), phases: Vec::new() }
    }

    /// Ends a phase.
    pub(crate) fn lap(&mut self, name: &str) {
        let ms = self.elapsed();
        self.phases.push(Phase { name: name.to_owned(), ms });
    }

    /// Ends the start phase of a VM, which its supervisor reports in more detail: the time that it does not account for
    /// is the time to reach it and to receive its answer.
    pub(crate) fn lap_of_start(&mut self, info: &BootInfo) {
        let whole = self.elapsed();
        let stages: f64 = info.stages.iter().map(|stage| stage.ms).sum();
        self.phases.push(Phase { name: "supervisor".to_owned(), ms: (whole - stages).max(0.0) });
        let named =
            info.stages.iter().map(|stage| Phase { name: stage.stage.name().to_owned(), ms: stage.ms });
        self.phases.extend(named);
    }

    pub(crate) fn finish(self) -> Vec<Phase> {
        self.phases
    }

    fn elapsed(&mut self) -> f64 {
        let now = Instant::now();
        let ms = now.duration_since(self.since).as_secs_f64() * 1e3;
        self.since = now;
        ms
    }
}
