"""What the calls raise.

Every error of pyro is a `PyroError`. What is wrong with the request is a `ValueError` as well; what is wrong with the state
of a VM, with the host or with the way there is a `RuntimeError` as well.
"""

from typing import Iterable, Tuple

__all__ = ["PyroError", "PyroRuntimeError", "PyroValueError"]

# The codes of errors that will always be the same for the same request.
_INPUT_CODES = frozenset(["invalid_input", "invalid_request", "message_too_long", "not_found", "unknown_method"])


class PyroError(Exception):
    """A call that pyro refused, or that failed.

    Attributes:
        message: One line; the same as `str(error)`.
        code: A word for programs. Of the request: `invalid_input`, `not_found`. Of the state: `wrong_state`,
            `at_capacity`, `expired`. Of the host: `environment_unavailable`, `vm_unavailable`, `boot_failed`,
            `state_unusable`. Of a command: `not_delivered` (it surely did not start), `outcome_unknown` (it may have run),
            `cancelled`. Of the executable: `executable_missing`, `executable_failed`, `version_mismatch`,
            `connection_lost` (it ended during the call, which may have been carried out), `protocol_error`. Of pyro:
            `internal`.
        hints: What to do about it, one sentence each; may be empty.
    """

    def __init__(self, message: str, code: str = "internal", hints: Iterable[str] = ()) -> None:
        hints = tuple(hints)
        # All of them are arguments, so that the error can cross to another process.
        super().__init__(message, code, hints)
        self.message = message
        self.code = code
        self.hints: Tuple[str, ...] = hints
        if hasattr(self, "add_note"):
            for hint in hints:
                self.add_note(f"hint: {hint}")

    def __str__(self) -> str:
        return self.message


class PyroValueError(PyroError, ValueError):
    """The request is wrong, or names what does not exist."""


class PyroRuntimeError(PyroError, RuntimeError):
    """The state of a VM or task, the host, or the way to the executable does not allow it."""


def from_code(message: str, code: str, hints: Iterable[str] = ()) -> PyroError:
    """The error for a code of pyro's."""
    kind = PyroValueError if code in _INPUT_CODES else PyroRuntimeError
    return kind(message, code, hints)
