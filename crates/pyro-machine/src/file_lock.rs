//! Waits for a file lock that another process holds. A lock cannot be awaited without blocking a thread, but the directory
//! of its file reports when a file that was open for writing is closed, as the holder's is.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::time::{Instant, timeout_at};

use crate::event_fd::EventFd;

/// Time after which a lock is tried again although nothing was reported.
pub const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// The first pause after a report: the kernel reports that a file is closed just before it releases the lock.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// Reports when to try the lock of a file in one directory again: after a change in the directory, and after pauses
/// that grow from a millisecond to [`LOOK_AGAIN`].
#[derive(Debug)]
pub struct Retry {
    /// Absent if this user has too many watches; then only the pauses remain.
    watch: Option<EventFd>,
    pause: Duration,
}

impl Retry {
    /// Watches `dir` from now on. Must be called before the first attempt, or a change in between would be missed.
    pub fn in_dir(dir: &Path) -> Self {
        let watch = || {
            let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            let flags = WatchFlags::CLOSE_WRITE
                | WatchFlags::CREATE
                | WatchFlags::DELETE
                | WatchFlags::MOVED_TO
                | WatchFlags::DELETE_SELF;
            inotify::add_watch(&watch, dir, flags)?;
            EventFd::new(watch)
        };
        Self { watch: watch().ok(), pause: FIRST_PAUSE }
    }

    /// Returns when the lock is to be tried again, at `until` at the latest.
    pub async fn wait(&mut self, until: Instant) {
        let change = async {
            match &self.watch {
                Some(watch) => watch.read_all().await,
                None => std::future::pending().await,
            }
        };
        let changed = timeout_at(until.min(Instant::now() + self.pause), change).await.is_ok();
        self.pause = if changed { FIRST_PAUSE } else { LOOK_AGAIN.min(self.pause * 2) };
    }
}

/// Waits until no process holds an exclusive lock on the file at `path`, or until it is gone. Takes no thread.
///
/// # Errors
/// It cannot be opened or locked.
pub async fn unlocked(path: &Path) -> io::Result<()> {
    unlocked_by(path, |file| file.try_lock_shared()).await
}

/// Waits for an exclusive lock on the file at `path`, which is created if it does not exist. Takes no thread.
///
/// # Errors
/// It cannot be opened or locked.
pub async fn locked(path: &Path) -> io::Result<Locked> {
    let mut retry = Retry::in_dir(path.parent().unwrap_or(path));
    loop {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        until_locked(&mut retry, || file.try_lock()).await?;
        if let Some(locked) = Locked::still_named(file, path)? {
            return Ok(locked);
        }
    }
}

/// Removes a lock file that no process holds. One that cannot be removed now is left for another attempt.
pub fn remove_unlocked(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    if file.try_lock().is_ok() {
        drop(Locked::still_named(file, path));
    }
}

/// An exclusive lock. Dropping it removes the file too, so that lock files do not outlive what they protect.
#[derive(Debug)]
pub struct Locked {
    path: PathBuf,
    _file: File,
}

impl Locked {
    /// Discards a lock on a file that was removed before it was locked: another process may hold that of a new file.
    fn still_named(file: File, path: &Path) -> io::Result<Option<Self>> {
        let held = file.metadata()?;
        match fs::metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => {
                Ok(Some(Self { path: path.to_owned(), _file: file }))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Before the lock is released with the file: no other process can have locked the file with this name.
        let _ = fs::remove_file(&self.path);
    }
}

async fn unlocked_by(
    path: &Path,
    mut try_lock: impl FnMut(&File) -> Result<(), TryLockError>,
) -> io::Result<()> {
    let mut retry = Retry::in_dir(path.parent().unwrap_or(path));
    // Not for writing, or closing it would look like the end of a holder to others that wait.
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    until_locked(&mut retry, || try_lock(&file)).await
}

async fn until_locked(
    retry: &mut Retry,
    mut try_lock: impl FnMut() -> Result<(), TryLockError>,
) -> io::Result<()> {
    loop {
        match try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => retry.wait(Instant::now() + LOOK_AGAIN).await,
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::time::Duration;

    use super::*;

    fn held(path: &Path) -> File {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).unwrap();
        file.lock().unwrap();
        file
    }

    #[tokio::test]
    async fn an_unlocked_or_missing_file_is_not_awaited() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        unlocked(&path).await.unwrap();
        drop(held(&path));
        unlocked(&path).await.unwrap();
    }

    #[tokio::test]
    async fn the_end_of_a_holder_is_noticed_soon_and_attempts_are_few() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let holder = held(&path);
        let mut attempts = 0;
        let waiting = unlocked_by(&path, |file| {
            attempts += 1;
            file.try_lock_shared()
        });
        let (waited, released) = tokio::join!(
            async {
                waiting.await.unwrap();
                std::time::Instant::now()
            },
            async {
                tokio::time::sleep(Duration::from_millis(700)).await;
                drop(holder);
                std::time::Instant::now()
            }
        );
        let late = waited.saturating_duration_since(released);
        assert!(late < Duration::from_secs(2), "{late:?}");
        assert!(attempts < 20, "{attempts} attempts");
    }

    #[tokio::test]
    async fn a_lock_is_passed_on_and_its_file_is_removed_with_the_last_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let holder = locked(&path).await.unwrap();
        // Both wait for the file that the holder removes, and only one of them may have the next one.
        let wait = async || {
            let lock = locked(&path).await.unwrap();
            assert!(matches!(File::open(&path).unwrap().try_lock_shared(), Err(TryLockError::WouldBlock)));
            tokio::task::yield_now().await;
            drop(lock);
        };
        let ((), (), ()) = tokio::join!(wait(), wait(), async {
            tokio::task::yield_now().await;
            drop(holder);
        });
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_lock_of_a_removed_file_is_not_taken_for_that_of_its_successor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let removed = held(&path);
        fs::remove_file(&path).unwrap();
        let successor = held(&path);
        drop(removed.unlock());
        assert!(Locked::still_named(removed, &path).unwrap().is_none());
        assert!(path.exists(), "it is another holder's");
        remove_unlocked(&path);
        assert!(path.exists(), "it is held");
        drop(successor);
        remove_unlocked(&path);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_closed_file_ends_a_pause() {
        let dir = tempfile::tempdir().unwrap();
        let holder = held(&dir.path().join("lock"));
        let hour = Duration::from_secs(3600);
        let mut retry = Retry { pause: hour, ..Retry::in_dir(dir.path()) };
        let began = Instant::now();
        let ((), ()) = tokio::join!(retry.wait(began + hour), async { drop(holder) });
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
        assert_eq!(retry.pause, FIRST_PAUSE);
        // What was reported once is not reported again.
        retry.wait(began + hour).await;
        assert_eq!(retry.pause, FIRST_PAUSE * 2);
    }

    #[tokio::test]
    async fn many_waits_take_no_threads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let holder = held(&path);
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        let waits = (0..50).map(|_| unlocked(&path));
        let during = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let during = threads();
            drop(holder);
            during
        };
        let (waited, during) = tokio::join!(futures::future::join_all(waits), during);
        assert!(waited.iter().all(Result::is_ok));
        assert!(during <= before + 2, "{before} threads became {during}");
    }
}
