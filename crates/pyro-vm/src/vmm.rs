//! What is asked of a virtual machine monitor: a launch plan, as pure data.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::layer::LayerLifetime;
use crate::spec::Machine;

/// An engine that can run a [`Machine`]. Nothing above this crate may know which one it is.
pub trait Vmm: Sync {
    /// Decides how to start the machine; touches nothing.
    fn plan(&self, hardware: &Hardware) -> LaunchPlan;
}

/// A machine with everything that is plugged into it.
#[derive(Clone, Debug)]
pub struct Hardware {
    /// Processors and memory.
    pub machine: Machine,
    /// What it boots from.
    pub disks: Disks,
    /// Its network interface, if it has one.
    pub network: Option<NetworkAttachment>,
    /// Where it starts from.
    pub start: Start,
}

/// Where a machine starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Its kernel.
    Kernel {
        /// Rate of the time stamp counter in kHz, for a guest that cannot measure it itself.
        tsc_khz: Option<u32>,
        /// Keep the guest's memory in this file, so that it can be saved as a template.
        memory: Option<PathBuf>,
    },
    /// A template: the guest's memory is mapped from this file, copy on write; the state of its devices is
    /// loaded through the control connection.
    Template {
        /// The template's memory.
        memory: PathBuf,
    },
}

impl Start {
    /// The file that holds the guest's memory, if it is in one.
    pub fn memory(&self) -> Option<&PathBuf> {
        match self {
            Self::Kernel { memory, .. } => memory.as_ref(),
            Self::Template { memory } => Some(memory),
        }
    }

    /// Whether the machine is told what to do through the control connection.
    pub fn needs_control(&self) -> bool {
        !matches!(self, Self::Kernel { memory: None, .. })
    }
}

/// Files the machine is started from.
#[derive(Clone, Debug)]
pub struct Disks {
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial ramdisk.
    pub initrd: PathBuf,
    /// Read-only base image.
    pub base_image: PathBuf,
    /// Private writable layer.
    pub layer: PathBuf,
    /// Whether what the guest flushes to the layer must reach the host's disk.
    pub layer_lifetime: LayerLifetime,
}

/// How the guest's network interface is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkAttachment {
    /// Hardware address of the guest's interface.
    pub mac_address: String,
}

impl Default for NetworkAttachment {
    /// A locally administered address. All guests have the same: no two share a link.
    fn default() -> Self {
        Self { mac_address: "52:54:00:70:79:72".to_owned() }
    }
}

/// A command line and the descriptors it expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchPlan {
    /// Executable.
    pub program: PathBuf,
    /// Arguments without the program's name.
    pub args: Vec<OsString>,
    /// Whether its memory may be in huge pages.
    pub huge_pages: bool,
}

impl LaunchPlan {
    /// Descriptor of the guest channel, a connected stream socket, in the VMM process.
    pub const CHANNEL_FD: i32 = 3;
    /// Descriptor of the network's stream socket, where the plan has a network attachment.
    pub const NETWORK_FD: i32 = 4;
    /// Descriptor of the VMM's control connection, a stream socket, where [`Start::needs_control`].
    pub const CONTROL_FD: i32 = 5;
}
