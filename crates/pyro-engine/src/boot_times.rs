//! How long guests' kernels took to boot on this host since its start, and what follows for the next boot.
//!
//! A host can be forty times slower than another: an emulated one, or one with many VMs. Its first boot has a limit that
//! fits both. Later ones have a multiple of what boots take here.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyro_machine::Accelerator;
use pyro_supervisor::{BootStage, Pace, StageTime};
use serde::{Deserialize, Serialize};

/// The limit of a boot on a host on which no kernel has booted since its start.
const FIRST_LIMIT: Duration = Duration::from_secs(180);
/// The limit of a boot on a host whose boots take no time.
const MIN_LIMIT: Duration = Duration::from_secs(30);
/// The limit of a boot on the slowest host.
const MAX_LIMIT: Duration = Duration::from_secs(900);
/// How many times longer than usual a boot may take.
const MARGIN: u32 = 10;

/// How long boots take on a usual host at most, with hardware virtualisation and under emulation. Setting up a guest that
/// becomes a template is part of it.
const fn usual(accelerator: Accelerator) -> Duration {
    match accelerator {
        Accelerator::Kvm => Duration::from_millis(1_500),
        Accelerator::Tcg => Duration::from_secs(8),
    }
}

/// What was measured since the host's start.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct BootTimes {
    /// The host's boot in which that was.
    boot_id: String,
    /// How long a kernel takes to boot in milliseconds, by accelerator.
    boot_ms: BTreeMap<String, u64>,
}

impl BootTimes {
    /// Reads what was measured. A file that is unreadable, damaged, or from another boot of the host counts as missing.
    pub(crate) fn read(file: &Path) -> Self {
        let boot_id = boot_id();
        let read = || serde_json::from_slice(&fs::read(file).ok()?).ok();
        read()
            .filter(|times: &Self| times.boot_id == boot_id)
            .unwrap_or(Self { boot_id, boot_ms: BTreeMap::new() })
    }

    /// Returns the limit for the next boot: how long it may make no progress.
    pub(crate) fn limit(&self, accelerator: Accelerator) -> Duration {
        match self.boot_ms.get(&accelerator.to_string()) {
            None => FIRST_LIMIT,
            Some(ms) => Duration::from_millis(*ms).saturating_mul(MARGIN).clamp(MIN_LIMIT, MAX_LIMIT),
        }
    }

    /// Returns how slow this host is.
    pub(crate) fn pace(&self, accelerator: Accelerator) -> Pace {
        let known = self.boot_ms.get(&accelerator.to_string());
        known.map_or(Pace::USUAL, |ms| Pace::of(Duration::from_millis(*ms), usual(accelerator)))
    }

    /// Returns the pace with the accelerator that is slower here: that of a client that does not know which one its VM has.
    pub(crate) fn slowest_pace(&self) -> Pace {
        self.pace(Accelerator::Kvm).max(self.pace(Accelerator::Tcg))
    }

    /// Takes note of a boot that took this long, and returns whether that changes the limit by much. Slower boots count at
    /// once, faster ones little by little.
    fn note(&mut self, accelerator: Accelerator, took: Duration) -> bool {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let before = self.limit(accelerator);
        let known = self.boot_ms.entry(accelerator.to_string());
        known
            .and_modify(|known| *known = if ms > *known { ms } else { *known - (*known - ms) / 4 })
            .or_insert(ms);
        self.limit(accelerator).abs_diff(before) > before / 10
    }

    /// A failed write costs a limit that does not fit.
    fn write(&self, file: &Path) {
        let write = || -> io::Result<()> {
            let dir = file.parent().ok_or(io::ErrorKind::InvalidInput)?;
            let mut partial = tempfile::Builder::new().prefix(".boot-times-").tempfile_in(dir)?;
            serde_json::to_writer(&mut partial, self)?;
            partial.flush()?;
            partial.persist(file)?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::debug!(%error, file = %file.display(), "the time of a boot is not remembered");
        }
    }
}

/// The pace of this host, as last read.
#[derive(Debug, Default)]
pub(crate) struct LastPace(Mutex<Option<Pace>>);

impl LastPace {
    /// Takes note of what was read.
    pub(crate) fn set(&self, pace: Pace) {
        *self.lock() = Some(pace);
    }

