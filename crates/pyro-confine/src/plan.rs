//! Everything that the child does, prepared before it exists: between its creation and the execution of the program it
//! may neither allocate memory nor take a lock.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr, c_char};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::fcntl_dupfd_cloexec;
use seccompiler::BpfProgram;

use crate::cgroup::Group;
use crate::identity::{HandOverError, Identity};
use crate::landlock::{self, Network};
use crate::layers::Layer;
use crate::policy::{Access, Limit, Policy, Visible};
use crate::start::{Program, StartError};

/// Descriptors of the child that it only needs until the program is executed are above this number, and those that the
/// program gets below.
pub(crate) const FIRST_TEMPORARY: RawFd = 64;

/// One file or directory that is attached to the new root.
pub(crate) struct Mount {
    /// Its path on the host.
    pub(crate) source: CString,
    /// Its path in the new root, relative to it.
    pub(crate) target: CString,
    pub(crate) is_dir: bool,
    /// Attributes of the mount.
    pub(crate) attributes: u64,
    /// The device and inode that were checked.
    pub(crate) identity: (u64, u64),
    /// The target must be created first.
    pub(crate) is_new: bool,
}

pub(crate) struct Plan {
    pub(crate) program: CString,
    _arguments: Vec<CString>,
    /// Pointers to the arguments, and a null pointer.
    pub(crate) argument_pointers: Vec<*const c_char>,
    pub(crate) staging: CString,
    /// Directories to create in the new root, relative to it, parents first.
    pub(crate) dirs: Vec<CString>,
    pub(crate) mounts: Vec<Mount>,
    /// Open copies above [`FIRST_TEMPORARY`], and the number that each gets.
    pub(crate) descriptors: Vec<(OwnedFd, RawFd)>,
    pub(crate) landlock: Result<OwnedFd, Layer>,
    pub(crate) filters: Result<[BpfProgram; 2], Layer>,
    pub(crate) limits: Vec<Limit>,
    /// A limit per user counts what is in the program's user namespace.
    pub(crate) counts_per_namespace: bool,
    pub(crate) own_ids: Option<(u32, u32)>,
    pub(crate) oom_score_adj: CString,
    pub(crate) blocked_signals: libc::sigset_t,
    pub(crate) huge_pages: bool,
    /// The control group that the program is moved into.
    pub(crate) group: Result<Arc<Group>, Layer>,
}

/// Why nothing was prepared.
#[derive(Debug)]
pub(crate) enum PlanError {
    /// The program cannot be started as this user, but may be startable as another one.
    Identity {
        /// The file that cannot be given to the user.
        path: PathBuf,
        source: io::Error,
    },
    Start(StartError),
}

impl From<StartError> for PlanError {
    fn from(error: StartError) -> Self {
        Self::Start(error)
    }
}

struct Opened<'a> {
    visible: &'a Visible,
    fd: OwnedFd,
    stat: Stat,
}

impl Opened<'_> {
    /// Its path in the new root.
    fn shown_at(&self) -> &Path {
        self.visible.shown_at.as_deref().unwrap_or(&self.visible.path)
    }

    fn is_dir(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode).is_dir()
    }
}

