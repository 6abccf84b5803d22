//! Exit codes as the contract gives them, in results and in the journal.

use pyro_supervisor::{CommandEnd, ExitStatus};

/// Exit code of a command that reached its time limit.
const TIMED_OUT: i64 = 124;

/// Exit code of a command that was killed and whose status is not known.
const KILLED: i64 = -9;

/// Returns the exit code of a command: −S after signal S, 124 after the time limit.
pub(crate) fn exit_code(end: &CommandEnd) -> i64 {
    match end.status {
        _ if end.timed_out => TIMED_OUT,
        Some(status) => code_of(status),
        // The guest did not answer; its supervisor asked it to kill the command.
        None => KILLED,
    }
}

/// Returns the code of a status: −S after signal S.
pub(crate) fn code_of(status: ExitStatus) -> i64 {
    match status {
        ExitStatus::Code(code) => code.into(),
        ExitStatus::Signal(signal) => -i64::from(signal),
    }
}

/// Returns the status that has this exit code; `None` if it is beyond what a process can return.
pub(crate) fn status(exit_code: i64) -> Option<ExitStatus> {
    match i32::try_from(exit_code).ok()? {
        code @ 0.. => Some(ExitStatus::Code(code)),
        signal => signal.checked_neg().map(ExitStatus::Signal),
    }
}

/// Returns how long a command ran, in milliseconds.
pub(crate) fn duration_ms(end: &CommandEnd) -> u64 {
    u64::try_from(end.duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ended(status: Option<ExitStatus>) -> CommandEnd {
        CommandEnd {
            status,
            timed_out: false,
            killed: false,
            duration: Duration::ZERO,
            stdout_dropped: 0,
            stderr_dropped: 0,
        }
    }

    #[test]
    fn a_status_and_its_code_are_the_same() {
        for code in -64..=255 {
            assert_eq!(exit_code(&ended(status(code))), code);
        }
        assert_eq!(status(i64::MAX), None);
        assert_eq!(status(i32::MIN.into()), None);
    }

    #[test]
    fn a_limit_and_a_kill_have_codes_of_their_own() {
        assert_eq!(exit_code(&ended(None)), -9);
        let late = CommandEnd { timed_out: true, ..ended(Some(ExitStatus::Code(0))) };
        assert_eq!(exit_code(&late), 124);
    }
}
