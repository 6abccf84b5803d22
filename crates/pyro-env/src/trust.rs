//! Whether the files of an environment can only be changed by this user and root.

mod private_group;

use std::ffi::CStr;
use std::fs::{self, File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;

use crate::error::{IoError, TrustProblem, Untrusted};
use crate::manifest::OpenFiles;

const WRITABLE_BY_GROUP: u32 = 0o020;
const WRITABLE_BY_ALL: u32 = 0o002;
/// In a directory with this bit, users can only rename and remove what is theirs.
const STICKY: u32 = 0o1000;

/// Checks an installed environment: its directory, what is in it, all parents, and the files that are open.
pub(crate) fn check(install_dir: &Path, files: &OpenFiles) -> Result<Result<(), Untrusted>, IoError> {
    let trust = Trust::of_this_process();
    match trust.check_open(install_dir, files)? {
        Ok(()) => trust.check(install_dir),
        untrusted => Ok(untrusted),
    }
}

/// Checks that only this user and root can change a file or directory, by itself or through one of its parents.
///
/// # Errors
/// It cannot be examined.
pub fn check_path(path: &Path) -> Result<Result<(), Untrusted>, IoError> {
    check_dir(path)
}

/// Whether only this user and root can write to an open file of an environment, apart from its parents.
pub(crate) fn is_own(file: &File, path: &Path) -> bool {
    let trust = Trust::of_this_process();
    Inspected::of_open(file, path).is_ok_and(|found| trust.problem(&found, Place::Environment).is_none())
}

/// Checks a directory in which an environment is going to be built, and all parents.
pub(crate) fn check_dir(dir: &Path) -> Result<Result<(), Untrusted>, IoError> {
    Trust::of_this_process().check_dir(dir)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Environment,
    Parent,
}

/// What matters of a file or directory.
struct Inspected {
    owner: u32,
    group: u32,
    mode: u32,
    /// It may have an access control list, whose users and groups the mode does not tell.
    has_list: bool,
}

impl Inspected {
    fn new(path: &Path) -> Result<Self, IoError> {
        let metadata = fs::metadata(path).map_err(IoError::at("inspect", path))?;
        // A list is longer than the buffer, which is an error too.
        let list = rustix::fs::getxattr(path, ACCESS_LIST, &mut [0_u8; 1]);
        Ok(Self { has_list: has_list(list), ..Self::from(&metadata) })
    }

    fn of_open(file: &File, path: &Path) -> Result<Self, IoError> {
        let metadata = file.metadata().map_err(IoError::at("inspect", path))?;
        let list = rustix::fs::fgetxattr(file, ACCESS_LIST, &mut [0_u8; 1]);
        Ok(Self { has_list: has_list(list), ..Self::from(&metadata) })
    }
}

impl From<&Metadata> for Inspected {
    fn from(metadata: &Metadata) -> Self {
        Self { owner: metadata.uid(), group: metadata.gid(), mode: metadata.mode(), has_list: false }
    }
}

/// Whether there is anything under a path, if only a link that leads nowhere.
fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

const ACCESS_LIST: &CStr = c"system.posix_acl_access";

/// Whether the attempt to read an access control list means that there is one. A failure for another reason counts as one.
fn has_list(read: Result<usize, Errno>) -> bool {
    !matches!(read, Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS))
}

/// Who may change an environment.
struct Trust {
    user: u32,
    /// The user's own group, if the user is the only member.
    private_group: Option<u32>,
    /// The user as whom root of the host appears, in a container that does not know root of the host.
    unknown_root: Option<u32>,
}

impl Trust {
    fn of_this_process() -> Self {
        let read = |path| fs::read_to_string(path).ok();
        let unknown_root = || {
            let overflow = read("/proc/sys/kernel/overflowuid")?.trim().parse().ok()?;
            lacks_root_of_host(&read("/proc/self/uid_map")?).then_some(overflow)
        };
        Self {
            user: rustix::process::geteuid().as_raw(),
            private_group: private_group::of_this_process(),
            unknown_root: unknown_root(),
        }
    }

    fn check(&self, install_dir: &Path) -> Result<Result<(), Untrusted>, IoError> {
        let entries = fs::read_dir(install_dir).map_err(IoError::at("read", install_dir))?;
        for entry in entries {
            let path = entry.map_err(IoError::at("read", install_dir))?.path();
            let found = match Inspected::new(&path) {
                // Another process has given it another name since it was listed, as it does with what it remembers.
                Err(error) if error.source.kind() == ErrorKind::NotFound && !exists(&path) => continue,
                found => found?,
            };
            if let Some(problem) = self.problem(&found, Place::Environment) {
                return Ok(Err(Untrusted { path, problem }));
            }
        }
        self.check_dir(install_dir)
    }

    fn check_open(&self, install_dir: &Path, files: &OpenFiles) -> Result<Result<(), Untrusted>, IoError> {
        for file in [&files.kernel, &files.modules, &files.rootfs] {
            let found = Inspected::of_open(file, install_dir)?;
            if let Some(problem) = self.problem(&found, Place::Environment) {
                return Ok(Err(Untrusted { path: install_dir.to_owned(), problem }));
            }
        }
        Ok(Ok(()))
    }

    fn check_dir(&self, dir: &Path) -> Result<Result<(), Untrusted>, IoError> {
        // Links among the parents do not matter: what counts is where they lead.
        let real = fs::canonicalize(dir).map_err(IoError::at("inspect", dir))?;
        for (depth, path) in real.ancestors().enumerate() {
            let place = if depth == 0 { Place::Environment } else { Place::Parent };
            if let Some(problem) = self.problem(&Inspected::new(path)?, place) {
                return Ok(Err(Untrusted { path: path.to_owned(), problem }));
            }
        }
        Ok(Ok(()))
    }

