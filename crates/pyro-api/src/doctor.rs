//! The report of `doctor`. In each type, the keys of the contract come first; the others are additions.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Environment;

/// What this host can do.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct DoctorReport {
    /// The requested platform.
    pub platform: String,
    /// Whether VMs can run on this host.
    pub runtime_ok: bool,
    /// The problems found, one line each.
    pub issues: Vec<String>,
    /// The current user's access to `/dev/kvm`.
    pub kvm: KvmReport,
    /// The host's support for TAP networking. VMs use user-mode networking, which needs none of it.
    pub networking: NetworkingReport,
    /// Capabilities and environments; absent if the platform is not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeReport>,
    /// The accelerator that VMs use, and why.
    pub accelerator: AcceleratorReport,
    /// The program that runs VMs.
    pub vmm: VmmReport,
    /// The kernel that guests boot.
    pub guest_kernel: GuestKernelReport,
    /// The tools that build environments.
    pub environment_build: BuildReport,
    /// What an unprivileged user may do on this host.
    pub rootless: RootlessReport,
    /// What this host confines a VMM by.
    pub confinement: ConfinementReport,
    /// Disk space.
    pub disk: DiskReport,
    /// One remedy per issue, in the order of `issues`.
    pub remedies: Vec<Remedy>,
}

/// What the current user may do with `/dev/kvm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct KvmReport {
    /// The device exists.
    pub exists: bool,
    /// The user may read it.
    pub readable: bool,
    /// The user may write to it.
    pub writable: bool,
}

/// The host's support for TAP networking.
#[derive(Debug, Clone, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct NetworkingReport {
    /// Whether VMs have a network by default; always false.
    pub enabled_by_default: bool,
    /// `/dev/net/tun` exists.
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

/// Capabilities and environments of this host.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct RuntimeReport {
    /// What works on this host.
    pub capabilities: Capabilities,
    /// Version of the environment catalog.
    pub catalog_version: String,
    /// Directory of the environment cache.
    pub cache_dir: String,
    /// Environments of the catalog.
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub environments: Vec<Environment>,
    /// Versions of the components, by name.
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
    /// Why something does not work; null if everything does.
    pub reason: Option<String>,
}

/// The accelerator that VMs use. pyro measures whether KVM is fast enough.
#[derive(Debug, Clone, PartialEq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct AcceleratorReport {
    /// `kvm` or `tcg`; null if neither can be used.
    pub selected: Option<String>,
    /// The reason for the choice.
    pub reason: String,
    /// Shortest time that the measurement's loop took in a guest under KVM, in milliseconds; null if it was not measured.
    pub measured_ms: Option<f64>,
    /// What guests pay for under KVM; null if it was not measured.
    pub kvm_costs: Option<KvmCosts>,
    /// The result is from an earlier measurement since the host booted.
    pub cached: bool,
}

/// What guests pay for under KVM on this host, in nanoseconds: the lowest of several samples.
#[derive(Debug, Clone, Copy, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct KvmCosts {
    /// One iteration of a loop of two instructions on the host, for comparison.
    pub host_loop_ns: f64,
    /// The same in a guest's kernel.
    pub loop_ns: f64,
    /// A change of a page table in a guest's kernel, with what it flushes.
    pub paging_ns: f64,
    /// The first access to a page of a guest's memory.
    pub fault_ns: f64,
    /// An access to a device that the VMM provides.
    pub exit_ns: f64,
}

/// The program that runs VMs.
#[derive(Debug, Clone, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct VmmReport {
    /// Its path.
    pub program: Option<String>,
    /// Its version, such as `10.0.2`.
    pub version: Option<String>,
    /// pyro can use it.
    pub ok: bool,
    /// A remark about it; may be empty.
    pub note: String,
}

/// The kernel that guests boot.
#[derive(Debug, Clone, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct GuestKernelReport {
    /// Path of the configured kernel; null if each environment's own kernel is used.
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

/// What an unprivileged user may do on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct RootlessReport {
    /// Effective user id.
    pub euid: u32,
    /// The user may create user namespaces.
    pub user_namespaces: bool,
    /// `/etc/subuid` has a range for this user.
    pub subuid: bool,
    /// `newuidmap` is installed.
    pub newuidmap: bool,
}

/// What this host confines a VMM by: found by starting one.
#[derive(Debug, Clone, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ConfinementReport {
    /// Every layer that `--require-confinement full` asks for holds.
    pub full: bool,
    /// The layers, in a fixed order; empty if no VMM can be started.
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub layers: Vec<ConfinementLayer>,
    /// The user on the host that the VMM runs as; null if no VMM can be started.
    pub uid: Option<u32>,
}

/// One layer of a VMM's confinement.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct ConfinementLayer {
    /// Its name, such as `seccomp`.
    pub name: String,
    /// It holds.
    pub active: bool,
    /// Why it does not hold, or its version; may be empty.
    pub note: String,
}

/// Space on the host's disks in MiB; null if unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct DiskReport {
    /// Space free for this user on the disk of the state directory.
    pub state_dir_free_mib: Option<u64>,
    /// Space free for this user on the disk of the environment cache.
    pub cache_dir_free_mib: Option<u64>,
    /// Space used by the disks and journals of all VMs and tasks.
    pub vms_used_mib: u64,
    /// Space used by the whole state directory, including templates.
    pub state_dir_used_mib: u64,
}

/// What to do about an issue.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Remedy {
    /// The issue, as in `issues`.
    pub issue: String,
    /// What to do about it.
    pub remedy: String,
}
