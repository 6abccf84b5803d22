//! The system calls that a program may use.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
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
        let refuse = |errno: i32| SeccompAction::Errno(errno.cast_unsigned());
        let allowed =
            SeccompFilter::new(rules, refuse(libc::EPERM), SeccompAction::Allow, TargetArch::x86_64)?;
        let missing = SeccompFilter::new(
            BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
            SeccompAction::Allow,
            refuse(libc::ENOSYS),
            TargetArch::x86_64,
        )?;
        Ok([allowed.try_into()?, missing.try_into()?])
    }
}

/// What a supervisor does not need once its programs run: to execute another one, to create a process or a namespace, to change
/// mounts, to look into other processes, and to reach rarely used parts of the kernel.
const NOT_OF_SUPERVISORS: [i64; 24] = [
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
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

/// Compiles the filters that take these from a supervisor, for [`Syscalls::compile`]'s order.
pub(crate) fn of_running_supervisor() -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    const THREAD: u64 = libc::CLONE_THREAD as u64;
    let is_process = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(THREAD), 0)?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        NOT_OF_SUPERVISORS.iter().map(|number| (*number, Vec::new())).collect();
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![is_process])?]);
    let refuse = |errno: i32| SeccompAction::Errno(errno.cast_unsigned());
    let refused = SeccompFilter::new(rules, SeccompAction::Allow, refuse(libc::EPERM), TargetArch::x86_64)?;
    let missing = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        SeccompAction::Allow,
        refuse(libc::ENOSYS),
        TargetArch::x86_64,
    )?;
    Ok([refused.try_into()?, missing.try_into()?])
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
