//! What QEMU may see and use: the files of its machine, its own program, libraries and firmware, and the system calls that
//! it was seen to use (`docs/design/0018-confinement.md`).

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf::FileHeader64};
use pyro_confine::{Access, Group, GroupLimits, Identity, Layer, Limit, Policy, Resource, Syscalls, Visible};

use crate::artifact::Artifact;
use crate::hardware::{Disks, Hardware, MachineConfig, Start};
use crate::platform::LaunchError;

/// The device of KVM.
pub(crate) const KVM: &str = "/dev/kvm";

/// Where libraries, their cache, and firmware are, on any distribution.
pub(crate) const LIBRARIES: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];
const DATA: [&str; 4] = ["/etc/ld.so.cache", "/usr/share/qemu", "/usr/share/qemu-kvm", "/usr/share/seabios"];
/// Stores in which a program and all that it needs are next to each other.
const STORES: [&str; 2] = ["/nix/store", "/gnu/store"];
/// What a script needs that is used in place of QEMU.
pub(crate) const OF_SCRIPTS: [(&str, Access); 2] = [("/bin", Access::Execute), ("/usr/bin", Access::Execute)];
/// What QEMU tries the host's file locks on.
const NULL: &str = "/dev/null";

/// Bytes at a program's beginning that say what it needs.
const HEAD_BYTES: u64 = 8192;

/// Open files at a time. A restored machine with a network has about 100, mostly events of its devices.
const MAX_FILES: u64 = 512;
/// Threads in addition to those of the virtual processors: QEMU has up to 64 for disks.
const MAX_OTHER_THREADS: u64 = 96;
/// Threads of the process that carries the network. It has one or two.
const MAX_NETWORK_THREADS: u64 = 32;
/// Memory in addition to the guest's that a control group allows, in MiB: 128 of translated code and 128 for everything else of a VMM
/// that has not been taken over, and 64 for the network's process and what the kernel needs for both.
const GROUP_OVERHEAD_MIB: u64 = 320;
/// Space for the state of the devices, in bytes.
pub(crate) const MAX_STATE_BYTES: u64 = 256 << 20;
/// Likelier to be ended than anything that was not asked to run unknown code.
pub(crate) const OOM_SCORE_ADJ: u32 = 500;

/// Returns how QEMU is confined that runs this machine.
pub(super) fn policy(
    hardware: &Hardware,
    disks: &Disks,
    start: &Start,
    identity: Identity,
) -> Result<Policy, LaunchError> {
    let mut files = of_program(&hardware.config.vmm_program);
    files.extend(of_machine(disks, start));
    let staging = disks.layer.parent().unwrap_or(Path::new("/")).to_owned();
    Ok(Policy {
        files,
        staging,
        identity,
        syscalls: syscalls(),
        limits: limits(hardware, disks)?,
        oom_score_adj: OOM_SCORE_ADJ,
    })
}

/// Returns the same for a program that has no machine.
pub(super) fn policy_of_program(program: &Path, identity: Identity) -> Policy {
    let limit = |resource, maximum| Limit { resource, maximum, per_user: false };
    Policy {
        files: of_program(program),
        // Nothing of it changes on the host.
        staging: "/usr".into(),
        identity,
        syscalls: syscalls(),
        limits: vec![limit(Resource::Core, 0), limit(Resource::Nofile, MAX_FILES)],
        oom_score_adj: OOM_SCORE_ADJ,
    }
}

/// Returns the control group of a machine, for its VMM and what carries its network; or the reason why it has no group.
pub(crate) fn group(config: &MachineConfig, disks: &Disks, start: &Start) -> Result<Arc<Group>, Layer> {
    let memory_bytes = u64::from(config.mem_mib) << 20;
    limited_group(memory_bytes + in_memory_bytes(disks, start, memory_bytes), config.vcpu_count)
}

/// Returns the control group of a program that has no machine.
pub(super) fn group_of_program() -> Result<Arc<Group>, Layer> {
    limited_group(0, 1)
}

fn limited_group(memory_bytes: u64, vcpu_count: u32) -> Result<Arc<Group>, Layer> {
    let limits = GroupLimits {
        memory_bytes: memory_bytes + (GROUP_OVERHEAD_MIB << 20),
        tasks: u64::from(vcpu_count) + MAX_OTHER_THREADS + MAX_NETWORK_THREADS,
        // One more, for everything but the guest's processors.
        cpus: vcpu_count + 1,
    };
    Group::create(&limits).map(Arc::new).map_err(Layer::unavailable)
}

