//! The probe: what its process measures and prints, and the process that starts it.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::costs::Measurement;
use super::guest::{Guest, MeasureError};
use super::judge::{self, MIN_SAMPLES};
use crate::spawn::Spawn;

/// Time limit for a probe.
const LIMIT: Duration = Duration::from_secs(3);
/// Time after which a probe of a slow KVM takes no further sample. A disturbed host may need many until one is undisturbed.
const BUDGET: Duration = Duration::from_secs(1);
const MAX_SAMPLES: usize = 100;

/// Takes samples until KVM has proved to be fast, or enough to call it slow. May hang or crash on a broken KVM: run it in
/// a separate process.
///
/// # Errors
/// [`MeasureError`].
pub fn measure() -> Result<Measurement, MeasureError> {
    let mut guest = Guest::new()?;
    let start = Instant::now();
    let mut measurement = Measurement { samples: Vec::new() };
    loop {
        measurement.samples.push(guest.sample()?);
        let count = measurement.samples.len();
        let is_fast = judge::judge(&measurement).is_some_and(|finding| finding.estimate.favours_kvm());
        if count >= MAX_SAMPLES || count >= MIN_SAMPLES && is_fast || start.elapsed() >= BUDGET {
            return Ok(measurement);
        }
    }
}

/// The probe's output.
#[derive(Serialize, Deserialize)]
enum Report {
    Measured(Measurement),
    /// A request to KVM failed.
    Unusable(String),
    /// KVM ran the guest's code wrongly.
    Broken(String),
}

/// Measures KVM and returns what the probe's process must print for [`choose`](super::choose), as JSON. Run it in a
/// process that does nothing else: a broken KVM may hang or crash it.
pub fn probe() -> String {
    let report = match measure() {
        Ok(measurement) => Report::Measured(measurement),
        Err(error @ MeasureError::Step { .. }) => Report::Unusable(error.to_string()),
        Err(error @ MeasureError::UnexpectedExit(_)) => Report::Broken(error.to_string()),
    };
    // Plain data; it cannot fail.
    serde_json::to_string(&report).unwrap_or_default()
}

/// Why KVM could not be measured.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("the probe could not be started: {0}")]
    Start(io::Error),
    #[error("the probe did not end within {} s", LIMIT.as_secs())]
    Late,
    #[error("the probe was lost: {0}")]
    Lost(io::Error),
    #[error("the probe failed: {0}")]
    Failed(ExitStatus),
    #[error("{0}")]
    Unusable(String),
    #[error("{0}")]
    Broken(String),
}

impl ProbeError {
    /// Whether another probe is likely to fail in the same way, and would cost time again. What passes by itself, or can
    /// be changed without a reboot, is not.
    pub(super) fn is_lasting(&self) -> bool {
        match self {
            Self::Late | Self::Failed(_) | Self::Broken(_) => true,
            Self::Start(_) | Self::Lost(_) | Self::Unusable(_) => false,
        }
    }
}

pub(super) async fn run(program: &Path, args: &[&str]) -> Result<Measurement, ProbeError> {
    let spawn = Spawn::new(program).args(args).stdout(Stdio::piped());
    let child = spawn.start().map_err(ProbeError::Start)?;
    match tokio::time::timeout(LIMIT, child.wait_with_output()).await {
        Err(_) => Err(ProbeError::Late),
        Ok(Err(error)) => Err(ProbeError::Lost(error)),
        Ok(Ok(output)) => match serde_json::from_slice(&output.stdout) {
            Ok(Report::Measured(measurement)) if !measurement.samples.is_empty() => Ok(measurement),
            Ok(Report::Unusable(reason)) => Err(ProbeError::Unusable(reason)),
            Ok(Report::Broken(reason)) => Err(ProbeError::Broken(reason)),
            Ok(Report::Measured(_)) | Err(_) => Err(ProbeError::Failed(output.status)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_probe_that_hangs_or_fails_is_a_reason_and_not_a_hang() {
        let failed = run(Path::new("/bin/false"), &[]).await.unwrap_err().to_string();
        assert!(failed.contains("exit status: 1"), "{failed}");
        let missing = run(Path::new("/nonexistent"), &[]).await.unwrap_err().to_string();
        assert!(missing.contains("could not be started"), "{missing}");
        let hung = run(Path::new("/bin/sleep"), &["60"]).await.unwrap_err().to_string();
        assert!(hung.contains("within 3 s"), "{hung}");
        let empty = run(Path::new("/bin/echo"), &[r#"{"Measured":{"samples":[]}}"#]).await.unwrap_err();
        assert!(matches!(empty, ProbeError::Failed(_)), "{empty}");
    }
}
