"""An isolated place to install into: its programs see neither this repository nor the user's files."""

import os
import pathlib
import subprocess
import sys
import venv


class Surroundings:
    """A directory with a home in it, and environment variables that confine programs to it."""

    def __init__(self, directory):
        self.directory = directory
        (directory / "home").mkdir()
        self._variables = {
            "HOME": str(directory / "home"),
            "PATH": os.environ["PATH"],
            "PYRO_BASE_DIR": str(directory / "state"),
            "PYRO_ENVIRONMENT_CACHE_DIR": str(pathlib.Path(os.environ["PYRO_TEST_CACHE"]).resolve()),
            "PYRO_GUEST_KERNEL": os.environ.get("PYRO_TEST_GUEST_KERNEL", "environment"),
        }

    def run(self, *command, **variables):
        """Runs a program that must succeed and returns its standard output."""
        ran = subprocess.run(
            command, cwd=self.directory, env={**self._variables, **variables}, stdout=subprocess.PIPE, text=True
        )
        assert ran.returncode == 0, f"{command}: status {ran.returncode}"
        return ran.stdout

    def pip_install(self, *arguments, python=sys.executable, **variables):
        self.run(python, "-m", "pip", "install", "--disable-pip-version-check", *arguments, **variables)

    def virtual_environment(self):
        """Creates a virtual environment with only pip and returns its scripts directory."""
        venv.create(self.directory / "venv", with_pip=True)
        return self.directory / "venv/bin"
