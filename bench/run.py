#!/usr/bin/env python3
"""Measures pyro against the plain QEMU it uses and against other tools that isolate a command.

    bench/run.py --measure PROGRAM --cost PROGRAM [--cache DIR] [--output DIR --page FILE] [--quick] PYRO

Prints tables. With --output and --page, but not with --quick, also writes results.json, the plots, and the tables of the
page. Leaves no process, file, or control group behind, even if it is interrupted.
"""

import argparse
import os
import signal
import subprocess
import sys
import time

import commands
import environments
import host
import mounts
import report
from engine import Engine
from measure import say
from peers import Peers
from rawvm import Kind
from scenarios import Scenarios


def measure(options, work):
    """Runs all scenarios and returns their results."""
    env = {
        # The default kernel, not one that this user may have built.
        "PYRO_GUEST_KERNEL": "environment", **os.environ,
        "PYRO_BASE_DIR": f"{work}/state", "PYRO_ENVIRONMENT_CACHE_DIR": os.path.abspath(options.cache),
        # All VMs have disks of the same size, and so the same template, whatever is free on this host.
        "PYRO_DISK_OVERCOMMIT": "off",
    }
    for name in ("PYRO_WARM", "PYRO_LOG", "PYRO_MAX_ACTIVE_VMS"):
        env.pop(name, None)
    pyro = os.path.abspath(options.pyro)
    for name in ("debian:12", mounts.ENVIRONMENT):
        # With its own state directory, because `Kind` has to observe the first VM, which creates the template.
        subprocess.run([pyro, "env", "pull", name], env={**env, "PYRO_BASE_DIR": f"{work}/pull-state"},
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    say("starting a first VM")
    kind = Kind(pyro, env)
    peers = Peers(kind.base_image(), work)

    def engine(**more):
        return Engine(os.path.abspath(options.measure), pyro, {**env, **more}, f"{work}/engine.log")
    scenarios = Scenarios(pyro, env, work, kind, peers, engine, options.quick)

    results = {"machine": host.facts(pyro, kind.accelerator(), kind.qemu())}
    say("one-shot commands")
    results["one_shot"] = {
        "true": scenarios.one_shot("true", 20),
        "git --version": scenarios.one_shot("git --version", 10),
    }
    say("round trips in a running VM")
    results["exec"] = scenarios.round_trip()
    say("control groups")
    results["control_groups"] = commands.control_groups(scenarios)
    say("keys in a shell")
    results["keys"] = commands.keys(scenarios)
    say("tasks")
    results["tasks"] = {
        "create": scenarios.task_create(), "exec": scenarios.task_exec(), "in_a_row": scenarios.task_in_a_row(),
    }
    say("MCP")
    results["mcp"] = {"start": scenarios.mcp_start(), "run": scenarios.mcp_run()}
    say("Python")
    results["python"] = {
        **scenarios.python_calls(), "start": scenarios.python_start(), "import": scenarios.python_import(),
    }
    say("concurrent VMs")
    results["at_once"], results["memory"] = scenarios.at_once()
    say("throughput")
    results["throughput"] = scenarios.throughput()
    say("input and output")
    results["input"] = commands.throughput(scenarios)
    say("live directories")
    results["mounts"] = mounts.measure(pyro, env, work, 2_000 if options.quick else 20_000)
    say("environments")
    results["environments"] = environments.measure(pyro, env, work, scenarios.rounds(10))
    say("networks")
    results["network"] = scenarios.network()
    say("confinement")
    results["confinement"] = scenarios.confinement(os.path.abspath(options.cost))
    say("start by memory size")
    results["memory_size"] = scenarios.memory_size()
    results["first_command"] = results["memory_size"]["1024"]
    say("start by number of running VMs")
    results["live"] = scenarios.live()
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pyro", help="the executable")
    parser.add_argument("--measure", required=True, metavar="PROGRAM", help="pyro-engine's example `measure`")
    parser.add_argument("--cost", required=True, metavar="PROGRAM", help="pyro-confine's example `cost`")
    parser.add_argument("--cache", required=True, metavar="DIR", help="environment cache; debian:12 and debian:12-agent are installed there if missing")
    parser.add_argument("--output", metavar="DIR", help="directory for results.json and plots")
    parser.add_argument("--page", metavar="FILE", help="Markdown file whose tables are updated")
    parser.add_argument("--quick", action="store_true", help="a fifth of the runs, to try the suite itself")
    options = parser.parse_args()
    # Signals clean up in the same way as Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    started = time.monotonic()
    try:
        with host.work_directory() as work:
            results = measure(options, work)
    except KeyboardInterrupt:
        sys.exit(130)
    if options.output and options.page and not options.quick:
        report.write(results, options.output, options.page)
    print(report.text(results))
    say(f"done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
