"""How commands of an evaluation become commands of a task, and what their failures mean to Inspect."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import shlex
from typing import List, Mapping, NamedTuple, Optional, Sequence, Type, Union

from inspect_ai.util import ExecResult, SandboxUserUnsupportedError

from ..errors import PyroError

WORKSPACE = "/workspace"
# Time limit for a fifo, in seconds.
FIFO_LIMIT = 10
# Maximum size of one argument, and of all arguments of a call, in bytes.
_LONGEST_ARGUMENT = 128 * 1024 - 1
_LONGEST_CALL = 1 << 20

# Maximum size of the variables of a call, in bytes.
_MOST_VARIABLES = 32 * 1024
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")

# Runs a command whose text comes before its input.
_LONG_COMMAND = 'set -- "$(IFS= read -r size && exec /usr/bin/head -c "$size")"; eval "${1:?}"'

# The programs of these scripts are not looked up in what a user could change.
FILE_VARIABLES = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
# A fifo whose other end is not open would wait without end.
READ = f"""[ ! -p "$1" ] || exec timeout {FIFO_LIMIT} cat -- "$1"
exec cat -- "$1"
"""
WRITE = f"""mkdir -p -- "$2" || exit
[ ! -p "$1" ] || exec timeout {FIFO_LIMIT} dd of="$1" bs=64k status=none
exec dd of="$1" bs=64k status=none
"""
# What `cat`, `mkdir` and `dd` end their messages with.
_FILE_ERRORS: Sequence[tuple[str, Type[OSError], int]] = [
    ("No such file or directory", FileNotFoundError, errno.ENOENT),
    ("Not a directory", NotADirectoryError, errno.ENOTDIR),
    # `mkdir -p`, of a parent that is a file.
    ("File exists", NotADirectoryError, errno.ENOTDIR),
    ("Is a directory", IsADirectoryError, errno.EISDIR),
    ("Permission denied", PermissionError, errno.EACCES),
]


class Prepared(NamedTuple):
    """A command as a task takes it."""

    argv: List[str]
    input: Optional[Union[str, bytes]]
    env: Mapping[str, str]


def prepare(cmd: Sequence[str], input: Optional[Union[str, bytes]], env: Optional[Mapping[str, str]]) -> Prepared:
    """Returns a command with its input and its variables. What is too long for a call is sent before the input."""
    env = env or {}
    variables = sum(len(name.encode()) + len(value.encode()) for name, value in env.items())
    if variables <= _MOST_VARIABLES and sum(len(word.encode()) + 1 for word in cmd) <= _LONGEST_CALL:
        return Prepared(list(cmd), input, env)
    # The shell that reads the text has none of the variables: it uses and changes some. Other names are left to the call,
    # which refuses them.
    named = [f"{name}={value}" for name, value in env.items() if _VARIABLE.fullmatch(name)]
    others = {name: "" for name in env if not _VARIABLE.fullmatch(name)}
    words = ["/usr/bin/env", *named] if named else []
    text = f"exec {shlex.join([*words, *cmd])}".encode()
    data = input.encode() if isinstance(input, str) else input or b""
    return Prepared(["/bin/sh", "-c", _LONG_COMMAND], b"%d\n" % len(text) + text + data, others)


def is_too_long(cmd: Sequence[str], env: Optional[Mapping[str, str]]) -> bool:
    """Returns whether the kernel refuses an argument or a variable of a command."""
    variables = (f"{name}={value}" for name, value in (env or {}).items())
    return any(len(word.encode()) > _LONGEST_ARGUMENT for word in (*cmd, *variables))


def not_started(error: PyroError, cmd: Sequence[str]) -> Optional[ExecResult[str]]:
    """Returns the result of a command that could not be started, as a shell would report it; `None`: the guest is at fault.

    Raises:
        SandboxUserUnsupportedError: The user does not exist in the guest.
        PermissionError: The user may not execute the program.
    """
    if error.reason in ("user_not_found", "group_not_found", "invalid_user"):
        raise SandboxUserUnsupportedError(error.message) from error
    if error.reason == "not_executable" and "Permission denied" in error.message:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), cmd[0]) from error
    codes = {
        "command_not_found": 127, "not_executable": 126, "argument_list_too_long": 126, "directory_not_found": 1,
        "not_a_directory": 1, "permission_denied": 1,
    }
    if error.reason not in codes:
        return None
    return ExecResult(False, codes[error.reason], "", f"{error.message}\n")


def file_arguments(script: str, path: str) -> List[str]:
    """Returns the command that reads or writes a file."""
    return ["/bin/sh", "-c", script, "sh", path, posixpath.dirname(path)]


def file_error(exit_code: int, stderr: str, file: str) -> OSError:
    """Returns the error that a script for files ended with."""
    if exit_code == 124:
        return OSError(errno.EAGAIN, f"the other end of the fifo was not open and done within {FIFO_LIMIT} s", file)
    message = stderr.strip()
    for ending, kind, number in _FILE_ERRORS:
        if message.endswith(f": {ending}"):
            return kind(number, os.strerror(number), file)
    return OSError(errno.EIO, message or os.strerror(errno.EIO), file)
