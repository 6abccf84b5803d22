//! Confines the process that calls it.
#![expect(unsafe_code, reason = "system calls that have no safe wrapper")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use crate::identity::Identity;
use crate::landlock::{self, Network};
use crate::layers::{Confinement, Layer};
use crate::policy::{Access, Limit, Visible};
use crate::seccomp::{self, Syscalls};

/// How a process confines itself. It keeps the descriptors that it has, and its network.
#[derive(Clone, Debug)]
pub struct SelfPolicy {
    /// The files and directories that it may still open.
    pub files: Vec<Visible>,
    /// Whose rights it has from then on.
    pub identity: Identity,
    /// The system calls that it may still use; `None` for all.
    pub syscalls: Option<Syscalls>,
    /// What it may use.
    pub limits: Vec<Limit>,
}

/// Confines the calling process, which has only one thread: other threads would stay as they are. It can open only the
/// given files from then on, signal no other process, connect to no abstract socket of others, execute nothing, and has no
/// capabilities. Other processes of the same user cannot look into it.
///
/// What the host cannot give is in the report; nothing fails. The namespaces of the process stay as they are.
pub fn confine_self(policy: &SelfPolicy) -> Confinement {
    let mut report = Confinement::none("a process that is already running keeps it");
    // Files are opened before the user changes.
    let files: Vec<(OwnedFd, bool, Access)> = policy.files.iter().filter_map(open).collect();
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    // Another user may not do that any more.
    drop_from_bounding_set(CapabilitySet::empty());
    let changed = become_user(policy.identity);
    report.uid = rustix::process::geteuid().as_raw();
    report.unprivileged_user = match changed {
        Ok(()) if report.uid != 0 => Layer::Active,
        Ok(()) => Layer::unavailable("it runs as root"),
        Err(errno) => unavailable(errno),
    };
    report.no_capabilities = layer(drop_capabilities());
    report.no_new_privileges = layer(rustix::thread::set_no_new_privs(true));
    report.limits = layer(policy.limits.iter().try_for_each(limit));
    let rules = landlock::rules(
        files.iter().map(|(fd, is_dir, access)| (fd.as_fd(), *is_dir, *access)),
        Network::Open,
    );
    report.landlock = match rules {
        Ok(Some(rules)) => layer(restrict(rules.as_fd())),
        Ok(None) => Layer::unavailable("the kernel has no Landlock, or it is switched off"),
        Err(error) => Layer::unavailable(error),
    };
    report.landlock_abi = report.landlock.is_active().then(landlock::abi).flatten();
    report.seccomp = match &policy.syscalls {
        None => Layer::unavailable("no list of system calls was given"),
        Some(list) => match list.compile() {
            Ok(filters) => match filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter)) {
                Ok(()) => Layer::Active,
                Err(error) => Layer::unavailable(error),
            },
            Err(error) => Layer::unavailable(error),
        },
    };
    report
}

/// What a process keeps that supervises confined programs: what it needs to start them, to hand files over to their users,
/// to end them, and to remove what they leave.
const OF_SUPERVISORS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    // Since Linux 5.12, to let root of a user namespace exist in another one.
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_CHROOT);

/// What a supervisor keeps of these once its programs run: what it needs to end them, and to reach and remove files that belong
/// to their users.
const OF_RUNNING_SUPERVISORS: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::KILL);

/// Hardens the calling process, which supervises confined programs and has only one thread: other processes of the same
/// user cannot look into it, executing a program gives it no privileges, it leaves no core file, and of root's
/// capabilities it keeps only those that it needs. A step that the host refuses is left out.
pub fn harden_supervisor() {
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = rustix::thread::set_no_new_privs(true);
    let _ = limit(&Limit { resource: Resource::Core, maximum: 0, per_user: false });
    let _ = keep_capabilities(OF_SUPERVISORS);
}

