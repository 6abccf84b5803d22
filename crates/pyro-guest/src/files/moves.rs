//! Moves files and directories, also to another file system: as `mv` does, by a copy and the removal of the original.
//!
//! The copy is made next to its new path, with a temporary name, and written out. Then it gets its path, which the file system does
//! completely or not at all. Until then the original is unchanged, and after that the copy is complete, whatever fails.

mod copy;

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use pyro_wire::{ChangeReply, Failure, Move};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, Stat, fsync, open, openat, renameat_with, statat,
    syncfs, unlinkat,
};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::remove::{path_below, remove_tree};
use super::{because, changed};
use crate::failure::refused;

const STEP: &str = "moving";
/// What the temporary names begin with.
const TEMPORARY: &str = ".pyro-move-";

/// Gives a file or a directory another path. When the future is dropped, a copy to another file system stops, unless it is complete.
pub(crate) async fn rename(request: Move, workspace: PathBuf) -> ChangeReply {
    let stop = CancellationToken::new();
    let _stops_with_the_call = stop.clone().drop_guard();
    changed(move || {
        let (from, to) = (workspace.join(&request.from), workspace.join(&request.to));
        match renameat_with(CWD, &from, CWD, &to, flags(&request)) {
            Ok(()) => Ok(()),
            // Overlayfs reports this for directories of the image, too.
            Err(Errno::XDEV) => relocate(&request, &from, &to, &stop),
            Err(errno) => Err(failure(&request, &to, errno)),
        }
    })
    .await
}

fn flags(request: &Move) -> RenameFlags {
    if request.replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE }
}

fn failure(request: &Move, to: &Path, errno: Errno) -> Failure {
    if errno != Errno::EXIST {
        return because(STEP, &request.from, errno.into());
    }
    let failure = because(STEP, &request.to, errno.into());
    let into = match to.is_dir() {
        true => "; it is a directory: to move something into it, give the whole new path",
        false => "",
    };
    Failure { cause: failure.cause.clone() + into, ..failure }
}

/// Moves to another file system.
fn relocate(request: &Move, from: &Path, to: &Path, stop: &CancellationToken) -> Result<(), Failure> {
    relocate_by(&temporary(), request, from, to, stop)
}

/// Moves by a copy with a temporary name.
fn relocate_by(
    temporary: &CStr,
    request: &Move,
    from: &Path,
    to: &Path,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let of_source = |errno| failure(request, to, errno);
    let of_target = |errno: Errno| because(STEP, &request.to, errno.into());
    let source = Place::open(from).map_err(of_source)?;
    let target = Place::open(to).map_err(of_target)?;
    let original = source.stat().map_err(of_source)?;
    if pyro_archive::is_of_kernel(&source.directory).map_err(of_source)? {
        let cause = format!("{}: files of the kernel cannot be moved to another file system", request.from);
        return Err(refused(format!("{STEP} {}", request.from), cause));
    }
    match target.check(&original, request.replace) {
        Ok(true) => {}
        // Both are the same file.
        Ok(false) => return Ok(()),
        Err(Errno::EXIST) => return Err(failure(request, to, Errno::EXIST)),
        Err(errno) => return Err(of_target(errno)),
    }
    let mut is_made = false;
    let copied =
        copy::copy(&source, &original, &target.directory, temporary, &mut is_made, stop)
            .map_err(|(below, errno)| stopped(request, &below, errno))
            .and_then(|()| {
                write_out(&target.directory, temporary, &original).map_err(of_target)?;
                renameat_with(&target.directory, temporary, &target.directory, &target.name, flags(request))
                    .map_err(|errno| {
                        if errno == Errno::EXIST { failure(request, to, errno) } else { of_target(errno) }
                    })
            });
    if let Err(failure) = copied {
        // Another move to this directory may have made what else has the name.
        if is_made {
            let _ = remove(&target.directory, temporary, &original);
        }
        return Err(failure);
    }
    // The new name is on the disk before the old one goes.
    let named = match fsync(&target.directory) {
        // This file system writes names out at once, or never.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(()),
        named => named.map_err(|errno| (PathBuf::from("."), errno)),
    };
    named.and_then(|()| source.remove(&original)).map_err(|(below, errno)| {
        let rest = stopped(request, &below, errno);
        let cause = format!(
            "{} was copied to {}, but the original is not removed completely: {}",
            request.from, request.to, rest.cause
        );
        Failure { cause, ..rest }
    })
}

