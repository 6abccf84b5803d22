//! The directories of the host that are mounted.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::timeout;

/// Time limit for writing all of them out and unmounting them before the machine halts. It leaves time for the machine's own disk.
const END_LIMIT: Duration = Duration::from_secs(7);
/// Time limit for unmounting those that were cut off from the host.
const CUT_OFF_LIMIT: Duration = Duration::from_secs(1);

/// Those that are mounted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mounts(Arc<Mutex<Vec<Entry>>>);

#[derive(Clone, Debug)]
struct Entry {
    /// As the host calls it.
    path: PathBuf,
    /// Where it really is, once that is known.
    place: Option<PathBuf>,
    end: watch::Sender<Wanted>,
    ended: watch::Receiver<()>,
    /// Its host is gone, and only the machine's halt or another mount ends it.
    is_left: bool,
}

/// What is to be done with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    Mounted,
    /// Write everything out, then unmount it.
    End,
    /// Unmount it without the host.
    CutOff,
}

/// One that is mounted, or about to be. Dropping it removes it from the table.
#[derive(Debug)]
pub(super) struct Mounted {
    table: Mounts,
    path: PathBuf,
    end: watch::Sender<Wanted>,
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
        let (path, end) = (path.to_owned(), watch::Sender::new(Wanted::Mounted));
        entries.push(Entry { path: path.clone(), place: None, end: end.clone(), ended, is_left: false });
        Some(Mounted { table: self.clone(), path, end, _ended: sender })
    }

    /// Unmounts one whose host is gone.
    pub(super) async fn end_left(&self, path: &Path) {
        let left = self.entries().iter().find(|entry| entry.is_left && entry.path == path).cloned();
        if let Some(left) = left {
            left.end(Wanted::End).await;
        }
    }

    /// Unmounts all of them, after everything was written out as far as the host takes it in time. One that is mounted in another
    /// is unmounted before it.
    pub(crate) async fn end_all(&self) {
        let in_turn = async {
            loop {
                let all = self.entries().clone();
                let is_inner = |entry: &&Entry| {
                    !all.iter()
                        .any(|other| other.path != entry.path && other.place().starts_with(entry.place()))
                };
                if all.is_empty() {
                    return;
                }
                let inner: Vec<_> = all.iter().filter(is_inner).cloned().collect();
                // By a link, the path of one that is being mounted can be in the place of another, and the reverse.
                let next = if inner.is_empty() { all } else { inner };
                join_all(next.into_iter().map(|entry| entry.end(Wanted::End))).await;
            }
        };
        if timeout(END_LIMIT, in_turn).await.is_err() {
            let all = self.entries().clone();
            let cut_off = join_all(all.into_iter().map(|entry| entry.end(Wanted::CutOff)));
            let _ = timeout(CUT_OFF_LIMIT, cut_off).await;
        }
    }
}

impl Entry {
    fn place(&self) -> &Path {
        self.place.as_deref().unwrap_or(&self.path)
    }

    async fn end(mut self, wanted: Wanted) {
        self.end.send_replace(wanted);
        // Fails when the sender is dropped, which is the end.
        let _ = self.ended.changed().await;
    }
}

impl Mounted {
    /// Takes the place where it really is. Those there whose host is gone are unmounted. On failure, returns the path of another one
    /// that is there, in it, or above it.
    pub(super) async fn occupy(&self, place: &Path) -> Result<(), PathBuf> {
        loop {
            let other = {
                let mut entries = self.table.entries();
                let overlaps = |entry: &&Entry| {
                    let taken = entry.place.as_deref().filter(|_| entry.path != self.path);
                    taken.is_some_and(|taken| taken.starts_with(place) || place.starts_with(taken))
                };
                let other = entries.iter().find(overlaps).cloned();
                if other.is_none()
                    && let Some(entry) = entries.iter_mut().find(|entry| entry.path == self.path)
                {
                    entry.place = Some(place.to_owned());
                }
                other
            };
            match other {
                None => return Ok(()),
                Some(left) if left.is_left => left.end(Wanted::End).await,
                Some(other) => return Err(other.path),
            }
        }
    }

