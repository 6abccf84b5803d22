//! Copies a file or a directory with everything that belongs to it: data and holes, owners, modes, times, extended attributes, and
//! which names are the same file.
//!
//! As with `mv`, a file system that cannot keep something of that does not stop the move: see [`as_far_as_kept`].
//!
//! Names are looked up in open directories, so that a link that takes the place of one meanwhile leads nowhere.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, SeekFrom as Find, Stat, Timespec, Timestamps,
    Uid, XattrFlags, chmod, chownat, fchmod, fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens,
    linkat, mkdirat, mknodat, openat, openat2, readlinkat, seek, statat, symlinkat, utimensat,
};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::{Place, is_directory, is_same};

/// How directories are opened.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Bytes that are copied at a time.
const BLOCK_BYTES: usize = 256 << 10;
/// The kernel's limits for the names and for a value of extended attributes.
const MAX_ATTRIBUTE_BYTES: usize = 64 << 10;
/// Only the owner may use a copy until it is complete.
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);
const PRIVATE_DIRECTORY: Mode = Mode::RWXU;

/// Where something failed, with a path that begins with the name of the original.
type Stopped = (PathBuf, Errno);

/// Copies what is at `source` to `name` in `target`, where nothing may be. What is mounted in a directory is an error. `is_made` becomes
/// true as soon as something of the copy is there.
pub(super) fn copy(
    source: &Place,
    original: &Stat,
    target: &OwnedFd,
    name: &CStr,
    is_made: &mut bool,
    stop: &CancellationToken,
) -> Result<(), Stopped> {
    let at_top = |errno| (path_of(&[], Some(&source.name)), errno);
    let directory = source.directory.as_fd();
    if !is_directory(original) {
        return copy_file(directory, &source.name, original, target.as_fd(), name, is_made, stop)
            .map_err(at_top);
    }
    let top = Level::enter(directory, &source.name, target.as_fd(), name, is_made).map_err(at_top)?;
    let mut copy = TreeCopy {
        of_top: fstat(&top.copy).map_err(at_top)?,
        top: top.copy.try_clone().map_err(|_| at_top(Errno::MFILE))?,
        names: HashMap::new(),
        stop,
    };
    let mut levels = vec![top];
    while let Some(level) = levels.last_mut() {
        match copy.step(level) {
            Ok(Step::Next) => {}
            Ok(Step::Enter(below)) => levels.push(below),
            Ok(Step::End) => drop(levels.pop()),
            Ok(Step::Copy(name, stat)) => {
                copy.add(&levels, &name, &stat).map_err(|errno| (path_of(&levels, Some(&name)), errno))?;
            }
            Err((name, errno)) => return Err((path_of(&levels, name.as_deref()), errno)),
        }
    }
    Ok(())
}

/// A directory that is being copied.
struct Level {
    name: CString,
    source: Dir,
    /// What it was before it was read.
    stat: Stat,
    copy: OwnedFd,
}

/// What the next entry of a directory is.
enum Step {
    /// It is gone, or was never one.
    Next,
    /// A directory with entries of its own.
    Enter(Level),
    /// Something else.
    Copy(CString, Stat),
    /// There are no more.
    End,
}

impl Level {
    /// Opens a directory, unless it is a symbolic link or something is mounted there, and makes its copy.
    fn enter(
        source: BorrowedFd<'_>,
        name: &CStr,
        target: BorrowedFd<'_>,
        new: &CStr,
        is_made: &mut bool,
    ) -> Result<Self, Errno> {
        let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
        let opened = Dir::new(openat2(source, name, DIRECTORY, Mode::empty(), resolve)?)?;
        let stat = fstat(opened.fd()?)?;
        mkdirat(target, new, PRIVATE_DIRECTORY)?;
        *is_made = true;
        let copy = openat(target, new, DIRECTORY, Mode::empty())?;
        Ok(Self { name: name.to_owned(), source: opened, stat, copy })
    }
}

/// A copy of a tree.
struct TreeCopy<'a> {
    /// Its directory.
    top: OwnedFd,
    of_top: Stat,
    /// The first path, below the directory, of each file that has several names.
    names: HashMap<(u64, u64), PathBuf>,
    stop: &'a CancellationToken,
}

