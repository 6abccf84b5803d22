//! How errors of the operating system become failures that the host understands.

use std::io;

use pyro_wire::{Failure, FailureKind};
use rustix::io::Errno;

/// Adds the step to an error.
pub(crate) trait During<T> {
    /// Names what was being done when the error happened.
    fn during(self, step: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, step: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| failed(step, error))
    }
}

/// The failure of a step that deals with files, or with the kernel in general.
pub(crate) fn failed(step: impl Into<String>, error: impl Into<io::Error>) -> Failure {
    let error = error.into();
    Failure {
        kind: kind_of(&error),
        step: step.into(),
        cause: error.to_string(),
        errno: error.raw_os_error(),
    }
}

/// The failure of entering a command's working directory.
pub(crate) fn directory_failed(step: impl Into<String>, error: io::Error) -> Failure {
    let failure = failed(step, error);
    match failure.kind {
        FailureKind::FileNotFound => Failure { kind: FailureKind::DirectoryNotFound, ..failure },
        _ => failure,
    }
}

/// The failure of making a command a candidate of the OOM killer. It has no specific kind, because a caller would take
/// that for a property of the command, such as "command not found".
pub(crate) fn exemption_failed(step: impl Into<String>, error: io::Error) -> Failure {
    Failure { kind: FailureKind::Other, ..failed(step, error) }
}

/// The failure of starting a program.
pub(crate) fn spawn_failed(step: impl Into<String>, error: io::Error) -> Failure {
    let errno = Errno::from_io_error(&error);
    let failure = failed(step, error);
    let kind = match errno {
        Some(Errno::NOENT | Errno::NOTDIR) => FailureKind::CommandNotFound,
        Some(Errno::ACCESS | Errno::NOEXEC) => FailureKind::NotExecutable,
        Some(Errno::AGAIN) => FailureKind::TooManyProcesses,
        _ => failure.kind,
    };
    Failure { kind, ..failure }
}

/// A failure without an `errno`.
pub(crate) fn refused(step: impl Into<String>, cause: impl Into<String>) -> Failure {
    Failure { kind: FailureKind::Other, step: step.into(), cause: cause.into(), errno: None }
}

/// The kind of an error, as far as it does not depend on the step.
pub(crate) fn kind_of(error: &io::Error) -> FailureKind {
    let Some(errno) = Errno::from_io_error(error) else {
        return match error.kind() {
            io::ErrorKind::NotFound => FailureKind::FileNotFound,
            io::ErrorKind::Unsupported => FailureKind::Unsupported,
            _ => FailureKind::Other,
        };
    };
    match errno {
        Errno::NOENT => FailureKind::FileNotFound,
        Errno::NOTDIR => FailureKind::NotADirectory,
        Errno::ACCESS | Errno::PERM => FailureKind::PermissionDenied,
        Errno::TOOBIG => FailureKind::ArgumentListTooLong,
        Errno::NOMEM => FailureKind::OutOfMemory,
        Errno::NOSPC | Errno::DQUOT => FailureKind::NoSpace,
        Errno::NOSYS | Errno::OPNOTSUPP => FailureKind::Unsupported,
        _ => FailureKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(errno: Errno) -> io::Error {
        errno.into()
    }

    #[test]
    fn errors_of_the_kernel_have_kinds() {
        for (errno, kind) in [
            (Errno::NOENT, FailureKind::FileNotFound),
            (Errno::NOTDIR, FailureKind::NotADirectory),
            (Errno::ACCESS, FailureKind::PermissionDenied),
            (Errno::PERM, FailureKind::PermissionDenied),
            (Errno::TOOBIG, FailureKind::ArgumentListTooLong),
            (Errno::NOMEM, FailureKind::OutOfMemory),
            (Errno::NOSPC, FailureKind::NoSpace),
            (Errno::DQUOT, FailureKind::NoSpace),
            (Errno::NOSYS, FailureKind::Unsupported),
            (Errno::IO, FailureKind::Other),
        ] {
            let failure = failed("step", os(errno));
            assert_eq!((failure.kind, failure.errno), (kind, Some(errno.raw_os_error())));
            assert_eq!(failure.to_string(), format!("step: {}", os(errno)));
        }
    }

    #[test]
    fn what_was_being_done_refines_the_kind() {
        assert_eq!(directory_failed("s", os(Errno::NOENT)).kind, FailureKind::DirectoryNotFound);
        assert_eq!(directory_failed("s", os(Errno::NOTDIR)).kind, FailureKind::NotADirectory);
        assert_eq!(exemption_failed("s", os(Errno::NOENT)).kind, FailureKind::Other);
        for (errno, kind) in [
            (Errno::NOENT, FailureKind::CommandNotFound),
            (Errno::ACCESS, FailureKind::NotExecutable),
            (Errno::NOEXEC, FailureKind::NotExecutable),
            (Errno::AGAIN, FailureKind::TooManyProcesses),
            (Errno::NOMEM, FailureKind::OutOfMemory),
            (Errno::TOOBIG, FailureKind::ArgumentListTooLong),
        ] {
            assert_eq!(spawn_failed("s", os(errno)).kind, kind);
        }
    }

    #[test]
    fn errors_without_a_number_have_none() {
        let failure = failed("s", io::Error::from(io::ErrorKind::NotFound));
        assert_eq!((failure.kind, failure.errno), (FailureKind::FileNotFound, None));
        assert_eq!(refused("s", "c").errno, None);
    }
}
