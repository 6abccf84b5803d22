//! The current step of a start, and how long the earlier ones took.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use super::{BootStage, StageTime};

/// Takes reports of the step that a start is at.
pub(super) type Reporter = Rc<dyn Fn(BootStage)>;

/// Stopwatch for one start.
pub(super) struct Stages {
    current: Cell<BootStage>,
    since: Cell<Instant>,
    passed: RefCell<Vec<StageTime>>,
    reporter: Reporter,
}

impl Stages {
    /// Begins with the first step.
    pub(super) fn begin(first: BootStage, reporter: Reporter) -> Self {
        reporter(first);
        let (current, since) = (Cell::new(first), Cell::new(Instant::now()));
        Self { current, since, passed: RefCell::default(), reporter }
    }

    /// Enters the next step; entering the current step again continues it.
    pub(super) fn enter(&self, stage: BootStage) {
        if stage != self.current.get() {
            self.pass();
            self.current.set(stage);
            self.report();
        }
    }

    pub(super) fn current(&self) -> BootStage {
        self.current.get()
    }

    /// Reports the current step again: the start goes on.
    pub(super) fn report(&self) {
        (self.reporter)(self.current.get());
    }

    /// Returns the number of steps that were entered.
    pub(super) fn entered(&self) -> usize {
        self.passed.borrow().len()
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
        let reported = Rc::new(RefCell::new(Vec::new()));
        let reporter = {
            let reported = Rc::clone(&reported);
            Rc::new(move |stage| reported.borrow_mut().push(stage))
        };
        let stages = Stages::begin(BootStage::Disks, reporter);
        stages.enter(BootStage::Disks);
        stages.enter(BootStage::Vmm);
        assert_eq!((stages.current(), stages.entered()), (BootStage::Vmm, 1));
        stages.enter(BootStage::Restore);
        let all = [BootStage::Disks, BootStage::Vmm, BootStage::Restore];
        assert_eq!(*reported.borrow(), all);
        let passed: Vec<_> = stages.end().into_iter().map(|time| time.stage).collect();
        assert_eq!(passed, all);
    }
}
