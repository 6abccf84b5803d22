"""A command of an evaluation as shell text for a task, and what its end means.

The text runs as root in the guest. What it starts before the command has an absolute path, and sees neither the command's
variables nor its user's. It tells on standard error, behind a word that nobody can guess, what a status alone would not: that
the command was not reached.
"""

from __future__ import annotations

import posixpath
import re
import secrets
import shlex
from typing import Mapping, NamedTuple, Sequence

WORKSPACE = "/workspace"
# Only root can look into it. What a command is given is there until it has begun.
_PRIVATE = "/root"
# The engine takes shell text of this length, in bytes.
_LONGEST = 128 * 1024 - 1
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")

_LOAD = 'eval "$(/bin/cat <&9)"'


class Prepared(NamedTuple):
    """A command that is ready to run."""

    text: str
    """For `/bin/sh`."""
    script: bytes | None
    """What has to be in `script_path` before, because it is too long for `text`."""
    mark: str
    """What comes before a note."""

    @property
    def script_path(self) -> str:
        """Where `script` goes."""
        return _path(self.mark, "script")

    @property
    def input_path(self) -> str:
        """Where the standard input goes."""
        return _path(self.mark, "input")


class Output(NamedTuple):
    """What a command wrote, without what `Prepared` added."""

    stdout: bytes
    stderr: bytes
    note: str
    """What was told behind the mark: `user`, `sandbox STATUS`, `exec STATUS`, what the command itself told there; or nothing."""


def new_mark() -> str:
    """A word that nobody can guess."""
    return secrets.token_hex(16)


def is_root_user(user: str) -> bool:
    """Whether nothing has to be done to become this user."""
    return user in ("root", "0")


def prepare(
    mark: str, cmd: Sequence[str], *, cwd: str | None, env: Mapping[str, str] | None, user: str, has_input: bool,
) -> Prepared:
    """Makes shell text that becomes `cmd`.

    Args:
        mark: From `new_mark`, for this command alone.
        cmd: The words, not empty; the first is looked up in the `PATH` of `env`.
        cwd: Where it runs; below `/workspace` unless it is absolute.
        env: Its variables, besides those that every command has.
        user: Name or id of who runs it.
        has_input: Its standard input is what `input_path` holds, else it is empty.

    Raises:
        ValueError: `cmd` is empty, something holds a NUL, or a variable has a name that a shell cannot set.
    """
    last = _last(cmd, cwd, env, mark)
    begin = [_tell(mark, "sandbox $?")]
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
    """Takes what was told off the output."""
    before, found, note = stderr.rpartition(f"{mark} ".encode())
    if not found:
        return Output(stdout, stderr, "")
    return Output(stdout, before, note.decode(errors="replace").removesuffix("\n"))


def _last(cmd: Sequence[str], cwd: str | None, env: Mapping[str, str] | None, mark: str) -> str:
    """The part that runs as the user."""
    if not cmd:
        raise ValueError("the command is empty")
    where = posixpath.join(WORKSPACE, cwd or "")
    lines = [f"cd {shlex.quote(where)} || {{ trap - EXIT; exit 1; }}"]
    for name, value in (env or {}).items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a variable")
        lines.append(f"export {name}={shlex.quote(value)}")
    lines += [_tell(mark, "exec $?"), f"exec {shlex.join(cmd)}"]
    script = "\n".join(lines)
    if "\0" in script:
        raise ValueError("a command cannot hold a NUL")
    return script


def _tell(mark: str, note: str) -> str:
    """A shell that becomes another program forgets its traps: this one tells that it did not get so far."""
    return f"""trap 'printf "%s\\n" "{mark} {note}" >&2' EXIT"""


def _look_up(user: str, mark: str) -> str:
    return f"""entry=$(/usr/bin/getent passwd -- {shlex.quote(user)}) || {{
{_tell(mark, "user")}; exit 1
}}
IFS=: read -r USER secret uid gid comment HOME SHELL <<.
$entry
.
LOGNAME=$USER"""


def _become(script: str) -> str:
    # A shell of its own, so that nothing of this part has root's rights.
    return f'exec /usr/bin/setpriv --reuid "$uid" --regid "$gid" --init-groups /bin/sh -c {shlex.quote(script)}'


def _path(mark: str, what: str) -> str:
    return f"{_PRIVATE}/.pyro-{mark}.{what}"
