//! What a VM is made of, as plain data.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use pyro_machine::disk::LayerLifetime;
use pyro_machine::network::{NetworkInterface, Policy};
use pyro_machine::snapshot::Subject;
use pyro_machine::{GuestImage, Hardware, MachineConfig, Vmm};
use pyro_wire::HostSettings;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::mount::{MountPoint, MountSockets};
use crate::pace::Pace;

/// Everything a supervisor needs to start and end one VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LaunchSpec {
    /// Name of the VM; also the guest's host name.
    pub vm_id: String,
    /// Directory that belongs to this VM alone. It exists; the supervisor removes it when the VM is gone for
    /// good.
    pub dir: PathBuf,
    /// How long the VM and its files are kept.
    pub retention: Retention,
    /// The VM was never up, and must leave no trace if this start does not complete.
    pub is_new: bool,
    /// Locked, shared, as long as the VM lives: what it is made of may not be removed meanwhile. Absent: nothing to lock.
    pub in_use_lock: Option<PathBuf>,
    /// Wall-clock time, in seconds since the epoch, at which the VM ends.
    pub expires_at: f64,
    /// Longest time in which the boot of a kernel makes no progress, in seconds, without that in which the host has no
    /// processor for it. What is faster than a boot, such as a start from a template, has half of it.
    pub boot_limit_seconds: u64,
    /// The platform of the machine.
    #[serde(default)]
    #[schemars(with = "serde_json::Value")]
    pub vmm: Vmm,
    /// How slow this host is.
    #[serde(default)]
    pub pace: Pace,
    /// The starter wants to know which step the start is at. Those of older versions do not, and would not understand it.
    #[serde(default)]
    pub reports_stages: bool,
    /// The hardware.
    #[schemars(with = "serde_json::Value")]
    pub machine: MachineConfig,
    /// What runs on it.
    #[schemars(with = "serde_json::Value")]
    pub guest: GuestImage,
    /// The supervisor has the guest's artifacts as descriptors, see [`crate::handover::artifacts`]. Set when it is started.
    #[serde(default)]
    #[schemars(skip)]
    pub artifacts_are_open: bool,
    /// Start from a template kept in this directory, which is made when needed. Absent: boot the kernel.
    pub template_dir: Option<PathBuf>,
    /// What is started.
    pub purpose: Purpose,
    /// Give the guest a network interface.
    pub network: bool,
    /// What the guest may reach through it.
    #[serde(default)]
    #[schemars(with = "serde_json::Value")]
    pub network_policy: Policy,
    /// Ports of the guest to publish on the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMapping>,
    /// Directories of the host that the guest has mounted when it takes commands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountPoint>,
    /// The sockets of their servers, which pass to the supervisor as descriptors.
    #[serde(skip)]
    pub mount_sockets: MountSockets,
    /// What the guest gets of its host's settings.
    #[serde(default)]
    #[schemars(with = "serde_json::Value")]
    pub host_settings: HostSettings,
    /// Do not start the VM unless the host can confine its VMM fully.
    #[serde(default)]
    pub requires_full_confinement: bool,
    /// The supervisor's environment variables. It has no others, in particular none of its caller's. Not sent to it.
    #[serde(skip)]
    pub variables: Vec<(OsString, OsString)>,
}

impl LaunchSpec {
    /// The machine, without what is its own: equal for VMs that can take each other's place.
    pub(crate) fn hardware(&self) -> Hardware {
        Hardware {
            config: self.machine.clone(),
            layer_lifetime: self.retention.layer_lifetime(),
            interface: self.network.then(NetworkInterface::default),
        }
    }

    /// Returns whether a guest has the same network with both. A running machine keeps its network process and policy.
    pub(crate) fn has_network_of(&self, other: &Self) -> bool {
        self.network == other.network && (!self.network || self.network_policy == other.network_policy)
    }

    /// What a template for VMs like this one is made of.
    pub(crate) fn subject(&self) -> Subject {
        Subject { hardware: self.hardware(), guest: self.guest.clone() }
    }
}

/// A port of a guest, and where it is to be reached on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortMapping {
    /// Where this host listens. Port 0: one that the kernel chooses.
    #[schemars(with = "String")]
    pub host: SocketAddr,
    /// The port on the guest's loopback interface.
    pub guest_port: u16,
}

/// A port of a guest that is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PublishedPort {
    /// What was asked for, and is asked for again at the next start.
    pub mapping: PortMapping,
    /// Where this host listens.
    #[schemars(with = "String")]
    pub bound: SocketAddr,
}

