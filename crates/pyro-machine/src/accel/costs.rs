//! What the probe measures.

use serde::{Deserialize, Serialize};

/// What guests pay for on this host, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// One iteration of a loop of two instructions in a process of the host.
    pub host_loop_ns: f64,
    /// The same in a guest's kernel.
    pub loop_ns: f64,
    /// A change of a page table in a guest's kernel: the entry is written and flushed, its page is read, and all other
    /// entries are flushed as by a change to another process.
    pub paging_ns: f64,
    /// The first access to a page of a guest's memory.
    pub fault_ns: f64,
    /// An access to a device that the virtual machine monitor provides.
    pub exit_ns: f64,
}

impl Costs {
    /// Combines each figure of one sample with that of another.
    fn zip(self, other: Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            host_loop_ns: combine(self.host_loop_ns, other.host_loop_ns),
            loop_ns: combine(self.loop_ns, other.loop_ns),
            paging_ns: combine(self.paging_ns, other.paging_ns),
            fault_ns: combine(self.fault_ns, other.fault_ns),
            exit_ns: combine(self.exit_ns, other.exit_ns),
        }
    }
}

/// The probe's result: samples that were taken one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// At least one.
    pub samples: Vec<Costs>,
}

impl Measurement {
    /// Returns the lowest of each figure: what it costs while no other process interrupts the probe. `None`: there are no
    /// samples.
    pub fn best(&self) -> Option<Costs> {
        self.samples.iter().copied().reduce(|best, sample| best.zip(sample, f64::min))
    }
}
