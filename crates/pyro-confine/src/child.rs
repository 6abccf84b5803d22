//! What the child does between its creation and the execution of the program: system calls on prepared values, and
//! nothing else. It neither allocates nor takes locks, because another thread of the parent may have held one when the
//! child was created.
#![expect(unsafe_code, reason = "code between clone and exec")]

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, Statx, StatxFlags, mkdirat, openat, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};
use rustix::process::{
    DumpableBehavior, Rlimit, Signal, getrlimit, pivot_root, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use crate::plan::{Mount, Plan};

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Subject {
    /// The child exists, and can be set up.
    Ready = 1,
    /// The new root.
    Root,
    /// The user, and the loss of all others.
    User,
    /// The capabilities.
    Capabilities,
    /// No new privileges.
    NoNewPrivileges,
    /// The Landlock domain.
    Landlock,
    /// The system call filters.
    Seccomp,
    /// The limits.
    Limits,
    /// The end of the parent. The child is not started then.
    Parent,
    /// The descriptors of the program. It is not started then.
    Descriptors,
    /// The execution of the program. It is not started then.
    Execution,
    /// The control group, which the parent knows about.
    Group,
}

impl Subject {
    pub(crate) fn of(byte: u8) -> Option<Self> {
        const ALL: [Subject; 11] = [
            Subject::Ready,
            Subject::Root,
            Subject::User,
            Subject::Capabilities,
            Subject::NoNewPrivileges,
            Subject::Landlock,
            Subject::Seccomp,
            Subject::Limits,
            Subject::Parent,
            Subject::Descriptors,
            Subject::Execution,
        ];
        ALL.into_iter().find(|subject| *subject as u8 == byte)
    }
}

/// What a step of making the new root does. Number in a record, and words for a reason.
pub(crate) const ROOT_STEPS: [&str; 7] = [
    "separate the mounts",
    "open a file",
    "find the file that was checked",
    "restrict a mount",
    "make a root",
    "attach a file",
    "change the root",
];

/// Length of a record: subject, step, two unused bytes, error number.
pub(crate) const RECORD_BYTES: usize = 8;

const OPEN_FILE: Step = 1;
const FIND_CHECKED_FILE: Step = 2;

type Step = u8;
type Failure = (Step, Errno);

/// What was created with the child.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Created {
    pub(crate) user_namespace: bool,
    pub(crate) mount_namespace: bool,
}

/// The child's ends of its connections with the parent.
pub(crate) struct Connections {
    /// Delivers one byte when the user namespace is set up.
    pub(crate) go: OwnedFd,
    /// Takes records.
    pub(crate) report: OwnedFd,
    /// The parent's ends of both, which the child closes: an open copy would hide the parent's end from it.
    pub(crate) of_parent: [RawFd; 2],
}

/// Error numbers that say nothing about what the host can give: something else would have been reached a moment earlier
/// or later. No program is started with less than that.
pub(crate) const TRANSIENT: [Errno; 6] =
    [Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::INTR, Errno::NOBUFS];

/// Error numbers of [`open_source`] that mean that a path no longer leads to the file that was checked.
const REPLACED: [Errno; 4] = [Errno::STALE, Errno::NOENT, Errno::NOTDIR, Errno::LOOP];

/// Whether a layer that failed like this ends the start. If not, the program starts without that layer.
pub(crate) fn ends_start(subject: Subject, step: Step, errno: Errno) -> bool {
    TRANSIENT.contains(&errno) || subject == Subject::Root && is_replaced(step, errno)
}

/// Whether making the root failed because a file was replaced or removed after it was checked.
pub(crate) fn is_replaced(step: Step, errno: Errno) -> bool {
    [OPEN_FILE, FIND_CHECKED_FILE].contains(&step) && REPLACED.contains(&errno)
}

