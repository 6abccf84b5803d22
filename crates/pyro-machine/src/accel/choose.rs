//! Chooses the accelerator: from the cache, or measured by a separate process.

use std::io;
use std::path::Path;

use super::cache::{self, Remembered};
use super::costs::Measurement;
use super::guest::{self, LOOPS};
use super::judge::{self, Finding};
use super::probe::{self, ProbeError};
use super::verdict::{Accelerator, Verdict};

/// Measures what this host can do, or takes it from the cache. `cache_file` is read and, after a measurement and if
/// `may_write`, written.
///
/// `probe` starts the program that runs [`measure`](super::measure) and prints its result as JSON. It is a separate process
/// because a broken KVM may hang or crash the process that uses it.
pub async fn choose(cache_file: &Path, may_write: bool, probe: (&Path, &[&str])) -> Verdict {
    // Never cache what a user can change without a reboot.
    match guest::openable() {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return unmeasured("/dev/kvm does not exist on this host".into());
        }
        Err(error) => return unmeasured(format!("/dev/kvm cannot be opened: {error}")),
    }
    if let Some(verdict) = cache::read(cache_file) {
        return Verdict { cached: true, ..verdict };
    }
    let (verdict, remembered) = conclude(probe::run(probe.0, probe.1).await);
    if may_write {
        cache::write(cache_file, &verdict, remembered);
    }
    verdict
}

fn unmeasured(reason: String) -> Verdict {
    Verdict { accelerator: Accelerator::Tcg, reason, measured_ms: None, costs: None, cached: false }
}

/// The verdict, and for how long it is remembered.
fn conclude(measured: Result<Measurement, ProbeError>) -> (Verdict, Remembered) {
    let finding = match measured {
        Err(error) => {
            let remembered = if error.is_lasting() { Remembered::IfRepeated } else { Remembered::Not };
            return (unmeasured(format!("KVM is unusable: {error}")), remembered);
        }
        Ok(measurement) => judge::judge(&measurement),
    };
    let Some(Finding { best, estimate, certain }) = finding else {
        return (unmeasured("KVM was not measured".into()), Remembered::Not);
    };
    let (kvm, emulation) = (seconds(estimate.kvm), seconds(estimate.emulation));
    let (accelerator, reason) = match estimate.favours_kvm() {
        true => (
            Accelerator::Kvm,
            format!("KVM is fast: the work of a cold boot takes about {kvm}, emulated about {emulation}"),
        ),
        false => (
            Accelerator::Tcg,
            format!("KVM is too slow: the work of a cold boot takes about {kvm}, emulated about {emulation}"),
        ),
    };
    let measured_ms = Some(best.loop_ns * f64::from(LOOPS) / 1e6);
    let verdict = Verdict { accelerator, reason, measured_ms, costs: Some(best), cached: false };
    (verdict, if certain { Remembered::Always } else { Remembered::IfRepeated })
}

fn seconds(time: f64) -> String {
    if time < 10.0 { format!("{time:.1} s") } else { format!("{time:.0} s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accel::Costs;

    fn measured(samples: Vec<Costs>) -> Result<Measurement, ProbeError> {
        Ok(Measurement { samples })
    }

    const FAST: Costs =
        Costs { host_loop_ns: 0.28, loop_ns: 0.28, paging_ns: 400.0, fault_ns: 1500.0, exit_ns: 3000.0 };
    const SLOW: Costs = Costs { loop_ns: 2000.0, ..FAST };

    #[test]
    fn the_verdict_names_what_it_was_decided_by() {
        let (verdict, remembered) = conclude(measured(vec![FAST]));
        assert_eq!((verdict.accelerator, remembered), (Accelerator::Kvm, Remembered::Always));
        assert_eq!(
            verdict.reason,
            "KVM is fast: the work of a cold boot takes about 0.2 s, emulated about 2.8 s"
        );
        assert!(verdict.measured_ms.is_some_and(|ms| (ms - 0.014).abs() < 1e-6), "{verdict:?}");
        assert_eq!(verdict.costs, Some(FAST));

        let (verdict, remembered) = conclude(measured(vec![SLOW; 5]));
        assert_eq!((verdict.accelerator, remembered), (Accelerator::Tcg, Remembered::Always));
        assert_eq!(
            verdict.reason,
            "KVM is too slow: the work of a cold boot takes about 740 s, emulated about 2.8 s"
        );
    }

    #[test]
    fn what_one_sample_or_a_failed_probe_shows_is_not_remembered_at_once() {
        let (verdict, remembered) = conclude(measured(vec![SLOW]));
        assert_eq!((verdict.accelerator, remembered), (Accelerator::Tcg, Remembered::IfRepeated));
        for (error, expected) in [
            (ProbeError::Late, Remembered::IfRepeated),
            (ProbeError::Broken("unexpected exit InternalError".to_owned()), Remembered::IfRepeated),
            // Another program had KVM to itself.
            (ProbeError::Unusable("creating a VM: busy".to_owned()), Remembered::Not),
            (ProbeError::Start(io::ErrorKind::OutOfMemory.into()), Remembered::Not),
        ] {
            let (verdict, remembered) = conclude(Err(error));
            assert_eq!((verdict.accelerator, remembered), (Accelerator::Tcg, expected));
            assert!(verdict.reason.starts_with("KVM is unusable: "), "{}", verdict.reason);
        }
    }
}
