//! The layout of the state directory, and whether it can be trusted.

use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pyro_api::VmId;

/// Returns the directory of all VMs.
pub(crate) fn vms(base_dir: &Path) -> PathBuf {
    base_dir.join("vms")
}

/// Returns the directory of one VM. The id's type guarantees that it is valid.
pub(crate) fn vm(base_dir: &Path, id: &VmId) -> PathBuf {
    vms(base_dir).join(id.as_str())
}

/// Returns the directory of the empty writable layers.
pub(crate) fn layers(base_dir: &Path) -> PathBuf {
    base_dir.join("layers")
}

/// Returns the directory of the templates.
pub(crate) fn templates(base_dir: &Path) -> PathBuf {
    base_dir.join("templates")
}

/// Returns the directory of the spares.
pub(crate) fn spares(base_dir: &Path) -> PathBuf {
    base_dir.join("spares")
}

/// Returns the registry's file.
pub(crate) fn registry(base_dir: &Path) -> PathBuf {
    base_dir.join("state.sqlite3")
}

/// Returns the file with the accelerator that was measured since this boot.
pub(crate) fn accelerator(base_dir: &Path) -> PathBuf {
    base_dir.join("accelerator.json")
}

/// Returns the file with what boots took since this boot of the host.
pub(crate) fn boot_times(base_dir: &Path) -> PathBuf {
    base_dir.join("boot-times.json")
}

/// Returns what is in a directory of the state directory; nothing if it does not exist.
///
/// # Errors
/// It cannot be read, which does not mean that it is empty.
pub(crate) fn entries(dir: &Path) -> io::Result<Vec<DirEntry>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Returns whether an entry is a directory, and not a link to one.
pub(crate) fn is_dir(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

/// Returns why a state directory with this `metadata` must not be trusted, if so.
pub(crate) fn problem(metadata: &Metadata) -> Option<&'static str> {
    if !metadata.is_dir() {
        Some("is not a directory")
    } else if metadata.uid() != rustix::process::geteuid().as_raw() {
        Some("belongs to another user")
    } else if metadata.mode() & 0o022 != 0 {
        Some("may be written by other users")
    } else {
        None
    }
}