/// Confines this process and executes the program.
pub(crate) fn run(plan: &Plan, created: Created, connections: &Connections) -> ! {
    let send = |subject: Subject, step: Step, errno: i32| {
        let [a, b, c, d] = errno.to_ne_bytes();
        // Fails only if the parent is gone.
        let _ = rustix::io::write(&connections.report, &[subject as u8, step, 0, 0, a, b, c, d]);
    };
    let report = |subject: Subject, outcome: Result<(), Failure>| {
        let (step, errno) = match outcome {
            Ok(()) => (0, 0),
            Err((step, errno)) => (step, errno.raw_os_error()),
        };
        send(subject, step, errno);
        if let Err((step, errno)) = outcome
            && ends_start(subject, step, errno)
        {
            // SAFETY: ends this process without running anything of the parent's.
            unsafe { libc::_exit(127) }
        }
    };
    let give_up = |subject: Subject, errno: Errno| -> ! {
        send(subject, 0, errno.raw_os_error());
        // SAFETY: ends this process without running anything of the parent's.
        unsafe { libc::_exit(127) }
    };
    for descriptor in connections.of_parent {
        // SAFETY: nothing in this process uses the descriptor, which is the copy of one that the parent owns.
        unsafe { libc::close(descriptor) };
    }
    // Before anything waits for the parent. If the parent has ended already, the child reads the end of `go`.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    // The child of a process that protects itself is protected too, and only root could set up its user namespace.
    let _ = set_dumpable_behavior(DumpableBehavior::Dumpable);
    report(Subject::Ready, Ok(()));
    let mut byte = [0];
    if !matches!(rustix::io::read(&connections.go, &mut byte), Ok(1)) {
        give_up(Subject::Parent, Errno::PIPE);
    }
    // While there is a `/proc`. What is opened from here on is close-on-exec itself.
    if let Err(errno) = close_all_on_execution() {
        give_up(Subject::Descriptors, errno);
    }
    // Nothing depends on it, and nothing confines less without it.
    let _ = be_ended_early(plan);
    let mut has_own_root = false;
    if created.mount_namespace {
        let entered = enter_root(plan, created);
        has_own_root = entered.is_ok();
        report(Subject::Root, entered);
    }
    // Root loses the right to do it when it becomes another user.
    drop_bounding_set();
    // Already done on the way to the new root where there is a user namespace.
    report(Subject::User, change_user(plan).map_err(|errno| (0, errno)));
    // Again, because the change of the user clears it.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    if is_abandoned(&connections.report) {
        give_up(Subject::Parent, Errno::PIPE);
    }
    report(Subject::Capabilities, drop_capabilities().map_err(|errno| (0, errno)));
    report(Subject::NoNewPrivileges, rustix::thread::set_no_new_privs(true).map_err(|errno| (0, errno)));
    let mut has_landlock = false;
    if let Ok(rules) = &plan.landlock {
        let restricted = restrict(rules);
        has_landlock = restricted.is_ok();
        report(Subject::Landlock, restricted.map_err(|errno| (0, errno)));
    }
    report(Subject::Limits, limit(plan, created).map_err(|errno| (0, errno)));
    if !plan.huge_pages {
        let _ = rustix::thread::disable_transparent_huge_pages(true);
    }
    if let Err(errno) = place_descriptors(plan) {
        give_up(Subject::Descriptors, errno);
    }
    // As late as possible, but the filters may refuse it.
    if !has_own_root
        && !has_landlock
        && let Err(failure) = compare_paths(plan)
    {
        report(Subject::Root, Err(failure));
    }
    if let Ok(filters) = &plan.filters {
        let installed = filters.iter().try_for_each(|filter| install(filter));
        report(Subject::Seccomp, installed.map_err(|errno| (0, errno)));
    }
    give_up(Subject::Execution, execute(plan))
}

fn be_ended_early(plan: &Plan) -> Result<(), Errno> {
    let file = openat(CWD, c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, plan.oom_score_adj.as_bytes())?;
    Ok(())
}

