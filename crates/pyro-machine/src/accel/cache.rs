//! The cached verdict. It is valid for one boot of the host: another kernel may perform better or worse.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::verdict::Verdict;

#[derive(Serialize, Deserialize)]
struct Remembered {
    boot_id: String,
    verdict: Verdict,
}

fn boot_id() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// A file that is unreadable, damaged or from another boot counts as missing.
pub(super) fn read(file: &Path) -> Option<Verdict> {
    let remembered: Remembered = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    (Some(remembered.boot_id) == boot_id()).then_some(remembered.verdict)
}

/// A failed write only costs another measurement.
pub(super) fn write(file: &Path, verdict: &Verdict) {
    let Some(boot_id) = boot_id() else { return };
    let attempt = || -> std::io::Result<()> {
        let dir = file.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
        let mut partial = tempfile::Builder::new().prefix(".accelerator-").tempfile_in(dir)?;
        serde_json::to_writer(&mut partial, &Remembered { boot_id, verdict: verdict.clone() })?;
        partial.flush()?;
        partial.persist(file)?;
        Ok(())
    };
    if let Err(error) = attempt() {
        tracing::debug!(%error, file = %file.display(), "the accelerator verdict is not remembered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accel::Accelerator;

    #[test]
    fn a_verdict_is_remembered_for_this_boot_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("accelerator.json");
        assert_eq!(read(&file), None);
        let verdict = Verdict {
            accelerator: Accelerator::Tcg,
            reason: "slow".into(),
            measured_ms: Some(900.0),
            cached: false,
        };
        write(&file, &verdict);
        assert_eq!(read(&file), Some(verdict.clone()));

        let other_boot = Remembered { boot_id: "other".into(), verdict };
        std::fs::write(&file, serde_json::to_vec(&other_boot).unwrap()).unwrap();
        assert_eq!(read(&file), None);
        std::fs::write(&file, b"{damaged").unwrap();
        assert_eq!(read(&file), None);
    }
}