/// How long a VM and its files are kept, unless someone deletes them earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Retention {
    /// As long as the process that started it lives.
    Caller,
    /// Until its lifetime ends. A VM that stops earlier keeps its layer for another start.
    Lifetime,
    /// Until it is deleted. The end of its lifetime only stops it.
    Deletion,
}

impl Retention {
    /// What a VM's layer has to survive.
    pub fn layer_lifetime(self) -> LayerLifetime {
        match self {
            Self::Caller => LayerLifetime::OneStart,
            Self::Lifetime | Self::Deletion => LayerLifetime::ManyStarts,
        }
    }
}

/// What a supervisor is started for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A VM for a caller.
    #[default]
    Vm,
    /// A VM that waits to be claimed.
    Spare,
    /// Not a VM but the template that VMs start from.
    Template,
}

#[cfg(test)]
pub(crate) mod tests {
    use pyro_machine::{Accelerator, GuestKernel};

    use super::*;

    pub(crate) fn spec() -> LaunchSpec {
        LaunchSpec {
            vm_id: "0123456789ab".to_owned(),
            dir: "/vms/0123456789ab".into(),
            retention: Retention::Caller,
            is_new: false,
            in_use_lock: None,
            expires_at: 0.0,
            boot_limit_seconds: 1,
            vmm: Vmm::Qemu,
            pace: Pace::USUAL,
            reports_stages: false,
            machine: MachineConfig {
                vmm_program: "/usr/bin/vmm".into(),
                accelerator: Accelerator::Tcg,
                vcpu_count: 1,
                mem_mib: 1024,
            },
            guest: GuestImage {
                digest: "kernel, modules and image".to_owned(),
                kernel: GuestKernel::WithModules {
                    image: "/env/vmlinuz".into(),
                    modules: "/env/modules.cpio".into(),
                },
                base_image: "/env/rootfs".into(),
                base_filesystem: "erofs".to_owned(),
                layer_template: "/layers/scratch-8192.img".into(),
            },
            artifacts_are_open: false,
            template_dir: Some("/templates".into()),
            network: false,
            network_policy: Policy::default(),
            host_settings: HostSettings::default(),
            purpose: Purpose::Vm,
            requires_full_confinement: false,
            ports: Vec::new(),
            mounts: Vec::new(),
            mount_sockets: MountSockets::default(),
            variables: Vec::new(),
        }
    }

    #[test]
    fn what_each_vm_has_for_itself_does_not_change_what_its_template_is_made_of() {
        let other = LaunchSpec {
            vm_id: "ba9876543210".to_owned(),
            dir: "/vms/ba9876543210".into(),
            expires_at: 1.0,
            purpose: Purpose::Spare,
            ..spec()
        };
        assert_eq!(other.subject(), spec().subject());
    }

    #[test]
    fn a_policy_counts_where_there_is_a_network() {
        let narrow = |network| {
            let allow_cidrs = vec!["192.0.2.0/24".parse().unwrap()];
            LaunchSpec { network, network_policy: Policy { allow_cidrs, ..Policy::default() }, ..spec() }
        };
        let open = LaunchSpec { network: true, ..spec() };
        assert!(narrow(true).has_network_of(&narrow(true)) && narrow(false).has_network_of(&spec()));
        assert!(!narrow(true).has_network_of(&open) && !open.has_network_of(&narrow(true)));
        assert!(!open.has_network_of(&spec()));
    }

    #[test]
    fn the_network_and_the_retention_change_what_its_template_is_made_of() {
        assert_ne!(LaunchSpec { network: true, ..spec() }.subject(), spec().subject());
        assert_ne!(LaunchSpec { retention: Retention::Lifetime, ..spec() }.subject(), spec().subject());
    }

    /// Supervisors and those who start them may be of different releases.
    #[test]
    fn the_serialised_form_is_stable() {
        let text = serde_json::to_value(spec()).unwrap();
        assert_eq!(
            text["machine"],
            serde_json::json!({
                "vmm_program": "/usr/bin/vmm", "accelerator": "tcg", "vcpu_count": 1, "mem_mib": 1024
            })
        );
        assert_eq!(text["guest"]["kernel"]["WithModules"]["image"], "/env/vmlinuz");
        assert_eq!(serde_json::from_value::<LaunchSpec>(text).unwrap(), spec());
    }
}