/// Makes a root with the visible files. If that fails, the root is as before.
fn enter_root(plan: &Plan, created: Created) -> Result<(), Failure> {
    let step = |number: Step| move |errno: Errno| (number, errno);
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(step(0))?;
    let staging =
        openat(CWD, &*plan.staging, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(step(4))?;
    // Opened before the user changes, who may not find them.
    let mut trees = [const { None::<OwnedFd> }; MAX_MOUNTS];
    if plan.mounts.len() > trees.len() {
        return Err((OPEN_FILE, Errno::TOOBIG));
    }
    for (mount, tree) in plan.mounts.iter().zip(&mut trees) {
        *tree = Some(open_source(mount)?);
    }
    if created.user_namespace {
        // Root of the host does not exist in the user namespace, and could create nothing.
        change_user(plan).map_err(step(4))?;
    }
    let root = new_root().map_err(step(4))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&root, c"", &staging, c"", flags).map_err(step(4))?;
    rustix::process::fchdir(&root).map_err(step(4))?;
    let filled = fill_root(plan, &trees).and_then(|()| {
        pivot_root(c".", c".").map_err(step(6))?;
        // The old root lies on top of the new one.
        unmount(c".", UnmountFlags::DETACH).map_err(step(6))?;
        rustix::process::chdir(c"/").map_err(step(6))?;
        set_attributes(&root, libc::MOUNT_ATTR_RDONLY, false).map_err(step(6))
    });
    if filled.is_err() {
        let _ = unmount(c".", UnmountFlags::DETACH);
        let _ = rustix::process::chdir(c"/");
    }
    filled
}

/// Maximum number of visible files and directories.
const MAX_MOUNTS: usize = 48;

fn open_source(mount: &Mount) -> Result<OwnedFd, Failure> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if mount.is_dir {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = open_tree(CWD, &*mount.source, flags).map_err(|errno| (OPEN_FILE, errno))?;
    let found = statx(&tree, c"", AtFlags::EMPTY_PATH, StatxFlags::INO);
    let found = found.map_err(|errno| (FIND_CHECKED_FILE, errno))?;
    if identity(&found) != mount.identity {
        return Err((FIND_CHECKED_FILE, Errno::STALE));
    }
    set_attributes(&tree, mount.attributes, mount.is_dir).map_err(|errno| (3, errno))?;
    Ok(tree)
}

/// Checks that every path still leads to the file that was checked, for a program that nothing else keeps from opening
/// another one. A path that this user cannot follow is of no use to the program either.
fn compare_paths(plan: &Plan) -> Result<(), Failure> {
    for mount in &plan.mounts {
        match statx(CWD, &*mount.source, AtFlags::empty(), StatxFlags::INO) {
            Ok(found) if identity(&found) != mount.identity => return Err((FIND_CHECKED_FILE, Errno::STALE)),
            Err(errno) if REPLACED.contains(&errno) => return Err((FIND_CHECKED_FILE, errno)),
            _ => {}
        }
    }
    Ok(())
}

/// Returns the device and the inode.
fn identity(file: &Statx) -> (u64, u64) {
    (rustix::fs::makedev(file.stx_dev_major, file.stx_dev_minor), file.stx_ino)
}

fn set_attributes(tree: &OwnedFd, attributes: u64, recursive: bool) -> Result<(), Errno> {
    let attributes = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the system call reads the structure, whose size is passed with it, and an empty string.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(done)
}

fn new_root() -> Result<OwnedFd, Errno> {
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [(c"size", c"64k"), (c"nr_inodes", c"1k"), (c"mode", c"0755")] {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn fill_root(plan: &Plan, trees: &[Option<OwnedFd>]) -> Result<(), Failure> {
    for dir in &plan.dirs {
        mkdirat(CWD, &**dir, Mode::from_raw_mode(0o755)).map_err(|errno| (4, errno))?;
    }
    for (mount, tree) in plan.mounts.iter().zip(trees) {
        if mount.is_new && !mount.is_dir {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::WRONLY;
            openat(CWD, &*mount.target, flags, Mode::from_raw_mode(0o444)).map_err(|errno| (4, errno))?;
        }
        if let Some(tree) = tree {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(tree, c"", CWD, &*mount.target, flags).map_err(|errno| (5, errno))?;
        }
    }
    Ok(())
}

/// Becomes the program's own user, who is in no group but its own. Has no effect the second time.
fn change_user(plan: &Plan) -> Result<(), Errno> {
    let Some((user, group)) = plan.own_ids else { return Ok(()) };
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(group));
    if rustix::process::getuid() == uid && rustix::process::geteuid() == uid {
        return Ok(());
    }
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// Gives up all capabilities, and those that a program could ever get.
fn drop_capabilities() -> Result<(), Errno> {
    drop_bounding_set();
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )
}

/// Gives up the capabilities that the execution of a program could add.
fn drop_bounding_set() {
    // Without the capability to do it the set stays, and no new privileges means that nothing is ever added.
    for capability in 0..64 {
        // SAFETY: prctl with these arguments reads and writes no memory of ours.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            break;
        }
    }
}

