//! The contract's limits, checked before anything else happens.
//!
//! The order is fixed, because callers see the first error: virtual CPUs, memory, lifetime; then, in the engine, the
//! environment name and the maximum number of VMs. The command of a one-shot run is checked after these numbers and before
//! the VM is created, not after it has booted.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

pub use crate::port::MAX_PORTS;
pub use crate::request::MAX_FILE_BYTES;
use crate::{Command, Error, ErrorKind, Hint, HostCa, OutputMode, VmSpec};

const VCPU_COUNT: RangeInclusive<u32> = 1..=8;
const MEM_MIB: RangeInclusive<u32> = 256..=32768;
const TTL_SECONDS: RangeInclusive<u32> = 60..=3600;

const DISK_MIB: RangeInclusive<u32> = 256..=1_048_576;

/// Maximum total size of the variables of a command, in bytes, so that a request fits into a frame.
const MAX_ENV_BYTES: usize = 32 * 1024;
/// Maximum length of a working directory (`PATH_MAX`, its NUL included).
const MAX_PATH_BYTES: usize = 4095;

/// Maximum length of a command, in bytes. The kernel refuses a program argument of 128 KiB, its NUL included
/// (`MAX_ARG_STRLEN`), and the command is one argument of the shell.
pub const MAX_COMMAND_BYTES: usize = 128 * 1024 - 1;

/// A page of a journal ends when there are more bytes of commands and output in it.
pub const LOGS_PAGE_BYTES: usize = 16 << 20;

/// The numbers of a [`VmSpec`] after the check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizing {
    /// Virtual CPUs.
    pub vcpu_count: u32,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Lifetime in seconds.
    pub ttl_seconds: u32,
}

/// Checks the numbers, the network policy, and the host's settings of `spec`.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] with the text for the first value outside its limits.
pub fn check_spec(spec: &VmSpec) -> Result<Sizing, Error> {
    let sizing = Sizing {
        vcpu_count: within("vcpu_count", spec.vcpu_count, VCPU_COUNT)?,
        mem_mib: within("mem_mib", spec.mem_mib, MEM_MIB)?,
        ttl_seconds: within("ttl_seconds", spec.ttl_seconds, TTL_SECONDS)?,
    };
    if let Some(policy) = &spec.network_policy {
        if !spec.network {
            return Err(Error::new(ErrorKind::InvalidInput, "network_policy needs network"));
        }
        policy.check().map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))?;
    }
    if let Some(HostCa::Bundle(path)) = &spec.host_ca
        && !Path::new(path).is_absolute()
    {
        return Err(Error::new(ErrorKind::InvalidInput, "host_ca must be a boolean or an absolute path"));
    }
    if spec.host_proxy == Some(true) && !spec.network {
        return Err(Error::new(ErrorKind::InvalidInput, "host_proxy needs network"));
    }
    Ok(sizing)
}

/// A [`Command`] after the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedCommand {
    /// Text for the shell.
    pub command: String,
    /// Time limit.
    pub timeout: Duration,
    /// Working directory.
    pub cwd: Option<String>,
    /// Variables.
    pub env: BTreeMap<String, String>,
    /// What happens to the output.
    pub output: OutputMode,
}

/// Checks `command`. An empty command is fine.
///
/// # Errors
/// [`ErrorKind::InvalidInput`].
pub fn check_command(command: Command, output: OutputMode) -> Result<CheckedCommand, Error> {
    let Command { command, timeout_seconds, cwd, env } = command;
    let timeout = u64::try_from(timeout_seconds)
        .ok()
        .filter(|seconds| *seconds > 0)
        .ok_or_else(Error::timeout_not_positive)?;
    if command.len() > MAX_COMMAND_BYTES {
        let message = format!(
            "command is too long: it has {} bytes, and the maximum is {MAX_COMMAND_BYTES}",
            command.len()
        );
        return Err(Error::new(ErrorKind::InvalidInput, message).hint(Hint::WriteScript));
    }
    if command.contains('\0') {
        return Err(Error::new(ErrorKind::InvalidInput, "command must not contain a NUL character")
            .hint(Hint::PrintNul));
    }
    check_cwd(cwd.as_deref())?;
    check_env(&env)?;
    Ok(CheckedCommand { command, timeout: Duration::from_secs(timeout), cwd, env, output })
}

/// Checks a lifetime.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] with the text for the first value outside its limits.
pub fn check_ttl(ttl_seconds: i64) -> Result<u32, Error> {
    within("ttl_seconds", ttl_seconds, TTL_SECONDS)
}

/// Checks the size of a disk.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] with the text for the first value outside its limits.
pub fn check_disk(disk_mib: Option<i64>) -> Result<Option<u32>, Error> {
    disk_mib.map(|disk_mib| within("disk_mib", disk_mib, DISK_MIB)).transpose()
}

