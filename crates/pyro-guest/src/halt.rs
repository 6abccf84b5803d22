//! Ending the machine without losing what was written.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::fault::Fault;
use crate::root;

/// Time that processes get between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// Processes that fork while they are being killed make another round necessary; this many are enough for
/// anything but a fork bomb, which a read-only root then stops from writing.
const KILL_ROUNDS: usize = 10;

/// Ends all processes but PID 1 and the agent, writes everything out and makes the root read-only. Blocks:
/// nothing else is left to do for this machine.
pub(crate) fn halt() -> Result<(), Fault> {
    let processes = user_processes();
    signal(&processes, Signal::TERM);
    wait_for_end(processes, Some(GRACE));
    for _ in 0..KILL_ROUNDS {
        let processes = user_processes();
        if processes.is_empty() {
            break;
        }
        signal(&processes, Signal::KILL);
        wait_for_end(processes, None);
    }
    rustix::fs::sync();
    root::seal()
}

fn signal(processes: &[OwnedFd], signal: Signal) {
    for process in processes {
        // The only failure is that it has ended by itself.
        let _ = pidfd_send_signal(process, signal);
    }
}

/// Returns when all have ended or the time is over.
fn wait_for_end(mut processes: Vec<OwnedFd>, limit: Option<Duration>) {
    let start = Instant::now();
    while !processes.is_empty() {
        let left = limit.map(|limit| limit.saturating_sub(start.elapsed()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        // A pidfd becomes readable when its process ends.
        let mut polled: Vec<_> = processes.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match poll(&mut polled, timeout.as_ref()) {
            Ok(0) => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        let mut ended = polled.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>().into_iter();
        processes.retain(|_| !ended.next().unwrap_or(true));
    }
}

/// Every process of user space except PID 1 and this one.
fn user_processes() -> Vec<OwnedFd> {
    let own = std::process::id();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&pid| pid != 1 && pid != own)
        // Kernel threads and zombies have no executable.
        .filter(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok())
        .filter_map(|pid| pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok())
        .collect()
}
