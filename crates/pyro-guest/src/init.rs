//! PID 1: start the agent, reap everything, and end the machine when the agent ends.

use std::io;
use std::process::{Command, ExitCode};

use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

/// Why the machine ends, if not by an orderly exit of the agent.
#[derive(Debug, PartialEq, thiserror::Error)]
enum InitError {
    #[error("the agent exited with status {0}")]
    Exited(i32),
    #[error("the agent was killed by signal {0}")]
    Killed(i32),
    #[error("cannot wait for the agent: {0}")]
    Wait(Errno),
}

/// A child that was reaped.
struct Reaped {
    pid: u32,
    end: Result<(), InitError>,
}

/// Runs until the agent ends, then resets the machine; the host sees that as the VM's end.
pub(crate) fn run() -> ExitCode {
    match start_agent() {
        Err(error) => eprintln!("pyro-guest: cannot start the agent: {error}"),
        Ok(agent) => {
            if let Err(error) = reap_until_end_of(agent, reap_one) {
                eprintln!("pyro-guest: {error}");
            }
        }
    }
    // The VMM is started so that a reset ends it; a power-off would need ACPI.
    let _ = reboot(RebootCommand::Restart);
    ExitCode::FAILURE
}

/// The agent's PID. The initrd holds this program as `/init`; `/proc` is not mounted yet.
fn start_agent() -> io::Result<u32> {
    Ok(Command::new("/init").spawn()?.id())
}

fn reap_one() -> Result<Option<Reaped>, Errno> {
    let Some((pid, status)) = wait(WaitOptions::empty())? else { return Ok(None) };
    let end = match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(InitError::Exited(code)),
        (None, signal) => Err(InitError::Killed(signal.unwrap_or_default())),
    };
    Ok(Some(Reaped { pid: pid.as_raw_nonzero().get().unsigned_abs(), end }))
}

/// Reaps every child until the agent has ended.
fn reap_until_end_of(
    agent: u32,
    mut reap_one: impl FnMut() -> Result<Option<Reaped>, Errno>,
) -> Result<(), InitError> {
    loop {
        match reap_one() {
            Ok(Some(Reaped { pid, end })) if pid == agent => return end,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(InitError::Wait(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: u32 = 2;

    fn reaped(pid: u32, end: Result<(), InitError>) -> Result<Option<Reaped>, Errno> {
        Ok(Some(Reaped { pid, end }))
    }

    #[test]
    fn orphans_are_reaped_until_the_agent_ends() {
        let mut events = vec![
            reaped(9, Ok(())),
            Err(Errno::INTR),
            Ok(None),
            reaped(7, Err(InitError::Exited(1))),
            reaped(AGENT, Ok(())),
            reaped(5, Ok(())),
        ]
        .into_iter();
        assert_eq!(reap_until_end_of(AGENT, || events.next().unwrap()), Ok(()));
        assert_eq!(events.len(), 1, "nothing is waited for after the agent");
    }

    #[test]
    fn an_agent_that_fails_or_is_killed_is_reported() {
        let failed = reap_until_end_of(AGENT, || reaped(AGENT, Err(InitError::Exited(1))));
        assert_eq!(failed.unwrap_err().to_string(), "the agent exited with status 1");
        let killed = reap_until_end_of(AGENT, || reaped(AGENT, Err(InitError::Killed(9))));
        assert_eq!(killed.unwrap_err().to_string(), "the agent was killed by signal 9");
    }

    #[test]
    fn a_wait_that_fails_ends_the_machine() {
        let outcome = reap_until_end_of(AGENT, || Err(Errno::CHILD));
        assert_eq!(outcome, Err(InitError::Wait(Errno::CHILD)));
    }
}
