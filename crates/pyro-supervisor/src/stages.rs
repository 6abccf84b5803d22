//! The current step of a start, and how long the earlier ones took.

use std::cell::{Cell, RefCell};
use std::time::Instant;

use super::{BootStage, StageTime};

/// Stopwatch for one start.
pub(super) struct Stages {
    current: Cell<BootStage>,
    since: Cell<Instant>,
    passed: RefCell<Vec<StageTime>>,
}

impl Stages {
    /// Begins with the first step.
    pub(super) fn begin(first: BootStage) -> Self {
        Self { current: Cell::new(first), since: Cell::new(Instant::now()), passed: RefCell::default() }
    }

    /// Enters the next step; entering the current step again continues it.
    pub(super) fn enter(&self, stage: BootStage) {
        if stage != self.current.get() {
            self.pass();
            self.current.set(stage);
        }
    }

    pub(super) fn current(&self) -> BootStage {
        self.current.get()
    }

    /// Ends the last step and returns all of them.
    pub(super) fn end(&self) -> Vec<StageTime> {
        self.pass();
        self.passed.take()
    }

    fn pass(&self) {
        let ms = self.since.replace(Instant::now()).elapsed().as_secs_f64() * 1e3;
        self.passed.borrow_mut().push(StageTime { stage: self.current.get(), ms });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_in_order_and_once() {
        let stages = Stages::begin(BootStage::Disks);
        stages.enter(BootStage::Disks);
        stages.enter(BootStage::Vmm);
        assert_eq!(stages.current(), BootStage::Vmm);
        stages.enter(BootStage::Restore);
        let passed: Vec<_> = stages.end().into_iter().map(|time| time.stage).collect();
        assert_eq!(passed, [BootStage::Disks, BootStage::Vmm, BootStage::Restore]);
    }
}