/// Takes from the calling process what a supervisor does not need once its programs run. With all its threads, it executes no
/// program, creates no process and no namespace, and changes neither mounts nor its user. The calling thread, and those that it
/// starts from then on, keep only the capabilities to end programs and to reach files of other users. Needs no new privileges.
pub fn restrict_running_supervisor() -> Layer {
    let kept = keep_capabilities(OF_RUNNING_SUPERVISORS);
    let restricted = seccomp::of_running_supervisor().map_err(seccompiler::Error::from).and_then(|filters| {
        filters.iter().try_for_each(|filter| seccompiler::apply_filter_all_threads(filter))
    });
    match (kept, restricted) {
        (Err(errno), _) => unavailable(errno),
        (Ok(()), restricted) => restricted.map_or_else(Layer::unavailable, |()| Layer::Active),
    }
}

/// Gives up the calling thread's capabilities, except for `kept`.
fn keep_capabilities(kept: CapabilitySet) -> Result<(), Errno> {
    drop_from_bounding_set(kept);
    let _ = rustix::thread::clear_ambient_capability_set();
    let has = rustix::thread::capabilities(None)?;
    // Some hosts refuse the call even to those who have nothing to give up.
    if (has.effective | has.permitted | has.inheritable) & !kept == CapabilitySet::empty() {
        return Ok(());
    }
    let sets = CapabilitySets {
        effective: has.effective & kept,
        permitted: has.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets)
}

/// Gives up what no program that is executed from now on could get, except for `kept`.
fn drop_from_bounding_set(kept: CapabilitySet) {
    for capability in (0..64).filter(|capability| kept.bits() & (1 << capability) == 0) {
        // It fails for numbers that the kernel does not know, and without the right to do it.
        // SAFETY: prctl with these arguments reads and writes no memory of ours.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
}

fn open(visible: &Visible) -> Option<(OwnedFd, bool, Access)> {
    let fd = openat(CWD, &visible.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let is_dir = FileType::from_raw_mode(fstat(&fd).ok()?.st_mode).is_dir();
    Some((fd, is_dir, visible.access))
}

fn become_user(identity: Identity) -> Result<(), Errno> {
    let Identity::Own { user, group } = identity else { return Ok(()) };
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(group));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    // The change makes it so too, but not of a user who changes to itself.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    Ok(())
}

fn drop_capabilities() -> Result<(), Errno> {
    drop_from_bounding_set(CapabilitySet::empty());
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )
}

fn limit(limit: &Limit) -> Result<(), Errno> {
    if limit.per_user {
        return Ok(());
    }
    let Rlimit { current, maximum } = getrlimit(limit.resource);
    let maximum = maximum.map_or(limit.maximum, |maximum| maximum.min(limit.maximum));
    let current = current.map_or(maximum, |current| current.min(maximum));
    setrlimit(limit.resource, Rlimit { current: Some(current), maximum: Some(maximum) })
}

fn restrict(rules: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the system call takes a descriptor and flags.
    if unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) } < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL));
    }
    Ok(())
}

fn layer(done: Result<(), Errno>) -> Layer {
    done.map_or_else(unavailable, |()| Layer::Active)
}

