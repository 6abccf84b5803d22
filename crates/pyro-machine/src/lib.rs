//! One sandboxed machine: what it consists of, and how to start, save and end it. Knows nothing about the process that
//! owns a machine, registries or environments: it gets paths and limits.
//!
//! ```text
//!  MachineConfig, GuestImage ──► Platform::launch ──► Machine ──take_channel──► byte stream to the guest agent
//!                                   │                   │ exited, kill, save, restore
//!                       qemu/, firecracker/, or fake   Console, NetworkDescription
//! ```
//!
//! Which [`Platform`] runs a machine is decided once, by the code that creates one; everything above is generic over
//! it.

pub mod accel;
mod artifact;
mod channel;
mod console;
pub mod disk;
pub mod event_fd;
mod exit;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
#[cfg(test)]
mod fake_program;
pub mod file_lock;
mod files;
mod firecracker;
mod hardware;
mod image;
pub mod initrd;
mod meter;
pub mod network;
mod platform;
mod qemu;
pub mod snapshot;
pub mod spawn;

pub use accel::Accelerator;
pub use artifact::Artifact;
pub use channel::Channel;
pub use console::{Console, ConsoleError};
pub use exit::{Exit, Interrupted, Interruption};
pub use firecracker::{Firecracker, FirecrackerMachine};
pub use hardware::{Disks, Hardware, Launch, MachineConfig, SavedFiles, Start, Vmm};
pub use image::{GuestImage, GuestKernel};
pub use meter::{Meter, Usage};
pub use platform::{
    CACHED_FINGERPRINT_PREFIX, Capabilities, Fingerprint, FingerprintError, LaunchError, Machine,
    MachineError, Platform, while_alive,
};
pub use pyro_confine::{Confinement, Layer};
pub use qemu::{Qemu, QemuMachine, probe_confinement};

/// Entry points for the fuzz targets, present only in their builds.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    /// Has a VMM answer the commands of a snapshot with these bytes.
    pub async fn vmm_answers(bytes: Vec<u8>) {
        crate::qemu::converse(bytes).await;
    }
}