impl Plan {
    /// Opens and checks what the policy names. `program.descriptors` are numbered below [`FIRST_TEMPORARY`].
    pub(crate) fn new(program: &Program, policy: &Policy, identity: Identity) -> Result<Self, PlanError> {
        let files = open(policy)?;
        for file in &files {
            let path = || file.visible.path.clone();
            identity.hand_over(file.fd.as_fd(), &file.stat, file.visible.access).map_err(
                |error| match error {
                    HandOverError::Identity(source) => PlanError::Identity { path: path(), source },
                    HandOverError::File(source) => StartError::File { path: path(), source }.into(),
                },
            )?;
        }
        let (dirs, mounts) = root(&files)?;
        let rules = files.iter().map(|file| (file.fd.as_fd(), file.is_dir(), file.visible.access));
        let landlock = match landlock::rules(rules, Network::Closed) {
            Ok(Some(rules)) => temporary(&rules).map_err(StartError::Descriptor).map(Ok)?,
            Ok(None) => Err(Layer::unavailable("the kernel has no Landlock, or it is switched off")),
            Err(error) => match landlock::transient(&error) {
                Some(errno) => return Err(StartError::Descriptor(errno.into()).into()),
                None => Err(Layer::unavailable(error)),
            },
        };
        let descriptors = descriptors(&program.descriptors)?;
        let name = c_string(program.program.as_os_str())?;
        let arguments: Vec<CString> = std::iter::once(Ok(name.clone()))
            .chain(program.arguments.iter().map(|argument| c_string(argument)))
            .collect::<Result<_, _>>()?;
        let argument_pointers = arguments
            .iter()
            .map(|argument| argument.as_ptr())
            .chain(std::iter::once(std::ptr::null()))
            .collect();
        Ok(Self {
            program: name,
            _arguments: arguments,
            argument_pointers,
            staging: c_string(policy.staging.as_os_str())?,
            dirs,
            mounts,
            descriptors,
            landlock,
            filters: policy.syscalls.compile().map_err(Layer::unavailable),
            limits: policy.limits.clone(),
            counts_per_namespace: counts_per_namespace(rustix::system::uname().release()),
            own_ids: match identity {
                Identity::Caller => None,
                Identity::Own { user, group } => Some((user, group)),
            },
            oom_score_adj: c_string(policy.oom_score_adj.to_string().as_ref())?,
            blocked_signals: signals(&program.blocked_signals),
            huge_pages: program.huge_pages,
            group: Err(Layer::unavailable("it was not requested")),
        })
    }
}

fn open(policy: &Policy) -> Result<Vec<Opened<'_>>, StartError> {
    let mut opened = Vec::with_capacity(policy.files.len());
    for visible in &policy.files {
        let open = || {
            let fd = match &visible.opened {
                Some(file) => fcntl_dupfd_cloexec(file, 0)?,
                None => openat(CWD, &visible.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?,
            };
            let stat = fstat(&fd)?;
            Ok::<_, rustix::io::Errno>((fd, stat))
        };
        match open() {
            Ok((fd, stat)) => opened.push(Opened { visible, fd, stat }),
            Err(_) if visible.optional => {}
            Err(errno) => return Err(StartError::File { path: visible.path.clone(), source: errno.into() }),
        }
    }
    Ok(opened)
}

/// Lays out the new root: parents before what they contain.
fn root(files: &[Opened<'_>]) -> Result<(Vec<CString>, Vec<Mount>), StartError> {
    let mut files: Vec<&Opened<'_>> = files.iter().collect();
    files.sort_by(|a, b| a.shown_at().cmp(b.shown_at()));
    let (mut dirs, mut mounts) = (BTreeSet::new(), Vec::new());
    let mut attached: Vec<&Path> = Vec::new();
    for file in files {
        let path = file.shown_at();
        let target = relative(path)?;
        let is_new = !attached.iter().any(|dir| path.starts_with(dir));
        if is_new {
            let parents = target.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty());
            dirs.extend(parents.map(Path::to_owned));
            if file.is_dir() {
                dirs.insert(target.clone());
            }
        }
        if file.is_dir() {
            attached.push(path);
        }
        mounts.push(Mount {
            source: c_string(file.visible.path.as_os_str())?,
            target: c_string(target.as_os_str())?,
            is_dir: file.is_dir(),
            attributes: attributes(file.visible.access),
            identity: (file.stat.st_dev, file.stat.st_ino),
            is_new,
        });
    }
    let dirs = dirs.iter().map(|dir| c_string(dir.as_os_str())).collect::<Result<_, _>>()?;
    Ok((dirs, mounts))
}

/// Returns an absolute path without its slash.
fn relative(path: &Path) -> Result<PathBuf, StartError> {
    let is_plain = path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    match path.strip_prefix("/") {
        Ok(rest) if is_plain && !rest.as_os_str().is_empty() => Ok(rest.components().collect()),
        _ => {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "not an absolute path without `..`");
            Err(StartError::File { path: path.to_owned(), source })
        }
    }
}

