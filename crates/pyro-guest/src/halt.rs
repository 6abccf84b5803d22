//! Ending the machine without losing what was written.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use pyro_wire::Failure;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::proc::Proc;
use crate::{root, swap};

/// Time that processes get between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// Processes that fork while they are being killed make another round necessary; this many are enough for
/// anything but a fork bomb, which a read-only root then stops from writing.
const KILL_ROUNDS: usize = 10;

/// Ends all processes but PID 1 and the agent. Blocks.
pub(crate) fn end_all_processes(proc: &Proc) {
    end_processes(|| user_processes(proc), GRACE);
}

/// Ends the processes that are left, writes everything out and makes the root read-only. Blocks: nothing else is left to do for this
/// machine.
pub(crate) fn halt(proc: &Proc) -> Result<(), Failure> {
    end_all_processes(proc);
    // Whatever becomes of the swap files, this is on the disk.
    rustix::fs::sync();
    swap::end_all(proc);
    rustix::fs::sync();
    root::seal()
}

/// Ends the processes that `list` returns, with SIGTERM first and SIGKILL after the grace, and again as long as there
/// are new ones. Returns the number of rounds after the first.
fn end_processes(mut list: impl FnMut() -> Vec<OwnedFd>, grace: Duration) -> usize {
    let processes = list();
    signal(&processes, Signal::TERM);
    wait_for_end(processes, Some(grace));
    for round in 0..KILL_ROUNDS {
        let processes = list();
        if processes.is_empty() {
            return round;
        }
        signal(&processes, Signal::KILL);
        wait_for_end(processes, None);
    }
    KILL_ROUNDS
}

fn signal(processes: &[OwnedFd], signal: Signal) {
    for process in processes {
        // The only failure is that it has ended by itself.
        let _ = pidfd_send_signal(process, signal);
    }
}

/// Returns when all have ended or the grace period has passed.
fn wait_for_end(mut processes: Vec<OwnedFd>, limit: Option<Duration>) {
    let start = Instant::now();
    while !processes.is_empty() {
        let remaining = limit.map(|limit| limit.saturating_sub(start.elapsed()));
        let timeout = remaining.and_then(|remaining| Timespec::try_from(remaining).ok());
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
fn user_processes(proc: &Proc) -> Vec<OwnedFd> {
    let pids = proc.processes().unwrap_or_default();
    to_be_ended(pids, std::process::id())
        .filter_map(|pid| pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok())
        .collect()
}

/// Which of the processes of a machine have to end before it does.
fn to_be_ended(pids: Vec<u32>, own: u32) -> impl Iterator<Item = u32> {
    pids.into_iter().filter(move |&pid| pid != 1 && pid != own)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A shell that has run `script` up to `echo ready`.
    fn start(script: &str) -> Child {
        let mut child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        child
    }

    fn pidfd(child: &Child) -> OwnedFd {
        pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap()
    }

    /// Lists those that have not been waited for and still run.
    fn running(children: &[&Child]) -> Vec<OwnedFd> {
        children
            .iter()
            .map(|child| pidfd(child))
            .filter(|fd| poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&Timespec::default())) == Ok(0))
            .collect()
    }

    #[test]
    fn a_process_may_end_in_its_own_way() {
        let mut child = start("trap 'exit 3' TERM; echo ready; read line");
        let rounds = end_processes(|| running(&[&child]), Duration::from_secs(100));
        assert_eq!(rounds, 0);
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }

    #[test]
    fn a_process_that_ignores_the_request_is_killed_after_its_grace() {
        let mut child = start("trap '' TERM; echo ready; read line");
        let rounds = end_processes(|| running(&[&child]), Duration::from_millis(1));
        assert_eq!(rounds, 1);
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn processes_that_appear_meanwhile_are_killed_too() {
        let (mut first, mut late) = (start("echo ready; read line"), start("echo ready; read line"));
        let mut lists = [vec![pidfd(&first)], vec![pidfd(&late)], Vec::new()].into_iter();
        let rounds = end_processes(|| lists.next().unwrap(), Duration::from_secs(100));
        assert_eq!(rounds, 1);
        assert_eq!(first.wait().unwrap().signal(), Some(15));
        assert_eq!(late.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn a_machine_that_never_runs_out_of_processes_is_given_up() {
        let mut children = Vec::new();
        let rounds = end_processes(
            || {
                children.push(start("echo ready; read line"));
                vec![pidfd(&children[children.len() - 1])]
            },
            Duration::from_secs(100),
        );
        assert_eq!((rounds, children.len()), (KILL_ROUNDS, KILL_ROUNDS + 1));
        for mut child in children {
            assert!(child.wait().unwrap().signal().is_some());
        }
    }

    #[test]
    fn init_and_the_agent_stay() {
        let ended: Vec<_> = to_be_ended(vec![1, 30, 31, 32], 30).collect();
        assert_eq!(ended, [31, 32]);
    }
}
