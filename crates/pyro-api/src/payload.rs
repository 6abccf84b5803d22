//! Results of operations. The key names are the public contract; keys may be added, never renamed.

mod shell;
mod task;

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::shell::{ShellReadReason, TaskShell, TaskShellOutput, TaskShells};
pub use self::task::{
    FileEncoding, LastCommand, PublishedPort, Task, TaskCopied, TaskDeleted, TaskDetached, TaskExec,
    TaskFile, TaskFileWritten, TaskInput, TaskList, TaskLogEntry, TaskLogs, TaskLogsPage, TaskPublished,
};
use crate::{DirectoryMount, ExecutionMode, NetworkDenial, NetworkPolicy, PruneReport, VmId, VmState};

/// Result of a command of a one-shot run or of `exec_vm`.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct RunResult {
    /// Id of the VM, which has been deleted.
    pub vm_id: VmId,
    /// Environment name.
    pub environment: String,
    /// Version of the installed environment; null if it was not needed.
    pub environment_version: Option<String>,
    /// The shell text that was run.
    pub command: String,
    /// The shell that ran it, such as `sh`; null if no shell text was run.
    pub shell: Option<String>,
    /// Standard output; empty if it was streamed.
    pub stdout: Output,
    /// Standard error; empty if it was streamed.
    pub stderr: Output,
    /// Exit code; −S if signal S ended the shell; 124 after the time limit.
    pub exit_code: i64,
    /// Duration of the command alone, in milliseconds.
    pub duration_ms: u64,
    /// Where the command ran.
    pub execution_mode: ExecutionMode,
    /// How the VM was removed.
    pub cleanup: Deleted,
    /// Number of bytes of standard output that were dropped.
    pub stdout_truncated: u64,
    /// Number of bytes of standard error that were dropped.
    pub stderr_truncated: u64,
    /// The command timed out.
    pub timed_out: bool,
    /// `kvm` or `tcg`; null on the host.
    pub accelerator: Option<String>,
    /// How the command reached the guest, such as `virtio-serial`; null on the host.
    pub channel: Option<String>,
    /// The guest kernel, as `uname -r` gives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_release: Option<String>,
    /// What the command's guest tried to reach and was refused while it ran, the latest last; absent if nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub network_denials: Vec<NetworkDenial>,
    /// Durations of the phases of a one-shot run; otherwise empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timings: Vec<Phase>,
}

/// One phase of a run. The phases follow one another without gaps.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Phase {
    /// `environment`, `registry`, `supervisor`, the stages of the start, `command`, `end`.
    pub name: String,
    /// Duration in milliseconds.
    pub ms: f64,
}

/// What `prune` removed.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Pruned {
    /// The removed environments.
    #[serde(flatten)]
    pub environments: PruneReport,
    /// Number of removed templates.
    pub deleted_templates: usize,
}

/// Raw bytes that a command wrote. Serialises as text in which invalid UTF-8 is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Output(Vec<u8>);

impl Output {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, without copying them.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The bytes as text, with U+FFFD for what is not UTF-8.
    pub fn to_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl From<Vec<u8>> for Output {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Serialize for Output {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text())
    }
}

impl<'de> Deserialize<'de> for Output {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(String::deserialize(deserializer)?.into_bytes().into())
    }
}

impl JsonSchema for Output {
    fn schema_name() -> Cow<'static, str> {
        "Output".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

/// A VM.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Vm {
    /// Id.
    pub vm_id: VmId,
    /// Environment name.
    pub environment: String,
    /// Version of its environment.
    pub environment_version: Option<String>,
    /// Virtual CPUs.
    pub vcpu_count: u32,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Lifetime in seconds, from creation.
    pub ttl_seconds: u32,
    /// Creation time, in seconds since the epoch.
    pub created_at: f64,
    /// When its lifetime ends and it is removed, in seconds since the epoch.
    pub expires_at: f64,
    /// State.
    pub state: VmState,
    /// It has a network.
    pub network_enabled: bool,
    /// What it may reach; null without a network.
    pub network_policy: Option<NetworkPolicy>,
    /// The caller allowed commands on the host.
    pub allow_host_compat: bool,
    /// Address in its network.
    pub guest_ip: Option<String>,
    /// TAP device on the host; null with user-mode networking.
    pub tap_name: Option<String>,
    /// Where its commands run.
    pub execution_mode: ExecutionMode,
    /// Diagnostics. Keys and values may change between versions.
    pub metadata: BTreeMap<String, String>,
    /// `kvm` or `tcg`; null before the start and on the host.
    pub accelerator: Option<String>,
    /// The directories of this host that it has mounted; absent without any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub mounts: Vec<DirectoryMount>,
    /// Name of the client that created it; absent if this host's user did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// A VM was removed.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Deleted {
    /// Id it had.
    pub vm_id: VmId,
    /// False only if its command has run and it cannot be removed now.
    pub deleted: bool,
    /// The reason.
    pub reason: DeleteReason,
}

