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
    rules: BTreeMap<i64, Vec<Condition>>,
}

/// Bits of one argument that must have a value.
#[derive(Clone, Copy, Debug)]
struct Condition {
    argument: u8,
    mask: u64,
    value: u64,
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
    pub fn allow_if(mut self, number: i64, argument: u8, mask: u64, value: u64) -> Self {
        self.rules.entry(number).or_default().push(Condition { argument, mask, value });
        self
    }

    /// Compiles the list. The filters must be installed in this order: of two that refuse a call, the later one decides
    /// the error.
    pub(crate) fn compile(&self) -> Result<[BpfProgram; 2], seccompiler::BackendError> {
        let rule = |condition: &Condition| {
            let operator = SeccompCmpOp::MaskedEq(condition.mask);
            let (argument, value) = (condition.argument, condition.value);
            SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value)?])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_compile() {
        let list = Syscalls::new()
            .allow(&[libc::SYS_read, libc::SYS_exit_group])
            .allow_if(libc::SYS_clone, 0, 0x10000, 0x10000)
            .allow_if(libc::SYS_prctl, 0, u64::MAX, 15);
        let [allowed, missing] = list.compile().unwrap();
        assert!(allowed.len() > missing.len() && !missing.is_empty());
        Syscalls::new().compile().unwrap();
    }
}
