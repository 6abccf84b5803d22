//! Child processes that must not outlive their parent and that inherit chosen descriptors.
#![expect(unsafe_code, reason = "code between fork and exec")]

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::process::Command;

/// Makes the child die by SIGKILL when the spawning *thread* ends, and gives it each descriptor of `inherited`
/// under the number beside it. Call from the main thread of a single-threaded runtime.
pub(crate) fn bind_to_parent(command: &mut Command, inherited: Vec<(OwnedFd, i32)>) {
    /// Above all target numbers.
    const FIRST_FREE: i32 = 64;
    let parent = rustix::process::getpid();
    // Out of the way of the target numbers, so that no dup2 below overwrites a source still needed.
    let inherited: Vec<(OwnedFd, i32)> = inherited
        .into_iter()
        .map(|(fd, target)| (rustix::io::fcntl_dupfd_cloexec(&fd, FIRST_FREE).unwrap_or(fd), target))
        .collect();
    let before_exec = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the line above took effect.
        if rustix::process::getppid() != Some(parent) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        for (source, target) in &inherited {
            debug_assert_ne!(source.as_raw_fd(), *target);
            // SAFETY: in the child, after fork, nothing else owns a descriptor with the target's number that
            // would still be used: exec follows, and the previous one is close-on-exec.
            let mut target = unsafe { OwnedFd::from_raw_fd(*target) };
            let duplicated = rustix::io::dup2(source, &mut target);
            // Stays open for the program that is about to start.
            let _ = target.into_raw_fd();
            duplicated?;
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls through rustix; it neither allocates nor takes locks.
    unsafe { command.pre_exec(before_exec) };
}

/// Keeps the signals that end a whole session or service from the child: its parent ends it in order. Call for programs
/// that leave their signal mask as it is.
pub(crate) fn shield_from_group_signals(command: &mut Command) {
    let before_exec = || {
        // SAFETY: the set is initialised by sigemptyset before anything reads it.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(&raw mut set, signal);
            }
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        }
        Ok(())
    };
    // SAFETY: the closure makes one system call; it neither allocates nor takes locks.
    unsafe { command.pre_exec(before_exec) };
}

/// Keeps the child's memory in small pages. A kernel that cannot do that runs it all the same.
pub(crate) fn forgo_huge_pages(command: &mut Command) {
    let before_exec = || {
        // SAFETY: prctl with these arguments reads and writes no memory of ours.
        unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
        Ok(())
    };
    // SAFETY: the closure makes one system call; it neither allocates nor takes locks.
    unsafe { command.pre_exec(before_exec) };
}
