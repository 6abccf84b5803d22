//! `verified.json`: which files of an environment were found to match their digests although their inodes are not those that
//! were installed, as in a copy or a restored backup of the cache. Without it, each use would read all of them.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::IoError;
use crate::manifest::{ctime_ns, mtime_ns};
use crate::{fsio, trust};

pub(crate) const FILE_NAME: &str = "verified.json";
/// What the names of files begin with that are not complete yet.
const UNFINISHED_PREFIX: &str = ".verified-";
/// Writing takes milliseconds. A process that was killed leaves its file.
const UNFINISHED_AFTER: Duration = Duration::from_secs(60);

/// Maximum size in bytes. An entry takes about 250.
const LARGEST: u64 = 64 * 1024;
/// The time of an inode's last change has the granularity of the kernel's clock, up to 10 ms. A file that changed a moment
/// ago can change again without a new time.
const SETTLED_AFTER: Duration = Duration::from_millis(100);

/// What a file looked like when its content was compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Proof {
    sha256: String,
    device: u64,
    inode: u64,
    size: u64,
    mtime_ns: i64,
    ctime_ns: i64,
}

impl Proof {
    fn of(sha256: &str, file: &Metadata) -> Self {
        Self {
            sha256: sha256.to_owned(),
            device: file.dev(),
            inode: file.ino(),
            size: file.len(),
            mtime_ns: mtime_ns(file),
            ctime_ns: ctime_ns(file),
        }
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_nanos(self.ctime_ns.try_into().unwrap_or_default());
        now.checked_sub(changed).is_some_and(|age| age >= SETTLED_AFTER)
    }
}

/// The comparisons that are remembered, by the names of the files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Verified(BTreeMap<String, Proof>);

impl Verified {
    /// Reads what is remembered of the environment in `dir`. Nothing, if other users could have written it.
    pub(crate) fn read(dir: &Path) -> Self {
        let path = dir.join(FILE_NAME);
        let read = || {
            let file = fsio::open_own(&path).ok()??;
            if !trust::is_own(&file, &path) {
                return None;
            }
            serde_json::from_slice(&fsio::read_open(file, &path, LARGEST).ok()?).ok()
        };
        read().unwrap_or_default()
    }

    /// Whether a file with this digest looks as it did when its content was compared.
    pub(crate) fn covers(&self, name: &str, sha256: &str, file: &Metadata) -> bool {
        self.0.get(name) == Some(&Proof::of(sha256, file))
    }

    /// Adds a file that looked like this at `seen`, before its content was compared. Returns whether a change since then will
    /// be noticed; only then was it added.
    pub(crate) fn add(&mut self, name: &str, sha256: &str, file: &Metadata, seen: SystemTime) -> bool {
        let proof = Proof::of(sha256, file);
        let is_settled = proof.is_settled(seen);
        if is_settled {
            self.0.insert(name.to_owned(), proof);
        }
        is_settled
    }

    /// Remembers it. Several processes may do so at a time; the last one wins.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), IoError> {
        let path = dir.join(FILE_NAME);
        remove_unfinished(dir);
        let write = || {
            // Only its owner may read and write it.
            let mut file = tempfile::Builder::new().prefix(UNFINISHED_PREFIX).tempfile_in(dir)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.persist(&path).map_err(|error| error.error)
        };
        write().map(drop).map_err(IoError::at("write", &path))
    }
}

/// Removes what killed processes have left.
fn remove_unfinished(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let is_old = |entry: &DirEntry| {
        let modified = entry.metadata().and_then(|file| file.modified()).ok();
        modified.and_then(|time| time.elapsed().ok()).is_some_and(|age| age > UNFINISHED_AFTER)
    };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED_PREFIX) && is_old(&entry) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_change_within_the_granularity_of_the_clock_is_not_trusted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let proof = Proof::of("00", &file.as_file().metadata().unwrap());
        let changed = UNIX_EPOCH + Duration::from_nanos(proof.ctime_ns.try_into().unwrap());
        assert!(!proof.is_settled(changed + Duration::from_millis(99)));
        assert!(proof.is_settled(changed + Duration::from_millis(100)));
        assert!(!proof.is_settled(changed - Duration::from_secs(3600)), "the clock was set back");
    }

    #[test]
    fn damage_and_strange_content_are_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Verified::read(dir.path()), Verified::default());
        let proof = Proof { sha256: "00".into(), device: 1, inode: 2, size: 3, mtime_ns: 4, ctime_ns: 5 };
        let verified = Verified([("rootfs".to_owned(), proof)].into());
        verified.write(dir.path()).unwrap();
        assert_eq!(Verified::read(dir.path()), verified);
        for content in ["", "{", "[]", r#"{"rootfs": 3}"#] {
            fs::write(dir.path().join(FILE_NAME), content).unwrap();
            assert_eq!(Verified::read(dir.path()), Verified::default());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no partial file is left");
    }

    #[test]
    fn what_killed_processes_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join(".verified-old"), dir.path().join(".verified-new"));
        let long_ago = SystemTime::now() - UNFINISHED_AFTER - Duration::from_secs(1);
        File::create(&old).unwrap().set_modified(long_ago).unwrap();
        File::create(&new).unwrap();
        Verified::default().write(dir.path()).unwrap();
        assert!(!old.exists() && new.exists(), "another process may be writing the new one");
    }
}
