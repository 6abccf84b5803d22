//! Why there is no snapshot.

use std::io;
use std::path::{Path, PathBuf};

use super::record::Damage;
use crate::platform::FingerprintError;

/// Why there is no snapshot of a machine, or there can be none.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The platform cannot save machines.
    #[error("this platform has no templates")]
    Unsupported,
    /// This version of the platform cannot save machines.
    #[error("{version} is too old for templates")]
    TooOld {
        /// The version that the platform reports.
        version: String,
    },
    /// The platform could not be asked.
    #[error(transparent)]
    Fingerprint(#[from] FingerprintError),
    /// It is not known which boot of the host this is.
    #[error("cannot read the host's boot id")]
    BootId(#[source] io::Error),
    /// The free space on the disk is not known.
    #[error("cannot examine the disk")]
    Disk(#[source] io::Error),
    /// A snapshot must not take the space that running machines were promised.
    #[error("not enough space for a template: {wanted_mib} MiB must be free")]
    NoSpace {
        /// Space in MiB that it may take.
        wanted_mib: u64,
    },
    /// The kernel file changed while the snapshot was made.
    #[error("the kernel was replaced while its template was made")]
    KernelReplaced,
    /// A file changed between the moment the snapshot was made and its first use.
    #[error("the template changed immediately after it was made")]
    Replaced(#[source] Damage),
    /// A file could not be read, written, made or locked.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The operation.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl SnapshotError {
    /// For `map_err`: the operation and the file.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
