//! What the process gives up before it reads a byte of the guest. It needs the directory, and nothing else.

use std::os::fd::{AsRawFd, BorrowedFd};

use pyro_confine::{
    Access, Condition, Confinement, Identity, Limit, Resource, SelfPolicy, Syscalls, Visible, confine_self,
};
use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::process::{Rlimit, getrlimit, setrlimit};

/// Maximum memory that the process may allocate, in bytes: 350 MB for the table of a guest that has looked up as much as it may,
/// and buffers.
pub(crate) const MAX_DATA_BYTES: u64 = 384 << 20;
/// Maximum number of open files.
const MAX_DESCRIPTORS: u64 = 16_384;

/// Why the process could not give up what it does not need.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A layer that every host has does not hold.
    #[error("cannot confine the server of a live directory: {layer} ({reason})")]
    Layer {
        /// Name of the layer.
        layer: &'static str,
        /// Why not.
        reason: String,
    },
    /// The directory cannot be used.
    #[error("cannot use the directory")]
    Directory(#[source] Errno),
}

/// Layers that do not depend on the host. The process must not go on without them.
const REQUIRED: [&str; 3] = ["no_capabilities", "no_new_privileges", "limits"];

/// Gives up everything but this directory: other files, all system calls but those on files, and capabilities. If root started
/// the process, it goes on as the owner of the directory. Call it before there is a second thread. Returns which layers hold.
///
/// # Errors
/// [`ConfineError`]. The process must not go on then.
pub fn confine(directory: BorrowedFd<'_>, writable: bool) -> Result<Confinement, ConfineError> {
    let report = confine_self(&policy(directory, writable).map_err(ConfineError::Directory)?);
    let missing = report.missing_self_applied();
    match missing.into_iter().find(|(layer, _)| REQUIRED.contains(layer)) {
        Some((layer, reason)) => Err(ConfineError::Layer { layer, reason: reason.to_owned() }),
        None => Ok(report),
    }
}

/// Raises the limit of open files as far as the host permits, and returns it.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(MAX_DESCRIPTORS, |maximum| maximum.min(MAX_DESCRIPTORS));
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        Ok(()) => wanted,
        Err(_) => current.unwrap_or(wanted),
    }
}

fn policy(directory: BorrowedFd<'_>, writable: bool) -> Result<SelfPolicy, Errno> {
    let limit = |(resource, maximum)| Limit { resource, maximum, per_user: false };
    let limits = [(Resource::Nofile, MAX_DESCRIPTORS), (Resource::Core, 0), (Resource::Data, MAX_DATA_BYTES)];
    let stat = fstat(directory)?;
    let access = if writable { Access::WritableTree } else { Access::Tree };
    Ok(SelfPolicy {
        files: vec![Visible::new(format!("/proc/self/fd/{}", directory.as_raw_fd()), access)],
        identity: Identity::of_owner(stat.st_uid, stat.st_gid),
        syscalls: Some(syscalls(writable)),
        limits: limits.map(limit).into(),
    })
}

/// Not among them: anything that makes a connection, executes a program, creates a process, or signals another one.
fn syscalls(writable: bool) -> Syscalls {
    const ALL: u64 = u64::MAX;
    const THREAD: u64 = libc::CLONE_THREAD as u64;
    /// The kernel looks at no more of a process's number or a command.
    const INT: u64 = u32::MAX as u64;
    let condition = |argument, value| Condition { argument, mask: ALL, value };
    let mut list = Syscalls::new()
        .allow(&READING)
        // A panic, or a thread of this process.
        .allow_if(libc::SYS_tgkill, 0, INT, std::process::id().into())
        // Limits of this process are read, never set.
        .allow_if_all(libc::SYS_prlimit64, &[condition(0, 0), condition(2, 0)])
        .allow_if(libc::SYS_clone, 0, THREAD, THREAD)
        .allow_if(libc::SYS_prctl, 0, ALL, libc::PR_SET_NAME as u64)
        // A second filter follows this one.
        .allow_if(libc::SYS_prctl, 0, ALL, libc::PR_SET_NO_NEW_PRIVS as u64);
    // Not those that make the kernel signal the owner of a descriptor.
    for command in [libc::F_GETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC] {
        list = list.allow_if(libc::SYS_fcntl, 1, INT, command as u64);
    }
    if writable { list.allow(&WRITING) } else { list }
}

const READING: [i64; 44] = [
    libc::SYS_seccomp,
    // The socket.
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    // Files.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    // Events and time.
    libc::SYS_poll,
    libc::SYS_clock_gettime,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_getrandom,
    // Threads, signals, and the end.
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_futex,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

const WRITING: [i64; 11] = [
    libc::SYS_pwrite64,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_mkdirat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fchmodat,
    libc::SYS_utimensat,
];
