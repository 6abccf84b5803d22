"""Where the executable is."""

import os
import sys
from typing import Iterator, Optional

from .errors import PyroRuntimeError

VARIABLE = "PYRO_EXECUTABLE"


def find(named: Optional[str]) -> str:
    """The executable: `named`, or else what `PYRO_EXECUTABLE` names, or else the one that was installed with this
    package, or else the one in `PATH`.

    Raises:
        PyroRuntimeError: `executable_missing`. One that is named must be there; no other is taken in its place.
    """
    for path, source in ((named, "`executable`"), (os.environ.get(VARIABLE), VARIABLE)):
        if path:
            if os.access(path, os.X_OK) and not os.path.isdir(path):
                return os.path.abspath(path)
            raise PyroRuntimeError(
                f"{path}, which {source} names, is not a program that can be run", "executable_missing",
                ["name the executable `pyro`, or leave it out to use the one installed with this package"])
    for path in _installed():
        if os.access(path, os.X_OK):
            return path
    import shutil

    in_path = shutil.which("pyro")
    if in_path:
        return in_path
    raise PyroRuntimeError(
        "the executable `pyro` was found neither beside this package nor in PATH", "executable_missing",
        [f"install the wheel again, or name the executable in {VARIABLE}"])


def _installed() -> Iterator[str]:
    """Where installers put programs of a package that is here."""
    import sysconfig

    yield os.path.join(sysconfig.get_path("scripts"), "pyro")
    packages = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # `pip install --target`.
    yield os.path.join(packages, "bin", "pyro")
    # `pip install --prefix`, and environments that are layered: <prefix>/lib/pythonX.Y/site-packages.
    if os.path.basename(packages) in ("site-packages", "dist-packages"):
        yield os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(packages))), "bin", "pyro")
    user = "posix_user"
    if user in sysconfig.get_scheme_names() and sys.flags.no_user_site == 0:
        yield os.path.join(sysconfig.get_path("scripts", user), "pyro")
