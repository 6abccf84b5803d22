//! What is asked of a virtual machine monitor: a launch plan, as pure data.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::layer::LayerLifetime;
use crate::spec::Machine;

/// An engine that can run a [`Machine`]. Nothing above this crate may know which one it is.
pub trait Vmm {
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
    /// Rate of the time stamp counter in kHz, for a guest that cannot measure it itself.
    pub tsc_khz: Option<u32>,
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

/// A command line and the descriptors it expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchPlan {
    /// Executable.
    pub program: PathBuf,
    /// Arguments without the program's name.
    pub args: Vec<OsString>,
}

impl LaunchPlan {
    /// Descriptor of the guest channel, a connected stream socket, in the VMM process.
    pub const CHANNEL_FD: i32 = 3;
    /// Descriptor of the network's stream socket, where the plan has a network attachment.
    pub const NETWORK_FD: i32 = 4;
}