impl Deleted {
    /// `vm_id` was removed because of `reason`.
    pub fn new(vm_id: VmId, reason: DeleteReason) -> Self {
        Self { vm_id, deleted: true, reason }
    }
}

/// Why a VM was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "snake_case")]
pub enum DeleteReason {
    /// A caller deleted it.
    ExplicitDelete,
    /// Its command has run.
    PostExecCleanup,
}

/// The VMs that were removed because their lifetime had ended.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Reaped {
    /// Their ids, sorted.
    pub deleted_vm_ids: Vec<VmId>,
    /// Number of removed VMs.
    pub count: u64,
}

impl From<Vec<VmId>> for Reaped {
    fn from(mut deleted_vm_ids: Vec<VmId>) -> Self {
        deleted_vm_ids.sort();
        let count = deleted_vm_ids.len() as u64;
        Self { deleted_vm_ids, count }
    }
}

/// The network of a VM.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct NetworkInfo {
    /// Id of the VM.
    pub vm_id: VmId,
    /// It has a network.
    pub network_enabled: bool,
    /// Outbound connections are expected to work.
    pub outbound_connectivity_expected: bool,
    /// Why there is no network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The addresses, if there is a network; their keys are on the same level.
    #[serde(flatten)]
    pub assignment: Option<NetworkAssignment>,
}

/// Addresses of a VM with network.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct NetworkAssignment {
    /// TAP device on the host; null with user-mode networking.
    pub tap_name: Option<String>,
    /// The guest's address.
    pub guest_ip: Option<String>,
    /// The guest's gateway.
    pub gateway_ip: Option<String>,
    /// The guest's subnet.
    pub subnet_cidr: Option<String>,
    /// The guest's MAC address.
    pub mac_address: Option<String>,
    /// The guest's name servers.
    pub dns_servers: Vec<String>,
    /// What the guest may reach.
    pub network_policy: Option<NetworkPolicy>,
    /// What it tried to reach and was refused, the latest last.
    #[serde(default)]
    #[cfg_attr(test, proptest(strategy = "crate::strategies::few()"))]
    pub network_denials: Vec<NetworkDenial>,
}

impl NetworkInfo {
    /// A VM without network.
    pub fn disabled(vm_id: VmId) -> Self {
        Self {
            vm_id,
            network_enabled: false,
            outbound_connectivity_expected: false,
            reason: Some("network configuration is unavailable for this VM".to_owned()),
            assignment: None,
        }
    }

    /// The network of `vm` as its record and `metadata` (keys `gateway_ip`, `subnet_cidr`,
    /// `mac_address`, `dns_servers` with commas) describe it, and what it was refused.
    pub fn of(vm: &Vm, network_denials: Vec<NetworkDenial>) -> Self {
        if !vm.network_enabled {
            return Self::disabled(vm.vm_id.clone());
        }
        let known = |key: &str| vm.metadata.get(key).filter(|value| !value.is_empty()).cloned();
        let dns = known("dns_servers").unwrap_or_default();
        Self {
            vm_id: vm.vm_id.clone(),
            network_enabled: true,
            outbound_connectivity_expected: true,
            reason: None,
            assignment: Some(NetworkAssignment {
                tap_name: vm.tap_name.clone(),
                guest_ip: vm.guest_ip.clone(),
                gateway_ip: known("gateway_ip"),
                subnet_cidr: known("subnet_cidr"),
                mac_address: known("mac_address"),
                dns_servers: dns
                    .split(',')
                    .map(str::trim)
                    .filter(|s| !s.is_empty())
                    .map(str::to_owned)
                    .collect(),
                network_policy: vm.network_policy.clone(),
                network_denials,
            }),
        }
    }
}