/// Returns how much the machine's files may grow to in memory, where they are on a tmpfs: it counts as memory of those who
/// write to them. The memory of a guest that is saved is such a file itself.
fn in_memory_bytes(disks: &Disks, start: &Start, memory_bytes: u64) -> u64 {
    let layer = fs::metadata(&disks.layer).map_or(0, |layer| layer.len());
    let mut files = vec![(&*disks.layer, layer)];
    match start {
        Start::Kernel { save_in: Some(saved) } => files.push((saved.state.path(), MAX_STATE_BYTES)),
        Start::Kernel { save_in: None } => {}
        // What is not changed is read from it.
        Start::Saved { files: saved } => files.push((saved.memory.path(), memory_bytes)),
    }
    files.into_iter().filter(|(path, _)| is_on_tmpfs(path)).map(|(_, bytes)| bytes).sum()
}

fn is_on_tmpfs(path: &Path) -> bool {
    const TMPFS: rustix::fs::FsWord = 0x0102_1994;
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type == TMPFS)
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

fn of_machine(disks: &Disks, start: &Start) -> Vec<Visible> {
    let mut files = vec![checked(&disks.base_image), Visible::new(&disks.layer, Access::Write)];
    match start {
        Start::Kernel { save_in } => {
            files.push(checked(&disks.kernel));
            files.push(Visible::new(&disks.initrd, Access::Read));
            let created = save_in.iter().flat_map(|saved| [&saved.memory, &saved.state]);
            files.extend(created.map(|file| Visible::new(file.path(), Access::Write)));
        }
        Start::Saved { files: saved } => files.extend([checked(&saved.memory), checked(&saved.state)]),
    }
    files
}

/// The file behind the descriptor on which it was checked, and no other that has its path by now.
pub(crate) fn checked(artifact: &Artifact) -> Visible {
    let visible = Visible::new(artifact.path(), Access::Read);
    match artifact.file() {
        Some(file) => visible.opened(Arc::clone(file)),
        None => visible,
    }
}

fn of_program(program: &Path) -> Vec<Visible> {
    let mut files = vec![Visible::new(program, Access::Execute)];
    files.extend(LIBRARIES.map(|dir| Visible::optional(dir, Access::Library)));
    files.extend(DATA.map(|path| Visible::optional(path, Access::Read)));
    files.push(Visible::optional(NULL, Access::Device));
    match Format::of(program) {
        Format::Elf { interpreter } => {
            files.extend(interpreter.map(|path| Visible::optional(path, Access::Execute)));
        }
        Format::Script => {
            files.extend(OF_SCRIPTS.map(|(path, access)| Visible::optional(path, access)));
            // A script executes whatever it wants to.
            files.extend(LIBRARIES.map(|dir| Visible::optional(dir, Access::Execute)));
        }
        Format::Unknown => {}
    }
    let real = fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
    if let Some(store) = STORES.iter().find(|store| real.starts_with(store)) {
        files.push(Visible::optional(*store, Access::Library));
        files.push(Visible::new(real, Access::Execute));
    } else if let Some(prefix) = real.parent().and_then(Path::parent).filter(|dir| is_prefix(dir)) {
        files.extend(["lib", "lib64"].map(|dir| Visible::optional(prefix.join(dir), Access::Library)));
        files.extend(
            ["share/qemu", "share/seabios"].map(|dir| Visible::optional(prefix.join(dir), Access::Read)),
        );
        if real != program {
            files.push(Visible::new(real, Access::Execute));
        }
    }
    let mut seen = Vec::<PathBuf>::new();
    // Where one path has two kinds of access, the later one is wider.
    files.reverse();
    files.retain(|file| {
        let is_new = !seen.contains(&file.path);
        seen.push(file.path.clone());
        is_new
    });
    files
}

/// Whether QEMU may be installed below a directory of its own. `/usr` is covered, and `/` would be everything.
fn is_prefix(dir: &Path) -> bool {
    dir != Path::new("/") && dir != Path::new("/usr") && dir.join("share/qemu").is_dir()
}

/// What kind of file a program is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Elf { interpreter: Option<PathBuf> },
    Script,
    Unknown,
}

impl Format {
    pub(crate) fn of(program: &Path) -> Self {
        let mut head = Vec::new();
        // A program that cannot be read cannot be executed either, which says why.
        let read = File::open(program).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head));
        match read {
            Ok(_) if head.starts_with(b"#!") => Self::Script,
            Ok(_) if head.starts_with(b"\x7fELF") => Self::Elf { interpreter: interpreter(&head) },
            _ => Self::Unknown,
        }
    }
}

/// Returns the program that the kernel starts to load this one. It is near the beginning of every executable.
fn interpreter(head: &[u8]) -> Option<PathBuf> {
    let header = FileHeader64::<Endianness>::parse(head).ok()?;
    let endian = header.endian().ok()?;
    let headers = header.program_headers(endian, head).ok()?;
    let path = headers.iter().find_map(|header| header.interpreter(endian, head).ok().flatten())?;
    Some(std::ffi::OsString::from_vec(path.to_vec()).into())
}

