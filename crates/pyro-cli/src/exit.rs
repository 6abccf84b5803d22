//! The exit status of `pyro`. Part of the public contract.

use std::process::ExitCode;

use crate::signals::Signal;

/// What a person can do about a command that timed out.
const MORE_TIME: &str = "[timeout] the command was ended after its time limit; to give it more time, run it with a larger --timeout-seconds";

/// How `pyro` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: done.
    Success,
    /// 1: pyro itself failed; the message is on stderr, or on stdout with `--json`.
    Failure,
    /// 2: the command line is invalid, whichever layer noticed it.
    Usage,
    /// 124: the guest command exceeded `--timeout-seconds`.
    TimedOut,
    /// 129, 130 or 143: pyro was asked to stop by SIGHUP, SIGINT (Ctrl-C) or SIGTERM, and cleaned up.
    Stopped(Signal),
    /// 141: the reader of stdout closed it, as if SIGPIPE had ended pyro.
    BrokenPipe,
    /// 0 to 255: the guest command ended with this status, or was ended by signal S (256 − S).
    Command(u8),
}

impl Exit {
    /// Returns the status for the `exit_code` of a run: N unchanged, −S (a signal) as 256 − S.
    ///
    /// A code that does not fit into a byte cannot come from a process, and must not look like success.
    pub(crate) fn of_run(exit_code: i64, timed_out: bool) -> Self {
        if timed_out {
            return Self::TimedOut;
        }
        let byte = if (-255..0).contains(&exit_code) { 256 + exit_code } else { exit_code };
        Self::Command(u8::try_from(byte).unwrap_or(u8::MAX))
    }

    /// Returns a line for a person about this end, if there is something to say.
    pub(crate) fn advice(self) -> Option<&'static str> {
        (self == Self::TimedOut).then_some(MORE_TIME)
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::TimedOut => 124,
            Self::Stopped(signal) => 128 + signal.number(),
            Self::BrokenPipe => 141,
            Self::Command(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_status_of_a_command_is_passed_on() {
        for code in 0..=255u8 {
            assert_eq!(Exit::of_run(code.into(), false).code(), code);
        }
    }

    #[test]
    fn a_signal_is_counted_down_from_256() {
        assert_eq!(Exit::of_run(-9, false).code(), 247);
        for signal in 1..=64i64 {
            assert_eq!(i64::from(Exit::of_run(-signal, false).code()), 256 - signal);
        }
    }

    #[test]
    fn impossible_codes_never_read_as_success() {
        for code in [256, 512, 1 << 40, i64::MAX, -256, -257, -512, i64::MIN] {
            assert_eq!(Exit::of_run(code, false).code(), 255, "{code}");
        }
    }

    #[test]
    fn only_a_time_out_needs_advice() {
        assert!(Exit::of_run(0, true).advice().is_some_and(|advice| advice.contains("--timeout-seconds")));
        assert_eq!((Exit::of_run(124, false).advice(), Exit::Success.advice()), (None, None));
    }

    #[test]
    fn a_time_out_is_124_whatever_the_payload_says() {
        for code in [0, 124, 137, -9] {
            assert_eq!(Exit::of_run(code, true).code(), 124);
        }
    }

    #[test]
    fn codes_are_as_documented() {
        let documented = [
            (Exit::Success, 0),
            (Exit::Failure, 1),
            (Exit::Usage, 2),
            (Exit::TimedOut, 124),
            (Exit::Stopped(Signal::Hangup), 129),
            (Exit::Stopped(Signal::Interrupt), 130),
            (Exit::Stopped(Signal::Quit), 131),
            (Exit::Stopped(Signal::Terminate), 143),
            (Exit::BrokenPipe, 141),
        ];
        for (exit, code) in documented {
            assert_eq!(exit.code(), code, "{exit:?}");
        }
    }
}
