"""Finds the executable."""

import os
import sys
from typing import Iterator, Optional

from .errors import PyroRuntimeError

VARIABLE = "PYRO_EXECUTABLE"


def find(named: Optional[str]) -> str:
    """Returns the path of the executable: `named`, or the one that `PYRO_EXECUTABLE` names, or the one that was installed with
    this package, or the one in `PATH`.

    Raises:
        PyroRuntimeError: `executable_missing`. There is no fallback for an explicitly named executable.
    """
    for path, source in ((named, "`executable`"), (os.environ.get(VARIABLE), VARIABLE)):
        if path:
            if os.access(path, os.X_OK) and not os.path.isdir(path):
                return os.path.abspath(path)
            raise PyroRuntimeError(
                f"invalid {source}: {path} is not an executable file", "executable_missing",
                ["set it to the path of the executable `pyro`, or leave it unset to use the one installed with this package"])
    for path in _installed():
        if os.access(path, os.X_OK):
            return path
    import shutil

    in_path = shutil.which("pyro")
    if in_path:
        return in_path
    raise PyroRuntimeError(
        "executable `pyro` not found: it is neither next to this package nor in PATH", "executable_missing",
        [f"reinstall the package, or set {VARIABLE} to the path of the executable"])


def _installed() -> Iterator[str]:
    """Yields the paths where installers put the executable of this package."""
    import sysconfig

    yield os.path.join(sysconfig.get_path("scripts"), "pyro")
    packages = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # `pip install --target`.
    yield os.path.join(packages, "bin", "pyro")
    # `pip install --prefix` and layered environments: <prefix>/lib/pythonX.Y/site-packages.
    if os.path.basename(packages) in ("site-packages", "dist-packages"):
        yield os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(packages))), "bin", "pyro")
    user = "posix_user"
    if user in sysconfig.get_scheme_names() and sys.flags.no_user_site == 0:
        yield os.path.join(sysconfig.get_path("scripts", user), "pyro")
