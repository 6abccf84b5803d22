//! Chooses the accelerator: from the cache, or measured by a separate process.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::kvm::{Measurement, measure};
use super::verdict::{Accelerator, Verdict};
use super::{cache, kvm};
use crate::spawn::Spawn;

/// Loop iterations per second below which KVM is not hardware virtualisation. Hardware does a few hundred million per
/// second, emulation one million.
const LEAST_ITERATIONS_PER_SECOND: f64 = 20e6;
/// Time limit for a probe.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// Measures what this host can do, or takes it from the cache. `cache_file` is read and, after a measurement and if
/// `may_write`, written.
///
/// `probe` starts the program that runs [`measure`] and prints its result as JSON. It is a separate process because a
/// broken KVM may hang or crash the process that uses it.
pub async fn choose(cache_file: &Path, may_write: bool, probe: (&Path, &[&str])) -> Verdict {
    let tcg =
        |reason: String| Verdict { accelerator: Accelerator::Tcg, reason, measured_ms: None, cached: false };
    // Never cache what a user can change without a reboot.
    match kvm::openable() {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return tcg("/dev/kvm does not exist on this host".into());
        }
        Err(error) => return tcg(format!("/dev/kvm cannot be opened: {error}")),
    }
    if let Some(verdict) = cache::read(cache_file) {
        return Verdict { cached: true, ..verdict };
    }
    let verdict = judge(run_probe(probe.0, probe.1).await);
    if may_write {
        cache::write(cache_file, &verdict);
    }
    verdict
}

/// The probe's output: the measurement, or why it failed.
#[derive(Serialize, Deserialize)]
enum ProbeReport {
    Ok(Measurement),
    Err(String),
}

/// Measures KVM and returns what the probe's process must print for [`choose`], as JSON. Run it in a process that does
/// nothing else: a broken KVM may hang or crash it.
pub fn probe() -> String {
    let report = match measure() {
        Ok(measurement) => ProbeReport::Ok(measurement),
        Err(error) => ProbeReport::Err(error.to_string()),
    };
    // Two levels of plain data; it cannot fail.
    serde_json::to_string(&report).unwrap_or_default()
}

/// Why KVM could not be measured.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("the probe could not be started: {0}")]
    Start(io::Error),
    #[error("the probe did not end within {} s", PROBE_LIMIT.as_secs())]
    Late,
    #[error("the probe was lost: {0}")]
    Lost(io::Error),
    #[error("the probe failed: {0}")]
    Failed(ExitStatus),
    #[error("{0}")]
    Kvm(String),
}

async fn run_probe(program: &Path, args: &[&str]) -> Result<Measurement, ProbeError> {
    let spawn = Spawn::new(program).args(args).stdout(Stdio::piped());
    let child = spawn.start().map_err(ProbeError::Start)?;
    match tokio::time::timeout(PROBE_LIMIT, child.wait_with_output()).await {
        Err(_) => Err(ProbeError::Late),
        Ok(Err(error)) => Err(ProbeError::Lost(error)),
        Ok(Ok(output)) => match serde_json::from_slice(&output.stdout) {
            Ok(ProbeReport::Ok(measurement)) => Ok(measurement),
            Ok(ProbeReport::Err(reason)) => Err(ProbeError::Kvm(reason)),
            Err(_) => Err(ProbeError::Failed(output.status)),
        },
    }
}

fn judge(measured: Result<Measurement, ProbeError>) -> Verdict {
    match measured {
        Err(reason) => {
            let reason = format!("KVM is unusable: {reason}");
            Verdict { accelerator: Accelerator::Tcg, reason, measured_ms: None, cached: false }
        }
        Ok(Measurement { iterations, elapsed_ms }) => {
            let fast = f64::from(iterations) / (elapsed_ms / 1000.0) >= LEAST_ITERATIONS_PER_SECOND;
            let finding = format!("{iterations} loop iterations took {elapsed_ms:.1} ms");
            let (accelerator, reason) = match fast {
                true => (Accelerator::Kvm, format!("KVM runs guest code in hardware ({finding})")),
                false => {
                    (Accelerator::Tcg, format!("KVM emulates guest code ({finding}); translation is faster"))
                }
            };
            Verdict { accelerator, reason, measured_ms: Some(elapsed_ms), cached: false }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_loop_means_kvm_and_a_slow_one_tcg() {
        let verdict = |elapsed_ms| judge(Ok(Measurement { iterations: 1_000_000, elapsed_ms }));
        assert_eq!(verdict(2.0).accelerator, Accelerator::Kvm);
        assert_eq!(verdict(900.0).accelerator, Accelerator::Tcg);
        assert_eq!(verdict(0.0).accelerator, Accelerator::Kvm);
        assert_eq!(judge(Err(ProbeError::Late)).accelerator, Accelerator::Tcg);
    }

    #[tokio::test]
    async fn a_probe_that_hangs_or_fails_is_a_reason_and_not_a_hang() {
        let failed = run_probe(Path::new("/bin/false"), &[]).await.unwrap_err().to_string();
        assert!(failed.contains("exit status: 1"), "{failed}");
        let missing = run_probe(Path::new("/nonexistent"), &[]).await.unwrap_err().to_string();
        assert!(missing.contains("could not be started"), "{missing}");
        let hung = run_probe(Path::new("/bin/sleep"), &["60"]).await.unwrap_err().to_string();
        assert!(hung.contains("within 3 s"), "{hung}");
    }
}
