//! What a host command's process is bound by.
//!
//! The number of processes has no limit of its own: `RLIMIT_NPROC` counts all processes of the user, so
//! any value is either too low for a busy desktop or no limit at all.

#![expect(unsafe_code, reason = "code between fork and exec cannot be set up in another way")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::{
    Pid, Resource, Rlimit, Signal, getpid, getppid, getrlimit, set_parent_process_death_signal, setrlimit,
};

/// Largest file a command may write.
const FILE_BYTES: u64 = 16 << 30;

/// Limits of one process of a command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    values: [(Resource, u64); 4],
}

impl Limits {
    /// Limits for a command that would have had `mem_mib` in a VM and may take `time`.
    pub(super) fn new(mem_mib: u32, time: Duration) -> Self {
        let cpus = thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
        Self {
            values: [
                (Resource::Core, 0),
                (Resource::Fsize, FILE_BYTES),
                // Memory that is set aside counts here, whether used or not: stacks of threads and heaps of
                // language runtimes. Hence more than the VM's memory. `RLIMIT_AS` is no alternative, since
                // some runtimes reserve far more addresses than any host has memory.
                (Resource::Data, u64::from(mem_mib).saturating_mul(4 << 20)),
                // A second line of defence for the case that nobody is left to enforce the time limit.
                (Resource::Cpu, time.as_secs().saturating_add(1).saturating_mul(cpus)),
            ],
        }
    }

    /// Makes the process that `command` starts impose these limits on itself, and die with this thread
    /// (the kernel watches the thread that starts it, which in practice is as old as the process).
    pub(super) fn impose(self, command: &mut Command) {
        let parent = getpid();
        // SAFETY: the closure runs between fork and exec and only makes system calls on values it owns.
        // It allocates nothing and takes no lock.
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
            // Nobody may raise a limit, and lowering the lower one needs no right.
            let allowed = getrlimit(resource).maximum.map_or(wanted, |maximum| maximum.min(wanted));
            setrlimit(resource, Rlimit { current: Some(allowed), maximum: Some(allowed) })?;
        }
        Ok(())
    }
}
