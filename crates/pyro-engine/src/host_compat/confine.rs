//! Resource limits of a host command's processes.
//!
//! The number of processes is not limited: `RLIMIT_NPROC` counts all processes of the user, so any value is either too
//! low for a busy desktop or has no effect.

use std::thread;
use std::time::Duration;

use pyro_machine::spawn::Spawn;
use rustix::process::Resource;

/// Maximum size of a file that a command writes.
const FILE_BYTES: u64 = 16 << 30;

/// Limits the processes of a command that would have had `mem_mib` in a VM and may take `time`.
pub(super) fn confine(command: Spawn, mem_mib: u32, time: Duration) -> Spawn {
    let cpus = thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    command
        .limit(Resource::Core, 0)
        .limit(Resource::Fsize, FILE_BYTES)
        // Reserved memory counts here, used or not: thread stacks and heaps of language runtimes. Hence the limit is
        // above the VM's memory. `RLIMIT_AS` is not an alternative: some runtimes reserve far more address space than
        // any host has memory.
        .limit(Resource::Data, u64::from(mem_mib).saturating_mul(4 << 20))
        // A second line of defence in case no process is left to enforce the time limit.
        .limit(Resource::Cpu, time.as_secs().saturating_add(1).saturating_mul(cpus))
}
