//! The agent's exemption from the OOM killer, which its commands must not inherit.
//!
//! The child that becomes a command gives it up for itself, before it executes anything: otherwise its children would be exempt,
//! and a machine whose memory they use up panics because the kernel finds no process to kill. The agent stays exempt meanwhile,
//! for as long as a start takes. The process file system is one that no path leads to, so a command may unmount `/proc` or mount
//! something over it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

/// The score of a process that the OOM killer leaves alone, and of an ordinary one.
const EXEMPT: &[u8] = b"-1000\n";
const ORDINARY: &[u8] = b"0\n";

/// Exempts this process.
pub(super) fn exempt_this_process(proc: impl AsFd) -> io::Result<()> {
    Ok(set_score(proc.as_fd(), EXEMPT)?)
}

/// Makes the calling process an ordinary candidate of the OOM killer. A process that shares its parent's memory, which waits
/// for it, changes only its own score. Makes system calls only.
pub(super) fn give_up_exemption(proc: BorrowedFd<'_>) -> Result<(), Errno> {
    set_score(proc, ORDINARY)
}

fn set_score(proc: BorrowedFd<'_>, score: &[u8]) -> Result<(), Errno> {
    let file = openat(proc, c"self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, score).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_process_writes_its_own_score() {
        let proc = tempfile::tempdir().unwrap();
        let score = proc.path().join("self/oom_score_adj");
        fs::create_dir(proc.path().join("self")).unwrap();
        fs::write(&score, "").unwrap();
        let open = fs::File::open(proc.path()).unwrap();
        exempt_this_process(&open).unwrap();
        assert_eq!(fs::read_to_string(&score).unwrap(), "-1000\n");
        fs::write(&score, "").unwrap();
        give_up_exemption(open.as_fd()).unwrap();
        assert_eq!(fs::read_to_string(&score).unwrap(), "0\n");
        fs::remove_file(&score).unwrap();
        assert_eq!(give_up_exemption(open.as_fd()), Err(Errno::NOENT));
    }
}
