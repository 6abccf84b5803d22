//! Snapshots, which users know as templates: one machine of each kind, booted once and saved just before it gets an
//! identity.
//!
//! ```text
//! <dir>/<key>/memory         the guest's memory; clones map it copy on write
//!             state          the state of its devices
//!             layer.img      its writable layer at the same moment
//!             template.json  sizes, times, digests
//!       <key>.lock           held while it is made
//!       <key>.failed         why it cannot be made, for a while
//!       vmm-<digest>         what the platform remembers of itself
//! ```
//!
//! The key is a digest over everything that makes saved state unfit for another machine ([`key`]). A snapshot is
//! made under another name and renamed, so that it is whole or not there.

mod error;
mod key;
mod layout;
mod prune;
mod record;
mod store;
mod verify;

pub use error::SnapshotError;
pub use key::{Subject, key};
pub use prune::{prune, remove_all_of};
pub use record::Damage;
pub use store::{Begun, Partial, Snapshot, Store};
pub use verify::{Problem, Verified, verify};
