//! Where a directory of the host is mounted: found once, so that links of the guest lead nowhere else afterwards, and found again by
//! the number of the mount, wherever the guest has moved it.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use pyro_wire::Failure;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Statx, StatxFlags, openat, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::failure::{During, refused};
use crate::proc::unescaped;

/// Directories of the kernel, on which nothing is mounted, nor below them.
const KERNEL_DIRECTORIES: [&str; 3] = ["/proc", "/sys", "/dev"];
/// The mounts that this process sees.
const MOUNTS: &str = "/proc/self/mountinfo";
/// How a mounted directory is opened without asking its file system anything.
const FOUND: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Returns where the directory at `path` really is, or will be once it is made.
pub(super) fn find(path: &Path) -> Result<PathBuf, Failure> {
    let step = format!("mounting on {}", path.display());
    let place = true_path(path).during(&*step)?;
    let is_of_kernel = KERNEL_DIRECTORIES.iter().any(|directory| place.starts_with(directory));
    if is_of_kernel || place == Path::new("/") {
        let text = "its symbolic links lead there, and nothing can be mounted there";
        return Err(refused(step, format!("{}: {text}", place.display())));
    }
    Ok(place)
}

/// Returns a path without links, also of something of which only a directory above it exists.
fn true_path(path: &Path) -> io::Result<PathBuf> {
    match (fs::canonicalize(path), path.parent(), path.file_name()) {
        (Err(error), Some(parent), Some(name)) if error.kind() == io::ErrorKind::NotFound => {
            Ok(true_path(parent)?.join(name))
        }
        (place, ..) => place,
    }
}

/// A mount. Nothing of it is kept open: the guest could not unmount it then.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    place: PathBuf,
    /// Number of the mount and of its file system's device. Absent before Linux 5.8.
    number: Option<Number>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Number {
    mount: u64,
    device: (u32, u32),
}

impl Attached {
    /// Takes the numbers of what was just mounted there.
    pub(super) fn at(place: PathBuf) -> Result<Self, Errno> {
        let number = Number::of(&openat(CWD, &place, FOUND, Mode::empty())?)?;
        Ok(Self { place, number })
    }

    /// Opens the mounted directory. `None`: the guest has unmounted it.
    fn find(&self) -> Result<Option<OwnedFd>, Errno> {
        let place = match (self.number, fs::read(MOUNTS)) {
            (Some(number), Ok(list)) => match number.place_in(&list) {
                Some(place) => place,
                None => return Ok(None),
            },
            _ => self.place.clone(),
        };
        let found = openat(CWD, &place, FOUND, Mode::empty())?;
        if self.number.is_some() && Number::of(&found)? != self.number {
            // The guest has mounted something over it.
            return Err(Errno::BUSY);
        }
        Ok(Some(found))
    }

    /// Writes everything out that the guest has written to it. Blocks as long as the host does not take it.
    pub(super) fn write_out(&self) -> Result<(), Errno> {
        let Some(found) = self.find()? else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::syncfs(openat(found, c".", flags, Mode::empty())?)
    }

    /// Unmounts it, whatever uses it.
    pub(super) fn detach(&self) -> Result<(), Errno> {
        let Some(found) = self.find()? else { return Ok(()) };
        unmount(format!("/proc/self/fd/{}", found.as_raw_fd()), UnmountFlags::DETACH)
    }
}

impl fmt::Display for Attached {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.display().fmt(formatter)
    }
}

impl Number {
    fn of(found: &OwnedFd) -> Result<Option<Self>, Errno> {
        // Asked of the kernel alone: the host may not answer any more.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let Statx { stx_mask, stx_mnt_id, stx_dev_major, stx_dev_minor, .. } =
            statx(found, c"", flags, StatxFlags::MNT_ID)?;
        let has_number = StatxFlags::from_bits_retain(stx_mask).contains(StatxFlags::MNT_ID);
        Ok(has_number.then_some(Self { mount: stx_mnt_id, device: (stx_dev_major, stx_dev_minor) }))
    }

    /// Returns where a list of mounts has this one.
    fn place_in(self, list: &[u8]) -> Option<PathBuf> {
        let wanted = [self.mount.to_string(), format!("{}:{}", self.device.0, self.device.1)];
        list.split(|&byte| byte == b'\n').find_map(|line| {
            // Number, number of the mount above, device, directory of its file system, place.
            let mut columns = line.split(|&byte| byte == b' ');
            let (number, device) = (columns.next()?, columns.nth(1)?);
            let is_wanted = [number, device] == wanted.each_ref().map(|text| text.as_bytes());
            is_wanted.then(|| OsString::from_vec(unescaped(columns.nth(1).unwrap_or_default())).into())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_once_and_not_into_directories_of_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("real")).unwrap();
        symlink("real", root.join("link")).unwrap();
        for (path, place) in [("link/new", "real/new"), ("link", "real"), ("a/b", "a/b")] {
            assert_eq!(find(&root.join(path)).unwrap(), root.join(place));
        }
        for (link, place) in [("proc", "/proc"), ("below", "/sys/fs"), ("root", "/")] {
            symlink(place, root.join(link)).unwrap();
            let failure = find(&root.join(link)).unwrap_err();
            assert!(failure.cause.starts_with(&format!("{place}: its symbolic links")), "{failure}");
        }
        // A mount that is refused makes nothing.
        assert!(!root.join("real/new").exists() && !root.join("a").exists());
        symlink("round", root.join("round")).unwrap();
        assert!(find(&root.join("round")).is_err());
    }

    #[test]
    fn a_mount_is_found_by_its_numbers_wherever_it_is() {
        let list = b"22 1 254:0 / / rw - ext4 /dev/vda rw\n\
                     31 22 0:40 / /mnt/a rw - fuse.pyro pyro rw\n\
                     32 22 0:41 / /moved\\040to\\134x rw shared:1 - fuse.pyro pyro rw\n\
                     33 22 0:40\n\n";
        let place = |mount, device| Number { mount, device }.place_in(list);
        assert_eq!(place(31, (0, 40)), Some("/mnt/a".into()));
        assert_eq!(place(32, (0, 41)), Some(r"/moved to\x".into()));
        assert_eq!(place(31, (0, 41)), None, "its number was given to another one");
        assert_eq!(place(40, (0, 40)), None);
    }

    #[test]
    fn what_is_mounted_is_told_apart_from_what_is_there_now() {
        let proc = Attached::at("/proc".into()).unwrap();
        assert!(proc.number.is_some());
        assert!(proc.find().unwrap().is_some());
        let number = proc.number.map(|number| Number { mount: u64::MAX, ..number });
        let gone = Attached { number, ..proc };
        assert!(gone.find().unwrap().is_none());
        gone.detach().unwrap();
        gone.write_out().unwrap();
    }
}