impl TreeCopy<'_> {
    fn step(&self, level: &mut Level) -> Result<Step, (Option<CString>, Errno)> {
        let unnamed = |errno| (None, errno);
        if self.stop.is_cancelled() {
            return Err(unnamed(Errno::CANCELED));
        }
        let Some(entry) = level.source.read() else {
            let source = level.source.fd().map_err(unnamed)?;
            keep_attributes(source, &level.copy, &level.stat).map_err(unnamed)?;
            return Ok(Step::End);
        };
        let entry = entry.map_err(unnamed)?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            return Ok(Step::Next);
        }
        let named = |errno| (Some(name.to_owned()), errno);
        let source = level.source.fd().map_err(unnamed)?;
        let stat = match statat(source, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(Step::Next),
            stat => stat.map_err(named)?,
        };
        if is_same(&stat, &self.of_top) {
            // The new path is in the directory, by another mount of its file system.
            return Err(unnamed(Errno::LOOP));
        }
        if !is_directory(&stat) {
            return Ok(Step::Copy(name.to_owned(), stat));
        }
        Level::enter(source, name, level.copy.as_fd(), name, &mut false).map(Step::Enter).map_err(named)
    }

    /// Copies an entry of the last directory.
    fn add(&mut self, levels: &[Level], name: &CStr, stat: &Stat) -> Result<(), Errno> {
        let Some(level) = levels.last() else { return Ok(()) };
        let key = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.names.get(&key)
            && linkat(&self.top, first, &level.copy, name, AtFlags::empty()).is_ok()
        {
            return Ok(());
        }
        copy_file(level.source.fd()?, name, stat, level.copy.as_fd(), name, &mut false, self.stop)?;
        if stat.st_nlink > 1 {
            let below: PathBuf = path_of(levels, Some(name)).components().skip(1).collect();
            self.names.entry(key).or_insert(below);
        }
        Ok(())
    }
}

fn path_of(levels: &[Level], last: Option<&CStr>) -> PathBuf {
    let names = levels.iter().map(|level| level.name.as_c_str()).chain(last);
    names.map(|name| Path::new(OsStr::from_bytes(name.to_bytes()))).collect()
}

/// Copies what is not a directory.
fn copy_file(
    source: BorrowedFd<'_>,
    name: &CStr,
    stat: &Stat,
    target: BorrowedFd<'_>,
    new: &CStr,
    is_made: &mut bool,
    stop: &CancellationToken,
) -> Result<(), Errno> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => copy_regular(source, name, target, new, is_made, stop),
        FileType::Symlink => {
            symlinkat(readlinkat(source, name, Vec::new())?, target, new)?;
            *is_made = true;
            let (owner, group) = owner(stat);
            as_far_as_kept(chownat(target, new, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW))?;
            as_far_as_kept(utimensat(target, new, &times(stat), AtFlags::SYMLINK_NOFOLLOW))?;
            Ok(())
        }
        kind => {
            mknodat(target, new, kind, PRIVATE, stat.st_rdev)?;
            *is_made = true;
            let made = openat(target, new, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            let (owner, group) = owner(stat);
            let is_owned =
                as_far_as_kept(chownat(&made, c"", Some(owner), Some(group), AtFlags::EMPTY_PATH))?;
            let path = format!("/proc/self/fd/{}", made.as_raw_fd());
            as_far_as_kept(chmod(path, mode(stat, is_owned)))?;
            as_far_as_kept(utimensat(target, new, &times(stat), AtFlags::SYMLINK_NOFOLLOW))?;
            Ok(())
        }
    }
}

fn copy_regular(
    source: BorrowedFd<'_>,
    name: &CStr,
    target: BorrowedFd<'_>,
    new: &CStr,
    is_made: &mut bool,
    stop: &CancellationToken,
) -> Result<(), Errno> {
    // Opening a FIFO that has taken its place must not block.
    let reading = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let from = File::from(openat(source, name, reading, Mode::empty())?);
    let stat = fstat(&from)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::STALE);
    }
    let writing = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = File::from(openat(target, new, writing, PRIVATE)?);
    *is_made = true;
    copy_data(&from, &to, stop)?;
    // The times from before it was read.
    keep_attributes(&from, &to, &stat)
}

