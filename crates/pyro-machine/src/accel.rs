//! How guest code is executed on this host.
//!
//! The existence of `/dev/kvm` proves nothing: in nested clouds it may emulate a guest's kernel instruction by
//! instruction, and no stock kernel boots in reasonable time. So pyro measures it, once per host boot, with a short
//! counted loop ([`measure`]).

mod cache;
mod choose;
mod kvm;
mod verdict;

pub use choose::{choose, probe};
pub use kvm::{MeasureError, Measurement, measure};
pub use verdict::{Accelerator, UnknownAccelerator, Verdict};
