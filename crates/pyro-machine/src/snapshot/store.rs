//! The snapshots of one directory: found, made, and the least recently used removed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::error::SnapshotError;
use super::key::{self, Subject};
use super::layout::{self, LAYER, MEMORY, RECORD, STATE, remove};
use super::record::{Parts, Record};
use crate::artifact::Artifact;
use crate::file_lock::{self, Locked};
use crate::files;
use crate::hardware::SavedFiles;
use crate::image::GuestKernel;
use crate::platform::Platform;

/// Maximum number of snapshots, and of bytes of disk for all of them. The least recently used go first.
const MAX_SNAPSHOTS: usize = 8;
const MAX_BYTES: u64 = 4 << 30;
/// Time without another attempt after a failure: each attempt costs a boot.
const FAILURE_HOLDS: Duration = Duration::from_secs(60);

/// The snapshot for machines of one kind, in a directory with those of other kinds.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    key: String,
    kernel: GuestKernel,
    kernel_identity: Option<Value>,
}

/// A snapshot that was found whole. Its files are open: others that take their paths are not used.
#[derive(Debug)]
pub struct Snapshot {
    dir: PathBuf,
    record: Record,
    parts: Parts,
}

/// A snapshot that is being made. Dropping it removes its files.
#[derive(Debug)]
pub struct Partial {
    dir: PathBuf,
    _lock: Locked,
}

/// What [`Store::begin`] leads to.
#[derive(Debug)]
pub enum Begun {
    /// The caller makes the snapshot.
    Partial(Partial),
    /// Another process has made it by now.
    MadeMeanwhile(Box<Snapshot>),
    /// Another process could not make it, for this reason.
    FailedMeanwhile(String),
}

impl Store {
    /// The snapshot of `subject` in `dir`.
    ///
    /// # Errors
    /// There can be none: the platform cannot save machines, or cannot be identified.
    pub async fn open<P: Platform>(
        dir: &Path,
        subject: &Subject,
        platform: &P,
    ) -> Result<Self, SnapshotError> {
        if !platform.capabilities().snapshots {
            return Err(SnapshotError::Unsupported);
        }
        let kernel = subject.guest.kernel.clone();
        // Taken before the key, so that the check at the end does not compare with something newer.
        let kernel_identity = key::kernel_identity(&kernel);
        let fingerprint = platform.fingerprint(&subject.hardware, dir).await?;
        if !fingerprint.saves_machines {
            return Err(SnapshotError::TooOld { version: fingerprint.version });
        }
        let key = key::of(subject, &fingerprint)?;
        Ok(Self { dir: dir.to_owned(), key, kernel, kernel_identity: kernel_identity? })
    }

    /// Returns whether it must be made before a machine can start from it, and no recent attempt has failed.
    pub fn is_missing(&self) -> bool {
        self.find().is_none() && self.recent_failure().is_none()
    }

    /// Returns the snapshot, if it exists and looks unchanged.
    pub fn find(&self) -> Option<Snapshot> {
        let dir = self.dir.join(&self.key);
        let record = Record::read(&dir.join(RECORD)).ok()??;
        match record.check(&dir) {
            Ok(parts) => {
                // For deciding which one has not been used for longest; it may fail without harm.
                let _ = File::open(dir.join(RECORD)).and_then(|file| file.set_modified(SystemTime::now()));
                Some(Snapshot { dir, record, parts })
            }
            Err(reason) if !reason.is_certain() => {
                tracing::warn!(dir = %dir.display(), %reason, "template not used");
                None
            }
            Err(reason) => {
                tracing::warn!(dir = %dir.display(), %reason, "damaged template discarded");
                remove(&dir);
                None
            }
        }
    }

    /// Begins to make the snapshot, after waiting without limit for a process that is making it. It is not begun unless
    /// `wanted` bytes are free: a snapshot must not take the space that running machines were promised.
    ///
    /// # Errors
    /// There is not enough space, or a file cannot be made or locked.
    pub async fn begin(&self, wanted: u64) -> Result<Begun, SnapshotError> {
        files::make_private_dir(&self.dir).map_err(SnapshotError::io("make", &self.dir))?;
        self.check_space(wanted)?;
        let lock_path = layout::lock(&self.dir, &self.key);
        let lock = file_lock::locked(&lock_path).await.map_err(SnapshotError::io("lock", &lock_path))?;
        if let Some(snapshot) = self.find() {
            return Ok(Begun::MadeMeanwhile(Box::new(snapshot)));
        }
        if let Some(reason) = self.recent_failure() {
            return Ok(Begun::FailedMeanwhile(reason));
        }
        let dir = layout::partial(&self.dir, &self.key);
        // The process that was making it is dead, or it would hold the lock.
        remove(&dir);
        files::make_private_dir(&dir).map_err(SnapshotError::io("make", &dir))?;
        Ok(Begun::Partial(Partial { dir, _lock: lock }))
    }

