"""Converts a command of an evaluation to shell text for a task, and interprets its end.

The text runs as root in the guest. Programs that it starts before the command are given by absolute path, and see neither the
command's variables nor those of its user. If the command is not reached, which an exit code alone would not show, the text
writes a status to standard error, after an unguessable marker.
"""

from __future__ import annotations

import posixpath
import re
import secrets
import shlex
from typing import Mapping, NamedTuple, Sequence

WORKSPACE = "/workspace"
# Only root can read this directory. It holds a command's script and input until the command has started.
_PRIVATE = "/root"
# Maximum length of the engine's shell text, in bytes.
_LONGEST = 128 * 1024 - 1
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")

_LOAD = 'eval "$(/bin/cat <&9)"'


class Prepared(NamedTuple):
    """A command that is ready to run."""

    text: str
    """For `/bin/sh`."""
    script: bytes | None
    """Contents of `script_path`, to be written first, if the script is too long for `text`."""
    mark: str
    """The marker that precedes the status."""

    @property
    def script_path(self) -> str:
        """Path for `script` in the guest."""
        return _path(self.mark, "script")

    @property
    def input_path(self) -> str:
        """Path for the standard input in the guest."""
        return _path(self.mark, "input")


class Output(NamedTuple):
    """Output of a command, without what `Prepared` added."""

    stdout: bytes
    stderr: bytes
    status: str
    """The text after the marker: `user`, `sandbox STATUS`, `exec STATUS`, or the command's own; empty without a marker."""


def new_mark() -> str:
    """Returns an unguessable marker."""
    return secrets.token_hex(16)


def is_root_user(user: str) -> bool:
    """Whether this user is root, so that no user switch is needed."""
    return user in ("root", "0")


def prepare(
    mark: str, cmd: Sequence[str], *, cwd: str | None, env: Mapping[str, str] | None, user: str, has_input: bool,
) -> Prepared:
    """Returns shell text that executes `cmd`.

    Args:
        mark: A marker from `new_mark`, used for this command only.
        cmd: The arguments, at least one. The first is looked up in the `PATH` of `env`.
        cwd: Working directory, relative to `/workspace` unless absolute.
        env: Environment variables, in addition to those that every command has.
        user: Name or ID of the user that runs the command.
        has_input: Whether standard input is the file at `input_path`. Otherwise, it is empty.

    Raises:
        ValueError: `cmd` is empty, an argument contains a NUL, or the shell cannot set a variable of that name.
    """
    last = _last(cmd, cwd, env, mark)
    begin = [_trap(mark, "sandbox $?")]
    if has_input:
        path = _path(mark, "input")
        begin.append(f"exec <{path} && /bin/rm {path}")
    is_root = is_root_user(user)
    if not is_root:
        begin.append(_look_up(user, mark))

    def text(script: str) -> str:
        return "\n".join([*begin, script if is_root else _become(script)])

    whole = text(last)
    if len(whole.encode()) <= _LONGEST:
        return Prepared(whole, None, mark)
    path = _path(mark, "script")
    begin.append(f"exec 9<{path} && /bin/rm {path}")
    return Prepared(text(_LOAD), f"exec 9<&-\n{last}".encode(), mark)


def read(stdout: bytes, stderr: bytes, mark: str) -> Output:
    """Separates the status from the output."""
    before, found, status = stderr.rpartition(f"{mark} ".encode())
    if not found:
        return Output(stdout, stderr, "")
    return Output(stdout, before, status.decode(errors="replace").removesuffix("\n"))


def _last(cmd: Sequence[str], cwd: str | None, env: Mapping[str, str] | None, mark: str) -> str:
    """Returns the part of the text that runs as the user."""
    if not cmd:
        raise ValueError("invalid command: expected at least one argument")
    where = posixpath.join(WORKSPACE, cwd or "")
    lines = [f"cd {shlex.quote(where)} || {{ trap - EXIT; exit 1; }}"]
    for name, value in (env or {}).items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"invalid environment variable name: {name!r}")
        lines.append(f"export {name}={shlex.quote(value)}")
    lines += [_trap(mark, "exec $?"), f"exec {shlex.join(cmd)}"]
    script = "\n".join(lines)
    if "\0" in script:
        raise ValueError("invalid command: it contains a NUL")
    return script


def _trap(mark: str, status: str) -> str:
    """Returns a trap that reports `status` unless the shell executes another program, which discards traps."""
    return f"""trap 'printf "%s\\n" "{mark} {status}" >&2' EXIT"""


def _look_up(user: str, mark: str) -> str:
    return f"""entry=$(/usr/bin/getent passwd -- {shlex.quote(user)}) || {{
{_trap(mark, "user")}; exit 1
}}
IFS=: read -r USER secret uid gid comment HOME SHELL <<.
$entry
.
LOGNAME=$USER"""


def _become(script: str) -> str:
    # A separate shell, so that no part of the script runs with root's rights.
    return f'exec /usr/bin/setpriv --reuid "$uid" --regid "$gid" --init-groups /bin/sh -c {shlex.quote(script)}'


def _path(mark: str, what: str) -> str:
    return f"{_PRIVATE}/.pyro-{mark}.{what}"
