//! The cached verdict. It is valid for one boot of the host: another kernel may perform better or worse.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::verdict::Verdict;

/// Raised when the meaning of a verdict changes. Files of earlier releases have none.
const FORMAT: u32 = 2;
/// How often a doubtful verdict must be reached before it is trusted. Each attempt can take as long as a probe may.
const REPEATS: u32 = 3;

/// Which verdicts are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remembered {
    Not,
    /// Only if others came to the same.
    IfRepeated,
    Always,
}

#[derive(Serialize, Deserialize)]
struct Content {
    format: u32,
    boot_id: String,
    verdict: Verdict,
    /// How often a doubtful verdict was reached; 0 for one that is certain.
    doubtful: u32,
}

fn boot_id() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// A file that is unreadable, damaged, or from another boot or release counts as missing.
fn content(file: &Path) -> Option<Content> {
    let content: Content = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    (content.format == FORMAT && Some(&content.boot_id) == boot_id().as_ref()).then_some(content)
}

/// Returns the verdict, if it is to be trusted.
pub(super) fn read(file: &Path) -> Option<Verdict> {
    content(file)
        .filter(|content| content.doubtful == 0 || content.doubtful >= REPEATS)
        .map(|content| content.verdict)
}

/// A failed write only costs another measurement.
pub(super) fn write(file: &Path, verdict: &Verdict, remembered: Remembered) {
    let Some(boot_id) = boot_id() else { return };
    let doubtful = match remembered {
        Remembered::Not => return,
        Remembered::Always => 0,
        Remembered::IfRepeated => {
            let same = content(file).filter(|content| content.verdict.accelerator == verdict.accelerator);
            same.map_or(0, |content| content.doubtful).saturating_add(1)
        }
    };
    let attempt = || -> std::io::Result<()> {
        let dir = file.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
        let mut partial = tempfile::Builder::new().prefix(".accelerator-").tempfile_in(dir)?;
        let content = Content { format: FORMAT, boot_id, verdict: verdict.clone(), doubtful };
        serde_json::to_writer(&mut partial, &content)?;
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

    fn slow() -> Verdict {
        Verdict {
            accelerator: Accelerator::Tcg,
            reason: "slow".into(),
            measured_ms: Some(900.0),
            costs: None,
            cached: false,
        }
    }

    #[test]
    fn a_verdict_is_remembered_for_this_boot_and_release_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("accelerator.json");
        assert_eq!(read(&file), None);
        write(&file, &slow(), Remembered::Always);
        assert_eq!(read(&file), Some(slow()));

        let set = |content: serde_json::Value| std::fs::write(&file, content.to_string()).unwrap();
        let content: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let mut other_boot = content.clone();
        other_boot["boot_id"] = "other".into();
        set(other_boot);
        assert_eq!(read(&file), None);
        // One sample decided then.
        let mut earlier = content;
        earlier.as_object_mut().unwrap().remove("format");
        set(earlier);
        assert_eq!(read(&file), None);
        std::fs::write(&file, b"{damaged").unwrap();
        assert_eq!(read(&file), None);
    }

    #[test]
    fn a_doubtful_verdict_is_remembered_once_others_agree() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("accelerator.json");
        write(&file, &slow(), Remembered::Not);
        assert!(!file.exists());
        for _ in 1..REPEATS {
            write(&file, &slow(), Remembered::IfRepeated);
            assert_eq!(read(&file), None);
        }
        write(&file, &slow(), Remembered::IfRepeated);
        assert_eq!(read(&file), Some(slow()));

        std::fs::remove_file(&file).unwrap();
        write(&file, &slow(), Remembered::IfRepeated);
        let fast = Verdict { accelerator: Accelerator::Kvm, ..slow() };
        write(&file, &fast, Remembered::Always);
        assert_eq!(read(&file), Some(fast));
    }
}
