//! PID 1: start the agent, reap everything, and end the machine when the agent ends.

use std::process::{Command, ExitCode};

use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

/// Runs until the agent ends, then resets the machine; the host sees that as the VM's end.
pub(crate) fn run() -> ExitCode {
    if let Err(error) = supervise_agent() {
        eprintln!("pyro-guest: {error}");
    }
    // The VMM is started so that a reset ends it; a power-off would need ACPI.
    let _ = reboot(RebootCommand::Restart);
    ExitCode::FAILURE
}

fn supervise_agent() -> Result<(), String> {
    // The initrd holds this program as /init; /proc is not mounted yet.
    let agent = Command::new("/init").spawn().map_err(|error| format!("cannot start the agent: {error}"))?;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get().unsigned_abs() == agent.id() => {
                return match status.exit_status() {
                    Some(0) => Ok(()),
                    _ => Err(format!("the agent ended: {status:?}")),
                };
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("cannot wait for the agent: {error}")),
        }
    }
}
