//! The directory of one VM: the names in it, its owner, and how to reach that owner.
//!
//! Whether a VM has a living owner is determined by a lock, which the kernel releases with its last holder, and not by
//! a process id, which may have been reused. The socket is in the directory, which only its user can enter. It is
//! addressed through the directory's descriptor, because a socket's path is limited to 107 bytes and a state
//! directory's path may be longer.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use pyro_machine::network::Denials;
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};

use super::files;
use super::protocol::{GENERATION, VERSION};

/// Size at which the supervisor's log is truncated, in bytes.
const LOG_LIMIT: u64 = 1 << 20;
/// Maximum size of an [`Owner`] file, in bytes.
const OWNER_LIMIT: u64 = 4096;

/// Number of times that a directory is removed in which other processes make their lock file again.
const REMOVALS: usize = 100;

/// Time limit for other processes that only look whether a VM has an owner, which takes them microseconds.
const LOOK_LIMIT: Duration = Duration::from_millis(250);

/// What a VM's supervisor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The VM is not up yet.
    Starting,
    /// Clients are served.
    Running,
    /// The VM is about to end.
    Stopping,
}

/// The process that owns a VM, as it describes itself. Only valid while the lock is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its process id.
    pub pid: i32,
    /// When it was started, in clock ticks since the host's boot: together with the id, it identifies one process.
    pub started: u64,
    /// Its package version.
    pub version: String,
    /// The generation of its protocol.
    pub generation: u32,
    /// What it is doing.
    pub phase: Phase,
}

impl Owner {
    /// Describes this process.
    pub(crate) fn this(phase: Phase) -> Self {
        let pid = rustix::process::getpid().as_raw_pid();
        let started = start_time(pid).unwrap_or(0);
        Self { pid, started, version: VERSION.to_owned(), generation: GENERATION, phase }
    }

    /// Returns the owner of the VM in `dir`, if it has described itself and its lock is held.
    pub fn of(dir: &Path) -> Option<Self> {
        if !OwnerLock::is_held(dir) {
            return None;
        }
        let file = File::open(dir.join(files::OWNER)).ok()?;
        let owner: Self = serde_json::from_reader(io::Read::take(file, OWNER_LIMIT)).ok()?;
        (start_time(owner.pid) == Some(owner.started)).then_some(owner)
    }

    /// Writes the description atomically.
    pub(crate) fn announce(&self, dir: &Path) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.persist(dir.join(files::OWNER)).map_err(|error| error.error)?;
        Ok(())
    }
}

/// Returns when a process was started, in clock ticks since the host's boot; `None` if it does not exist.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    stat(pid, 19)
}

/// Returns the letter for the state of a process, as `proc(5)` has it; `None` if it does not exist.
pub(crate) fn state(pid: i32) -> Option<char> {
    stat(pid, 0)
}

/// Returns a field of what the kernel says of a process, by its number after the process's name.
fn stat<T: std::str::FromStr>(pid: i32, field: usize) -> Option<T> {
    // The name, in parentheses, may contain anything.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(field)?.parse().ok()
}

/// Takes a shared lock on a file for as long as the result lives, which marks what the file stands for as in use.
pub(crate) fn use_shared(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    // The process that starts the VM uses it too, so no process can hold an exclusive lock.
    match file.try_lock_shared() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::ErrorKind::ResourceBusy.into()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Truncates the log on standard error when it has grown too large. The process that started this one opened it for
/// appending.
pub(crate) fn bound_log() {
    bound(io::stderr());
}

fn bound(log: impl AsFd) {
    let is_large = |stat: rustix::fs::Stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file()
            && u64::try_from(stat.st_size).is_ok_and(|size| size > LOG_LIMIT)
    };
    if rustix::fs::fstat(&log).is_ok_and(is_large) {
        let _ = rustix::fs::ftruncate(&log, 0);
    }
}

/// Removes a VM's directory with everything in it. A missing directory is not an error.
///
/// A process that waits for the VM's end may make the lock file again after the files and before the directory is removed.
///
/// # Errors
/// It cannot be removed.
pub fn remove(dir: &Path) -> io::Result<()> {
    let mut removals = 1;
    loop {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && removals < REMOVALS => {
                removals += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => return removed,
        }
    }
}

fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, dir, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

fn socket_path(dir: &OwnedFd) -> String {
    format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), files::CONTROL_SOCKET)
}

/// The listening process holds the VM's lock, so an existing socket belongs to a dead supervisor.
pub(crate) fn listen(dir: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(dir.join(files::CONTROL_SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(socket_path(&open_dir(dir)?))
}

/// Connects to the supervisor of the VM in `dir`.
pub(crate) async fn connect(dir: &Path) -> io::Result<UnixStream> {
    let dir = open_dir(dir)?;
    UnixStream::connect(socket_path(&dir)).await
}

/// The open lock file of one VM. Its lock can be tried several times; opening and closing the file for each attempt
/// would look like the end of an owner to those who watch the directory.
pub(crate) struct LockFile {
    path: PathBuf,
    file: File,
}

impl LockFile {
    /// Opens the lock file in a VM's directory, which it creates if it is missing.
    ///
    /// # Errors
    /// `NotFound` if the directory does not exist.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(files::OWNER_LOCK);
        let file = Self::open_path(&path)?;
        Ok(Self { path, file })
    }

    fn open_path(path: &Path) -> io::Result<File> {
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
    }

    /// Takes the lock; `None` if another process holds it.
    ///
    /// # Errors
    /// `NotFound` if the directory does not exist any more.
    pub(crate) fn try_lock(&mut self) -> io::Result<Option<OwnerLock>> {
        loop {
            let is_locked = match self.file.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(error)) => return Err(error),
            };
            match fs::metadata(&self.path) {
                Ok(present) if is_same(&present, &self.file.metadata()?) => {
                    return is_locked.then(|| self.file.try_clone().map(OwnerLock)).transpose();
                }
                // The owner is removing the directory.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        && !is_locked
                        && self.path.parent().is_some_and(Path::exists) =>
                {
                    return Ok(None);
                }
                // The open file is a removed one, whose lock means nothing.
                _ => self.file = Self::open_path(&self.path)?,
            }
        }
    }
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// The held lock of one VM. Passed on to the supervisor, so that the VM always has an owner.
#[derive(Debug)]
pub struct OwnerLock(File);

