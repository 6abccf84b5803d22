//! What a machine consists of, as plain data.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::accel::Accelerator;
use crate::artifact::Artifact;
use crate::console::Console;
use crate::disk::LayerLifetime;
use crate::network::{Network, NetworkInterface};

/// The virtual machine monitor that runs a machine: which platform it is a machine of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vmm {
    /// [`Qemu`](crate::Qemu).
    #[default]
    Qemu,
    /// [`Firecracker`](crate::Firecracker).
    Firecracker,
}

impl Vmm {
    /// Returns its name, as settings and payloads have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Firecracker => "firecracker",
        }
    }

    /// Returns the one with this name.
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::Qemu, Self::Firecracker].into_iter().find(|vmm| vmm.name() == name)
    }

    /// Returns the name of the channel between host and guest, as payloads report it.
    pub fn channel(self) -> &'static str {
        match self {
            Self::Qemu => "virtio-serial",
            Self::Firecracker => "vsock",
        }
    }
}

/// Size of a machine, and what executes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Executable of the virtual machine monitor.
    pub vmm_program: PathBuf,
    /// How guest code is executed.
    pub accelerator: Accelerator,
    /// Virtual CPUs.
    pub vcpu_count: u32,
    /// Guest memory in MiB.
    pub mem_mib: u32,
}

/// The properties that interchangeable machines share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// Processors and memory.
    pub config: MachineConfig,
    /// Whether what the guest flushes to its layer must reach the host's disk.
    pub layer_lifetime: LayerLifetime,
    /// The network interface, if there is one.
    pub interface: Option<NetworkInterface>,
}

/// Everything that one machine is started with.
#[derive(Debug)]
pub struct Launch {
    /// The properties that the machine shares with others of its kind.
    pub hardware: Hardware,
    /// Its files.
    pub disks: Disks,
    /// What carries its packets, if it has a network interface.
    pub network: Option<Network>,
    /// What it starts from.
    pub start: Start,
    /// Receives the machine's output.
    pub console: Console,
    /// Start it only if everything that confines what runs it can be had on this host.
    pub requires_full_confinement: bool,
}

/// Files that a machine is started from. The platform creates none of them.
#[derive(Clone, Debug)]
pub struct Disks {
    /// Kernel image.
    pub kernel: Artifact,
    /// Initial ramdisk.
    pub initrd: PathBuf,
    /// Read-only base image.
    pub base_image: Artifact,
    /// Private writable layer.
    pub layer: PathBuf,
}

/// The files of a saved machine, apart from its disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedFiles {
    /// The guest's memory.
    pub memory: Artifact,
    /// The state of the devices.
    pub state: Artifact,
}

/// What a machine starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Its kernel.
    Kernel {
        /// Keep the guest's memory in a file, so that the machine can be saved in these, which the platform creates.
        save_in: Option<SavedFiles>,
    },
    /// Saved state: the guest's memory is mapped from its file, copy on write. The machine waits for
    /// [`Machine::restore`](crate::Machine::restore).
    Saved {
        /// The machine that was saved.
        files: SavedFiles,
    },
}

impl Start {
    /// Returns the files of the saved machine, if it is saved or can be.
    pub fn saved_files(&self) -> Option<&SavedFiles> {
        match self {
            Self::Kernel { save_in } => save_in.as_ref(),
            Self::Saved { files } => Some(files),
        }
    }

    /// Returns the file that holds the guest's memory, if it is in one.
    pub fn memory(&self) -> Option<&Path> {
        self.saved_files().map(|files| files.memory.path())
    }
}
