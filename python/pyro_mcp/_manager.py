"""The settings under which an executable works for this program, and the connection to it."""

import os
import threading
import weakref
from typing import Any, Dict, Optional, Tuple, Union

from . import _executable
from ._connection import Connection, Put

# Accelerators by name of the backend. The first name is the contract's word for real VMs, whatever runs them.
BACKENDS = {"firecracker": "", "kvm": "kvm", "tcg": "tcg"}

StrPath = Union[str, os.PathLike[str]]


class VmManager:
    """What a `Pyro` works with: settings, and one process of the executable, which is started when it is first needed and
    again when it was lost. Several `Pyro` may share one. Safe to use from any thread, and after a fork.

    Args:
        backend_name: `kvm` or `tcg`, which only a machine that has it can use; `None` or `firecracker`: what a measurement
            of this machine says is best.
        base_dir: State directory; `None`: `PYRO_BASE_DIR`, else `~/.local/state/pyro-mcp`.
        cache_dir: Installed environments; `None`: `PYRO_ENVIRONMENT_CACHE_DIR`, else `~/.cache/pyro-mcp/environments`.
        max_active_vms: Most VMs and tasks that may exist at once, at least 1; `None`: `PYRO_MAX_ACTIVE_VMS`, else 4.
        warm: How many spare VMs of each kind shall wait for the next start; `None`: `PYRO_WARM`, else none.
        executable: The executable; `None`: `PYRO_EXECUTABLE`, else the one installed with this package.

    Raises:
        ValueError: A setting is outside its limits.
    """

    def __init__(
        self, *, backend_name: Optional[str] = None, base_dir: Optional[StrPath] = None, cache_dir: Optional[StrPath] = None,
        max_active_vms: Optional[int] = None, warm: Optional[int] = None, executable: Optional[StrPath] = None,
    ) -> None:
        if backend_name is not None and backend_name not in BACKENDS:
            raise ValueError(f"invalid backend; expected one of: {', '.join(BACKENDS)}")
        if max_active_vms is not None and max_active_vms < 1:
            raise ValueError("max_active_vms must be at least 1")
        if warm is not None and warm < 0:
            raise ValueError("warm must not be negative")
        settings = {
            "PYRO_ACCEL": BACKENDS.get(backend_name or "", ""),
            "PYRO_BASE_DIR": base_dir and os.path.abspath(base_dir),
            "PYRO_ENVIRONMENT_CACHE_DIR": cache_dir and os.path.abspath(cache_dir),
            "PYRO_MAX_ACTIVE_VMS": max_active_vms,
            "PYRO_WARM": warm,
        }
        self._settings = {name: str(value) for name, value in settings.items() if value not in (None, "")}
        self._named_executable = None if executable is None else os.path.abspath(executable)
        self._slot = _Slot()
        # At the end of the interpreter too, whichever comes first.
        self._finalizer = weakref.finalize(self, self._slot.close)

    def executable(self) -> str:
        """Path of the executable.

        Raises:
            PyroRuntimeError: There is none.
        """
        return _executable.find(self._named_executable)

    def variables(self) -> Dict[str, str]:
        """Environment variables for the executable."""
        return {**os.environ, **self._settings}

    def begin(self, method: str, params: Dict[str, Any], put: Put) -> Tuple[Connection, int]:
        """Sends a request, and starts the process first if need be. See `Connection.begin`."""
        while True:
            connection = self._slot.connection
            if connection is None or connection.is_lost:
                connection = self._connect()
            number = connection.begin(method, params, put)
            # If not, it was lost just now.
            if number is not None:
                return connection, number

    @property
    def is_connected(self) -> bool:
        """A request would not have to start a process."""
        connection = self._slot.connection
        return connection is not None and not connection.is_lost

    def _connect(self) -> Connection:
        slot = self._slot
        with slot.lock:
            if slot.connection is None or slot.connection.is_lost:
                slot.connection = Connection(self.executable(), self.variables())
            return slot.connection

    def close(self) -> None:
        """Ends the process; calls that are under way are cancelled, and what they hold is freed. Tasks and VMs that were
        created stay. The next call starts another process."""
        self._slot.close()


class _Slot:
    """Where a connection is kept, apart from its manager, which can so be collected."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection: Optional[Connection] = None
        _slots.add(self)

    def close(self) -> None:
        with self.lock:
            connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def forget_in_child(self) -> None:
        self.lock = threading.Lock()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.forget_in_child()


_slots: "weakref.WeakSet[_Slot]" = weakref.WeakSet()


def _forget_in_child() -> None:
    for slot in list(_slots):
        slot.forget_in_child()


os.register_at_fork(after_in_child=_forget_in_child)
