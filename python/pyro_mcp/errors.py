"""The errors that calls raise.

Every error is a `PyroError`. An error in the request is also a `ValueError`. An error in the state of a VM, the host, or the
connection is also a `RuntimeError`.
"""

from typing import Iterable, Optional, Tuple

__all__ = ["PyroError", "PyroRuntimeError", "PyroValueError"]

# Codes of errors that the same request always causes.
_INPUT_CODES = frozenset(
    ["file_failed", "invalid_input", "invalid_request", "message_too_long", "not_found", "unknown_method"])


class PyroError(Exception):
    """A call was rejected or failed.

    Attributes:
        message: The error message, one line; the same as `str(error)`.
        code: The kind of error, for programs. Request: `invalid_input`, `not_found`. Files: `file_failed`. State:
            `wrong_state`, `at_capacity`, `expired`. Host: `environment_unavailable`, `vm_unavailable`, `boot_failed`, `state_unusable`. Command:
            `not_delivered` (it did not start), `outcome_unknown` (it may have run), `cancelled`. Executable:
            `executable_missing`, `executable_failed`, `version_mismatch`, `connection_lost` (it ended during the call, which
            may have taken effect), `protocol_error`. pyro itself: `internal`.
        hints: What to do about the error, one sentence each. May be empty.
        reason: Why a command did not start, as a word: `command_not_found`, `not_executable`, `shell_not_found`,
            `user_not_found`, `directory_not_found`, `permission_denied`, and others. Otherwise `None`.
    """

    def __init__(
        self, message: str, code: str = "internal", hints: Iterable[str] = (), reason: Optional[str] = None,
    ) -> None:
        hints = tuple(hints)
        # Pass everything as arguments, so that the error can be pickled.
        super().__init__(message, code, hints, reason)
        self.message = message
        self.code = code
        self.hints: Tuple[str, ...] = hints
        self.reason = reason
        if hasattr(self, "add_note"):
            for hint in hints:
                self.add_note(f"hint: {hint}")

    def __str__(self) -> str:
        return self.message


class PyroValueError(PyroError, ValueError):
    """The request is invalid, or refers to something that does not exist."""


class PyroRuntimeError(PyroError, RuntimeError):
    """The state of a VM or task, the host, or the connection to the executable made the call fail."""


def from_code(message: str, code: str, hints: Iterable[str] = (), reason: Optional[str] = None) -> PyroError:
    """Returns the error object for a code."""
    kind = PyroValueError if code in _INPUT_CODES else PyroRuntimeError
    return kind(message, code, hints, reason)
