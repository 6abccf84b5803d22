//! How guest code is executed on this host.
//!
//! `/dev/kvm` existing proves nothing: in nested clouds it may emulate a guest's kernel instruction by
//! instruction, and no stock kernel boots in reasonable time. So it is measured, once per host boot, with a
//! short counted loop ([`probe`]).

mod cache;
mod kvm;

use std::fmt;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

pub use kvm::{Measurement, measure};

/// Loop iterations per second below which KVM is not hardware virtualisation. Hardware does some hundred
/// million a second, emulation a million.
const LEAST_ITERATIONS_PER_SECOND: f64 = 20e6;
/// Time after which a probe is not waited for any longer.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// A way to execute guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The kernel's hardware virtualisation.
    Kvm,
    /// QEMU's translation of guest code, which works everywhere.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// The text is neither `kvm` nor `tcg`.
#[derive(Debug, thiserror::Error)]
#[error("unknown accelerator; expected kvm or tcg")]
pub struct UnknownAccelerator;

impl FromStr for Accelerator {
    type Err = UnknownAccelerator;

    fn from_str(text: &str) -> Result<Self, UnknownAccelerator> {
        match text {
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(UnknownAccelerator),
        }
    }
}

/// Which accelerator is used, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The choice.
    pub accelerator: Accelerator,
    /// The reason, for people.
    pub reason: String,
    /// Time that the probe's loop took, in milliseconds, if it was run and came to its end.
    pub measured_ms: Option<f64>,
    /// The verdict was taken from an earlier measurement since the host's boot.
    #[serde(skip)]
    pub cached: bool,
}

/// Measures, or remembers, what this host can do. `cache_file` is read and, after a measurement and if `may_write`,
/// written.
///
/// `probe` starts the program that runs [`measure`] and prints its result as JSON. It is a process of its
/// own because a broken KVM may hang or crash whoever touches it.
pub async fn choose(cache_file: &Path, may_write: bool, probe: (&Path, &[&str])) -> Verdict {
    let tcg =
        |reason: String| Verdict { accelerator: Accelerator::Tcg, reason, measured_ms: None, cached: false };
    // What a user can change without a reboot is never remembered.
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

async fn run_probe(program: &Path, args: &[&str]) -> Result<Measurement, String> {
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("the probe could not be started: {error}"))?;
    match tokio::time::timeout(PROBE_LIMIT, child.wait_with_output()).await {
        Err(_) => Err(format!("the probe did not end within {} s", PROBE_LIMIT.as_secs())),
        Ok(Err(error)) => Err(format!("the probe was lost: {error}")),
        Ok(Ok(output)) => serde_json::from_slice::<Result<Measurement, String>>(&output.stdout)
            .unwrap_or_else(|_| Err(format!("the probe failed: {}", output.status))),
    }
}

fn judge(measured: Result<Measurement, String>) -> Verdict {
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
        assert_eq!(judge(Err("x".into())).accelerator, Accelerator::Tcg);
    }

    #[tokio::test]
    async fn a_probe_that_hangs_or_fails_is_a_reason_and_not_a_hang() {
        let failed = run_probe(Path::new("/bin/false"), &[]).await.unwrap_err();
        assert!(failed.contains("exit status: 1"), "{failed}");
        let missing = run_probe(Path::new("/nonexistent"), &[]).await.unwrap_err();
        assert!(missing.contains("could not be started"), "{missing}");
        let hung = run_probe(Path::new("/bin/sleep"), &["60"]).await.unwrap_err();
        assert!(hung.contains("within 3 s"), "{hung}");
    }
}
