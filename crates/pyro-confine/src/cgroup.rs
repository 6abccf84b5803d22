//! Control groups (version 2) for programs, where the host delegates them to this process.
//!
//! Only a group without processes can limit its children, and this process never moves itself or anything that it has not
//! started. So there are two places for groups: the parent of this process's group, if it was delegated
//! (systemd's `Delegate=` with `DelegateSubgroup=`), and the root control group, which may have both, on hosts without
//! systemd. `docs/design/0018-confinement.md` says why there are no others.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Access, Mode, OFlags};

/// What the names of groups begin with.
const PREFIX: &str = "pyro-vm-";
/// Without these, a group limits nothing that matters.
const REQUIRED: [&str; 2] = ["memory", "pids"];
const CPU: &str = "cpu";
const SWAP: &str = "memory.swap.max";
/// Length of a period in which processor time is counted, in microseconds.
const PERIOD_MICROS: u64 = 100_000;
/// Set by systemd on a group that it leaves to others.
const DELEGATED: [&str; 2] = ["user.delegate", "trusted.delegate"];

/// What the processes of a group may use together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// Memory in bytes, with the file cache and what the kernel needs for them. Beyond it, all of them are ended. As much
    /// again may be swapped out.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub tasks: u64,
    /// Processors, if the host delegates that too.
    pub cpus: u32,
}

/// A control group. Dropping it removes it if its processes are gone; otherwise the next one that is created does.
#[derive(Debug)]
pub struct Group {
    dir: PathBuf,
}

/// Why there is no control group.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// This process may not create any.
    #[error("not delegated: {0}")]
    NotDelegated(&'static str),
    /// It could not be created or limited.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Group {
    /// Creates a group with these limits, and removes those that dead processes have left.
    ///
    /// # Errors
    /// [`GroupError`].
    pub fn create(limits: &GroupLimits) -> Result<Self, GroupError> {
        let host = Host::find().ok_or(GroupError::NotDelegated("there is no control group of version 2"))?;
        Self::create_on(&host, limits)
    }

    fn create_on(host: &Host, limits: &GroupLimits) -> Result<Self, GroupError> {
        let place = host.place()?;
        remove_abandoned(&place);
        let group = Self::create_in(&place)?;
        group.write("memory.max", limits.memory_bytes)?;
        match group.write(SWAP, limits.memory_bytes) {
            Err(error) if group.dir.join(SWAP).exists() => return Err(error),
            // Kernels that do not count swap do not have the file.
            _ => {}
        }
        group.write("pids.max", limits.tasks)?;
        // Older kernels end one process, and the others end with it.
        let _ = group.write("memory.oom.group", 1);
        let quota = u64::from(limits.cpus) * PERIOD_MICROS;
        // Not every host delegates it, and nothing depends on it.
        let _ = group.write("cpu.max", format_args!("{quota} {PERIOD_MICROS}"));
        Ok(group)
    }

    /// Creates a group whose name no other one has. An earlier process with this process's ID may have left some.
    fn create_in(place: &Path) -> Result<Self, GroupError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let dir = place.join(format!("{PREFIX}{}-{number}", std::process::id()));
            match fs::create_dir(&dir) {
                Ok(()) => return Ok(Self { dir }),
                // This process uses each number once, so the group can go, unless it still has processes.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => drop(fs::remove_dir(&dir)),
                Err(source) => return Err(GroupError::Write { path: dir, source }),
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn of_dir(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Opens its directory, for a process that is to be created in it.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.dir, flags, Mode::empty())?)
    }

    /// Moves a process, which must be one that this process has started, into the group.
    ///
    /// # Errors
    /// It is gone, or the host does not let it be moved.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string())
    }

    fn write(&self, file: &str, value: impl ToString) -> Result<(), GroupError> {
        let path = self.dir.join(file);
        fs::write(&path, value.to_string()).map_err(|source| GroupError::Write { path, source })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Refused while a process is in it.
        let _ = fs::remove_dir(&self.dir);
    }
}

/// The groups of this host, as this process sees them.
struct Host {
    /// Where they are mounted.
    mount: PathBuf,
    /// The group of this process.
    own: PathBuf,
    /// The user of this process.
    user: u32,
    has_systemd: bool,
}

