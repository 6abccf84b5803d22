//! What this host can do, and what to change if it cannot.
//!
//! Three steps, so that every kind of host can be tested on one: looking at the host changes nothing
//! and judges nothing, judging is pure, and the report is plain data of the contract.

mod facts;
mod judge;

pub(crate) use facts::HostFacts;
pub(crate) use judge::judge;
pub use pyro_api::doctor::{
    AcceleratorReport, BuildReport, Capabilities, DiskReport, DoctorReport, GuestKernelReport, KvmReport,
    NetworkingReport, Remedy, RootlessReport, RuntimeReport, VmmReport,
};
