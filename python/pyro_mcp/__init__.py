"""Disposable microVMs for AI agents.

    from pyro_mcp import Pyro

    print(Pyro().run_in_vm(environment="debian:12", command="git --version")["stdout"])
"""

from __future__ import annotations

# Type checkers recognise the name, and importing `typing` only for it would be slow.
TYPE_CHECKING = False

from ._manager import VmManager
from ._output import OutputChunk
from ._server import Server, create_server
from ._sync.client import Pyro
from ._sync.stream import CommandStream
from ._sync.task import Task
from ._version import __version__
from .errors import PyroError, PyroRuntimeError, PyroValueError

if TYPE_CHECKING:
    from . import types
    from ._async.client import AsyncPyro
    from ._async.stream import AsyncCommandStream
    from ._async.task import AsyncTask

__all__ = [
    "AsyncCommandStream", "AsyncPyro", "AsyncTask", "CommandStream", "OutputChunk", "Pyro", "PyroError", "PyroRuntimeError",
    "PyroValueError", "Server", "Task", "VmManager", "__version__", "create_server", "types",
]


def __getattr__(name: str) -> object:
    """Loads rarely used names on first access."""
    if name == "types":
        import importlib

        return importlib.import_module(".types", __name__)
    if name in __all__:
        from ._async import client, stream, task

        for module in (client, stream, task):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