fn check_cwd(cwd: Option<&str>) -> Result<(), Error> {
    let Some(cwd) = cwd else { return Ok(()) };
    if cwd.is_empty() || cwd.len() > MAX_PATH_BYTES || cwd.contains('\0') {
        let message = format!("cwd must be a path of 1 to {MAX_PATH_BYTES} bytes without a NUL character");
        return Err(Error::new(ErrorKind::InvalidInput, message).hint(Hint::LeaveOutCwd));
    }
    Ok(())
}

fn check_env(env: &BTreeMap<String, String>) -> Result<(), Error> {
    let refusal = |message: String| Err(Error::new(ErrorKind::InvalidInput, message));
    for (name, value) in env {
        let mut letters = name.bytes();
        let well_formed = letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
            && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == b'_');
        if !well_formed {
            let name = name.escape_debug().take(64).collect::<String>();
            return refusal(format!("invalid environment variable name: '{name}'"))
                .map_err(|error| error.hint(Hint::VariableName));
        }
        if value.contains('\0') {
            return refusal(format!("the value of {name} must not contain a NUL character"));
        }
    }
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MAX_ENV_BYTES {
        return refusal(format!("the environment variables are too large: they have {bytes} bytes, and the maximum is {MAX_ENV_BYTES}"))
            .map_err(|error| error.hint(Hint::ValuesInFile));
    }
    Ok(())
}

fn within(name: &str, value: i64, range: RangeInclusive<u32>) -> Result<u32, Error> {
    u32::try_from(value)
        .ok()
        .filter(|value| range.contains(value))
        .ok_or_else(|| Error::out_of_range(name, (*range.start()).into(), (*range.end()).into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(vcpu_count: i64, mem_mib: i64, ttl_seconds: i64) -> VmSpec {
        VmSpec { vcpu_count, mem_mib, ttl_seconds, ..VmSpec::new("debian:12") }
    }

    fn checked(command: Command) -> Result<CheckedCommand, Error> {
        check_command(command, OutputMode::Capture)
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
    fn the_first_error_in_order_is_reported() {
        assert_eq!(refusal(&spec(0, 0, 0)), "vcpu_count must be between 1 and 8");
        assert_eq!(refusal(&spec(1, 0, 0)), "mem_mib must be between 256 and 32768");
    }

    #[test]
    fn defaults_are_within_the_limits() {
        let sizing = check_spec(&VmSpec::new("debian:12")).unwrap();
        assert_eq!(sizing, Sizing { vcpu_count: 1, mem_mib: 1024, ttl_seconds: 600 });
        assert_eq!(
            check_command(Command::new(""), OutputMode::Capture).unwrap().timeout,
            Duration::from_secs(30)
        );
    }

    #[test]
    fn the_hosts_settings_are_checked() {
        let check = |spec: VmSpec| check_spec(&spec).map_err(|error| error.to_string());
        let spec = || VmSpec::new("debian:12");
        let relative = VmSpec { host_ca: Some(HostCa::Bundle("ca.pem".to_owned())), ..spec() };
        assert_eq!(check(relative).unwrap_err(), "host_ca must be a boolean or an absolute path");
        let alone = VmSpec { host_proxy: Some(true), ..spec() };
        assert_eq!(check(alone.clone()).unwrap_err(), "host_proxy needs network");
        check(VmSpec { network: true, ..alone }).unwrap();
        check(VmSpec { host_ca: Some(HostCa::Host(true)), host_proxy: Some(false), ..spec() }).unwrap();
    }

    #[test]
    fn the_longest_command_is_what_the_kernel_takes() {
        checked(Command::new("x".repeat(131_071))).unwrap();
        let error = checked(Command::new("x".repeat(131_072))).unwrap_err();
        assert_eq!(error.to_string(), "command is too long: it has 131072 bytes, and the maximum is 131071");
    }

    #[test]
    fn a_command_with_nul_is_refused() {
        let error = checked(Command::new("printf a\0b")).unwrap_err();
        assert_eq!(error.to_string(), "command must not contain a NUL character");
    }

    proptest! {
        #[test]
        fn timeouts_are_accepted_exactly_if_positive(timeout_seconds: i64) {
            let result = checked(Command { timeout_seconds, ..Command::new("true") });
            match result {
                Ok(checked) => prop_assert_eq!(i64::try_from(checked.timeout.as_secs()).unwrap(), timeout_seconds),
                Err(error) => {
                    prop_assert!(timeout_seconds <= 0);
                    prop_assert_eq!(error.to_string(), "timeout_seconds must be positive");
                }
            }
        }
    }
}
