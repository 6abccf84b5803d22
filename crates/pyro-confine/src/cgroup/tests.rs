//! Groups in a directory that looks like a mounted hierarchy, and in the host's own where it has one.

use std::ffi::CStr;
use std::process::{Command, Stdio};

use rustix::fs::XattrFlags;

use super::*;

const DELEGATED_MARKS: [&CStr; 2] = [c"trusted.delegate", c"user.delegate"];

const LIMITS: GroupLimits = GroupLimits { memory_bytes: 1 << 30, tasks: 100, cpus: 2 };

/// A hierarchy with the group `unit/own` of this process.
struct Fake(tempfile::TempDir);

impl Fake {
    fn new() -> Self {
        let fake = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(fake.path("unit/own")).unwrap();
        for group in ["unit", "unit/own"] {
            for (file, content) in [
                ("cgroup.type", "domain\n"),
                ("cgroup.controllers", "cpu memory pids\n"),
                ("cgroup.subtree_control", "\n"),
                ("cgroup.procs", ""),
            ] {
                fs::write(fake.path(group).join(file), content).unwrap();
            }
        }
        fake.delegate("unit");
        fake
    }

    /// Marks a group as delegated; root in the way that every file system has.
    fn delegate(&self, group: &str) {
        let mark = |name: &&CStr| rustix::fs::setxattr(self.path(group), *name, b"1", XattrFlags::empty());
        assert!(DELEGATED_MARKS.iter().any(|name| mark(name).is_ok()), "no extended attributes here");
    }

    fn path(&self, group: &str) -> PathBuf {
        self.0.path().join(group)
    }

    fn host(&self) -> Host {
        Host { mount: self.0.path().to_owned(), own: self.path("unit/own"), user: 0, has_systemd: false }
    }

    fn read(&self, file: impl AsRef<Path>) -> String {
        fs::read_to_string(self.0.path().join(file)).unwrap()
    }
}

fn refusal(host: &Host) -> String {
    host.place().unwrap_err().to_string()
}

#[test]
fn a_group_is_a_sibling_with_limits() {
    let fake = Fake::new();
    let group = Group::create_on(&fake.host(), &LIMITS).unwrap();
    assert_eq!(group.dir.parent(), Some(&*fake.path("unit")));
    group.add(77).unwrap();
    let read = |file: &str| fake.read(group.dir.join(file));
    assert_eq!(read("memory.max"), "1073741824");
    assert_eq!(read("memory.swap.max"), "1073741824");
    assert_eq!(read("pids.max"), "100");
    assert_eq!(read("cpu.max"), "200000 100000");
    assert_eq!(read("memory.oom.group"), "1");
    assert_eq!(read("cgroup.procs"), "77");
    assert_eq!(fake.read("unit/cgroup.procs"), "", "nothing else was moved");
    let other = Group::create_on(&fake.host(), &LIMITS).unwrap();
    assert_ne!(other.dir, group.dir);
}

#[test]
fn what_is_enabled_already_is_left_alone() {
    let fake = Fake::new();
    // Like a group with processes, whose controllers can no longer be changed.
    fs::write(fake.path("unit/cgroup.subtree_control"), "cpu memory pids\n").unwrap();
    fs::write(fake.path("unit/cgroup.procs"), "1\n").unwrap();
    assert_eq!(fake.host().place().unwrap(), fake.path("unit"));
    assert_eq!(fake.read("unit/cgroup.subtree_control"), "cpu memory pids\n");
}

#[test]
fn nothing_is_created_where_nothing_is_delegated() {
    let fake = Fake::new();
    let reason = |change: &dyn Fn(&Fake) -> Host| {
        let fake = Fake::new();
        let host = change(&fake);
        let reason = refusal(&host);
        assert_eq!(fake.read("unit/cgroup.subtree_control"), "\n");
        reason
    };
    let write = |fake: &Fake, file: &str, content: &str| fs::write(fake.path(file), content).unwrap();
    assert_eq!(
        reason(&|fake| {
            write(fake, "unit/cgroup.controllers", "cpu pids\n");
            fake.host()
        }),
        "not delegated: the control group lacks the memory or pids controller"
    );
    assert_eq!(
        reason(&|fake| {
            write(fake, "unit/cgroup.procs", "1\n");
            fake.host()
        }),
        "not delegated: the parent control group has processes of its own"
    );
    let withdraw = |fake: &Fake| {
        for name in DELEGATED_MARKS {
            let _ = rustix::fs::removexattr(fake.path("unit"), name);
        }
    };
    // As in a container that sees the groups of its host.
    for (has_systemd, expected) in [
        (true, "not delegated: systemd has not delegated the parent control group"),
        (false, "not delegated: the parent control group is not delegated"),
    ] {
        let found = reason(&|fake| {
            withdraw(fake);
            Host { has_systemd, ..fake.host() }
        });
        assert_eq!(found, expected);
    }
    assert_eq!(
        reason(&|fake| Host { mount: fake.path("unit/own"), ..fake.host() }),
        "not delegated: this process is in the root control group"
    );
    assert_eq!(
        reason(&|fake| Host { own: fake.path(""), has_systemd: true, ..fake.host() }),
        "not delegated: systemd manages the control groups"
    );
    fs::remove_file(fake.path("unit/cgroup.subtree_control")).unwrap();
    assert_eq!(refusal(&fake.host()), "not delegated: this user may not create control groups");
}

