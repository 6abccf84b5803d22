"""The package as type checkers and tool wrappers see it, and a check that generated files are up to date."""

import ast
import os
import pathlib
import subprocess
import sys
import typing

import pytest

import pyro_mcp

USE = """
from typing_extensions import assert_type

from pyro_mcp import AsyncPyro, Pyro, types

def use(pyro: Pyro) -> None:
    result = pyro.run_in_vm(environment="debian:12", command="true")
    assert_type(result["exit_code"], int)
    assert_type(result["accelerator"], "str | None")
    with pyro.task("debian:12") as task:
        assert_type(task.exec("true"), types.TaskExec)
        with task.stream("true") as stream:
            assert_type([chunk.data for chunk in stream], "list[bytes]")
        assert_type(stream.result, types.TaskExec)

async def use_async(pyro: AsyncPyro) -> None:
    async with pyro.task("debian:12") as task:
        assert_type(await task.read_file("x"), bytes)
"""
MISUSE = """
from pyro_mcp import Pyro

Pyro().run_in_vm(environment="debian:12", command="true")["exit_cod"]
Pyro().run_in_vm("debian:12", "true")
"""


def test_syntax_of_the_oldest_supported_python():
    for path in pathlib.Path(pyro_mcp.__path__[0]).rglob("*.py"):
        ast.parse(path.read_text(), path, feature_version=(3, 9))


def mypy(root, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", *arguments], cwd=root / "python",
        capture_output=True, text=True, timeout=150)


def test_the_package_and_its_use_are_typed_strictly(root, tmp_path):
    (tmp_path / "use.py").write_text(USE)
    checked = mypy(root, "pyro_mcp", root / "examples", tmp_path / "use.py")
    assert checked.returncode == 0, checked.stdout


def test_misuse_is_a_type_error(root, tmp_path):
    (tmp_path / "misuse.py").write_text(MISUSE)
    checked = mypy(root, tmp_path / "misuse.py")
    assert '"RunResult" has no key "exit_cod"' in checked.stdout
    assert 'Too many positional arguments for "run_in_vm"' in checked.stdout


@pytest.mark.parametrize("name", ["Pyro", "AsyncPyro", "Task", "AsyncTask", "VmManager", "Server"])
def test_annotations_resolve_at_run_time(name):
    for method in vars(getattr(pyro_mcp, name)).values():
        if callable(method) and not method.__name__.startswith("_"):
            assert "return" in typing.get_type_hints(method)


def test_types_are_loaded_lazily():
    code = """if True:
        import sys
        import pyro_mcp
        # Runs without the host's site-packages.
        print(sorted(sys.modules.keys() & {"asyncio", "base64", "logging", "pyro_mcp._async", "pyro_mcp.types", "queue", "shutil"}))
        print(pyro_mcp.types.RunResult.__name__)
    """
    ended = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": os.path.dirname(pyro_mcp.__path__[0])}, capture_output=True,
        text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("[]\nRunResult\n", "")


def test_generated_files_are_up_to_date(root):
    made = subprocess.run(
        [sys.executable, root / "python/generate.py", "--check"], capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
