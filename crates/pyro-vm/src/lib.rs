//! Who watches over a machine, and how to talk to its guest. The machine itself is `pyro-machine`'s.
//!
//! ```text
//!  caller ──start()──► supervisor process ──► machine (pyro-machine) ──► guest agent
//!     └── supervisor::Client ─► control socket ─── yamux ─────────────────┘
//! ```
//!
//! A VM has exactly one owner, its supervisor process; the owner's death ends the VM. The supervisor knows
//! nothing about environments or registries: it gets a [`LaunchSpec`] with paths and limits.

mod mux;
pub mod spares;
mod spec;
pub mod supervisor;
pub mod template;

pub use pyro_archive::{Report, destination};
pub use pyro_wire::{
    ArchiveLimits, Exec, FailureKind, OutputStream, Pack, Status as ExitStatus, Unpack, WORKSPACE,
};
pub use spec::{LaunchSpec, Purpose, Retention, Spares};
pub use supervisor::{Client, OutputChunk, timeout_note};
