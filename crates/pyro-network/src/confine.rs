//! What the process gives up before it reads a byte of the guest. It needs sockets and the descriptors that it was given.

use pyro_confine::{Condition, Confinement, Identity, Limit, Resource, SelfPolicy, Syscalls, confine_self};
use rustix::io::Errno;
use rustix::process::{Signal, getppid, parent_process_death_signal, set_parent_process_death_signal};

use crate::limits;

/// Maximum memory that the process may allocate, in bytes: more than all buffers together.
const MAX_DATA_BYTES: u64 = 256 << 20;

/// Why the process could not give up what it does not need.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A layer that every host has does not hold.
    #[error("cannot confine the network process: {layer} ({reason})")]
    Layer {
        /// Name of the layer.
        layer: &'static str,
        /// Why not.
        reason: String,
    },
    /// The process would not end with the one that started it.
    #[error("cannot bind the network process to the one that started it")]
    Bind(#[source] Errno),
    /// The process that started this one has ended.
    #[error("the process that started this one has ended")]
    Orphaned,
}

/// Layers that do not depend on the host. The process must not go on without them.
const REQUIRED: [&str; 3] = ["no_capabilities", "no_new_privileges", "limits"];

/// Gives up what the process does not need: files, all system calls but a few, capabilities, and root's user. Call it before
/// there is a second thread. Returns which layers hold; a host may lack Landlock or seccomp, or another user.
///
/// # Errors
/// [`ConfineError`]. The process must not go on then.
pub fn confine() -> Result<Confinement, ConfineError> {
    let bound = parent_process_death_signal().ok().flatten();
    let parent = getppid();
    let report = confine_self(&policy());
    let missing = report.missing_self_applied();
    if let Some((layer, reason)) = missing.into_iter().find(|(layer, _)| REQUIRED.contains(layer)) {
        return Err(ConfineError::Layer { layer, reason: reason.to_owned() });
    }
    if bound.is_some() {
        // A change of user resets it.
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(ConfineError::Bind)?;
        if getppid() != parent {
            return Err(ConfineError::Orphaned);
        }
    }
    Ok(report)
}

fn policy() -> SelfPolicy {
    let limit = |(resource, maximum)| Limit { resource, maximum, per_user: false };
    let limits = [
        (Resource::Nofile, limits::DESCRIPTORS),
        (Resource::Core, 0),
        (Resource::Fsize, 0),
        (Resource::Nproc, 0),
        (Resource::Data, MAX_DATA_BYTES),
    ];
    SelfPolicy {
        // The list of resolvers comes through a descriptor.
        files: Vec::new(),
        identity: Identity::for_program(),
        syscalls: Some(syscalls()),
        limits: limits.map(limit).into(),
    }
}

/// Returns the system calls that the event loop was seen to use, and what the C library may use in their place. Not among them:
/// anything that opens, changes or executes a file, that creates a process, that makes a socket wait for connections, or
/// that reads or signals another process.
fn syscalls() -> Syscalls {
    const ALL: u64 = u64::MAX;
    /// The kind of a socket, without the flags next to it.
    const KIND: u64 = 0xf;
    let is = |argument, mask, value: libc::c_int| Condition { argument, mask, value: value as u64 };
    let mut list = Syscalls::new()
        .allow(&ALLOWED)
        .allow_if(libc::SYS_prctl, 0, ALL, libc::PR_SET_PDEATHSIG as u64)
        // A second filter follows this one.
        .allow_if(libc::SYS_prctl, 0, ALL, libc::PR_SET_NO_NEW_PRIVS as u64)
        .allow_if(libc::SYS_ioctl, 1, ALL, libc::FIONBIO);
    // Connections and datagrams. Sockets of Unix would lead to other programs of this host.
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            list = list.allow_if_all(libc::SYS_socket, &[is(0, ALL, family), is(1, KIND, kind)]);
        }
    }
    // Questions about routes, and nothing else of netlink.
    list.allow_if_all(libc::SYS_socket, &[is(0, ALL, libc::AF_NETLINK), is(2, ALL, libc::NETLINK_ROUTE)])
}

const ALLOWED: [i64; 46] = [
    libc::SYS_seccomp,
    // Sockets and descriptors.
    // Only on a link that listens: no socket of its own can.
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_fcntl,
    libc::SYS_close,
    // Events and time.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_time,
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
    // Locks, signals, and the end.
    libc::SYS_futex,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
