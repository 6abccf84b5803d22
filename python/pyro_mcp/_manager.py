"""The settings of the executable and the connection to it."""

import os
import threading
import weakref
from typing import Any, Dict, Optional, Tuple, Union

from . import _executable
from ._connection import Connection, Put

# Accelerators by backend name. `firecracker` is the contract's word for real VMs, whichever VMM runs them.
BACKENDS = {"firecracker": "", "kvm": "kvm", "tcg": "tcg"}

StrPath = Union[str, os.PathLike[str]]


class VmManager:
    """Settings and one process of the executable, which the first call starts, and which is restarted if it is lost.

    Several `Pyro` objects can share a manager. Safe to use from any thread, and after a fork. Pickles as its settings.

    Args:
        backend_name: `kvm` or `tcg`. Default, and `firecracker`: the accelerator that a measurement of this host selects.
        base_dir: State directory. Default: `PYRO_BASE_DIR`, then `~/.local/state/pyro-mcp`.
        cache_dir: Environment cache. Default: `PYRO_ENVIRONMENT_CACHE_DIR`, then `~/.cache/pyro-mcp/environments`.
        max_active_vms: Maximum number of VMs and tasks at once, at least 1. Default: `PYRO_MAX_ACTIVE_VMS`, then 4.
        warm: Number of spare VMs to keep for each kind of VM. Default: `PYRO_WARM`, then 0.
        require_confinement: `full`: start no VM unless this host can confine its VMM fully. Default:
            `PYRO_REQUIRE_CONFINEMENT`, then no requirement.
        executable: Path of the executable. Default: `PYRO_EXECUTABLE`, then the one installed with this package.

    Raises:
        ValueError: A setting is outside its limits.
    """

    def __init__(
        self, *, backend_name: Optional[str] = None, base_dir: Optional[StrPath] = None, cache_dir: Optional[StrPath] = None,
        max_active_vms: Optional[int] = None, warm: Optional[int] = None, require_confinement: Optional[str] = None,
        executable: Optional[StrPath] = None,
    ) -> None:
        if backend_name is not None and backend_name not in BACKENDS:
            raise ValueError(f"invalid backend; expected one of: {', '.join(BACKENDS)}")
        if max_active_vms is not None and max_active_vms < 1:
            raise ValueError("max_active_vms must be at least 1")
        if warm is not None and warm < 0:
            raise ValueError("warm must not be negative")
        if require_confinement not in (None, "full"):
            raise ValueError("invalid require_confinement; expected: full")
        settings = {
            "PYRO_ACCEL": BACKENDS.get(backend_name or "", ""),
            "PYRO_BASE_DIR": base_dir and os.path.abspath(base_dir),
            "PYRO_ENVIRONMENT_CACHE_DIR": cache_dir and os.path.abspath(cache_dir),
            "PYRO_MAX_ACTIVE_VMS": max_active_vms,
            "PYRO_REQUIRE_CONFINEMENT": require_confinement,
            "PYRO_WARM": warm,
        }
        self._settings = {name: str(value) for name, value in settings.items() if value not in (None, "")}
        self._named_executable = None if executable is None else os.path.abspath(executable)
        # With absolute paths, because another process may have another working directory.
        self._arguments: Dict[str, Any] = {
            "backend_name": backend_name, "base_dir": self._settings.get("PYRO_BASE_DIR"),
            "cache_dir": self._settings.get("PYRO_ENVIRONMENT_CACHE_DIR"), "max_active_vms": max_active_vms, "warm": warm,
            "require_confinement": require_confinement, "executable": self._named_executable,
        }
        self._slot = _Slot()
        # Also runs at interpreter exit.
        self._finalizer = weakref.finalize(self, self._slot.close)

    def __reduce__(self) -> Tuple[Any, ...]:
        return _with, (self._arguments,)

    def executable(self) -> str:
        """Returns the path of the executable.

        Raises:
            PyroRuntimeError: The executable was not found.
        """
        return _executable.find(self._named_executable)

    def variables(self) -> Dict[str, str]:
        """Returns the environment variables for the executable."""
        return {**os.environ, **self._settings}

    def begin(self, method: str, params: Dict[str, Any], put: Put) -> Tuple[Connection, int]:
        """Sends a request. Starts the process first if necessary. See `Connection.begin`."""
        while True:
            connection = self._slot.connection
            if connection is None or connection.is_lost:
                connection = self._connect()
            number = connection.begin(method, params, put)
            # Otherwise, the process was lost just now.
            if number is not None:
                return connection, number

    @property
    def is_connected(self) -> bool:
        """Whether a process is running, so that a request does not have to start one."""
        connection = self._slot.connection
        return connection is not None and not connection.is_lost

    def _connect(self) -> Connection:
        slot = self._slot
        with slot.lock:
            if slot.connection is None or slot.connection.is_lost:
                slot.connection = Connection(self.executable(), self.variables())
            return slot.connection

    def close(self) -> None:
        """Ends the process. Calls in flight are cancelled, and their resources are released. Tasks and created VMs stay. The
        next call starts another process."""
        self._slot.close()


def _with(arguments: Dict[str, Any]) -> VmManager:
    return VmManager(**arguments)


class _Slot:
    """Holds a connection without referring to its manager, so that the manager can be garbage-collected."""

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
