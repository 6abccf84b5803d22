//! What this host can do, and what to change if it cannot.
//!
//! Three steps, so that every kind of host can be tested on one: looking at the host changes nothing
//! and judges nothing, judging is pure, and the report is plain data.

mod facts;
mod judge;
mod report;

pub(crate) use facts::HostFacts;
pub(crate) use judge::judge;
pub use report::{
    AcceleratorReport, BuildReport, Capabilities, DiskReport, DoctorReport, GuestKernelReport, KvmReport,
    NetworkingReport, Remedy, RootlessReport, RuntimeReport, VmmReport,
};
