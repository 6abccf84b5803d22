//! The system calls that a program may use.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// A list of allowed system calls. All others fail with `EPERM`, except for `clone3`, which fails with `ENOSYS`: the C
/// library then uses `clone`, whose arguments a filter can see.
#[derive(Clone, Debug, Default)]
pub struct Syscalls {
    /// Alternatives for each system call; a call must meet all conditions of one. Without any, every call is allowed.
    rules: BTreeMap<i64, Vec<Vec<Condition>>>,
}

/// Bits of one argument that must have a value.
#[derive(Clone, Copy, Debug)]
pub struct Condition {
    /// Number of the argument, counted from 0.
    pub argument: u8,
    /// The bits.
    pub mask: u64,
    /// Their value.
    pub value: u64,
}

impl Syscalls {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Allows system calls, given by their numbers.
    #[must_use]
    pub fn allow(mut self, numbers: &[i64]) -> Self {
        for number in numbers {
            self.rules.insert(*number, Vec::new());
        }
        self
    }

    /// Allows a system call if the bits `mask` of its argument number `argument`, counted from 0, equal `value`. Can be
    /// called several times for one system call, unless [`Syscalls::allow`] allowed it.
    #[must_use]
    pub fn allow_if(self, number: i64, argument: u8, mask: u64, value: u64) -> Self {
        self.allow_if_all(number, &[Condition { argument, mask, value }])
    }

    /// The same for several conditions, all of which must be met.
    #[must_use]
    pub fn allow_if_all(mut self, number: i64, conditions: &[Condition]) -> Self {
        self.rules.entry(number).or_default().push(conditions.to_vec());
        self
    }

    /// Compiles the list. The filters must be installed in this order: of two that refuse a call, the later one decides
    /// the error.
    pub(crate) fn compile(&self) -> Result<[BpfProgram; 2], seccompiler::BackendError> {
        let condition = |condition: &Condition| {
            let operator = SeccompCmpOp::MaskedEq(condition.mask);
            let (argument, value) = (condition.argument, condition.value);
            SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value)
        };
        let rule = |conditions: &Vec<Condition>| {
            SeccompRule::new(conditions.iter().map(condition).collect::<Result<_, _>>()?)
        };
        let rules = self
            .rules
            .iter()
            .map(|(number, conditions)| Ok((*number, conditions.iter().map(rule).collect::<Result<_, _>>()?)))
            .collect::<Result<_, seccompiler::BackendError>>()?;
        let allowed =
            SeccompFilter::new(rules, refuse(libc::EPERM), SeccompAction::Allow, TargetArch::x86_64)?;
        Ok([allowed.try_into()?, without_clone3()?])
    }
}

/// What a supervisor does not need once its programs run: to execute another one, to create a process or a namespace, to change
/// mounts, its user or its capabilities, to look into other processes, to administer the host, and to reach rarely used parts of
/// the kernel.
const NOT_OF_SUPERVISORS: &[i64] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

/// The bit of the numbers of the x32 interface, which has every system call a second time.
const X32: u32 = 0x4000_0000;

fn refuse(errno: i32) -> SeccompAction {
    SeccompAction::Errno(errno.cast_unsigned())
}

/// Compiles a filter that reports `clone3` as missing, so that programs use `clone`, whose flags a filter can see.
fn without_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    SeccompFilter::new(rules, SeccompAction::Allow, refuse(libc::ENOSYS), TargetArch::x86_64)?.try_into()
}

/// Compiles a filter that refuses the x32 interface. Kernels without it refuse it in the same way.
fn without_x32() -> BpfProgram {
    let instruction = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    vec![
        // The number is the first field of what a filter sees.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        instruction(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned(),
        ),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// Compiles the filters that take these from a supervisor, for [`Syscalls::compile`]'s order.
pub(crate) fn of_running_supervisor() -> Result<[BpfProgram; 3], seccompiler::BackendError> {
    const THREAD: u64 = libc::CLONE_THREAD as u64;
    let is_process = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(THREAD), 0)?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        NOT_OF_SUPERVISORS.iter().map(|number| (*number, Vec::new())).collect();
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![is_process])?]);
    let refused = SeccompFilter::new(rules, SeccompAction::Allow, refuse(libc::EPERM), TargetArch::x86_64)?;
    Ok([refused.try_into()?, without_clone3()?, without_x32()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_compile() {
        let list = Syscalls::new()
            .allow(&[libc::SYS_read, libc::SYS_exit_group])
            .allow_if(libc::SYS_clone, 0, 0x10000, 0x10000)
            .allow_if(libc::SYS_prctl, 0, u64::MAX, 15)
            .allow_if_all(
                libc::SYS_socket,
                &[
                    Condition { argument: 0, mask: u64::MAX, value: 16 },
                    Condition { argument: 2, mask: u64::MAX, value: 0 },
                ],
            );
        let [allowed, missing] = list.compile().unwrap();
        assert!(allowed.len() > missing.len() && !missing.is_empty());
        Syscalls::new().compile().unwrap();
    }
}
