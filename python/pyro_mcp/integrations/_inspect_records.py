"""Which tasks evaluations made, so that those that were left can be found.

A record is a file with the task's id as its name and the state directory in it. The program that made the task holds a lock on
it, which goes with the program: a record without is one of a task that was left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from typing import Iterator


class Record:
    """The record of a task that is in use."""

    def __init__(self, task_id: str) -> None:
        directory = _directory()
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / task_id
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        os.write(self._descriptor, _state().encode())

    def leave(self) -> None:
        """The task stays, and nobody uses it."""
        os.close(self._descriptor)

    def remove(self) -> None:
        """The task is gone."""
        self._path.unlink(missing_ok=True)
        self.leave()


def left() -> Iterator[str]:
    """Ids of the tasks in this state directory that were left. Some may be gone."""
    directory = _directory()
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        # Whoever used it may remove it just now.
        with contextlib.suppress(BlockingIOError, FileNotFoundError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if file.read() == _state().encode():
                yield path.name


def forget(task_id: str) -> None:
    """The task is gone, whoever made it."""
    (_directory() / task_id).unlink(missing_ok=True)


def _directory() -> pathlib.Path:
    state = os.environ.get("XDG_STATE_HOME") or pathlib.Path.home() / ".local" / "state"
    return pathlib.Path(state) / "pyro-inspect"


def _state() -> str:
    """The state directory that is in use, as far as it is not the usual one."""
    named = os.environ.get("PYRO_BASE_DIR")
    return os.path.abspath(named) if named else ""