/// Copies the data of a file to an empty one, and leaves holes where it has some.
fn copy_data(mut from: &File, mut to: &File, stop: &CancellationToken) -> Result<(), Errno> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut position = 0;
    loop {
        let start = match seek(from, Find::Data(position)) {
            Ok(start) => start,
            // The rest is a hole, or empty.
            Err(Errno::NXIO) => break,
            // This file system does not say.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => position,
            Err(errno) => return Err(errno),
        };
        let end = match seek(from, Find::Hole(start)) {
            Ok(end) => end,
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => u64::MAX,
            Err(errno) => return Err(errno),
        };
        from.seek(SeekFrom::Start(start)).map_err(errno_of)?;
        to.seek(SeekFrom::Start(start)).map_err(errno_of)?;
        position = start;
        while position < end {
            if stop.is_cancelled() {
                return Err(Errno::CANCELED);
            }
            let wanted = usize::try_from(end - position).unwrap_or(usize::MAX).min(BLOCK_BYTES);
            let Some(wanted) = block.get_mut(..wanted) else { break };
            let read = match from.read(wanted) {
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(errno_of(error)),
            };
            if read == 0 {
                break;
            }
            to.write_all(wanted.get(..read).unwrap_or_default()).map_err(errno_of)?;
            position += read as u64;
        }
        if position < end {
            // The end of the file.
            break;
        }
    }
    let size = from.metadata().map_err(errno_of)?.len();
    to.set_len(size.max(position)).map_err(errno_of)
}

/// Gives a copy the owner, the mode, the extended attributes and the times of the original, in this order: the first changes the
/// others.
fn keep_attributes(from: impl AsFd, to: impl AsFd, stat: &Stat) -> Result<(), Errno> {
    let (owner, group) = owner(stat);
    let is_owned = as_far_as_kept(fchown(&to, Some(owner), Some(group)))?;
    as_far_as_kept(fchmod(&to, mode(stat, is_owned)))?;
    copy_extended_attributes(&from, &to)?;
    as_far_as_kept(futimens(&to, &times(stat)))?;
    Ok(())
}

/// Decides what a move may lose: what the file system of the copy has no place for, as `mv` does. Returns whether it was kept. A copy
/// that did not get its mode stays private. Data, kinds, and names are not among it: a file system without symbolic links or FIFOs
/// stops the move.
///
/// # Errors
/// Something else failed.
fn as_far_as_kept(set: Result<(), Errno>) -> Result<bool, Errno> {
    match set {
        Ok(()) => Ok(true),
        // The agent may do everything, so a lack of permission is one of the file system, too.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Copies extended attributes, among which are access lists and capabilities, as far as the file system of the copy has them.
fn copy_extended_attributes(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    let mut names = vec![0; MAX_ATTRIBUTE_BYTES];
    let names = match flistxattr(&from, names.as_mut_slice()) {
        Ok(length) => names.get(..length).unwrap_or_default(),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let mut value = vec![0; if names.is_empty() { 0 } else { MAX_ATTRIBUTE_BYTES }];
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let length = match fgetxattr(&from, name, value.as_mut_slice()) {
            Ok(length) => length,
            Err(Errno::NODATA) => continue,
            Err(errno) => return Err(errno),
        };
        let is_of_user = name.starts_with(b"user.") || name.starts_with(b"system.");
        match fsetxattr(&to, name, value.get(..length).unwrap_or_default(), XattrFlags::empty()) {
            // The others can belong to the file system that the original is on. A value of these that the other file system does not
            // take is data.
            Err(errno @ (Errno::PERM | Errno::INVAL)) if is_of_user => return Err(errno),
            set => as_far_as_kept(set)?,
        };
    }
    Ok(())
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

/// The mode of a copy. Programs run as its owner, or with its group, only if those are the original's.
fn mode(stat: &Stat, is_owned: bool) -> Mode {
    Mode::from_raw_mode(stat.st_mode) & Mode::from_bits_retain(if is_owned { 0o7777 } else { 0o777 })
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as i64 };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn errno_of(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_system_cannot_keep_is_lost_and_nothing_else() {
        for errno in [Errno::OPNOTSUPP, Errno::NOSYS, Errno::PERM, Errno::INVAL] {
            assert_eq!(as_far_as_kept(Err(errno)), Ok(false));
        }
        for errno in [Errno::IO, Errno::NOSPC, Errno::ROFS, Errno::NOTCONN] {
            assert_eq!(as_far_as_kept(Err(errno)), Err(errno));
        }
        assert_eq!(as_far_as_kept(Ok(())), Ok(true));
    }

    #[test]
    fn a_copy_with_another_owner_does_not_run_as_its_owner() {
        let mut stat = rustix::fs::stat("/tmp").unwrap();
        stat.st_mode = 0o106_755;
        assert_eq!(mode(&stat, true), Mode::from_bits_retain(0o6755));
        assert_eq!(mode(&stat, false), Mode::from_bits_retain(0o755));
    }
}
