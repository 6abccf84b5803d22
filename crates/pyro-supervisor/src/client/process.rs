//! The process behind a VM, held by a descriptor, so that its id cannot be reused.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pyro_machine::event_fd::EventFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::UnixStream;

use crate::dir::{Owner, start_time, state};
use crate::files;

/// The first argument of a supervisor's process, in every version. Further arguments of a process may be anything, for
/// instance a command that `pyro run` was asked to run.
const SUPERVISE: &[u8] = b"supervise";

/// A process.
pub(super) struct Process {
    pid: Pid,
    descriptor: EventFd,
}

impl Process {
    /// Returns the process that listens at the other end of a connection.
    pub(super) fn behind(stream: &UnixStream) -> io::Result<Self> {
        let pid = stream.peer_cred()?.pid().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        let process = Self::open(pid)?;
        // As long as the connection is open, no other process can have taken over its listener's id.
        if is_closed(stream) { Err(io::ErrorKind::NotFound.into()) } else { Ok(process) }
    }

    /// Returns the supervisor that listens at the other end of a connection; `None` if that process is not a supervisor.
    pub(super) fn supervisor_behind(stream: &UnixStream) -> Option<Self> {
        let process = Self::behind(stream).ok()?;
        // If the process has ended since, its id may be that of another one; the descriptor is not.
        is_supervisor(stream.peer_cred().ok()?.pid()?).then_some(process)
    }

    /// Returns the supervisor that holds the lock of the VM in `dir`, whether it can be reached or not. The recorded id
    /// is only a hint: the process must have been started as a supervisor and have the lock's file open. Only root can look
    /// for that in a supervisor that protects itself; for others, the announcement of a supervisor whose lock is held
    /// counts.
    pub(super) fn holding(dir: &Path) -> Option<Self> {
        let lock = fs::metadata(dir.join(files::OWNER_LOCK)).ok()?;
        let lock = (lock.dev(), lock.ino());
        Self::announced(dir, lock).or_else(|| {
            let mut others = fs::read_dir("/proc")
                .ok()?
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
            others.find_map(|pid| Self::verified(pid, false, lock))
        })
    }

    /// Returns the supervisor that holds the lock of the VM in `dir`, if it has announced itself and is stopped by a signal.
    pub(super) fn stopped(dir: &Path) -> Option<Self> {
        let lock = fs::metadata(dir.join(files::OWNER_LOCK)).ok()?;
        Self::announced(dir, (lock.dev(), lock.ino())).filter(Self::is_stopped)
    }

    fn announced(dir: &Path, lock: (u64, u64)) -> Option<Self> {
        Self::verified(Owner::of(dir)?.pid, true, lock)
    }

    /// `is_announced`: the process has announced itself as the owner, by its id and the time of its start.
    fn verified(pid: i32, is_announced: bool, lock: (u64, u64)) -> Option<Self> {
        let started = start_time(pid)?;
        let holds_lock = || has_open(pid, lock).unwrap_or(is_announced);
        if !is_supervisor(pid) || !holds_lock() {
            return None;
        }
        let process = Self::open(Pid::from_raw(pid)?).ok()?;
        // The descriptor refers to the same process as the one checked above.
        (start_time(pid) == Some(started) && holds_lock()).then_some(process)
    }

    fn open(pid: Pid) -> io::Result<Self> {
        Ok(Self { pid, descriptor: EventFd::new(pidfd_open(pid, PidfdFlags::NONBLOCK)?)? })
    }

    /// Whether a signal has stopped the process. One that a debugger holds is not stopped: it goes on when its user wants that.
    ///
    /// If the process is gone, this may be said of another one with its id.
    fn is_stopped(&self) -> bool {
        state(self.pid.as_raw_pid()) == Some('T')
    }

    /// Waits until the process is gone. Its locks are free then.
    pub(super) async fn ended(&self) {
        self.descriptor.happened().await;
    }

    /// Sends a signal. A process that is gone is not an error.
    pub(super) fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(self.descriptor.descriptor(), signal) {
            tracing::debug!(%error, "a supervisor cannot be signalled");
        }
    }
}

fn is_closed(stream: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP)
}

/// Returns whether a process was started to supervise a VM.
fn is_supervisor(pid: i32) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).nth(1) == Some(SUPERVISE)
}

/// Returns whether a process has a file open; `None` if this process may not look into it.
fn has_open(pid: i32, (dev, ino): (u64, u64)) -> Option<bool> {
    let entries = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(entries) => entries,
        Err(error) => return (error.kind() != io::ErrorKind::PermissionDenied).then_some(false),
    };
    let is_open = entries.filter_map(Result::ok).any(|entry| {
        let is_lock = |name: &OsStr| name.as_bytes().ends_with(files::OWNER_LOCK.as_bytes());
        // Check the name first: following every link costs more.
        fs::read_link(entry.path()).is_ok_and(|target| target.file_name().is_some_and(is_lock))
            && fs::metadata(entry.path()).is_ok_and(|file| (file.dev(), file.ino()) == (dev, ino))
    });
    Some(is_open)
}
