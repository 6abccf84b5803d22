//! What Firecracker may see and use: the files of its machine under fixed paths, and the system calls that it was seen to
//! use (`docs/design/0033-firecracker.md`).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use pyro_confine::{Access, Identity, Limit, Policy, Resource, Syscalls, Visible};

use super::plan;
use crate::hardware::{Disks, Hardware, Start};
use crate::platform::LaunchError;
use crate::qemu::cage::{Format, LIBRARIES, MAX_STATE_BYTES, OF_SCRIPTS, OOM_SCORE_ADJ, checked};

/// Open files at a time. A machine has about 50.
const MAX_FILES: u64 = 256;
/// Threads in addition to those of the virtual processors: Firecracker has two.
const MAX_OTHER_THREADS: u64 = 8;

/// Returns how Firecracker is confined that runs this machine. `scratch` is the directory of its sockets, `kernel` the kernel
/// that it loads.
pub(super) fn policy(
    hardware: &Hardware,
    disks: &Disks,
    start: &Start,
    identity: Identity,
    scratch: &Path,
    kernel: Option<Visible>,
) -> Result<Policy, LaunchError> {
    let mut files = of_program(&hardware.config.vmm_program);
    files.push(Visible::new(crate::qemu::cage::KVM, Access::Device));
    files.push(Visible::new(scratch, Access::Sockets).shown_at(plan::SCRATCH));
    files.push(checked(&disks.base_image).shown_at(plan::BASE));
    files.push(Visible::new(&disks.layer, Access::Write).shown_at(plan::LAYER));
    match start {
        Start::Kernel { save_in } => {
            files.extend(kernel.map(|kernel| kernel.shown_at(plan::KERNEL)));
            files.push(Visible::new(&disks.initrd, Access::Read).shown_at(plan::INITRD));
            let created =
                save_in.iter().flat_map(|to| [(&to.memory, plan::MEMORY), (&to.state, plan::STATE)]);
            files.extend(created.map(|(file, at)| Visible::new(file.path(), Access::Write).shown_at(at)));
        }
        Start::Saved { files: from } => {
            files.push(checked(&from.memory).shown_at(plan::MEMORY));
            files.push(checked(&from.state).shown_at(plan::STATE));
        }
    }
    Ok(Policy {
        files,
        staging: disks.layer.parent().unwrap_or(Path::new("/")).to_owned(),
        identity,
        syscalls: syscalls(),
        limits: limits(hardware, disks)?,
        oom_score_adj: OOM_SCORE_ADJ,
    })
}

/// Returns what the program itself needs. The one that Firecracker's developers publish is linked statically.
fn of_program(program: &Path) -> Vec<Visible> {
    let mut files = vec![Visible::new(program, Access::Execute)];
    match Format::of(program) {
        Format::Elf { interpreter: Some(interpreter) } => {
            files.extend(LIBRARIES.map(|dir| Visible::optional(dir, Access::Library)));
            files.push(Visible::optional(interpreter, Access::Execute));
        }
        Format::Script => {
            files.extend(OF_SCRIPTS.map(|(path, access)| Visible::optional(path, access)));
            files.extend(LIBRARIES.map(|dir| Visible::optional(dir, Access::Execute)));
        }
        Format::Elf { interpreter: None } | Format::Unknown => {}
    }
    files
}

fn limits(hardware: &Hardware, disks: &Disks) -> Result<Vec<Limit>, LaunchError> {
    let layer = fs::metadata(&disks.layer)
        .map_err(|source| LaunchError::File { path: disks.layer.clone(), source })?
        .len();
    let memory = u64::from(hardware.config.mem_mib) << 20;
    let limit = |resource, maximum| Limit { resource, maximum, per_user: false };
    Ok(vec![
        limit(Resource::Core, 0),
        limit(Resource::Nofile, MAX_FILES),
        limit(Resource::Fsize, layer.max(memory + MAX_STATE_BYTES)),
        Limit {
            resource: Resource::Nproc,
            maximum: u64::from(hardware.config.vcpu_count) + MAX_OTHER_THREADS,
            per_user: true,
        },
    ])
}

/// Opens the layer and locks it as QEMU does. Firecracker locks nothing, but inherits the descriptor, so the lock shows as long
/// as its process exists.
pub(super) fn lock(layer: &Path) -> io::Result<File> {
    #![expect(unsafe_code, reason = "rustix has no locks of an open file")]
    let file = File::options().read(true).write(true).open(layer)?;
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the kernel reads no more than the structure.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the system calls of Firecracker 1.12 and later, which is linked with musl. It installs filters of its own on top.
fn syscalls() -> Syscalls {
    const THREAD: u64 = libc::CLONE_THREAD as u64;
    const ALL: u64 = u64::MAX;
    const PR_SET_VMA: u64 = 0x5356_4d41;
    let mut list = Syscalls::new()
        .allow(&ALLOWED)
        .allow_if(libc::SYS_clone, 0, THREAD, THREAD)
        // The agent's connection and the control socket.
        .allow_if(libc::SYS_socket, 0, ALL, libc::AF_UNIX as u64)
        // Limits are read, never set.
        .allow_if(libc::SYS_prlimit64, 2, ALL, 0);
    for option in [
        libc::PR_SET_NAME as u64,
        libc::PR_SET_NO_NEW_PRIVS as u64,
        libc::PR_SET_SECCOMP as u64,
        libc::PR_GET_SECCOMP as u64,
        PR_SET_VMA,
    ] {
        list = list.allow_if(libc::SYS_prctl, 0, ALL, option);
    }
    list
}

/// By purpose. Not among them, as for QEMU: anything that creates a process, a namespace, or a mount, that names a file to be
/// changed or removed, or that reads or signals another process.
const ALLOWED: [i64; 82] = [
    // Executing the program: once by the confinement. Firecracker's own filters refuse it from then on.
    libc::SYS_execve,
    libc::SYS_arch_prctl,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_seccomp,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Memory. The ring buffers of the network and of vsock are mapped twice, from files in memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_memfd_create,
    // Files and descriptors.
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_access,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlink,
    libc::SYS_getcwd,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_close,
    libc::SYS_pipe2,
    // Sockets of the kind that is allowed above.
    libc::SYS_bind,
    libc::SYS_listen,
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
    // Events and time.
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_poll,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    // Threads and their signals, which stop a virtual processor.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tkill,
    // What it asks about itself and the host.
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
];

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::disk;

    #[tokio::test]
    async fn a_locked_layer_is_in_use_until_the_last_copy_of_the_descriptor_is_closed() {
        let layer = tempfile::NamedTempFile::new().unwrap();
        let held = lock(layer.path()).unwrap();
        let copy = held.try_clone().unwrap();
        drop(held);
        lock(layer.path()).unwrap_err();
        assert!(!disk::released(layer.path(), Instant::now()).await.unwrap());
        drop(copy);
        assert!(disk::released(layer.path(), Instant::now()).await.unwrap());
    }

    #[test]
    fn a_program_without_a_loader_sees_nothing_of_the_system() {
        let paths = |program: &str| of_program(Path::new(program)).len();
        assert_eq!(paths("/nonexistent"), 1);
        assert!(paths("/bin/ls") > 1);
    }
}
