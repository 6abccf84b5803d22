//! Removes files and directories. A tree is removed on one mount, and only as long as the host waits for it.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use pyro_wire::{ChangeReply, Failure, Remove};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, open, openat2, unlinkat};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::{because, changed, is_same};
use crate::failure::refused;

const STEP: &str = "removing";
/// How directories are opened to remove what is in them.
const READ: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes a file or a directory. When the future is dropped, the removal of a tree stops at the next entry.
pub(crate) async fn remove(request: Remove, workspace: PathBuf) -> ChangeReply {
    let stop = CancellationToken::new();
    let _stops_with_the_call = stop.clone().drop_guard();
    changed(move || removed(&request, &workspace, &stop)).await
}

fn removed(request: &Remove, workspace: &Path, stop: &CancellationToken) -> Result<(), Failure> {
    let because = |error| because(STEP, &request.path, error);
    // Without `.` at its end, which the kernel refuses to remove after everything in it is gone.
    let path: PathBuf = workspace.join(&request.path).components().collect();
    let metadata = fs::symlink_metadata(&path).map_err(because)?;
    let is_needed = [Path::new("/"), workspace].into_iter().any(|kept| is_same(kept, &metadata));
    let (Some(parent), Some(name), false) = (path.parent(), path.file_name(), is_needed) else {
        let step = format!("{STEP} {}", request.path);
        return Err(refused(step, format!("{}: the guest needs this directory", request.path)));
    };
    match (metadata.is_dir(), request.recursive) {
        (false, _) => fs::remove_file(&path).map_err(because),
        (true, false) => fs::remove_dir(&path).map_err(because),
        (true, true) => {
            let parent = open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            let parent = parent.map_err(|errno| because(errno.into()))?;
            let name = CString::new(name.as_bytes()).map_err(|_| because(Errno::INVAL.into()))?;
            remove_tree(parent.as_fd(), &name, stop)
                .map_err(|(below, errno)| stopped(&path_below(&request.path, &below), errno))
        }
    }
}

/// The path of an entry of a tree whose own path was asked for: its path below the tree's directory begins with the tree's name.
pub(super) fn path_below(asked: &str, below: &Path) -> String {
    let rest = below.components().skip(1);
    let path: PathBuf = Path::new(asked).components().chain(rest).collect();
    path.to_string_lossy().into_owned()
}

fn stopped(path: &str, errno: Errno) -> Failure {
    let failure = because(STEP, path, errno.into());
    match errno {
        Errno::XDEV | Errno::BUSY => Failure {
            cause: format!("{path}: another file system is mounted there, which is left as it is"),
            ..failure
        },
        _ => failure,
    }
}

/// A directory whose entries are being removed.
struct Level {
    name: CString,
    dir: Dir,
    /// Something was removed since its entries are read from the first one on.
    changed: bool,
}

impl Level {
    /// Opens a directory, unless it is a symbolic link or something is mounted there.
    fn open(parent: impl AsFd, name: &CStr) -> Result<Self, Errno> {
        let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
        let dir = Dir::new(openat2(parent, name, READ, Mode::empty(), resolve)?)?;
        Ok(Self { name: name.to_owned(), dir, changed: false })
    }
}

/// What the next entry of a directory is.
enum Step {
    /// It is gone, or was never one.
    Next,
    /// A directory with entries of its own.
    Enter(Level),
    /// There are no more.
    End,
}

impl Level {
    /// Removes the next entry if it is not a directory. An error comes with the name.
    fn step(&mut self) -> Result<Step, (Option<CString>, Errno)> {
        let unnamed = |errno| (None, errno);
        let Some(entry) = self.dir.read() else { return Ok(Step::End) };
        let entry = entry.map_err(unnamed)?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            return Ok(Step::Next);
        }
        let dir = self.dir.fd().map_err(unnamed)?;
        let level = match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => None,
            Err(Errno::ISDIR) => match Level::open(dir, name) {
                Ok(level) => Some(level),
                // It has gone meanwhile, or is a file now, which the next round removes.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
                Err(errno) => return Err((Some(name.to_owned()), errno)),
            },
            Err(errno) => return Err((Some(name.to_owned()), errno)),
        };
        self.changed = true;
        Ok(level.map_or(Step::Next, Step::Enter))
    }
}

/// Removes a directory and everything below it. An error comes with its path below `parent`.
///
/// Names are looked up in open directories, so that a link that takes the place of one meanwhile leads nowhere.
pub(super) fn remove_tree(
    parent: BorrowedFd<'_>,
    name: &CStr,
    stop: &CancellationToken,
) -> Result<(), (PathBuf, Errno)> {
    let top = Level::open(parent, name).map_err(|errno| (path_of(&[], Some(name)), errno))?;
    let mut levels = vec![top];
    while let Some(mut level) = levels.pop() {
        if stop.is_cancelled() {
            return Err((path_of(&levels, Some(&level.name)), Errno::CANCELED));
        }
        match level.step() {
            Ok(Step::Next) => levels.push(level),
            Ok(Step::Enter(below)) => levels.extend([level, below]),
            Ok(Step::End) => {
                let above = levels.last().map_or(Ok(parent), |above| above.dir.fd());
                match above.and_then(|above| unlinkat(above, &level.name, AtFlags::REMOVEDIR)) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    // Some file systems leave out entries when others are removed while they are read.
                    Err(Errno::NOTEMPTY) if level.changed => {
                        level.dir.rewind();
                        level.changed = false;
                        levels.push(level);
                    }
                    Err(errno) => return Err((path_of(&levels, Some(&level.name)), errno)),
                }
            }
            Err((name, errno)) => {
                levels.push(level);
                return Err((path_of(&levels, name.as_deref()), errno));
            }
        }
    }
    Ok(())
}

fn path_of(levels: &[Level], last: Option<&CStr>) -> PathBuf {
    let names = levels.iter().map(|level| level.name.as_c_str()).chain(last);
    names.map(|name| OsStr::from_bytes(name.to_bytes())).collect()
}
