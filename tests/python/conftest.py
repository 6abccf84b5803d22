"""What the tests are given: the executable, and for each test a sandbox with a `Pyro` in it."""

import contextlib
import os
import pathlib
import stat

import pytest

from pyro_mcp import Pyro
from sandbox import Sandbox

ROOT = pathlib.Path(__file__).resolve().parents[2]


def pytest_addoption(parser):
    parser.addoption("--pyro", required=True, type=pathlib.Path, help="the executable under test")


@pytest.fixture
def root():
    """The repository."""
    return ROOT


@pytest.fixture
def executable(request):
    """The executable under test."""
    return request.config.getoption("pyro").resolve()


@pytest.fixture
def sandbox(executable):
    """A state directory of its own. This program's environment variables are those of the sandbox, as a user's would be."""
    with entered_sandbox(executable) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def module_sandbox(request):
    """The same for all tests of a module; what they leave is seen at its end."""
    with entered_sandbox(request.config.getoption("pyro").resolve()) as sandbox:
        yield sandbox


@contextlib.contextmanager
def entered_sandbox(executable):
    cache = pathlib.Path(os.environ["PYRO_TEST_CACHE"]).resolve()
    with Sandbox(executable, cache) as sandbox, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PYRO_")]:
            patch.delenv(name)
        # Programs that a test starts find the package too.
        ours = {"PYRO_EXECUTABLE": str(executable), "PYTHONPATH": str(ROOT / "python")}
        for name, value in {**sandbox.variables, **ours}.items():
            patch.setenv(name, value)
        yield sandbox


@pytest.fixture
def pyro(sandbox):
    with Pyro() as pyro:
        yield pyro


@pytest.fixture
def program(tmp_path):
    """Writes an executable file of shell text, to stand in for pyro."""
    def write(text):
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path
    return write