/// Returns the system calls of QEMU 7.2 to 10 that runs such machines, on glibc and musl.
pub(super) fn syscalls() -> Syscalls {
    const THREAD: u64 = libc::CLONE_THREAD as u64;
    const ALL: u64 = u64::MAX;
    /// Names for anonymous memory, which newer C libraries set.
    const PR_SET_VMA: u64 = 0x5356_4d41;
    let mut list = Syscalls::new().allow(&ALLOWED).allow_if(libc::SYS_clone, 0, THREAD, THREAD);
    for option in [
        libc::PR_SET_NAME as u64,
        libc::PR_SET_TIMERSLACK as u64,
        libc::PR_SET_NO_NEW_PRIVS as u64,
        libc::PR_SET_SECCOMP as u64,
        libc::PR_GET_SECCOMP as u64,
        PR_SET_VMA,
    ] {
        list = list.allow_if(libc::SYS_prctl, 0, ALL, option);
    }
    // Limits are read, never set.
    list.allow_if(libc::SYS_prlimit64, 2, ALL, 0)
}

/// By purpose. Not among them: anything that creates a socket, a process, a namespace, a mount or an executable file in
/// memory, that names a file to be changed or removed, or that reads or signals another process.
const ALLOWED: [i64; 99] = [
    // Executing the program: once by the confinement. QEMU's own filter refuses it from then on.
    libc::SYS_execve,
    libc::SYS_arch_prctl,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_seccomp,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_membarrier,
    // Files and descriptors.
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fadvise64,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_close,
    libc::SYS_pipe2,
    // Connections that it was given.
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
    libc::SYS_signalfd4,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    libc::SYS_restart_syscall,
    // Threads and their signals.
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    // What it asks about itself and the host.
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_get_mempolicy,
];

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::hardware::SavedFiles;

    #[test]
    fn files_in_memory_are_part_of_a_groups_limit() {
        // Every Linux has it for shared memory; where a container has none, `/dev` itself is one.
        let place = ["/dev/shm", "/dev", "/run"].into_iter().find(|dir| is_on_tmpfs(Path::new(dir))).unwrap();
        let dir = tempfile::tempdir_in(place).unwrap();
        let file = |name: &str, bytes: u64| {
            let path = dir.path().join(name);
            File::create(&path).unwrap().set_len(bytes).unwrap();
            path
        };
        let disks = |layer| Disks {
            kernel: "/none".into(),
            initrd: "/none".into(),
            base_image: "/none".into(),
            layer,
        };
        let files = SavedFiles { memory: file("memory", 10).into(), state: file("state", 10).into() };
        let layer = file("layer", 1 << 30);
        let bytes = |layer: &Path, start| in_memory_bytes(&disks(layer.to_owned()), &start, 7);
        assert_eq!(bytes(&layer, Start::Kernel { save_in: None }), 1 << 30);
        assert_eq!(
            bytes(&layer, Start::Kernel { save_in: Some(files.clone()) }),
            (1 << 30) + MAX_STATE_BYTES
        );
        assert_eq!(bytes(&layer, Start::Saved { files }), (1 << 30) + 7);
        assert_eq!(bytes(Path::new("/proc/self/status"), Start::Kernel { save_in: None }), 0);
    }

    #[test]
    fn a_program_is_seen_with_what_loads_it_and_no_other_program() {
        let files = of_program(Path::new("/bin/ls"));
        let access =
            |path: &str| files.iter().find(|file| file.path == Path::new(path)).map(|file| file.access);
        assert_eq!(access("/bin/ls"), Some(Access::Execute));
        assert_eq!(access("/usr/lib"), Some(Access::Library));
        assert_eq!(access("/usr/bin"), None);
        let Format::Elf { interpreter: Some(loader) } = Format::of(Path::new("/bin/ls")) else {
            panic!("no ELF")
        };
        assert_eq!(access(loader.to_str().unwrap()), Some(Access::Execute));
        let writable = files.iter().filter(|file| matches!(file.access, Access::Write | Access::Device));
        assert_eq!(writable.map(|file| file.path.to_str().unwrap()).collect::<Vec<_>>(), [NULL]);
    }

    #[test]
    fn a_script_may_execute_programs_of_the_system() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let files = of_program(&script);
        let access =
            |path: &str| files.iter().find(|file| file.path == Path::new(path)).map(|file| file.access);
        assert_eq!(access("/bin"), Some(Access::Execute));
        assert_eq!(access("/usr/lib"), Some(Access::Execute));
        assert_eq!(files.iter().filter(|file| file.path == Path::new("/usr/lib")).count(), 1);
    }

    #[test]
    fn nothing_is_known_of_other_files() {
        assert_eq!(Format::of(Path::new("/nonexistent")), Format::Unknown);
        let file = tempfile::NamedTempFile::new().unwrap();
        for head in [&b""[..], b"text", b"\x7fELF", b"\x7fELF\x02\x01\x01"] {
            fs::write(file.path(), head).unwrap();
            assert!(matches!(Format::of(file.path()), Format::Unknown | Format::Elf { interpreter: None }));
        }
    }
}