    /// The host wants it unmounted.
    pub(super) fn want_end(&self) {
        self.end.send_if_modified(|wanted| {
            let is_new = *wanted < Wanted::End;
            *wanted = Wanted::End.max(*wanted);
            is_new
        });
    }

    /// Waits until the host or the machine wants it unmounted.
    pub(super) async fn end_wanted(&self) {
        self.reached(Wanted::End).await;
    }

    /// Its host is gone. Waits until it is to be unmounted.
    pub(super) async fn leave(&self) {
        if let Some(entry) = self.table.entries().iter_mut().find(|entry| entry.path == self.path) {
            entry.is_left = true;
        }
        self.end_wanted().await;
    }

    /// Waits until it is to be unmounted without the host.
    pub(super) async fn cut_off(&self) {
        self.reached(Wanted::CutOff).await;
    }

    async fn reached(&self, at_least: Wanted) {
        // Fails if the sender is dropped, which this holds.
        let _ = self.end.subscribe().wait_for(|wanted| *wanted >= at_least).await;
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
    async fn all_are_ended_the_inner_ones_first() {
        let mounts = Mounts::default();
        let ended = Arc::new(Mutex::new(Vec::new()));
        for path in ["/a/b", "/a"] {
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

    #[tokio::test]
    async fn all_are_ended_if_each_seems_to_be_in_another() {
        let mounts = Mounts::default();
        let first = mounts.add(Path::new("/a")).unwrap();
        first.occupy(Path::new("/b/real")).await.unwrap();
        let second = mounts.add(Path::new("/b/real")).unwrap();
        let ended = [first, second].map(|mounted| tokio::spawn(async move { mounted.end_wanted().await }));
        mounts.end_all().await;
        assert!(mounts.entries().is_empty());
        for ended in ended {
            ended.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_do_not_end_are_cut_off_at_the_same_time() {
        let mounts = Mounts::default();
        let began = tokio::time::Instant::now();
        for path in ["/a", "/a/b", "/c"] {
            let mounted = mounts.add(Path::new(path)).unwrap();
            tokio::spawn(async move { mounted.cut_off().await });
        }
        // One that is about to be mounted.
        let _stuck = mounts.add(Path::new("/d")).unwrap();
        mounts.end_all().await;
        assert_eq!(began.elapsed(), END_LIMIT + CUT_OFF_LIMIT);
        assert_eq!(mounts.entries().len(), 1);
    }

    #[tokio::test]
    async fn two_paths_that_lead_to_one_place_exclude_each_other() {
        let mounts = Mounts::default();
        let add = async |path: &str, place: &str| {
            let mounted = mounts.add(Path::new(path)).unwrap();
            mounted.occupy(Path::new(place)).await.map(|()| mounted)
        };
        let first = add("/a", "/real/a").await.unwrap();
        for place in ["/real/a", "/real", "/real/a/b"] {
            assert_eq!(add("/b", place).await.unwrap_err(), Path::new("/a"), "{place}");
        }
        let other = add("/c", "/real/ab").await.unwrap();
        let left = tokio::spawn(async move { first.leave().await });
        tokio::task::yield_now().await;
        add("/b", "/real/a").await.unwrap();
        left.await.unwrap();
        drop(other);
        add("/b", "/real").await.unwrap();
    }

    #[tokio::test]
    async fn one_whose_host_is_gone_makes_way_for_another() {
        let mounts = Mounts::default();
        let mounted = mounts.add(Path::new("/a")).unwrap();
        mounts.end_left(Path::new("/a")).await;
        assert!(mounts.add(Path::new("/a")).is_none(), "it is in use");
        let left = tokio::spawn(async move { mounted.leave().await });
        tokio::task::yield_now().await;
        mounts.end_left(Path::new("/a")).await;
        left.await.unwrap();
        assert!(mounts.add(Path::new("/a")).is_some());
    }
}
