//! The version of a QEMU program. Asking takes as long as starting it, so the answer is cached for the file.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::files;
use crate::platform::{CACHED_FINGERPRINT_PREFIX, FingerprintError};
use crate::spawn::Spawn;

/// The first QEMU that can load memory from a file which it may not write to.
const MIN_SAVING_MAJOR: u32 = 9;
const LIMIT: Duration = Duration::from_secs(5);
/// Longest version that is kept, in characters.
const MAX_CHARS: usize = 200;

/// Returns the first line that the program prints about its version, cached in `cache`.
pub(crate) async fn version(cache: &Path, program: &Path) -> Result<String, FingerprintError> {
    let remembered = remembered(cache, program)
        .map_err(|source| FingerprintError::Examine { path: program.to_owned(), source })?;
    match fs::read_to_string(&remembered) {
        Ok(version) if !version.is_empty() => return Ok(version),
        _ => {}
    }
    let version =
        ask(program).await.ok_or_else(|| FingerprintError::NoVersion { program: program.to_owned() })?;
    files::make_private_dir(cache)
        .map_err(|source| FingerprintError::Cache { path: cache.to_owned(), source })?;
    let remember = || -> io::Result<()> {
        let mut partial = tempfile::Builder::new().prefix(".vmm-").tempfile_in(cache)?;
        partial.write_all(version.as_bytes())?;
        partial.persist(&remembered)?;
        Ok(())
    };
    // A failure to cache it only costs another query.
    let _ = remember();
    Ok(version)
}

async fn ask(program: &Path) -> Option<String> {
    let child = Spawn::new(program).args(["--version"]).stdout(Stdio::piped()).start().ok()?;
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let first_line = || text.lines().next().unwrap_or_default().chars().take(MAX_CHARS).collect();
    output.status.success().then(first_line)
}

/// Whether QEMU of this version can save machines in a way that others start from.
pub(super) fn saves_machines(version: &str) -> bool {
    let major = version.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty());
    major.and_then(|digits| digits.parse::<u32>().ok()).is_some_and(|major| major >= MIN_SAVING_MAJOR)
}

/// Returns whether the version is cached, so that the program need not be started.
pub(crate) fn is_remembered(cache: &Path, program: &Path) -> bool {
    remembered(cache, program).is_ok_and(|file| file.exists())
}

/// The file that caches the version.
fn remembered(cache: &Path, program: &Path) -> io::Result<PathBuf> {
    let digest = hex::encode(Sha256::digest(files::identity(program)?.to_string()));
    Ok(cache.join(format!("{CACHED_FINGERPRINT_PREFIX}{}", &digest[..32])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_program::fake_program;

    #[test]
    fn the_first_number_decides() {
        for version in ["QEMU emulator version 9.0.0", "QEMU emulator version 10.2.1 (Debian)", "11"] {
            assert!(saves_machines(version), "{version}");
        }
        for version in ["QEMU emulator version 8.2.9", "", "QEMU", "v99999999999999999999"] {
            assert!(!saves_machines(version), "{version}");
        }
    }

    #[tokio::test]
    async fn a_program_is_asked_once() {
        let dir = tempfile::tempdir().unwrap();
        let asked = dir.path().join("asked");
        let program =
            fake_program(dir.path(), &format!("echo x >> {}; echo QEMU 9; echo more", asked.display()));
        let cache = dir.path().join("cache");
        assert!(!is_remembered(&cache, &program));
        for _ in 0..2 {
            assert_eq!(version(&cache, &program).await.unwrap(), "QEMU 9");
            assert!(is_remembered(&cache, &program));
        }
        assert_eq!(fs::read_to_string(asked).unwrap(), "x\n");
    }

    #[tokio::test]
    async fn failures_say_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let missing = version(dir.path(), Path::new("/nonexistent/vmm")).await.unwrap_err();
        assert!(matches!(missing, FingerprintError::Examine { .. }), "{missing}");
        assert_eq!(missing.to_string(), "cannot examine /nonexistent/vmm");
        let program = fake_program(dir.path(), "echo QEMU 9; exit 1");
        let failing = version(dir.path(), &program).await.unwrap_err();
        assert_eq!(failing.to_string(), format!("cannot determine the version of {}", program.display()));
    }
}
