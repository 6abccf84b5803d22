"""Fixtures: a wheel, a source distribution, the project's version and files, and a place to install into."""

import pathlib
import re
import subprocess

import pytest

from surroundings import Surroundings

ROOT = pathlib.Path(__file__).resolve().parents[2]


def pytest_addoption(parser):
    parser.addoption("--wheel", required=True, type=pathlib.Path, help="the wheel under test")
    parser.addoption("--sdist", required=True, type=pathlib.Path, help="the source distribution under test")


@pytest.fixture
def wheel(request):
    return request.config.getoption("wheel").resolve()


@pytest.fixture
def sdist(request):
    return request.config.getoption("sdist").resolve()


@pytest.fixture
def version():
    """The version of the executable, according to Cargo."""
    return re.split("[#@]", _output("cargo", "pkgid", "--locked", "--package", "pyro-cli").strip())[-1]


@pytest.fixture
def sources():
    """The files of the repository, including uncommitted ones."""
    return _output("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")[:-1]


@pytest.fixture
def surroundings(tmp_path):
    return Surroundings(tmp_path)


def _output(*command):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
