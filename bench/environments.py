#!/usr/bin/env python3
"""Reports the installed size and the start time of each environment.

    bench/environments.py [--cache DIR] [--runs N] PYRO

Only environments that are installed in the cache are measured. To compare two versions of an environment, run this with an
executable and a cache of each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

from measure import in_turns, process_ms

# Those that the whole suite installs and so measures.
MEASURED = ["debian:12", "debian:12-build", "debian:12-agent"]


def measure(pyro, env, work, runs):
    """Returns the version, the size in MiB, and the time of `pyro run NAME -- true`, from a template, of each environment that
    is installed."""
    line = [pyro, "env", "list", "--json"]
    listed = json.loads(subprocess.run(line, env=env, check=True, capture_output=True).stdout)
    installed = [entry for entry in listed["environments"] if entry["installed"]]
    times = in_turns({
        entry["name"]: lambda name=entry["name"]: process_ms(
            [pyro, "run", name, "--timeout-seconds", "120", "--", "true"], env, f"{work}/environments.log", limit=300)
        for entry in installed
    }, runs)
    return {entry["name"]: {
        "version": entry["version"], "size_mib": round(entry["size_bytes"] / (1 << 20)), "start": times[entry["name"]],
    } for entry in installed}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", help="environment cache")
    parser.add_argument("--runs", type=int, default=10, help="runs of each environment [default: 10]")
    parser.add_argument("pyro", metavar="PYRO", help="the executable")
    options = parser.parse_args()
    env = {"PYRO_GUEST_KERNEL": "environment", **os.environ}
    if options.cache:
        env["PYRO_ENVIRONMENT_CACHE_DIR"] = os.path.abspath(options.cache)
    with tempfile.TemporaryDirectory() as work:
        env["PYRO_BASE_DIR"] = f"{work}/state"
        results = measure(os.path.abspath(options.pyro), env, work, options.runs)
    for name, row in results.items():
        start = row["start"]
        took = f"{start['median']:.0f} ms ({start['p25']:.0f} to {start['p75']:.0f})" if "median" in start else "not available"
        print(f"{name:20}{row['version']:10}{row['size_mib']:>8} MiB   {took}")


if __name__ == "__main__":
    sys.exit(main())
