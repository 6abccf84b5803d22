"""Records of the tasks that evaluations created, to find abandoned ones.

A record is a file named after the task's ID that contains the state directory. The program that created the task holds a lock on
the file. The kernel releases the lock when the program exits, so a record without a lock belongs to an abandoned task.
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
        """Releases the task, which stays."""
        os.close(self._descriptor)

    def remove(self) -> None:
        """Removes the record of a deleted task."""
        self._path.unlink(missing_ok=True)
        self.leave()


def left() -> Iterator[str]:
    """Yields the IDs of abandoned tasks in this state directory. Some may no longer exist."""
    directory = _directory()
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        # The task's program may be removing the record at this moment.
        with contextlib.suppress(BlockingIOError, FileNotFoundError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if file.read() == _state().encode():
                yield path.name


def forget(task_id: str) -> None:
    """Removes the record of a task that was deleted by another program."""
    (_directory() / task_id).unlink(missing_ok=True)


def _directory() -> pathlib.Path:
    state = os.environ.get("XDG_STATE_HOME") or pathlib.Path.home() / ".local" / "state"
    return pathlib.Path(state) / "pyro-inspect"


def _state() -> str:
    """Returns the state directory, or an empty string for the default."""
    named = os.environ.get("PYRO_BASE_DIR")
    return os.path.abspath(named) if named else ""
