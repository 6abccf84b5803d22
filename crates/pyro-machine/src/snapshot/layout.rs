//! The names in a directory of snapshots.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::error::SnapshotError;

/// The guest's memory.
pub(super) const MEMORY: &str = "memory";
/// The state of the devices.
pub(super) const STATE: &str = "state";
/// The writable layer.
pub(super) const LAYER: &str = "layer.img";
/// The description of the other files when they were made.
pub(super) const RECORD: &str = "template.json";
/// The files that make up a snapshot.
pub(super) const PARTS: [&str; 3] = [MEMORY, STATE, LAYER];

const PARTIAL_PREFIX: &str = ".partial-";
const FAILED_SUFFIX: &str = ".failed";
const LOCK_SUFFIX: &str = ".lock";

/// Where a snapshot is made before it gets its name.
pub(super) fn partial(dir: &Path, key: &str) -> PathBuf {
    dir.join(format!("{PARTIAL_PREFIX}{key}"))
}

/// The key of a finished or unfinished snapshot, from its directory's name.
pub(super) fn key_of(name: &str) -> &str {
    name.strip_prefix(PARTIAL_PREFIX).unwrap_or(name)
}

/// Locked while the snapshot is made.
pub(super) fn lock(dir: &Path, key: &str) -> PathBuf {
    dir.join(format!("{key}{LOCK_SUFFIX}"))
}

/// Whether a file has the name of a [`lock`].
pub(super) fn is_lock(name: &str) -> bool {
    name.ends_with(LOCK_SUFFIX)
}

/// Whether a process is making the snapshot now.
pub(super) fn is_being_made(dir: &Path, key: &str) -> bool {
    let Ok(lock) = File::open(lock(dir, key)) else { return false };
    matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Why the snapshot could not be made.
pub(super) fn failure(dir: &Path, key: &str) -> PathBuf {
    dir.join(format!("{key}{FAILED_SUFFIX}"))
}

/// Whether a file has the name of a [`failure`].
pub(super) fn is_failure(name: &str) -> bool {
    name.ends_with(FAILED_SUFFIX)
}

/// Identifies this boot of the host. Machine state also depends on the host's kernel, which does not change before a reboot.
pub(super) fn host_boot_id() -> Result<String, SnapshotError> {
    match fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => Err(SnapshotError::BootId(error)),
    }
}

/// Removes a snapshot's directory, finished or not. What cannot be removed is only logged.
pub(super) fn remove(dir: &Path) {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, dir = %dir.display(), "cannot be removed");
        }
        _ => {}
    }
}
