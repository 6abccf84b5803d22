//! What a host can do: the report of `doctor`. The keys of the contract come first in each type; the others are additions.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Environment;

/// What this host can do.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct DoctorReport {
    /// Platform that was asked for.
    pub platform: String,
    /// VMs can run here.
    pub runtime_ok: bool,
    /// What is wrong, one line each.
    pub issues: Vec<String>,
    /// `/dev/kvm`, for the current user.
    pub kvm: KvmReport,
    /// What TAP networking would find. VMs use user-mode networking, which needs none of it.
    pub networking: NetworkingReport,
    /// What VMs are made from; absent if the platform is not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeReport>,
    /// How guest code would run, and why.
    pub accelerator: AcceleratorReport,
    /// The program that runs VMs.
    pub vmm: VmmReport,
    /// The kernel that guests boot.
    pub guest_kernel: GuestKernelReport,
    /// What building an environment needs.
    pub environment_build: BuildReport,
    /// What an ordinary user may do here.
    pub rootless: RootlessReport,
    /// Space.
    pub disk: DiskReport,
    /// One remedy per issue, in the order of `issues`.
    pub remedies: Vec<Remedy>,
}

/// What the current user may do with `/dev/kvm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct KvmReport {
    /// It is there.
    pub exists: bool,
    /// It may be read.
    pub readable: bool,
    /// It may be written.
    pub writable: bool,
}

/// What TAP networking would find.
#[derive(Debug, Clone, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct NetworkingReport {
    /// VMs get a network without asking: never.
    pub enabled_by_default: bool,
    /// `/dev/net/tun` is there.
    pub tun_available: bool,
    /// Path of `ip`.
    pub ip_binary: Option<String>,
    /// Path of `nft`.
    pub nft_binary: Option<String>,
    /// Path of `iptables`.
    pub iptables_binary: Option<String>,
    /// The host forwards IPv4.
    pub ip_forward_enabled: bool,
}

/// What VMs are made from.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct RuntimeReport {
    /// What works.
    pub capabilities: Capabilities,
    /// Version of the environment catalog.
    pub catalog_version: String,
    /// Environment cache.
    pub cache_dir: String,
    /// Environments of the catalog.
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub environments: Vec<Environment>,
    /// Versions of parts that are known, by name.
    pub component_versions: BTreeMap<String, String>,
}

/// What works on this host.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Capabilities {
    /// VMs boot.
    pub supports_vm_boot: bool,
    /// VMs run commands.
    pub supports_guest_exec: bool,
    /// VMs can have a network.
    pub supports_guest_network: bool,
    /// Why something does not work.
    pub reason: Option<String>,
}

/// How guest code would run. Comes from a measurement, so it is an input of the report.
#[derive(Debug, Clone, PartialEq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct AcceleratorReport {
    /// `kvm` or `tcg`; null if neither can be used.
    pub selected: Option<String>,
    /// Why.
    pub reason: String,
    /// Time the measurement took, in milliseconds; null if there was none.
    pub measured_ms: Option<f64>,
    /// The verdict is an earlier one of the same host boot.
    pub cached: bool,
}

/// The program that runs VMs.
#[derive(Debug, Clone, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct VmmReport {
    /// Its path.
    pub program: Option<String>,
    /// Its version, such as `10.0.2`.
    pub version: Option<String>,
    /// It can be used.
    pub ok: bool,
    /// What to know about it; empty if there is nothing.
    pub note: String,
}

/// The kernel that guests boot.
#[derive(Debug, Clone, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct GuestKernelReport {
    /// Path of the configured one; null: each environment's own.
    pub image: Option<String>,
    /// Its release, such as `6.12.9-pyro`; null if it cannot be used.
    pub release: Option<String>,
}

/// What building an environment needs.
#[derive(Debug, Clone, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct BuildReport {
    /// Path of `mmdebstrap`.
    pub mmdebstrap: Option<String>,
    /// Path of the Debian archive keys.
    pub keyring: Option<String>,
}

/// What an ordinary user may do here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct RootlessReport {
    /// Effective user id.
    pub euid: u32,
    /// User namespaces may be made.
    pub user_namespaces: bool,
    /// `/etc/subuid` has a range for this user.
    pub subuid: bool,
    /// `newuidmap` is installed.
    pub newuidmap: bool,
}

/// Space on the host's disks, in MiB; null if it could not be found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct DiskReport {
    /// Free for this user where the state directory is, or would be.
    pub state_dir_free_mib: Option<u64>,
    /// Free for this user where the environment cache is, or would be.
    pub cache_dir_free_mib: Option<u64>,
    /// Taken by the disks and journals of all VMs and tasks.
    pub vms_used_mib: u64,
    /// Taken by the whole state directory, templates included.
    pub state_dir_used_mib: u64,
}

/// What to do about an issue.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Remedy {
    /// The issue, as in `issues`.
    pub issue: String,
    /// The one thing to do.
    pub remedy: String,
}
