"""Fixtures: the executable, the client programs, and for each test a sandbox and a server."""

import os
import pathlib

import pytest

import servers
from sandbox import Sandbox


def pytest_addoption(parser):
    parser.addoption("--pyro", required=True, type=pathlib.Path, help="the executable under test")
    parser.addoption("--node", required=True, type=pathlib.Path, help="directory where package.json is installed")


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def node(request):
    """Returns the command line of an installed Node program, run by the installed Node."""
    programs = request.config.getoption("node").resolve() / "node_modules/.bin"
    return lambda name: [programs / "node", programs / name]


@pytest.fixture
def sandbox(request):
    cache = pathlib.Path(os.environ["PYRO_TEST_CACHE"]).resolve()
    with Sandbox(request.config.getoption("pyro").resolve(), cache) as sandbox:
        yield sandbox


@pytest.fixture(params=servers.KINDS)
def server(request, sandbox):
    with servers.KINDS[request.param](sandbox) as server:
        yield server