    /// Returns the pace; reads the file the first time.
    pub(crate) fn get(&self, file: &Path) -> Pace {
        *self.lock().get_or_insert_with(|| BootTimes::read(file).slowest_pace())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pace>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes note of a start with these steps, if it booted a kernel. Blocks.
pub(crate) fn record_start(file: &Path, accelerator: Accelerator, stages: &[StageTime]) {
    if let Some(took) = kernel_time(stages) {
        record(file, accelerator, took);
    }
}

/// Takes note of a boot that was given up at its limit: the next one has twice as much time. Blocks.
pub(crate) fn record_timeout(file: &Path, accelerator: Accelerator, limit: Duration) {
    record(file, accelerator, limit * 2 / MARGIN);
}

fn record(file: &Path, accelerator: Accelerator, took: Duration) {
    let mut times = BootTimes::read(file);
    if times.note(accelerator, took) {
        times.write(file);
    }
}

/// Returns how long the kernel took to boot, and its agent to set the guest up. `None`: the start was one from a template.
pub(crate) fn kernel_time(stages: &[StageTime]) -> Option<Duration> {
    let of_kernel = |time: &&StageTime| matches!(time.stage, BootStage::Kernel | BootStage::Guest);
    // If the kernel was booted in vain, and then in another way, both count.
    let ms: f64 = stages.iter().filter(of_kernel).map(|time| time.ms).sum();
    (ms > 0.0).then(|| Duration::from_millis(ms as u64))
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCG: Accelerator = Accelerator::Tcg;

    fn seconds(limit: Duration) -> u64 {
        limit.as_secs()
    }

    #[test]
    fn the_limit_follows_what_boots_took() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("boot-times.json");
        let limit = |accelerator| seconds(BootTimes::read(&file).limit(accelerator));
        let boot = |ms: f64| {
            let stages = [(BootStage::Vmm, 1e6), (BootStage::Kernel, ms / 2.0), (BootStage::Guest, ms / 2.0)];
            record_start(&file, TCG, &stages.map(|(stage, ms)| StageTime { stage, ms }));
        };
        assert_eq!(limit(TCG), 180);
        let pace = || BootTimes::read(&file).slowest_pace();
        assert_eq!(pace(), Pace::USUAL);
        boot(1_500.0);
        assert_eq!((limit(TCG), limit(Accelerator::Kvm)), (30, 180), "each accelerator has its own");
        boot(9_000.0);
        assert_eq!(limit(TCG), 90, "a slower boot counts at once");
        boot(1_000.0);
        assert_eq!(limit(TCG), 70, "and is forgotten little by little");
        for _ in 0..20 {
            boot(1_000.0);
        }
        assert!(limit(TCG) < 35, "{}", limit(TCG));
        boot(1e9);
        assert_eq!(limit(TCG), 900);
        assert!(pace() > Pace::USUAL);
    }

    #[test]
    fn a_boot_that_was_given_up_doubles_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("boot-times.json");
        for expected in [360, 720, 900, 900] {
            let limit = BootTimes::read(&file).limit(TCG);
            record_timeout(&file, TCG, limit);
            assert_eq!(seconds(BootTimes::read(&file).limit(TCG)), expected);
        }
    }

    #[test]
    fn starts_from_templates_say_nothing_and_files_of_other_boots_neither() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("boot-times.json");
        record_start(&file, TCG, &[StageTime { stage: BootStage::Restore, ms: 50.0 }]);
        assert!(!file.exists());
        for text in ["{damaged", r#"{"boot_id": "another", "boot_ms": {"tcg": 50000}}"#] {
            fs::write(&file, text).unwrap();
            assert_eq!(BootTimes::read(&file).limit(TCG), FIRST_LIMIT);
        }
    }

    #[test]
    fn what_changes_little_is_not_written() {
        let mut times = BootTimes::default();
        assert!(times.note(TCG, Duration::from_secs(10)));
        assert!(!times.note(TCG, Duration::from_secs(10)));
        assert!(!times.note(TCG, Duration::from_millis(10_100)));
        assert!(times.note(TCG, Duration::from_secs(20)));
    }
}
