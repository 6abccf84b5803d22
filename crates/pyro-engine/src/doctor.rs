//! What this host can do, and what to change if it cannot.
//!
//! There are three steps, so that tests on one host can cover every kind of host: gathering facts changes nothing and
//! judges nothing, judging is pure, and the report is plain data of the contract.

mod deep;
mod facts;
mod judge;

pub use deep::{DeepCheck, DeepReport, DeepSubject};
pub(crate) use facts::HostFacts;
pub(crate) use judge::judge;
pub use pyro_api::doctor::{
    AcceleratorReport, BuildReport, Capabilities, ConfinementLayer, ConfinementReport, DiskReport,
    DoctorReport, GuestKernelReport, KvmCosts, KvmReport, NetworkingReport, Remedy, RootlessReport,
    RuntimeReport, VmmReport,
};
