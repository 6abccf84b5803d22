"""The wheel, of a debug build, in environments that have nothing else."""

import json
import os
import re
import subprocess
import sys
import zipfile

import pytest

# In a process of its own, before and after: what `import pyro_mcp` finds is the wheel's.
FIND = "import pyro_mcp; pyro = pyro_mcp.Pyro(); print(pyro_mcp.__file__, pyro.manager.executable(), len(pyro.list_environments()))"


def run(*words, **variables):
    ended = subprocess.run(
        [str(word) for word in words], env={**os.environ, **variables}, capture_output=True, text=True, timeout=170)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    root = os.path.realpath(os.path.join(os.path.dirname(__file__), "../.."))
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", root, "--no-deps", "--no-build-isolation", "--wheel-dir", directory,
        "--config-settings=build-args=--profile dev", PATH=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    (path,) = directory.iterdir()
    return path


@pytest.fixture
def clean(sandbox, monkeypatch):
    """Nothing says where the executable or the package is."""
    monkeypatch.delenv("PYRO_EXECUTABLE")
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")


def test_what_is_in_it(wheel, root):
    version = re.search(r'^version = "(.*)"$', (root / "Cargo.toml").read_text(), re.MULTILINE)[1]
    assert re.fullmatch(rf"pyro_mcp-{version}-py3-none-\w+_x86_64\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (scripts,) = [name for name in names if "/scripts/" in name]
        assert scripts.endswith(".data/scripts/pyro")
        assert {"pyro_mcp/py.typed", "pyro_mcp/types.py", "pyro_mcp/_sync/client.py"} <= set(names)
        assert not [name for name in names if "generate" in name or "__pycache__" in name]
        info = f"pyro_mcp-{version}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        assert f"\nVersion: {version}\n" in metadata and "\nRequires-Python: >=3.9\n" in metadata
        assert not re.search(r"^Requires-Dist: (?!.*extra ==)", metadata, re.MULTILINE), "it needs nothing"


def test_it_works_in_a_clean_environment(wheel, clean, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "v")
    python = tmp_path / "v/bin/python"
    run(python, "-m", "pip", "install", "--no-index", "--quiet", wheel)
    version = wheel.name.split("-")[1]
    assert run(tmp_path / "v/bin/pyro", "--version") == f"pyro {version}\n"
    assert run(python, "-m", "pyro_mcp", "--version") == f"pyro {version}\n"
    package, executable, count = run(python, "-c", FIND).split()
    assert package.startswith(f"{tmp_path}/v/lib/") and count == "3"
    assert os.path.realpath(executable) == os.path.realpath(tmp_path / "v/bin/pyro")


def test_it_works_from_a_directory_of_its_own(wheel, clean, tmp_path):
    run(sys.executable, "-m", "pip", "install", "--no-index", "--quiet", "--target", tmp_path / "t", wheel)
    package, executable, _ = run(sys.executable, "-c", FIND, PYTHONPATH=str(tmp_path / "t")).split()
    assert package.startswith(f"{tmp_path}/t/") and executable == f"{tmp_path}/t/bin/pyro"


def test_uvx_runs_it(wheel, clean, tmp_path):
    uvx = os.path.join(os.path.dirname(sys.executable), "uvx")
    report = run(uvx, "--offline", "--from", wheel, "pyro", "doctor", "--json", UV_CACHE_DIR=str(tmp_path / "uv"))
    assert json.loads(report)["runtime_ok"] is True
