//! Making files in an open directory, one name at a time and without following symlinks.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::{Errno, Result};

use crate::output::Attributes;

/// What a name refers to now.
#[derive(Clone, Debug)]
pub(crate) enum Standing {
    Nothing,
    File(Stat),
    Directory,
    Symlink,
    Other,
}

impl Standing {
    pub(crate) fn at(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Self> {
        match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => Self::File(stat),
                FileType::Directory => Self::Directory,
                FileType::Symlink => Self::Symlink,
                _ => Self::Other,
            }),
            Err(Errno::NOENT) => Ok(Self::Nothing),
            Err(error) => Err(error),
        }
    }

    /// A description for people, with an article.
    pub(crate) fn description(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::File(_) => "a file",
            Self::Directory => "a directory",
            Self::Symlink => "a symlink",
            Self::Other => "a device, fifo or socket",
        }
    }
}

/// Makes a directory, for its owner only, or finds it, and opens it. Also returns whether it is new.
pub(crate) fn make_directory(directory: BorrowedFd<'_>, name: &[u8]) -> Result<(OwnedFd, bool)> {
    let is_new = match rustix::fs::mkdirat(directory, name, Mode::RWXU) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok((rustix::fs::openat(directory, name, flags, Mode::empty())?, is_new))
}

/// A file under a temporary name until it is complete. Removed if it is dropped before that.
pub(crate) struct Partial<'a> {
    directory: BorrowedFd<'a>,
    name: Option<String>,
}

impl<'a> Partial<'a> {
    /// An empty file, for its owner only.
    pub(crate) fn file(directory: BorrowedFd<'a>) -> Result<(Self, File)> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let (partial, handle) =
            Self::with_new_name(directory, |name| rustix::fs::openat(directory, name, flags, mode))?;
        Ok((partial, File::from(handle)))
    }

    pub(crate) fn symlink(directory: BorrowedFd<'a>, target: &[u8]) -> Result<Self> {
        let (partial, ()) =
            Self::with_new_name(directory, |name| rustix::fs::symlinkat(target, directory, name))?;
        Ok(partial)
    }

    /// `make` has to fail where the name is taken: one may be left from a process that was killed.
    fn with_new_name<T>(directory: BorrowedFd<'a>, make: impl Fn(&str) -> Result<T>) -> Result<(Self, T)> {
        const ATTEMPTS: u32 = 100;
        static NEXT: AtomicU64 = AtomicU64::new(0);
        for _ in 0..ATTEMPTS {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!(".pyro-partial-{}-{number}", std::process::id());
            match make(&name) {
                Err(Errno::EXIST) => {}
                made => return made.map(|made| (Self { directory, name: Some(name) }, made)),
            }
        }
        Err(Errno::EXIST)
    }

    /// Gives it the name `name` and replaces a file or symlink of that name, but no directory.
    pub(crate) fn rename(mut self, name: &[u8]) -> Result<()> {
        if let Some(partial) = &self.name {
            rustix::fs::renameat(self.directory, partial, self.directory, name)?;
        }
        self.name = None;
        Ok(())
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // A failure cannot be reported here, and nothing else depends on it.
            let _ = rustix::fs::unlinkat(self.directory, name, AtFlags::empty());
        }
    }
}

/// Gives a file or directory its final mode and time. Nothing else may be done with it afterwards.
pub(crate) fn finish(handle: impl AsFd, attributes: &Attributes) -> Result<()> {
    rustix::fs::fchmod(&handle, Mode::from_raw_mode(attributes.mode & 0o777))?;
    set_time(handle, attributes)
}

/// Gives a file the owner and mode of the one that it replaces, and its final time. If it is executable, who may read it may
/// execute it. Its contents are new, so it gets no set-user-ID, set-group-ID or sticky bit.
pub(crate) fn finish_as(handle: impl AsFd, attributes: &Attributes, replaced: &Stat) -> Result<()> {
    let (owner, group) = (Uid::from_raw(replaced.st_uid), Gid::from_raw(replaced.st_gid));
    rustix::fs::fchown(&handle, Some(owner), Some(group))?;
    let kept = replaced.st_mode & 0o777;
    let readers = (kept & 0o444) >> 2;
    let mode = kept | (attributes.mode & readers);
    rustix::fs::fchmod(&handle, Mode::from_raw_mode(mode))?;
    set_time(handle, attributes)
}

fn set_time(handle: impl AsFd, attributes: &Attributes) -> Result<()> {
    let modified = i64::try_from(attributes.modified).unwrap_or(i64::MAX);
    rustix::fs::futimens(
        &handle,
        &Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: modified, tv_nsec: 0 },
        },
    )
}
