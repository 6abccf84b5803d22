#!/usr/bin/env python3
"""Measures `pyro --version` and `pyro env list` against `/bin/true`, the cost of starting any program.

    bench/startup.py [--runs N] [--json] PYRO

The three take turns, so that other load on the host affects all of them alike. Exits with 1 if a median exceeds the
limit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

LIMIT_MS = 20.0
WARM_UP_RUNS = 3


def milliseconds(command, env):
    """Returns the time from the start of a command to its end."""
    start = time.perf_counter_ns()
    # posix_spawn does not copy this process, so the size of this process does not affect the result.
    pid = os.posix_spawn(command[0], command, env, file_actions=[
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ])
    _, status = os.waitpid(pid, 0)
    elapsed = time.perf_counter_ns() - start
    if status != 0:
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL)
        sys.exit(f"{' '.join(command)} failed")
    return elapsed / 1e6


def measure(commands, env, runs):
    """Returns the median, minimum, and 90th percentile of each command, by name."""
    times = {name: [] for name in commands}
    for run in range(WARM_UP_RUNS + runs):
        for name, command in commands.items():
            elapsed = milliseconds(command, env)
            if run >= WARM_UP_RUNS:
                times[name].append(elapsed)
    return {
        name: {
            "median_ms": statistics.median(taken),
            "min_ms": min(taken),
            "p90_ms": statistics.quantiles(taken, n=10)[-1],
        }
        for name, taken in times.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pyro", help="the executable")
    parser.add_argument("--runs", type=int, default=100, help="runs of each command, at least 50 (default: 100)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.runs < 50:
        parser.error("invalid number of runs: expected at least 50")
    pyro = os.path.abspath(options.pyro)
    commands = {
        "/bin/true": ["/bin/true"],
        "pyro --version": [pyro, "--version"],
        "pyro env list": [pyro, "env", "list"],
    }
    with tempfile.TemporaryDirectory(prefix="pyro-bench-") as state:
        results = measure(commands, {**os.environ, "PYRO_BASE_DIR": os.path.join(state, "state")}, options.runs)

    base = results["/bin/true"]["median_ms"]
    for result in results.values():
        result["ratio"] = result["median_ms"] / base
    if options.json:
        print(json.dumps({"runs": options.runs, "limit_ms": LIMIT_MS, "results": results}, indent=2))
    else:
        print(f"{'':16}{'median':>10}{'min':>10}{'90 %':>10}   times /bin/true")
        for name, result in results.items():
            columns = "".join(f"{result[key]:7.2f} ms" for key in ("median_ms", "min_ms", "p90_ms"))
            print(f"{name:16}{columns}   {result['ratio']:.1f}")
    slow = [name for name, result in results.items() if result["median_ms"] >= LIMIT_MS]
    if slow:
        sys.exit(f"over the limit of {LIMIT_MS:.0f} ms: {', '.join(slow)}")


if __name__ == "__main__":
    main()