#[test]
fn a_group_counts_as_delegated_to_the_ordinary_user_who_owns_it() {
    for (user, owner, has_systemd, expected) in
        [(1000, 1000, false, true), (1000, 1000, true, false), (1000, 0, false, false), (0, 0, false, false)]
    {
        assert_eq!(is_left_to(user, owner, has_systemd), expected, "{user} {owner} {has_systemd}");
    }
}

#[test]
fn a_name_that_exists_is_freed_or_left_for_the_next_one() {
    let fake = Fake::new();
    let place = fake.path("unit");
    let last = Group::create_in(&place).unwrap();
    let (prefix, number) = last.dir.to_str().unwrap().rsplit_once('-').unwrap();
    let number: u32 = number.parse().unwrap();
    // Those of an earlier process with the same ID; more than other tests of this process take meanwhile.
    let path = |number: u32| PathBuf::from(format!("{prefix}-{number}"));
    for number in number + 1..number + 10 {
        fs::create_dir(path(number)).unwrap();
        // A real one with processes cannot be removed either.
        fs::create_dir(path(number).join("busy")).unwrap();
    }
    let next = Group::create_in(&place).unwrap();
    assert!(next.dir.exists() && next.dir.read_dir().unwrap().next().is_none());
}

#[test]
fn groups_of_dead_processes_are_removed() {
    let fake = Fake::new();
    let dead = {
        let mut child = Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    };
    let own = std::process::id();
    let path = |pid: u32| fake.path(&format!("unit/{PREFIX}{pid}-0"));
    for pid in [dead, own] {
        fs::create_dir(path(pid)).unwrap();
    }
    fs::create_dir(fake.path("unit/another")).unwrap();
    remove_abandoned(&fake.path("unit"));
    assert!(!path(dead).exists() && path(own).exists() && fake.path("unit/another").exists());
}

#[test]
fn the_hierarchy_and_the_own_group_are_found() {
    let mountinfo = "24 1 0:22 / /sys rw shared:7 - sysfs sysfs rw\n\
        30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        31 24 0:27 /unit /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
    assert_eq!(mounted(mountinfo), Some(("/sys/fs/cgroup/unified".into(), "/unit".into())));
    assert_eq!(mounted("24 1 0:22 / /sys rw - sysfs sysfs rw\n"), None);
    assert_eq!(own_group("3:memory:/a\n0::/unit/own\n"), Some(Path::new("/unit/own")));
    assert_eq!(own_group("3:memory:/a\n"), None);
}

/// Creates a group in the real hierarchy. `None` only where the host says that this process cannot have one.
pub(crate) fn real_dir(name: &str) -> Option<PathBuf> {
    let host = Host::find()?;
    let dir = host.own.join(format!("{PREFIX}test-{name}-{}", std::process::id()));
    match fs::create_dir(&dir) {
        Ok(()) => Some(dir),
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => None,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_root() => None,
        Err(error) => panic!("{}: {error}", dir.display()),
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Without limits, because the controllers may belong to version 1: the kernel's rules for processes and removal.
#[test]
fn the_kernel_moves_a_process_and_keeps_a_group_that_has_one() {
    let Some(dir) = real_dir("moved") else { return };
    let group = Group { dir: dir.clone() };
    let mut child = Command::new("/bin/cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    group.add(child.id()).unwrap();
    let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap();
    assert_eq!(members.trim(), child.id().to_string());
    assert_eq!(fs::remove_dir(&dir).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    drop(child.stdin.take());
    child.wait().unwrap();
    drop(group);
    assert!(!dir.exists());
}
