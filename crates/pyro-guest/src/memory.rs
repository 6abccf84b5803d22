//! What the kernel does when memory runs out.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use pyro_wire::Failure;

use crate::failure::During;

/// Settings of the kernel's multi-generational LRU.
pub(crate) const LRU_SETTINGS: &str = "/sys/kernel/mm/lru_gen";
/// How long pages that were used must stay in memory, in milliseconds. If they cannot, a process is killed.
const MIN_TTL_MS: &str = "1000";

/// Makes the kernel kill a process when the pages in use do not fit into memory. By default it keeps dropping and
/// rereading the pages of programs, and a greedy command in a small machine may hang forever instead of being killed (seen
/// in a quarter of the runs of `tail /dev/zero` with 256 MiB).
pub(crate) fn prevent_thrashing(settings: &Path) -> Result<(), Failure> {
    for (file, value) in [("enabled", "y"), ("min_ttl_ms", MIN_TTL_MS)] {
        match fs::OpenOptions::new().write(true).open(settings.join(file)) {
            // A kernel without multi-generational LRU does what it can.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            opened => opened
                .and_then(|mut file| std::io::Write::write_all(&mut file, value.as_bytes()))
                .during("setting up memory reclaim")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_settings_are_written() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["enabled", "min_ttl_ms"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        prevent_thrashing(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("enabled")).unwrap(), "y");
        assert_eq!(fs::read_to_string(dir.path().join("min_ttl_ms")).unwrap(), "1000");
    }

    #[test]
    fn a_kernel_without_the_settings_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        prevent_thrashing(&dir.path().join("absent")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_setting_that_cannot_be_written_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("enabled")).unwrap();
        assert_eq!(prevent_thrashing(dir.path()).unwrap_err().step, "setting up memory reclaim");
    }
}