impl OwnerLock {
    /// Takes the lock in a VM's directory; `None` if another process holds it, that is if the VM has an owner.
    ///
    /// # Errors
    /// The lock file cannot be opened, for instance because the directory is gone.
    pub fn try_acquire(dir: &Path) -> io::Result<Option<Self>> {
        let mut file = LockFile::open(dir)?;
        let began = Instant::now();
        loop {
            match file.try_lock()? {
                // A process that only looks whether the VM has an owner holds a shared lock for an instant.
                None if !Self::is_held(dir) && began.elapsed() < LOOK_LIMIT => thread::yield_now(),
                lock => return Ok(lock),
            }
        }
    }

    /// Returns whether the VM has an owner. Changes nothing, except that [`LockFile::try_lock`] fails meanwhile.
    pub fn is_held(dir: &Path) -> bool {
        let Ok(file) = File::open(dir.join(files::OWNER_LOCK)) else { return false };
        // A shared lock that is released at once; two processes that check at the same time do not affect each other.
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// Takes over a lock that another process has passed on.
    pub(crate) fn received(descriptor: OwnedFd) -> Self {
        Self(File::from(descriptor))
    }

    /// Shares the lock with a child process, as one of its standard streams.
    pub(crate) fn share(&self) -> io::Result<Stdio> {
        Ok(self.0.try_clone()?.into())
    }
}

impl AsFd for OwnerLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns what the network of the VM with this directory has denied since the VM was started. Empty for a VM without a
/// network.
///
/// # Errors
/// The file cannot be read.
pub fn network_denials(dir: &Path) -> io::Result<Denials> {
    match fs::File::open(dir.join(files::NETWORK_DENIALS)) {
        Ok(file) => Denials::read(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Denials::default()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_seen_by_others_and_lives_on_in_a_child() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!OwnerLock::is_held(dir.path()), "no file, no owner");
        let lock = OwnerLock::try_acquire(dir.path()).unwrap().unwrap();
        assert!(OwnerLock::is_held(dir.path()));
        assert!(OwnerLock::try_acquire(dir.path()).unwrap().is_none());

        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut child = std::process::Command::new("/bin/cat")
            .stdin(reader.try_clone().unwrap())
            .stdout(lock.share().unwrap())
            .spawn()
            .unwrap();
        drop(lock);
        assert!(OwnerLock::is_held(dir.path()), "the child still has it");
        drop(writer);
        child.wait().unwrap();
        assert!(!OwnerLock::is_held(dir.path()));
        assert_eq!(std::io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
    }

    #[test]
    fn those_who_look_at_a_lock_do_not_keep_others_from_taking_it() {
        let dir = tempfile::tempdir().unwrap();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                        OwnerLock::is_held(dir.path());
                    }
                });
            }
            let taken = (0..500).filter(|_| OwnerLock::try_acquire(dir.path()).unwrap().is_some()).count();
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(taken, 500);
        });
    }

    #[test]
    fn a_directory_in_which_others_look_for_a_lock_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("vm");
        let is_over = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    drop(LockFile::open(&dir));
                }
            });
            let removed: Vec<_> = (0..500)
                .map(|_| {
                    fs::create_dir(&dir).unwrap();
                    remove(&dir)
                })
                .take_while(Result::is_ok)
                .collect();
            is_over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(removed.len(), 500);
        });
        remove(&dir).unwrap();
    }

    #[test]
    fn a_log_stays_bounded_and_goes_on_after_it_was_truncated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(files::SUPERVISOR_LOG);
        // As the process that starts a supervisor opens it.
        let mut log = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let line = [b'x'; 1000];
        for _ in 0..3000 {
            log.write_all(&line).unwrap();
            bound(&log);
            assert!(fs::metadata(&path).unwrap().len() <= LOG_LIMIT);
        }
        log.write_all(b"end").unwrap();
        assert!(fs::read(&path).unwrap().ends_with(b"xend"), "without a hole");
        // What is not a file is left alone.
        bound(io::pipe().unwrap().1);
    }

    #[test]
    fn what_is_in_use_cannot_be_locked_for_its_removal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("use.lock");
        let remover = File::create(&path).unwrap();
        let users = [use_shared(&path).unwrap(), use_shared(&path).unwrap()];
        assert!(matches!(remover.try_lock(), Err(TryLockError::WouldBlock)));
        drop(users);
        remover.try_lock().unwrap();
        assert_eq!(use_shared(&path).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    }
}
