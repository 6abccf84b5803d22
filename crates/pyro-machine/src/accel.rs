//! How guest code is executed on this host.
//!
//! The existence of `/dev/kvm` proves nothing: in nested clouds it may emulate a guest's kernel instruction by
//! instruction, and no stock kernel boots in reasonable time. So pyro measures it, once per host boot ([`measure`]), and
//! uses KVM where the work of a guest takes less time than under emulation. See `docs/design/0031-kvm.md`.

mod cache;
mod choose;
mod costs;
mod guest;
mod judge;
mod probe;
mod processor;
mod verdict;

pub use choose::choose;
pub use costs::{Costs, Measurement};
pub use guest::MeasureError;
pub use probe::{measure, probe};
pub(crate) use processor::processor;
pub use verdict::{Accelerator, UnknownAccelerator, Verdict};