impl Host {
    fn find() -> Option<Self> {
        let read = |path| fs::read_to_string(path).ok();
        let (mount, root) = mounted(&read("/proc/self/mountinfo")?)?;
        let own = own_group(&read("/proc/self/cgroup")?)?.strip_prefix(root).ok()?.to_owned();
        let own = if own.as_os_str().is_empty() { mount.clone() } else { mount.join(own) };
        let user = rustix::process::geteuid().as_raw();
        Some(Self { mount, own, user, has_systemd: Path::new("/run/systemd/system").exists() })
    }

    /// Returns the group in which others may be created.
    fn place(&self) -> Result<PathBuf, GroupError> {
        let refused = |reason| Err(GroupError::NotDelegated(reason));
        let place = if is_root_of_all(&self.own) {
            if self.has_systemd {
                return refused("systemd manages the control groups");
            }
            self.own.clone()
        } else {
            match self.own.parent() {
                Some(parent) if parent.starts_with(&self.mount) => parent.to_owned(),
                _ => return refused("this process is in the root control group"),
            }
        };
        // Not even where nothing manages the groups: in a container that sees the host's, the parent is the host's.
        if !is_root_of_all(&place) && !self.is_delegated(&place) {
            return refused(match self.has_systemd {
                true => "systemd has not delegated the parent control group",
                false => "the parent control group is not delegated",
            });
        }
        for file in ["", "cgroup.procs", "cgroup.subtree_control"] {
            if rustix::fs::access(place.join(file), Access::WRITE_OK).is_err() {
                return refused("this user may not create control groups");
            }
        }
        let words = |file: &str| fs::read_to_string(place.join(file)).unwrap_or_default();
        let has = |file: &str, name: &str| words(file).split_whitespace().any(|word| word == name);
        if !REQUIRED.iter().all(|name| has("cgroup.controllers", name)) {
            return refused("the control group lacks the memory or pids controller");
        }
        let missing = |name: &&str| !has("cgroup.subtree_control", name);
        if REQUIRED.iter().any(missing) {
            if !is_root_of_all(&place) && !words("cgroup.procs").trim().is_empty() {
                return refused("the parent control group has processes of its own");
            }
            let path = place.join("cgroup.subtree_control");
            let enabled = REQUIRED.map(|name| format!("+{name}")).join(" ");
            fs::write(&path, enabled).map_err(|source| GroupError::Write { path, source })?;
        }
        if missing(&CPU) && has("cgroup.controllers", CPU) {
            let _ = fs::write(place.join("cgroup.subtree_control"), "+cpu");
        }
        Ok(place)
    }

    /// Whether this process may create groups in a group.
    fn is_delegated(&self, group: &Path) -> bool {
        let owner = fs::metadata(group).map(|metadata| metadata.uid());
        is_marked(group) || owner.is_ok_and(|owner| is_left_to(self.user, owner, self.has_systemd))
    }
}

/// Whether a group was given to a user: without systemd, the owner of its directory says so. Root owns those of others too,
/// and systemd gives a user groups that a manager of its own creates groups in.
fn is_left_to(user: u32, owner: u32, has_systemd: bool) -> bool {
    user != 0 && owner == user && !has_systemd
}

/// Returns where groups of version 2 are mounted, and which group is there.
fn mounted(mountinfo: &str) -> Option<(PathBuf, PathBuf)> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (file_system.split(' ').next() == Some("cgroup2")).then(|| (point.into(), root.into()))
    })
}

/// Returns this process's group of version 2.
fn own_group(cgroup: &str) -> Option<&Path> {
    cgroup.lines().find_map(|line| line.strip_prefix("0::").map(Path::new))
}

/// Only the root of the whole host, not that of a namespace, has no type.
fn is_root_of_all(group: &Path) -> bool {
    !group.join("cgroup.type").exists()
}

/// Whether systemd, or another manager of groups, has marked a group as delegated.
fn is_marked(group: &Path) -> bool {
    let mut value = [0_u8; 2];
    DELEGATED.iter().any(|name| rustix::fs::getxattr(group, *name, &mut value) == Ok(1) && value[0] == b'1')
}

/// Removes groups whose creators are gone. The kernel keeps those that have processes.
fn remove_abandoned(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let creator = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if creator.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