    /// Puts a finished snapshot into place. `kernel_release` is what its guest says of its kernel; by the digest `environment`
    /// and the path of its base image, [`prune`](super::prune) knows the environment.
    ///
    /// # Errors
    /// The kernel is not the one that was booted, or a file cannot be read or written.
    pub fn finish(
        &self,
        partial: Partial,
        kernel_release: String,
        environment: &str,
        base_image: &Path,
    ) -> Result<Snapshot, SnapshotError> {
        if key::kernel_identity(&self.kernel).ok().as_ref() != Some(&self.kernel_identity) {
            return Err(SnapshotError::KernelReplaced);
        }
        let record = Record::of(&partial.dir, kernel_release, environment)?.with_base_image(base_image);
        record.write(&partial.dir.join(RECORD))?;
        let dir = self.dir.join(&self.key);
        remove(&dir);
        fs::rename(&partial.dir, &dir).map_err(SnapshotError::io("make", &dir))?;
        self.remove_surplus(&dir);
        let parts = record.check(&dir).map_err(SnapshotError::Replaced)?;
        Ok(Snapshot { dir, record, parts })
    }

    /// Records that the snapshot could not be made, so that it is not tried again for a while: each attempt costs a boot.
    pub fn failed(&self, reason: &str) {
        // Then it is tried again, which is slow but correct.
        let _ = fs::write(layout::failure(&self.dir, &self.key), reason);
    }

    /// Removes a snapshot that is of no use. Machines that run from it keep what they have open.
    pub fn discard(&self, snapshot: &Snapshot) {
        remove(&snapshot.dir);
    }

    /// Returns why a recent attempt to make it failed.
    pub fn recent_failure(&self) -> Option<String> {
        let path = layout::failure(&self.dir, &self.key);
        let age = SystemTime::now().duration_since(fs::metadata(&path).ok()?.modified().ok()?).ok()?;
        if age > FAILURE_HOLDS {
            let _ = fs::remove_file(&path);
            return None;
        }
        fs::read_to_string(&path).ok()
    }

    fn check_space(&self, wanted: u64) -> Result<(), SnapshotError> {
        let disk = rustix::fs::statvfs(&self.dir).map_err(|error| SnapshotError::Disk(error.into()))?;
        match disk.f_bavail.saturating_mul(disk.f_frsize) {
            free if free < wanted => Err(SnapshotError::NoSpace { wanted_mib: wanted >> 20 }),
            _ => Ok(()),
        }
    }

    /// Removes the least recently used snapshots beyond the bounds, but not `newest`.
    fn remove_surplus(&self, newest: &Path) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut others: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let used = fs::metadata(path.join(RECORD)).ok()?.modified().ok()?;
                (path != newest).then(|| (used, allocated_bytes(&path), path))
            })
            .collect();
        others.sort();
        let mut bytes = allocated_bytes(newest) + others.iter().map(|(_, bytes, _)| bytes).sum::<u64>();
        let mut count = others.len() + 1;
        for (_, size, path) in others {
            if count <= MAX_SNAPSHOTS && bytes <= MAX_BYTES {
                break;
            }
            remove(&path);
            count -= 1;
            bytes -= size;
        }
    }
}

impl Snapshot {
    /// The state of the devices.
    pub fn state(&self) -> &Path {
        self.parts.state.path()
    }

    /// What a machine is started from.
    pub fn saved_files(&self) -> SavedFiles {
        SavedFiles { memory: self.parts.memory.clone(), state: self.parts.state.clone() }
    }

    /// The writable layer.
    pub fn layer(&self) -> &Artifact {
        &self.parts.layer
    }

    /// `uname -r` in the guest.
    pub fn kernel_release(&self) -> &str {
        &self.record.kernel_release
    }
}

impl Partial {
    /// The directory of its files. Any other file there must be removed before [`Store::finish`].
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The guest's memory.
    pub fn memory(&self) -> PathBuf {
        self.dir.join(MEMORY)
    }

    /// See [`Snapshot::state`].
    pub fn state(&self) -> PathBuf {
        self.dir.join(STATE)
    }

    /// See [`Snapshot::saved_files`].
    pub fn saved_files(&self) -> SavedFiles {
        SavedFiles { memory: self.memory().into(), state: self.state().into() }
    }

    /// See [`Snapshot::layer`].
    pub fn layer(&self) -> PathBuf {
        self.dir.join(LAYER)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After the rename it does not exist.
        remove(&self.dir);
    }
}

