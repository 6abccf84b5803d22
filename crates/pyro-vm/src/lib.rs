//! One microVM: what it is made of, how it is started, who watches it, and how to talk to its guest.
//!
//! ```text
//!  caller ──start()──► supervisor process ──► VMM process (QEMU) ──► guest agent
//!     └── GuestClient ──► control socket ──────── yamux ───────────────┘
//!         CommandClient
//! ```
//!
//! A command goes through [`GuestClient`] if it ends with its caller, and through [`CommandClient`] if the supervisor is
//! to run and record it.
//!
//! A VM has exactly one owner, its supervisor process; the owner's death ends the VM. The supervisor knows
//! nothing about environments or registries: it gets a [`LaunchSpec`] with paths and limits.

pub mod accel;
mod agent;
mod commands;
mod console;
mod copy;
mod guest;
mod hex;
mod initrd;
mod layer;
mod mux;
mod network;
mod process;
mod qemu;
mod qmp;
pub mod spares;
mod spec;
pub mod supervisor;
pub mod template;
mod tsc;
mod vmm;

pub use accel::Accelerator;
pub use commands::{CommandClient, RunError};
pub use copy::CopyError;
pub use guest::{
    Exec, ExecError, ExecOutcome, ExitStatus, FailureKind, GuestClient, OutputChunk, OutputStream,
    timeout_note,
};
pub use layer::{LayerError, LayerLifetime, LayerTemplates};
pub use pyro_archive::{Report, destination};
pub use pyro_wire::{ArchiveLimits, Pack, Unpack, WORKSPACE};
pub use qemu::Qemu;
pub use spec::{GuestImage, GuestKernel, LaunchSpec, Machine, Purpose, Retention, Spares};
pub use vmm::{Disks, Hardware, LaunchPlan, NetworkAttachment, Start, Vmm};

/// Name of the channel between host and guest, as payloads report it.
pub const CHANNEL: &str = "virtio-serial";
