//! Who watches over a machine, and how to talk to its guest. The machine itself is `pyro-machine`'s.
//!
//! ```text
//!  caller ──start()──► supervisor process ──► machine (pyro-machine) ──► guest agent
//!     └── GuestClient ──► control socket ──────── yamux ───────────────┘
//!         CommandClient
//! ```
//!
//! A command goes through [`GuestClient`] if it ends with its caller, and through [`CommandClient`] if the supervisor is
//! to run and record it.
//!
//! A VM has exactly one owner, its supervisor process; the owner's death ends the VM. The supervisor knows
//! nothing about environments or registries: it gets a [`LaunchSpec`] with paths and limits.

mod commands;
mod copy;
mod guest;
mod mux;
pub mod spares;
mod spec;
pub mod supervisor;
pub mod template;

pub use commands::{CommandClient, RunError};
pub use copy::CopyError;
pub use guest::{
    Exec, ExecError, ExecOutcome, ExitStatus, FailureKind, GuestClient, OutputChunk, OutputStream,
    timeout_note,
};
pub use pyro_archive::{Report, destination};
pub use pyro_wire::{ArchiveLimits, Pack, Unpack, WORKSPACE};
pub use spec::{LaunchSpec, Purpose, Retention, Spares};
