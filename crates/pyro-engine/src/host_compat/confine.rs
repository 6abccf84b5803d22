//! Resource limits of a host command's processes.
//!
//! The number of processes is not limited: `RLIMIT_NPROC` counts all processes of the user, so any value is either too
//! low for a busy desktop or has no effect.

#![expect(unsafe_code, reason = "code between fork and exec cannot be set up in another way")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::{
    Pid, Resource, Rlimit, Signal, getpid, getppid, getrlimit, set_parent_process_death_signal, setrlimit,
};

/// Maximum size of a file that a command writes.
const FILE_BYTES: u64 = 16 << 30;

/// Resource limits of one process of a command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    values: [(Resource, u64); 4],
}

impl Limits {
    /// Returns the limits for a command that would have had `mem_mib` in a VM and may take `time`.
    pub(super) fn new(mem_mib: u32, time: Duration) -> Self {
        let cpus = thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
        Self {
            values: [
                (Resource::Core, 0),
                (Resource::Fsize, FILE_BYTES),
                // Reserved memory counts here, used or not: thread stacks and heaps of language runtimes. Hence the
                // limit is above the VM's memory. `RLIMIT_AS` is not an alternative: some runtimes reserve far more
                // address space than any host has memory.
                (Resource::Data, u64::from(mem_mib).saturating_mul(4 << 20)),
                // A second line of defence in case no process is left to enforce the time limit.
                (Resource::Cpu, time.as_secs().saturating_add(1).saturating_mul(cpus)),
            ],
        }
    }

    /// Makes the process that `command` starts apply these limits to itself and die with this thread. (The kernel
    /// watches the thread that starts the process; in practice, that thread lives as long as this process.)
    pub(super) fn impose(self, command: &mut Command) {
        let parent = getpid();
        // SAFETY: the closure runs between fork and exec and only makes system calls on values it owns. It does not
        // allocate or take a lock.
        unsafe {
            command.pre_exec(move || self.enter(parent));
        }
    }

    fn enter(self, parent: Pid) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the line above.
        if getppid() != Some(parent) {
            return Err(io::Error::from(rustix::io::Errno::SRCH));
        }
        for (resource, wanted) in self.values {
            // Raising a maximum is not permitted, and lowering the current limit needs no privilege.
            let allowed = getrlimit(resource).maximum.map_or(wanted, |maximum| maximum.min(wanted));
            setrlimit(resource, Rlimit { current: Some(allowed), maximum: Some(allowed) })?;
        }
        Ok(())
    }
}
