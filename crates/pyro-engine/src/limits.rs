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

const DISK_MIB: RangeInclusive<u32> = 256..=1_048_576;

/// Most bytes of all variables of a command together, so that a request stays within a frame.
const MAX_ENV_BYTES: usize = 32 * 1024;
/// Longest working directory (`PATH_MAX`, its NUL included).
const MAX_PATH_BYTES: usize = 4095;

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
    check_cwd(command)?;
    check_env(command)?;
    Ok(Duration::from_secs(timeout))
}

/// Checks a lifetime.
pub(crate) fn check_ttl(ttl_seconds: i64) -> Result<u32, EngineError> {
    within("ttl_seconds", ttl_seconds, TTL_SECONDS)
}

/// Checks the size of a disk.
pub(crate) fn check_disk(disk_mib: Option<i64>) -> Result<Option<u32>, EngineError> {
    disk_mib.map(|disk_mib| within("disk_mib", disk_mib, DISK_MIB)).transpose()
}

fn check_cwd(command: &Command) -> Result<(), EngineError> {
    let Some(cwd) = &command.cwd else { return Ok(()) };
    if cwd.is_empty() || cwd.len() > MAX_PATH_BYTES || cwd.contains('\0') {
        let message = format!("cwd must be a path of 1 to {MAX_PATH_BYTES} bytes without a NUL character");
        return Err(EngineError::new(ErrorKind::InvalidInput, message)
            .hint("leave it out to run the command in /workspace"));
    }
    Ok(())
}

fn check_env(command: &Command) -> Result<(), EngineError> {
    let refusal = |message: String| Err(EngineError::new(ErrorKind::InvalidInput, message));
    for (name, value) in &command.env {
        let mut letters = name.bytes();
        let well_formed = letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
            && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == b'_');
        if !well_formed {
            let name = name.escape_debug().take(64).collect::<String>();
            return refusal(format!("'{name}' is no name of a variable"))
                .map_err(|error| error.hint("use letters, digits and underscores; no digit first"));
        }
        if value.contains('\0') {
            return refusal(format!("the value of {name} must not contain a NUL character"));
        }
    }
    let bytes: usize = command.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MAX_ENV_BYTES {
        return refusal(format!("the variables take {bytes} bytes; the most is {MAX_ENV_BYTES}"))
            .map_err(|error| error.hint("write large values to a file in the VM"));
    }
    Ok(())
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
