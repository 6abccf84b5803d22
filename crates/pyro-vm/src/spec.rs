//! What a VM is made of, as plain data.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Accelerator;
use crate::layer::LayerLifetime;

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
    /// The VM was never up, and nobody is to find it if this start is not completed.
    pub is_new: bool,
    /// Locked, shared, as long as the VM lives: what it is made of may not be removed meanwhile. Absent: nothing to lock.
    pub in_use_lock: Option<PathBuf>,
    /// Wall-clock time, in seconds since the epoch, at which the VM ends.
    pub expires_at: f64,
    /// Longest time from starting the VMM to the guest's readiness, in seconds.
    pub boot_limit_seconds: u64,
    /// The hardware.
    pub machine: Machine,
    /// What runs on it.
    pub guest: GuestImage,
    /// Start from a template kept in this directory, which is made when needed. Absent: boot the kernel.
    pub template_dir: Option<PathBuf>,
    /// Where VMs of this kind wait to be claimed, and how many there are to be once this one has started.
    pub spares: Spares,
    /// What is started.
    pub purpose: Purpose,
    /// Give the guest a network interface with a way out.
    pub network: bool,
}

impl LaunchSpec {
    pub(crate) fn layer_lifetime(&self) -> LayerLifetime {
        LayerLifetime::of(self.retention)
    }
}

/// How long a VM and its files are kept, unless someone deletes them earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Retention {
    /// As long as the process that started it lives.
    Caller,
    /// Until its lifetime is over. A VM that stops earlier keeps its layer for another start.
    Lifetime,
    /// Until it is deleted. The end of its lifetime only stops it.
    Deletion,
}

/// What a supervisor is started for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A VM that somebody wants.
    #[default]
    Vm,
    /// A VM that waits until somebody wants it.
    Spare,
    /// No VM, but the template from which others start.
    Template,
}

/// VMs that are started before they are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Spares {
    /// Directory of all spares, of whatever kind.
    pub dir: PathBuf,
    /// How many of this kind shall wait once this VM has started. 0: no more are started.
    pub wanted: u32,
    /// How many of whatever kind there may be.
    pub room: u32,
    /// How long one that is started now waits, in seconds.
    pub idle_seconds: u32,
}

/// Virtual hardware.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// The VMM's executable.
    pub vmm_program: PathBuf,
    /// How guest code is executed.
    #[schemars(with = "String")]
    pub accelerator: Accelerator,
    /// Virtual CPUs.
    pub vcpu_count: u32,
    /// Guest memory in MiB.
    pub mem_mib: u32,
}

/// Files that make up a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuestImage {
    /// Equal for equal base images and kernels with modules, and only then.
    pub digest: String,
    /// What boots.
    pub kernel: GuestKernel,
    /// Read-only base image, shared by all VMs of the environment.
    pub base_image: PathBuf,
    /// Filesystem type of the base image as the guest kernel names it.
    pub base_filesystem: String,
    /// Pre-made empty ext4 image that is copied, sparsely, as the VM's writable layer.
    pub layer_template: PathBuf,
}

/// The kernel of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GuestKernel {
    /// One that needs modules to find its disks and its host. [`GuestImage::digest`] covers both.
    WithModules {
        /// Kernel image.
        image: PathBuf,
        /// cpio archive with the kernel modules in load order.
        modules: PathBuf,
    },
    /// One that has all it needs built in. No digest covers it: whether it is still the same file is looked at.
    SelfContained {
        /// Kernel image.
        image: PathBuf,
    },
}

impl GuestKernel {
    /// Kernel image.
    pub fn image(&self) -> &Path {
        match self {
            Self::WithModules { image, .. } | Self::SelfContained { image } => image,
        }
    }

    pub(crate) fn modules(&self) -> Option<&Path> {
        match self {
            Self::WithModules { modules, .. } => Some(modules),
            Self::SelfContained { .. } => None,
        }
    }
}
