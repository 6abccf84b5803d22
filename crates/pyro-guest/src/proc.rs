//! `/proc` as the kernel shows it, whatever commands unmount or mount over it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pyro_wire::Failure;
use rustix::fs::{CWD, Dir, Mode, OFlags, openat, readlinkat};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::failure::During;

/// A mount of the process file system that no path leads to. Commands cannot unmount it, and it does not keep them from
/// unmounting `/proc`.
#[derive(Debug)]
pub(crate) struct Proc(OwnedFd);

impl Proc {
    /// Clones the mount at `/proc`.
    pub(crate) fn open() -> Result<Self, Failure> {
        open_tree(CWD, "/proc", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
            .map(Self)
            .during("opening /proc")
    }

    /// Takes a directory for it. Cloning a mount takes privileges; an open directory serves reads in the same way.
    #[cfg(test)]
    pub(crate) fn of(directory: OwnedFd) -> Self {
        Self(directory)
    }

    /// Takes the one of the host that the tests run on.
    #[cfg(test)]
    pub(crate) fn of_this_host() -> Self {
        Self::of(std::fs::File::open("/proc").unwrap().into())
    }

    /// Returns another descriptor of it.
    pub(crate) fn to_fd(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Returns another handle of it.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.to_fd().map(Self)
    }

    /// Returns the IDs of the processes that run a program. Kernel threads and zombies do not.
    pub(crate) fn processes(&self) -> io::Result<Vec<u32>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = Dir::new(openat(&self.0, ".", flags, Mode::empty())?)?;
        Ok(dir
            .filter_map(|entry| entry.ok()?.file_name().to_str().ok()?.parse().ok())
            .filter(|pid: &u32| readlinkat(&self.0, format!("{pid}/exe"), Vec::new()).is_ok())
            .collect())
    }
}

impl AsFd for Proc {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns a path as a list of the kernel has it, which writes blanks and backslashes as three octal digits after a backslash.
pub(crate) fn unescaped(column: &[u8]) -> Vec<u8> {
    let mut path = Vec::new();
    let mut rest = column;
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = match (byte, after) {
            (b'\\', [high @ b'0'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7', after @ ..]) => {
                Some(((high - b'0') << 6 | (middle - b'0') << 3 | (low - b'0'), after))
            }
            _ => None,
        };
        let (byte, after) = escaped.unwrap_or((byte, after));
        path.push(byte);
        rest = after;
    }
    path
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn processes_are_those_that_run_a_program() {
        let mut child = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
        let listed = Proc::of_this_host().processes().unwrap();
        assert!(listed.contains(&std::process::id()) && listed.contains(&child.id()), "{listed:?}");
        child.kill().unwrap();
        // It stays a zombie until it is waited for; its files close before its end is reported.
        let pid = rustix::process::Pid::from_child(&child);
        let ended = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), ended).unwrap();
        assert!(!Proc::of_this_host().processes().unwrap().contains(&child.id()));
        child.wait().unwrap();
    }

    #[test]
    fn text_that_only_looks_escaped_stays() {
        assert_eq!(unescaped(br"/a\9\04\400\"), br"/a\9\04\400\");
    }
}