fn is_abandoned(report: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(report, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

fn restrict(rules: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: the system call takes a descriptor and flags.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) })
}

fn limit(plan: &Plan, created: Created) -> Result<(), Errno> {
    for limit in &plan.limits {
        if limit.per_user && !(created.user_namespace && plan.counts_per_namespace) {
            continue;
        }
        let Rlimit { current, maximum } = getrlimit(limit.resource);
        let maximum = maximum.map_or(limit.maximum, |maximum| maximum.min(limit.maximum));
        let current = current.map_or(maximum, |current| current.min(maximum));
        setrlimit(limit.resource, Rlimit { current: Some(current), maximum: Some(maximum) })?;
    }
    Ok(())
}

/// Has the execution of the program close all descriptors that are open now.
fn close_all_on_execution() -> Result<(), Errno> {
    // SAFETY: the system call takes numbers.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    match check(done) {
        // Linux before 5.9, and before 5.11, which does not know the flag.
        Err(Errno::NOSYS | Errno::INVAL) => close_on_execution_from(0),
        done => done,
    }
}

/// As [`close_all_on_execution`], one descriptor after the other, for those with this number and higher ones.
fn close_on_execution_from(first: RawFd) -> Result<(), Errno> {
    let close_on_execution = |descriptor: RawFd| {
        // Fails only for descriptors that are not open.
        // SAFETY: the system call takes numbers.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = openat(CWD, c"/proc/self/fd", flags, Mode::empty()) else {
        let highest = getrlimit(rustix::process::Resource::Nofile).current;
        let end = highest.and_then(|end| RawFd::try_from(end).ok()).unwrap_or(RawFd::MAX);
        (first..end).for_each(close_on_execution);
        return Ok(());
    };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let number = entry?.file_name().to_str().ok().and_then(|name| name.parse().ok());
        number.filter(|number| *number >= first).into_iter().for_each(close_on_execution);
    }
    Ok(())
}

/// Gives the program its descriptors. All others are closed when it is executed. Restores what it inherits otherwise.
fn place_descriptors(plan: &Plan) -> Result<(), Errno> {
    for (descriptor, number) in &plan.descriptors {
        // SAFETY: the copies are above all numbers of the program, so none is overwritten. What is open under that number
        // is not used by this process.
        check(unsafe { libc::dup2(descriptor.as_raw_fd(), *number) }.into())?;
    }
    // SAFETY: the set was initialised by the parent, and no handler is installed.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const plan.blocked_signals, std::ptr::null_mut());
    }
    Ok(())
}

fn install(filter: &[seccompiler::sock_filter]) -> Result<(), Errno> {
    #[repr(C)]
    struct Program {
        len: libc::c_ushort,
        filter: *const seccompiler::sock_filter,
    }
    let program = Program {
        len: libc::c_ushort::try_from(filter.len()).map_err(|_| Errno::TOOBIG)?,
        filter: filter.as_ptr(),
    };
    // SAFETY: the system call reads the program, which has the layout of `struct sock_fprog`, and its instructions.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
}

/// Returns only if the program cannot be executed.
fn execute(plan: &Plan) -> Errno {
    let no_environment = [std::ptr::null()];
    // SAFETY: all strings end with a null byte and both lists with a null pointer; they live in the plan.
    unsafe {
        libc::execve(plan.program.as_ptr(), plan.argument_pointers.as_ptr(), no_environment.as_ptr());
    }
    last_errno()
}

fn check(result: libc::c_long) -> Result<(), Errno> {
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

fn last_errno() -> Errno {
    // SAFETY: the pointer is to this thread's error number.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd;

    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;

    #[test]
    fn old_kernels_close_all_descriptors_too() {
        const FIRST: RawFd = 600;
        // SAFETY: the descriptor is new, and belongs to nothing else.
        let inheritable = unsafe { OwnedFd::from_raw_fd(libc::fcntl(0, libc::F_DUPFD, FIRST)) };
        assert_eq!(fcntl_getfd(&inheritable).unwrap(), FdFlags::empty());
        close_on_execution_from(FIRST).unwrap();
        assert_eq!(fcntl_getfd(&inheritable).unwrap(), FdFlags::CLOEXEC);
    }
}
