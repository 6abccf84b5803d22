//! The contract's limits, checked before anything else happens.
//!
//! The order is fixed, because callers see the first fault: virtual CPUs, memory, lifetime; then, by
//! whoever owns them, the environment name and the ceiling on VMs. For a one-shot run the command is
//! checked after these numbers and before the VM is made, not after it has booted.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::{Command, EngineError, ErrorKind, VmSpec};

const VCPU_COUNT: RangeInclusive<u32> = 1..=8;
const MEM_MIB: RangeInclusive<u32> = 256..=32768;
const TTL_SECONDS: RangeInclusive<u32> = 60..=3600;

/// Longest command in bytes. The kernel refuses a program argument of 128 KiB, its NUL included
/// (`MAX_ARG_STRLEN`), and the command is one argument of the shell.
pub(crate) const MAX_COMMAND_BYTES: usize = 128 * 1024 - 1;

/// The numbers of a [`VmSpec`] after the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizing {
    pub(crate) vcpu_count: u32,
    pub(crate) mem_mib: u32,
    pub(crate) ttl_seconds: u32,
}

/// Checks the numbers of `spec`.
pub(crate) fn check_spec(spec: &VmSpec) -> Result<Sizing, EngineError> {
    Ok(Sizing {
        vcpu_count: within("vcpu_count", spec.vcpu_count, VCPU_COUNT)?,
        mem_mib: within("mem_mib", spec.mem_mib, MEM_MIB)?,
        ttl_seconds: within("ttl_seconds", spec.ttl_seconds, TTL_SECONDS)?,
    })
}

/// Checks `command` and returns its time limit. An empty command is fine.
pub(crate) fn check_command(command: &Command) -> Result<Duration, EngineError> {
    let timeout = u64::try_from(command.timeout_seconds)
        .ok()
        .filter(|seconds| *seconds > 0)
        .ok_or_else(EngineError::timeout_not_positive)?;
    if command.command.len() > MAX_COMMAND_BYTES {
        let message =
            format!("command is {} bytes long; the most is {MAX_COMMAND_BYTES}", command.command.len());
        return Err(EngineError::new(ErrorKind::InvalidInput, message)
            .hint("write the text to a file in the VM in several commands, then run the file"));
    }
    if command.command.contains('\0') {
        return Err(EngineError::new(ErrorKind::InvalidInput, "command must not contain a NUL character")
            .hint("use `printf '\\0'` in the command to produce one"));
    }
    Ok(Duration::from_secs(timeout))
}

fn within(name: &str, value: i64, range: RangeInclusive<u32>) -> Result<u32, EngineError> {
    u32::try_from(value)
        .ok()
        .filter(|value| range.contains(value))
        .ok_or_else(|| EngineError::out_of_range(name, (*range.start()).into(), (*range.end()).into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(vcpu_count: i64, mem_mib: i64, ttl_seconds: i64) -> VmSpec {
        VmSpec { vcpu_count, mem_mib, ttl_seconds, ..VmSpec::new("debian:12") }
    }

    fn refusal(spec: &VmSpec) -> String {
        let error = check_spec(spec).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidInput);
        error.message
    }

    #[test]
    fn both_edges_are_inside_and_one_beyond_is_not() {
        for (good, bad) in
            [(spec(1, 256, 60), spec(0, 256, 60)), (spec(8, 32768, 3600), spec(9, 32768, 3600))]
        {
            check_spec(&good).unwrap();
            assert_eq!(refusal(&bad), "vcpu_count must be between 1 and 8");
        }
        for bad in [spec(1, 255, 60), spec(1, 32769, 60), spec(1, -1, 60), spec(1, i64::MAX, 60)] {
            assert_eq!(refusal(&bad), "mem_mib must be between 256 and 32768");
        }
        for bad in [spec(1, 256, 59), spec(1, 256, 3601), spec(1, 256, i64::MIN)] {
            assert_eq!(refusal(&bad), "ttl_seconds must be between 60 and 3600");
        }
    }

    #[test]
    fn the_first_fault_in_order_is_told() {
        assert_eq!(refusal(&spec(0, 0, 0)), "vcpu_count must be between 1 and 8");
        assert_eq!(refusal(&spec(1, 0, 0)), "mem_mib must be between 256 and 32768");
    }

    #[test]
    fn defaults_are_within_the_limits() {
        let sizing = check_spec(&VmSpec::new("debian:12")).unwrap();
        assert_eq!(sizing, Sizing { vcpu_count: 1, mem_mib: 1024, ttl_seconds: 600 });
        assert_eq!(check_command(&Command::new("")).unwrap(), Duration::from_secs(30));
    }

    #[test]
    fn the_longest_command_is_what_the_kernel_takes() {
        check_command(&Command::new("x".repeat(131_071))).unwrap();
        let error = check_command(&Command::new("x".repeat(131_072))).unwrap_err();
        assert_eq!(error.to_string(), "command is 131072 bytes long; the most is 131071");
    }

    #[test]
    fn a_command_with_nul_is_refused() {
        let error = check_command(&Command::new("printf a\0b")).unwrap_err();
        assert_eq!(error.to_string(), "command must not contain a NUL character");
    }

    proptest! {
        #[test]
        fn timeouts_are_accepted_exactly_if_positive(timeout_seconds: i64) {
            let checked = check_command(&Command { timeout_seconds, ..Command::new("true") });
            match checked {
                Ok(limit) => prop_assert_eq!(i64::try_from(limit.as_secs()).unwrap(), timeout_seconds),
                Err(error) => {
                    prop_assert!(timeout_seconds <= 0);
                    prop_assert_eq!(error.to_string(), "timeout_seconds must be positive");
                }
            }
        }
    }
}
