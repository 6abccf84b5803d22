//! Where a directory of the host is mounted: found once, so that links of the guest lead nowhere else afterwards, and found again by
//! the number of the mount, wherever the guest has moved it.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyro_wire::Failure;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Statx, StatxFlags, openat, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::fchdir;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::failure::{During, refused};
use crate::proc::{Proc, unescaped};

/// Directories of the kernel, on which nothing is mounted, nor below them.
const KERNEL_DIRECTORIES: [&str; 3] = ["/proc", "/sys", "/dev"];
/// The mounts that this process sees, in the process file system.
const MOUNTS: &str = "self/mountinfo";
/// Maximum length of the list of mounts that is read: a guest may mount as much as it likes.
const MAX_LIST_BYTES: u64 = 64 << 20;
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
    proc: Arc<Proc>,
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
    pub(super) fn at(proc: Arc<Proc>, place: PathBuf) -> Result<Self, Errno> {
        let number = Number::of(&openat(CWD, &place, FOUND, Mode::empty())?)?;
        Ok(Self { proc, place, number })
    }

    /// Opens the mounted directory. `None`: the guest has unmounted it.
    fn find(&self) -> Result<Option<OwnedFd>, Errno> {
        let place = match self.number.map(|number| self.listed(number)) {
            Some(Ok(Some(place))) => place,
            Some(Ok(None)) => return Ok(None),
            Some(Err(_)) | None => self.place.clone(),
        };
        let found = openat(CWD, &place, FOUND, Mode::empty())?;
        if self.number.is_some() && Number::of(&found)? != self.number {
            // The guest has mounted something over it.
            return Err(Errno::BUSY);
        }
        Ok(Some(found))
    }

    /// Returns where the kernel lists the mount.
    fn listed(&self, number: Number) -> io::Result<Option<PathBuf>> {
        let list = openat(&*self.proc, MOUNTS, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        number.place_in(BufReader::new(File::from(list)), MAX_LIST_BYTES)
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
        let in_proc = || {
            enter_alone(&self.proc)?;
            unmount(format!("self/fd/{}", found.as_raw_fd()), UnmountFlags::DETACH)
        };
        // The thread ends with its working directory.
        std::thread::scope(|scope| match std::thread::Builder::new().spawn_scoped(scope, in_proc) {
            Ok(thread) => thread.join().unwrap_or(Err(Errno::IO)),
            Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)),
        })
    }
}

/// Makes a directory the working directory of this thread, and of no other one. A path is unmounted by the working directory only,
/// and those of descriptors are in the process file system.
fn enter_alone(directory: &Proc) -> Result<(), Errno> {
    #[expect(unsafe_code, reason = "the binding also covers the table of descriptors")]
    // SAFETY: the table of descriptors stays shared.
    unsafe {
        unshare_unsafe(UnshareFlags::FS)?;
    }
    fchdir(directory)
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
    ///
    /// # Errors
    /// The list cannot be read, or the mount is not in the part that is read of it.
    fn place_in(self, list: impl BufRead, max_bytes: u64) -> io::Result<Option<PathBuf>> {
        let wanted = [self.mount.to_string(), format!("{}:{}", self.device.0, self.device.1)];
        let mut list = list.take(max_bytes);
        let mut line = Vec::new();
        while list.read_until(b'\n', &mut line)? > 0 {
            // Number, number of the mount above, device, directory of its file system, place.
            let mut columns = line.split(|&byte| byte == b' ');
            let found = [columns.next(), columns.nth(1)];
            if found == wanted.each_ref().map(|text| Some(text.as_bytes()))
                && let Some(place) = columns.nth(1)
            {
                return Ok(Some(OsString::from_vec(unescaped(place)).into()));
            }
            line.clear();
        }
        if list.limit() == 0 { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

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
        let place =
            |mount, device| Number { mount, device }.place_in(&list[..], 1 + list.len() as u64).unwrap();
        assert_eq!(place(31, (0, 40)), Some("/mnt/a".into()));
        assert_eq!(place(32, (0, 41)), Some(r"/moved to\x".into()));
        assert_eq!(place(31, (0, 41)), None, "its number was given to another one");
        assert_eq!(place(40, (0, 40)), None);
    }

    #[test]
    fn of_an_endless_list_a_part_is_read() {
        let number = Number { mount: 31, device: (0, 40) };
        assert!(number.place_in(BufReader::new(io::repeat(b'\n')), 1 << 20).is_err());
        assert!(number.place_in(BufReader::new(io::repeat(b'x')), 1 << 20).is_err());
    }

    #[test]
    fn what_is_mounted_is_told_apart_from_what_is_there_now() {
        let view = Arc::new(Proc::of_this_host());
        let proc = Attached::at(Arc::clone(&view), "/proc".into()).unwrap();
        assert!(proc.number.is_some());
        assert!(proc.find().unwrap().is_some());
        let number = proc.number.map(|number| Number { mount: u64::MAX, ..number });
        let gone = Attached { number, ..proc };
        assert!(gone.find().unwrap().is_none());
        gone.detach().unwrap();
        gone.write_out().unwrap();
    }

    #[test]
    fn the_list_and_the_descriptors_are_those_of_the_process_file_system_that_was_opened() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("self")).unwrap();
        let number = Number::of(&openat(CWD, dir.path(), FOUND, Mode::empty()).unwrap()).unwrap().unwrap();
        let list = format!(
            "{} 1 {}:{} / {} rw\n",
            number.mount,
            number.device.0,
            number.device.1,
            dir.path().display()
        );
        fs::write(dir.path().join(MOUNTS), list).unwrap();
        let opened: OwnedFd = File::open(dir.path()).unwrap().into();
        let attached = Attached::at(Arc::new(Proc::of(opened)), "/proc".into()).unwrap();
        let attached = Attached { number: Some(number), ..attached };
        let found = attached.find().unwrap().unwrap();
        assert_eq!(rustix::fs::fstat(found).unwrap().st_ino, fs::metadata(dir.path()).unwrap().ino());
        // There are no descriptors in it.
        let here = std::env::current_dir().unwrap();
        assert_eq!(attached.detach(), Err(Errno::NOENT));
        assert_eq!(std::env::current_dir().unwrap(), here);
    }
}