/// The failure of a copy, at a path that begins with the name of what is moved.
fn stopped(request: &Move, below: &Path, errno: Errno) -> Failure {
    let path = path_below(&request.from, below);
    let failure = because(STEP, &path, errno.into());
    let cause = match errno {
        Errno::XDEV => "another file system is mounted there",
        Errno::LOOP => "a directory cannot be moved into itself",
        Errno::STALE => "it was changed meanwhile",
        _ => return failure,
    };
    Failure { cause: format!("{path}: {cause}"), ..failure }
}

fn temporary() -> CString {
    // What has this name is never opened, only made, so another file with it is an error and no more.
    static MOVES: AtomicU64 = AtomicU64::new(0);
    let count = MOVES.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    CString::new(format!("{TEMPORARY}{:x}-{count:x}", now.as_nanos())).unwrap_or_default()
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// Returns whether it is the same, and, if it is a regular file, has the same contents as far as its size and its time say.
fn is_unchanged(now: &Stat, before: &Stat) -> bool {
    let contents = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    let is_file = FileType::from_raw_mode(before.st_mode) == FileType::RegularFile;
    is_same(now, before) && (!is_file || contents(now) == contents(before))
}

fn path_of(name: &CStr) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(name.to_bytes()))
}

/// A name in an open directory.
struct Place {
    directory: OwnedFd,
    name: CString,
    /// The path says that it is a directory.
    is_directory: bool,
}

impl Place {
    fn open(path: &Path) -> Result<Self, Errno> {
        let text = path.as_os_str().as_bytes();
        let end = text.iter().rposition(|&byte| byte != b'/').map_or(0, |last| last + 1);
        let trimmed = text.get(..end).unwrap_or_default();
        let name = trimmed.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        if matches!(name, b"" | b"." | b"..") {
            return Err(Errno::BUSY);
        }
        let parent = Path::new(OsStr::from_bytes(trimmed)).parent().ok_or(Errno::BUSY)?;
        let directory = open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        Ok(Self { directory, name, is_directory: trimmed.len() < text.len() })
    }

    fn stat(&self) -> Result<Stat, Errno> {
        let stat = statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)?;
        if self.is_directory && !is_directory(&stat) { Err(Errno::NOTDIR) } else { Ok(stat) }
    }

    /// Checks that the original may take this place, by the rules of the kernel for one file system. Returns whether there is anything
    /// to do.
    fn check(&self, original: &Stat, replace: bool) -> Result<bool, Errno> {
        if self.is_directory && !is_directory(original) {
            return Err(Errno::NOTDIR);
        }
        let existing = match statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(true),
            existing => existing?,
        };
        match (is_directory(original), is_directory(&existing)) {
            _ if !replace => Err(Errno::EXIST),
            // By another mount of its file system.
            _ if is_same(original, &existing) => Ok(false),
            (true, false) => Err(Errno::NOTDIR),
            (false, true) => Err(Errno::ISDIR),
            (true, true) if self.has_entries()? => Err(Errno::NOTEMPTY),
            _ => Ok(true),
        }
    }

    fn has_entries(&self) -> Result<bool, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entries = Dir::new(openat(&self.directory, &self.name, flags, Mode::empty())?)?;
        for entry in entries {
            if ![c".", c".."].contains(&entry?.file_name()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes the original. What has taken its place is left, and so is a file with other contents than those that were copied.
    fn remove(&self, original: &Stat) -> Result<(), (PathBuf, Errno)> {
        let at_top = |errno| (path_of(&self.name), errno);
        match statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            // Something else has removed it.
            Err(Errno::NOENT) => Ok(()),
            Ok(stat) if is_unchanged(&stat, original) => remove(&self.directory, &self.name, original),
            Ok(_) => Err(at_top(Errno::STALE)),
            Err(errno) => Err(at_top(errno)),
        }
    }
}

/// Writes a copy out.
fn write_out(directory: impl AsFd, name: &CStr, original: &Stat) -> Result<(), Errno> {
    match FileType::from_raw_mode(original.st_mode) {
        FileType::Directory => syncfs(directory),
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            fsync(openat(directory, name, flags, Mode::empty())?)
        }
        _ => Ok(()),
    }
}

/// Removes what is of the kind of the original, completely.
fn remove(directory: impl AsFd, name: &CStr, original: &Stat) -> Result<(), (PathBuf, Errno)> {
    if is_directory(original) {
        return remove_tree(directory.as_fd(), name, &CancellationToken::new());
    }
    unlinkat(directory, name, AtFlags::empty()).map_err(|errno| (path_of(name), errno))
}

#[cfg(test)]
mod tests;
