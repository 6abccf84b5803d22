//! The process that owns one machine, and its clients. The machine itself is `pyro-machine`'s.
//!
//! It is the parent of the VMM, the only holder of the guest channel, and the one that ends the VM: when asked,
//! when its time is over, when the process it is bound to goes away, or when the VMM dies by itself. On every
//! way out it removes what it made. Its own death takes the VMM with it (the kernel sees to that), and releases
//! the lock by which others notice.
//!
//! ```text
//!  starter                      supervisor
//!    │ spawn; stdin = lifeline,      │
//!    │ stdout = locked file          │
//!    │ Hello, LaunchSpec ──────────► │
//!    │ ◄─────────────────────  Hello │ disks, machine, guest
//!    │ ◄──────────── Booted | Failed │
//!    │                               │ serves control.sock
//!    │ ◄────────────────────── Ended │ last words, after everything is cleaned up
//! ```
//!
//! The supervisor knows nothing about environments or registries: it gets a [`LaunchSpec`] with paths and limits, and
//! records what happens through a [`Store`]. [`Client`] is the only client.

mod client;
mod conversation;
mod dir;
pub mod files;
mod machine;
mod mux;
mod protocol;
mod report;
mod server;
pub mod spares;
mod spec;
mod stages;
pub mod template;

pub use client::{
    Client, ConnectError, CopyError, EndError, EndRequest, Ended, Lifeline, Ran, Run, RunError, StartError,
    claim, make_template, start,
};
pub use conversation::{CommandEnd, CommandOutcome, OutputChunk, timeout_note};
pub use dir::{Owner, OwnerLock, Phase};
pub use protocol::{GENERATION, Greeting};
pub use pyro_archive::{Report, destination};
pub use pyro_wire::{
    ArchiveLimits, Exec, FailureKind, OutputStream, Pack, Status as ExitStatus, Unpack, WORKSPACE,
};
pub use report::{BootFailure, BootInfo, BootStage, EndReason, StageTime, StartMode};
pub use server::{CommandLog, STREAM_LIMIT, Store, StoreError, file_name, room, run};
pub use spec::{LaunchSpec, Purpose, Retention, Spares};

/// Entrances for the fuzz targets, there in their builds only.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    use crate::protocol::{Legacy, Request};

    /// Reads a message as what a client may send, of this version or an older one.
    pub fn client(message: &serde_json::Value) {
        let _ = serde_json::from_value::<Request>(message.clone());
        let _ = serde_json::from_value::<Legacy>(message.clone()).map(Legacy::modern);
    }
}
