//! The contract's limits, checked before anything else happens.
//!
//! The order is fixed, because callers see the first error: virtual CPUs, memory, lifetime; then, in the engine, the
//! environment name and the maximum number of VMs. The command of a one-shot run is checked after these numbers and before
//! the VM is created, not after it has booted.

mod command;

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

pub use self::command::{
    CheckedCommand, CheckedInput, CheckedProgram, MAX_ARGV_WORDS, MAX_COMMAND_BYTES, MAX_STDIN_BYTES,
    MAX_WORD_BYTES, check_command, check_terminal, quoted,
};
pub use crate::port::MAX_PORTS;
pub use crate::request::MAX_FILE_BYTES;
pub use crate::service::{
    CheckedService, MAX_READY_COMMAND_SECONDS, MAX_SERVICES, Readiness, check_service, check_service_name,
};
use crate::{Error, ErrorKind, HostCa, VmSpec};

const VCPU_COUNT: RangeInclusive<u32> = 1..=8;
const MEM_MIB: RangeInclusive<u32> = 256..=32768;
/// Longest lifetime in seconds.
pub const MAX_TTL_SECONDS: u32 = 3600;
const TTL_SECONDS: RangeInclusive<u32> = 60..=MAX_TTL_SECONDS;

const DISK_MIB: RangeInclusive<u32> = 256..=1_048_576;

/// Time that a one-shot run needs beyond its command's time limit, to start and to end, in seconds.
const RUN_SECONDS: u32 = 60;

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

impl Sizing {
    /// The same with a lifetime in which a command can use its whole time limit, raised to `max_ttl_seconds` at most.
    #[must_use]
    pub fn lasting(self, timeout: Option<Duration>, max_ttl_seconds: u32) -> Self {
        let seconds = timeout.map_or(0, |timeout| u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX));
        let needed = seconds.saturating_add(RUN_SECONDS).min(max_ttl_seconds);
        Self { ttl_seconds: self.ttl_seconds.max(needed), ..self }
    }
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
        policy.check().map_err(|refused| {
            let error = Error::new(ErrorKind::InvalidInput, refused.to_string());
            ["allow_cidrs", "allow_hosts", "allow_domains", "egress"].into_iter().fold(error, Error::naming)
        })?;
    }
    if let Some(HostCa::Bundle(path)) = &spec.host_ca
        && !Path::new(path).is_absolute()
    {
        return Err(Error::new(ErrorKind::InvalidInput, "host_ca must be a boolean or an absolute path")
            .naming("host_ca"));
    }
    if spec.host_proxy == Some(true) && !spec.network {
        return Err(Error::new(ErrorKind::InvalidInput, "host_proxy needs network").naming("host_proxy"));
    }
    Ok(sizing)
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

fn within(name: &str, value: i64, range: RangeInclusive<u32>) -> Result<u32, Error> {
    u32::try_from(value)
        .ok()
        .filter(|value| range.contains(value))
        .ok_or_else(|| Error::out_of_range(name, (*range.start()).into(), (*range.end()).into()))
}

#[cfg(test)]
mod tests {
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
    fn the_first_error_in_order_is_reported() {
        assert_eq!(refusal(&spec(0, 0, 0)), "vcpu_count must be between 1 and 8");
        assert_eq!(refusal(&spec(1, 0, 0)), "mem_mib must be between 256 and 32768");
    }

    #[test]
    fn defaults_are_within_the_limits() {
        let sizing = check_spec(&VmSpec::new("debian:12")).unwrap();
        assert_eq!(sizing, Sizing { vcpu_count: 1, mem_mib: 1024, ttl_seconds: 600 });
    }

    #[test]
    fn a_lifetime_is_raised_for_a_longer_time_limit_up_to_the_longest() {
        let sizing = check_spec(&VmSpec::new("debian:12")).unwrap();
        let within = |max, seconds| sizing.lasting(Some(Duration::from_secs(seconds)), max).ttl_seconds;
        let of = |seconds| within(MAX_TTL_SECONDS, seconds);
        assert_eq!((of(30), of(540), of(541), of(3000)), (600, 600, 601, 3060));
        assert_eq!((of(3600), of(u64::MAX)), (3600, 3600));
        assert_eq!((within(700, 600), within(700, 3600), within(300, 3600)), (660, 700, 600));
        assert_eq!(sizing.lasting(None, MAX_TTL_SECONDS), sizing);
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
}