    fn problem(&self, file: &Inspected, place: Place) -> Option<TrustProblem> {
        let is_unknown_root = place == Place::Parent && self.unknown_root == Some(file.owner);
        if file.owner != 0 && file.owner != self.user && !is_unknown_root {
            return Some(TrustProblem::Owner);
        }
        // A user who can rename a directory can put another one in its place, unless the sticky bit protects it.
        if place == Place::Parent && file.mode & STICKY != 0 {
            return None;
        }
        // With a list, the mode of the group is the maximum for everyone on the list.
        let is_private_group = self.private_group == Some(file.group) && !file.has_list;
        let others = if is_private_group { WRITABLE_BY_ALL } else { WRITABLE_BY_ALL | WRITABLE_BY_GROUP };
        (file.mode & others != 0).then_some(TrustProblem::Writable)
    }
}

/// Whether a user namespace has no user for root of the host, or of the namespace around it.
fn lacks_root_of_host(uid_map: &str) -> bool {
    let mut outer = uid_map.lines().map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u32>().ok());
    !uid_map.is_empty() && outer.all(|first| first.is_some_and(|first| first != 0))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn files_directory_and_parents_must_be_private_to_change() {
        // Whether this user is alone in its group is another question.
        let trust = Trust { private_group: None, ..Trust::of_this_process() };
        let root = tempfile::tempdir().unwrap();
        let install_dir = root.path().join("cache/debian_12");
        let file = install_dir.join("rootfs");
        fs::create_dir_all(&install_dir).unwrap();
        fs::write(&file, "").unwrap();
        trust.check(&install_dir).unwrap().unwrap();
        for (path, safe, unsafe_mode) in [
            (&file, 0o444, 0o464),
            (&install_dir, 0o755, 0o777),
            (&install_dir, 0o755, 0o1777),
            (&root.path().join("cache"), 0o755, 0o775),
        ] {
            set(path, unsafe_mode);
            let untrusted = trust.check(&install_dir).unwrap().unwrap_err();
            assert_eq!(untrusted.problem, TrustProblem::Writable);
            assert!(untrusted.path.ends_with(path.file_name().unwrap()), "{}", untrusted.path.display());
            set(path, safe);
        }
        // As /tmp is.
        set(&root.path().join("cache"), 0o1777);
        trust.check(&install_dir).unwrap().unwrap();
    }

    #[test]
    fn files_that_come_and_go_during_the_check_do_not_fail_it() {
        let trust = Trust { private_group: None, ..Trust::of_this_process() };
        let dir = tempfile::tempdir().unwrap();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            // As processes do that start at the same time, from a copy of the cache.
            let writer = scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    for n in 0..50 {
                        tempfile::Builder::new().prefix(".verified-").tempfile_in(dir.path()).unwrap();
                        fs::write(dir.path().join(n.to_string()), "").unwrap();
                    }
                    (0..50).for_each(|n| fs::remove_file(dir.path().join(n.to_string())).unwrap());
                }
            });
            let checked: Vec<_> = (0..500).map(|_| trust.check(dir.path())).collect();
            is_over.store(true, Ordering::Relaxed);
            writer.join().unwrap();
            for outcome in checked {
                outcome.unwrap().unwrap();
            }
        });
        std::os::unix::fs::symlink("/nonexistent", dir.path().join("link")).unwrap();
        trust.check(dir.path()).unwrap_err();
    }

    const ANN: Trust = Trust { user: 1000, private_group: None, unknown_root: None };

    fn dir(owner: u32, group: u32, mode: u32) -> Inspected {
        Inspected { owner, group, mode, has_list: false }
    }

    #[test]
    fn the_group_of_one_user_may_write() {
        let alone = Trust { private_group: Some(1000), ..ANN };
        for place in [Place::Environment, Place::Parent] {
            let shared = dir(1000, 1000, 0o775);
            assert_eq!(ANN.problem(&shared, place), Some(TrustProblem::Writable), "others may be members");
            assert_eq!(alone.problem(&shared, place), None);
            for other in [dir(1000, 100, 0o775), dir(0, 0, 0o775), dir(1000, 1000, 0o777)] {
                assert_eq!(alone.problem(&other, place), Some(TrustProblem::Writable));
            }
            let listed = Inspected { has_list: true, ..shared };
            assert_eq!(alone.problem(&listed, place), Some(TrustProblem::Writable));
        }
    }

    #[test]
    fn root_that_a_container_does_not_know_may_own_parents() {
        let contained = Trust { unknown_root: Some(65534), ..ANN };
        let root = dir(65534, 65534, 0o755);
        assert_eq!(contained.problem(&root, Place::Parent), None);
        assert_eq!(contained.problem(&root, Place::Environment), Some(TrustProblem::Owner));
        assert_eq!(ANN.problem(&root, Place::Parent), Some(TrustProblem::Owner), "a user of this host");
        let writable = dir(65534, 65534, 0o775);
        assert_eq!(contained.problem(&writable, Place::Parent), Some(TrustProblem::Writable));
        // Root with the home directory of another user.
        let root = Trust { user: 0, ..contained };
        assert_eq!(root.problem(&dir(1000, 1000, 0o755), Place::Parent), Some(TrustProblem::Owner));
    }

    #[test]
    fn a_map_says_whether_root_of_the_host_is_known() {
        for (map, expected) in [
            ("         0          0 4294967295\n", false),
            ("         0          0          1\n", false),
            ("         0       1000          1\n         1     100000      65536\n", true),
            ("      1000       1000          1\n", true),
            ("", false),
            ("0 x 1", false),
        ] {
            assert_eq!(lacks_root_of_host(map), expected, "{map}");
        }
    }
}
