//! Reports the progress of a pull.

use std::fmt;

/// Receives the steps of a pull. All methods are called on the pulling thread.
pub trait PullObserver {
    /// A step begins. Steps come in the order of [`PullStep`]; not every pull has every step.
    fn step(&self, step: PullStep);

    /// `done` of `total` building steps are complete. The steps differ in length, so this counts steps and does not
    /// predict time.
    fn progress(&self, done: u64, total: u64) {
        let _ = (done, total);
    }
}

/// For callers that do not need progress reports.
#[derive(Debug, Clone, Copy, Default)]
pub struct SilentObserver;

impl PullObserver for SilentObserver {
    fn step(&self, _: PullStep) {}
}

/// A step of a pull. `Display` gives a line for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum PullStep {
    /// The environment is already in the cache; there is nothing to do.
    AlreadyInstalled,
    /// Another process builds the same environment; this pull will use its result.
    WaitingForOtherPull,
    /// Checking tools and space, creating the work directory.
    Preparing,
    /// Fetching the archive's signed package index.
    FetchingIndex,
    /// Downloading the packages of the minimal system.
    DownloadingPackages,
    /// Unpacking them.
    ExtractingPackages,
    /// Setting up the minimal system.
    InstallingSystem,
    /// Downloading and setting up the remaining packages.
    InstallingPackages,
    /// Downloading the guest kernel and finishing the tree.
    FetchingKernel,
    /// Removing package lists and caches from the tree.
    CleaningUp,
    /// Collecting the kernel and the modules for its initrd.
    PackingKernel,
    /// Writing the base image.
    PackingImage,
    /// Computing digests and flushing to disk.
    Checksumming,
    /// Moving the environment into place.
    Installing,
}

impl PullStep {
    /// The steps of a build, in order, without the first two variants.
    pub const BUILD: [PullStep; 12] = [
        PullStep::Preparing,
        PullStep::FetchingIndex,
        PullStep::DownloadingPackages,
        PullStep::ExtractingPackages,
        PullStep::InstallingSystem,
        PullStep::InstallingPackages,
        PullStep::FetchingKernel,
        PullStep::CleaningUp,
        PullStep::PackingKernel,
        PullStep::PackingImage,
        PullStep::Checksumming,
        PullStep::Installing,
    ];

    /// Returns the step that a line of mmdebstrap's standard error announces, if any.
    pub(crate) fn from_mmdebstrap(line: &str) -> Option<PullStep> {
        let message = line.strip_prefix("I: ")?;
        let table = [
            ("running apt-get update", PullStep::FetchingIndex),
            ("downloading packages with apt", PullStep::DownloadingPackages),
            ("extracting archives", PullStep::ExtractingPackages),
            ("installing essential packages", PullStep::InstallingSystem),
            ("installing remaining packages", PullStep::InstallingPackages),
            ("running --customize-hook", PullStep::FetchingKernel),
            ("cleaning package lists", PullStep::CleaningUp),
        ];
        table.iter().find(|(start, _)| message.starts_with(start)).map(|(_, step)| *step)
    }
}

impl fmt::Display for PullStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PullStep::AlreadyInstalled => "already installed",
            PullStep::WaitingForOtherPull => "waiting for another process that builds this environment",
            PullStep::Preparing => "preparing",
            PullStep::FetchingIndex => "fetching the package index",
            PullStep::DownloadingPackages => "downloading packages",
            PullStep::ExtractingPackages => "extracting packages",
            PullStep::InstallingSystem => "installing the minimal system",
            PullStep::InstallingPackages => "installing packages",
            PullStep::FetchingKernel => "fetching the kernel",
            PullStep::CleaningUp => "cleaning up",
            PullStep::PackingKernel => "packing kernel modules",
            PullStep::PackingImage => "writing the base image",
            PullStep::Checksumming => "computing digests",
            PullStep::Installing => "installing",
        })
    }
}

/// Ensures that steps only move forward and counts them.
pub(crate) struct Steps<'a> {
    observer: &'a dyn PullObserver,
    current: std::cell::Cell<Option<PullStep>>,
}

impl<'a> Steps<'a> {
    pub(crate) fn new(observer: &'a dyn PullObserver) -> Self {
        Steps { observer, current: std::cell::Cell::new(None) }
    }

    pub(crate) fn enter(&self, step: PullStep) {
        // mmdebstrap may announce a stage twice; progress must never go backwards.
        if self.current.get().is_some_and(|current| step <= current) {
            return;
        }
        self.current.set(Some(step));
        self.observer.step(step);
        if let Some(index) = PullStep::BUILD.iter().position(|candidate| *candidate == step) {
            self.observer.progress(index as u64, PullStep::BUILD.len() as u64);
        }
    }

    pub(crate) fn finish(&self) {
        let total = PullStep::BUILD.len() as u64;
        self.observer.progress(total, total);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[derive(Default)]
    struct Recorder(RefCell<Vec<(PullStep, Option<u64>)>>);

    impl PullObserver for Recorder {
        fn step(&self, step: PullStep) {
            self.0.borrow_mut().push((step, None));
        }
        fn progress(&self, done: u64, total: u64) {
            assert!(done <= total);
            if let Some(last) = self.0.borrow_mut().last_mut() {
                last.1 = Some(done);
            }
        }
    }

    #[test]
    fn steps_never_go_back() {
        let recorder = Recorder::default();
        let steps = Steps::new(&recorder);
        for line in [
            "I: running apt-get update...",
            "I: downloading packages with apt...",
            "I: running apt-get update...",
        ] {
            PullStep::from_mmdebstrap(line).into_iter().for_each(|step| steps.enter(step));
        }
        assert_eq!(PullStep::from_mmdebstrap("E: running apt-get update"), None);
        assert_eq!(
            *recorder.0.borrow(),
            [(PullStep::FetchingIndex, Some(1)), (PullStep::DownloadingPackages, Some(2))]
        );
    }
}