fn unavailable(errno: Errno) -> Layer {
    Layer::unavailable(std::io::Error::from(errno))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_supervisor_keeps_what_the_start_of_programs_needs() {
        let hardened = thread::spawn(|| {
            let before = rustix::thread::capabilities(None).unwrap().permitted;
            harden_supervisor();
            (before, rustix::thread::capabilities(None).unwrap().permitted)
        });
        let (before, after) = hardened.join().unwrap();
        for needed in [CapabilitySet::CHOWN, CapabilitySet::SETFCAP, CapabilitySet::SYS_ADMIN] {
            assert_eq!(after.contains(needed), before.contains(needed), "{needed:?}");
        }
        assert!(!after.intersects(CapabilitySet::SYS_PTRACE | CapabilitySet::NET_ADMIN), "{after:?}");
    }

    /// System calls that would otherwise succeed, or fail in another way.
    fn assert_refused() {
        let errno = |number: i64, argument: i64| {
            // SAFETY: the calls read and write no memory of ours: each is refused, or fails for its arguments.
            let result = unsafe { libc::syscall(number, argument, 0, 0, 0, 0) };
            (result < 0).then(|| std::io::Error::last_os_error().raw_os_error()).flatten()
        };
        for number in [
            libc::SYS_setresuid,
            libc::SYS_io_uring_setup,
            libc::SYS_mount_setattr,
            libc::SYS_fspick,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_pidfd_getfd,
        ] {
            assert_eq!(errno(number, -1), Some(libc::EPERM), "{number}");
        }
        // Signal 0 only looks whether the process is there.
        let own = i64::from(std::process::id());
        assert_eq!(errno(libc::SYS_kill, own), None);
        assert_eq!(errno(0x4000_0000 | libc::SYS_kill, own), Some(libc::ENOSYS));
    }

    /// All threads of a process are restricted, so this is done in a process of its own.
    #[test]
    fn a_running_supervisor_starts_threads_and_no_programs() {
        const PLAYS: &str = "PYRO_TEST_RESTRICTED_SUPERVISOR";
        #[expect(clippy::disallowed_methods, reason = "only the test itself sets the variable")]
        if std::env::var_os(PLAYS).is_none() {
            let test = "itself::tests::a_running_supervisor_starts_threads_and_no_programs";
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            let output = command.args(["--exact", test]).env(PLAYS, "1").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            return;
        }
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let earlier = thread::spawn(move || {
            receiver.recv().unwrap();
            std::process::Command::new("/bin/true").status().unwrap_err()
        });
        harden_supervisor();
        let restricted = restrict_running_supervisor();
        assert!(restricted.is_active(), "{restricted:?}");
        std::process::Command::new("/bin/true").status().unwrap_err();
        assert_refused();
        // Threads that it starts inherit them.
        let kept = thread::spawn(|| rustix::thread::capabilities(None).unwrap().permitted).join().unwrap();
        assert!(OF_RUNNING_SUPERVISORS.contains(kept), "{kept:?}");
        assert_eq!(kept.is_empty(), !rustix::process::geteuid().is_root());
        sender.send(()).unwrap();
        let error = earlier.join().unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        thread::spawn(|| File::open("/etc/passwd").unwrap()).join().unwrap();
    }

    /// What is confined is a thread, so that the others can go on.
    #[test]
    fn a_confined_process_opens_what_it_may_and_keeps_its_network() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let policy = SelfPolicy {
            files: vec![Visible::new(file.path(), Access::Read)],
            identity: Identity::for_program(),
            syscalls: Some(
                Syscalls::new().allow(&(0..335).filter(|call| *call != libc::SYS_uname).collect::<Vec<_>>()),
            ),
            limits: Vec::new(),
        };
        // Readable by the user that root's process becomes.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(file.path(), mode).unwrap();
        let (path, abi) = (file.path().to_owned(), landlock::abi());
        let confined = thread::spawn(move || {
            let report = confine_self(&policy);
            for layer in [&report.no_new_privileges, &report.no_capabilities, &report.unprivileged_user] {
                assert!(layer.is_active(), "{report}");
            }
            assert!(report.seccomp.is_active(), "{report}");
            assert_eq!(report.landlock_abi, abi);
            File::open(&path).unwrap();
            if report.landlock.is_active() {
                File::open("/etc/passwd").unwrap_err();
            }
            TcpListener::bind("127.0.0.1:0").unwrap();
            // SAFETY: the structure is as large as the kernel's.
            let refused = unsafe { libc::uname(&mut std::mem::zeroed()) };
            assert_eq!(refused, -1);
        });
        confined.join().unwrap();
        File::open("/etc/passwd").unwrap();
    }
}
