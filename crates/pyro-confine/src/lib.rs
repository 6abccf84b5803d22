//! Starts programs that must not be trusted, and confines the process that calls it.
//!
//! ```text
//! Policy (files, identity, limits, system calls) ──► start ──► Process, and Confinement: what was reached
//!                                                └─► confine_self ──► Confinement
//! ```
//!
//! Each layer stands for itself: one that the host cannot give is left out and named in [`Confinement`], and the others
//! stay. `docs/design/0018-confinement.md` says which layers there are and why. Knows nothing about what it starts.

mod cgroup;
mod child;
mod identity;
mod itself;
mod landlock;
mod layers;
mod plan;
mod policy;
mod process;
mod seccomp;
mod start;

pub use cgroup::{Group, GroupError, GroupLimits};
pub use identity::Identity;
pub use itself::{SelfPolicy, confine_self, harden_supervisor, restrict_running_supervisor};
pub use layers::{Confinement, Layer, SelfConfinement};
pub use policy::{Access, Limit, Policy, Visible};
pub use process::Process;
pub use seccomp::{Condition, Syscalls};
pub use start::{Program, StartError, Started, start, start_in};

pub use rustix::process::Resource;
