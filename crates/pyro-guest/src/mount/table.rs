//! The directories of the host that are mounted.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

/// Those that are mounted, in the order in which that was done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mounts(Arc<Mutex<Vec<Entry>>>);

#[derive(Debug)]
struct Entry {
    path: PathBuf,
    end: Arc<Notify>,
    ended: watch::Receiver<()>,
}

/// One that is mounted, or about to be. Dropping it removes it from the table.
#[derive(Debug)]
pub(super) struct Mounted {
    table: Mounts,
    path: PathBuf,
    end: Arc<Notify>,
    _ended: watch::Sender<()>,
}

impl Mounts {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one. `None`: something is mounted there already.
    pub(super) fn add(&self, path: &Path) -> Option<Mounted> {
        let mut entries = self.entries();
        if entries.iter().any(|entry| entry.path == path) {
            return None;
        }
        let (sender, ended) = watch::channel(());
        let (path, end) = (path.to_owned(), Arc::new(Notify::new()));
        entries.push(Entry { path: path.clone(), end: Arc::clone(&end), ended });
        Some(Mounted { table: self.clone(), path, end, _ended: sender })
    }

    /// Unmounts all of them, the latest first, after everything was written out as far as the host takes it.
    pub(crate) async fn end_all(&self) {
        loop {
            let last = self.entries().last().map(|entry| (Arc::clone(&entry.end), entry.ended.clone()));
            let Some((end, mut ended)) = last else { return };
            end.notify_one();
            // Fails when the sender is dropped, which is the end.
            let _ = ended.changed().await;
        }
    }
}

impl Mounted {
    /// The host wants it unmounted.
    pub(super) fn want_end(&self) {
        self.end.notify_one();
    }

    /// Waits until the host or the machine wants it unmounted.
    pub(super) async fn end_wanted(&self) {
        self.end.notified().await;
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.table.entries().retain(|entry| entry.path != self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_are_ended_the_latest_first() {
        let mounts = Mounts::default();
        let ended = Arc::new(Mutex::new(Vec::new()));
        for path in ["/a", "/a/b"] {
            let mounted = mounts.add(Path::new(path)).unwrap();
            let ended = Arc::clone(&ended);
            tokio::spawn(async move {
                mounted.end_wanted().await;
                ended.lock().unwrap().push(mounted.path.clone());
            });
        }
        assert!(mounts.add(Path::new("/a")).is_none(), "it is mounted already");
        mounts.end_all().await;
        assert_eq!(*ended.lock().unwrap(), [Path::new("/a/b"), Path::new("/a")]);
        assert!(mounts.add(Path::new("/a")).is_some());
    }
}