fn allocated_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.blocks() * 512)).sum()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::super::prune;
    use super::*;

    fn store(dir: &Path, key: &str) -> Store {
        let kernel = GuestKernel::WithModules { image: "/none".into(), modules: "/none".into() };
        Store { dir: dir.to_owned(), key: key.to_owned(), kernel, kernel_identity: None }
    }

    async fn make(store: &Store) -> Snapshot {
        let Begun::Partial(partial) = store.begin(0).await.unwrap() else { panic!("it is there already") };
        for path in [partial.memory(), partial.state(), partial.layer()] {
            fs::write(path, "content").unwrap();
        }
        store.finish(partial, "6.1".to_owned(), "environment", Path::new("/none")).unwrap()
    }

    #[tokio::test]
    async fn a_finished_snapshot_is_found_until_it_is_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), "key");
        assert!(store.is_missing());
        make(&store).await;
        let found = store.find().unwrap();
        assert_eq!(found.kernel_release(), "6.1");
        assert!(!store.is_missing());
        assert!(matches!(store.begin(0).await.unwrap(), Begun::MadeMeanwhile(_)));
        store.discard(&found);
        assert!(store.is_missing());
    }

    #[tokio::test]
    async fn a_snapshot_that_cannot_be_read_now_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), "key");
        let state = make(&store).await.state().to_owned();
        // A socket cannot be opened as a file, nor can anything while this process has too many open files.
        fs::remove_file(&state).unwrap();
        let socket = UnixListener::bind(&state).unwrap();
        assert!(store.find().is_none());
        assert!(state.exists());
        assert_eq!(prune::prune(dir.path(), &["environment".to_owned()], Path::new("/cache")), 0);
        drop(socket);
        fs::remove_file(&state).unwrap();
        assert!(store.find().is_none());
        assert!(!state.parent().unwrap().exists(), "a file is missing");
    }

    #[tokio::test]
    async fn a_snapshot_that_is_given_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), "key");
        let Begun::Partial(partial) = store.begin(0).await.unwrap() else { panic!("nothing was made") };
        let partial_dir = partial.dir().to_owned();
        assert!(partial_dir.exists());
        drop(partial);
        assert!(!partial_dir.exists());
    }

    #[tokio::test]
    async fn no_lock_file_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), "key");
        let names = || -> Vec<_> {
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
        };
        let Begun::Partial(partial) = store.begin(0).await.unwrap() else { panic!("nothing was made") };
        drop(partial);
        assert!(names().is_empty(), "{:?}", names());
        make(&store).await;
        assert!(matches!(store.begin(0).await.unwrap(), Begun::MadeMeanwhile(_)));
        assert_eq!(names(), ["key"]);
    }

    #[tokio::test]
    async fn one_process_makes_it_and_others_wait() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (store(dir.path(), "key"), store(dir.path(), "key"));
        let Begun::Partial(partial) = first.begin(0).await.unwrap() else { panic!("nothing was made") };
        for path in [partial.memory(), partial.state(), partial.layer()] {
            fs::write(path, "content").unwrap();
        }
        let waiting = second.begin(0);
        let making = async {
            tokio::task::yield_now().await;
            first.finish(partial, "6.1".to_owned(), "environment", Path::new("/none")).unwrap();
        };
        let (begun, ()) = tokio::join!(waiting, making);
        assert!(matches!(begun.unwrap(), Begun::MadeMeanwhile(_)));
    }

    #[tokio::test]
    async fn those_who_wait_for_an_attempt_that_fails_do_not_try_again() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (store(dir.path(), "key"), store(dir.path(), "key"));
        let Begun::Partial(partial) = first.begin(0).await.unwrap() else { panic!("nothing was made") };
        let failing = async {
            tokio::task::yield_now().await;
            first.failed("why");
            drop(partial);
        };
        let (begun, ()) = tokio::join!(second.begin(0), failing);
        let begun = begun.unwrap();
        assert!(matches!(&begun, Begun::FailedMeanwhile(reason) if reason == "why"), "{begun:?}");
    }

    #[tokio::test]
    async fn it_is_not_begun_without_space() {
        let dir = tempfile::tempdir().unwrap();
        let error = store(dir.path(), "key").begin(u64::MAX).await.unwrap_err();
        assert!(matches!(error, SnapshotError::NoSpace { .. }));
        assert_eq!(error.to_string(), "not enough space for a template: 17592186044415 MiB must be free");
    }

    #[test]
    fn a_failure_holds_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), "key");
        assert_eq!(store.recent_failure(), None);
        store.failed("why");
        assert_eq!(store.recent_failure().as_deref(), Some("why"));
        assert!(!store.is_missing());
        let long_ago = SystemTime::now() - FAILURE_HOLDS - Duration::from_secs(1);
        File::options()
            .write(true)
            .open(dir.path().join("key.failed"))
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        assert_eq!(store.recent_failure(), None);
        assert!(store.is_missing());
    }

    #[tokio::test]
    async fn the_least_recently_used_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let stores: Vec<_> = (0..=MAX_SNAPSHOTS).map(|n| store(dir.path(), &n.to_string())).collect();
        for (n, store) in stores.iter().enumerate() {
            make(store).await;
            let used = SystemTime::now() - Duration::from_secs(100 - n as u64);
            File::open(dir.path().join(n.to_string()).join(RECORD)).unwrap().set_modified(used).unwrap();
        }
        let left: Vec<_> = (0..stores.len()).filter(|n| dir.path().join(n.to_string()).exists()).collect();
        assert_eq!(left, (1..stores.len()).collect::<Vec<_>>());
    }
}