fn attributes(access: Access) -> u64 {
    let mut attributes = libc::MOUNT_ATTR_NOSUID;
    if !access.writes() {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    if access != Access::Device {
        attributes |= libc::MOUNT_ATTR_NODEV;
    }
    if !access.maps_code() {
        attributes |= libc::MOUNT_ATTR_NOEXEC;
    }
    attributes
}

/// Copies a descriptor to a number that no descriptor of the program has.
pub(crate) fn temporary(fd: impl AsFd) -> io::Result<OwnedFd> {
    Ok(fcntl_dupfd_cloexec(fd, FIRST_TEMPORARY)?)
}

fn descriptors(given: &[(OwnedFd, RawFd)]) -> Result<Vec<(OwnedFd, RawFd)>, StartError> {
    let mut numbers = BTreeSet::new();
    given
        .iter()
        .map(|(fd, number)| {
            if !(0..FIRST_TEMPORARY).contains(number) || !numbers.insert(*number) {
                let message = format!("invalid descriptor number {number}: expected one below 64, once");
                return Err(StartError::Descriptor(io::Error::new(io::ErrorKind::InvalidInput, message)));
            }
            Ok((temporary(fd).map_err(StartError::Descriptor)?, *number))
        })
        .collect()
}

/// Whether a kernel counts a user's processes in each user namespace. Older ones count all of the user's.
fn counts_per_namespace(release: &CStr) -> bool {
    let release = release.to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (5, 14),
        _ => false,
    }
}

fn c_string(text: &OsStr) -> Result<CString, StartError> {
    CString::new(text.as_bytes()).map_err(|error| StartError::Descriptor(error.into()))
}

fn signals(numbers: &[i32]) -> libc::sigset_t {
    #[expect(unsafe_code, reason = "there is no safe wrapper of signal sets")]
    // SAFETY: the set is initialised by sigemptyset before anything reads it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for number in numbers {
            libc::sigaddset(&raw mut set, *number);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_absolute_paths_are_laid_out() {
        assert_eq!(relative(Path::new("/a//b/")).unwrap(), Path::new("a/b"));
        for path in ["a", "/", "/a/../b", ""] {
            relative(Path::new(path)).unwrap_err();
        }
    }

    #[test]
    fn threads_are_limited_only_where_a_namespace_counts_its_own() {
        for (release, expected) in [
            (c"5.10.0-28-amd64", false),
            (c"5.13", false),
            (c"5.14.0", true),
            (c"6.1.0-rc1", true),
            (c"x", false),
        ] {
            assert_eq!(counts_per_namespace(release), expected, "{release:?}");
        }
    }

    #[test]
    fn what_is_inside_a_visible_directory_is_not_created() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        std::fs::write(&inner, "").unwrap();
        let policy = Policy {
            files: vec![
                Visible::new(&inner, Access::Execute),
                Visible::new(dir.path(), Access::Read),
                Visible::optional("/nonexistent/file", Access::Read),
            ],
            staging: dir.path().into(),
            identity: crate::Identity::Caller,
            syscalls: crate::Syscalls::new(),
            limits: Vec::new(),
            oom_score_adj: 0,
        };
        let files = open(&policy).unwrap();
        let (dirs, mounts) = root(&files).unwrap();
        assert_eq!(mounts.iter().map(|mount| mount.is_new).collect::<Vec<_>>(), [true, false]);
        assert!(mounts[0].is_dir && !mounts[1].is_dir);
        assert_eq!(mounts[0].attributes & libc::MOUNT_ATTR_NOEXEC, libc::MOUNT_ATTR_NOEXEC);
        assert_eq!(mounts[1].attributes & libc::MOUNT_ATTR_NOEXEC, 0);
        assert_eq!(dirs.last().unwrap(), &mounts[0].target);
    }
}
