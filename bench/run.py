#!/usr/bin/env python3
"""Measures pyro against the plain QEMU it uses and against other tools that isolate a command.

    bench/run.py --measure PROGRAM --cost PROGRAM --cache DIR [--output DIR --page FILE] [--quick] [--only PART]... PYRO

Prints tables. With --output and --page, but not with --quick or --only, also writes results.json, the plots, and the tables
of the page. Leaves no process, file, or control group behind, even if it is interrupted.
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
    parts = [name for name in PARTS if not options.only or name in options.only]
    needed = {"debian:12": None}
    needed.update(dict.fromkeys(name for part in parts for name in ENVIRONMENTS.get(part, ())))
    for name in needed:
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
    for name in parts:
        say(f"{name}: {PARTS[name].__doc__}")
        results.update(PARTS[name](scenarios, options))
    return results


def one_shot(scenarios, _):
    """one command, from start to clean-up"""
    return {
        "one_shot": {
            "true": scenarios.one_shot("true", 20),
            "git --version": scenarios.one_shot("git --version", 10),
        },
        "phases": scenarios.phases(),
    }


def long_lived(scenarios, _):
    """round trips and throughput in a running VM"""
    return {"exec": scenarios.round_trip(), "throughput": scenarios.throughput()}


def control_groups(scenarios, _):
    """`true` in a control group and without one"""
    return {"control_groups": commands.control_groups(scenarios)}


def keys(scenarios, _):
    """from a key in a shell to its echo"""
    return {"keys": commands.keys(scenarios)}


def input_output(scenarios, _):
    """throughput of input and output of commands"""
    return {"input": commands.throughput(scenarios)}


def live_directories(scenarios, options):
    """live directories and the guest's own disk"""
    files = 2_000 if options.quick else 20_000
    return {"mounts": mounts.measure(scenarios.pyro, scenarios.env, scenarios.work, files)}


def all_environments(scenarios, _):
    """sizes and start times of environments"""
    rounds = scenarios.rounds(10)
    return {"environments": environments.measure(scenarios.pyro, scenarios.env, scenarios.work, rounds)}


def tasks(scenarios, _):
    """commands in tasks"""
    return {"tasks": {
        "create": scenarios.task_create(), "exec": scenarios.task_exec(), "in_a_row": scenarios.task_in_a_row(),
    }}


def mcp(scenarios, _):
    """the MCP server"""
    return {"mcp": {"start": scenarios.mcp_start(), "run": scenarios.mcp_run()}}


def python(scenarios, _):
    """the Python package"""
    return {"python": {
        **scenarios.python_calls(), "start": scenarios.python_start(), "import": scenarios.python_import(),
    }}


def networks(scenarios, _):
    """a guest's network"""
    return {"network": scenarios.network()}


def confinement(scenarios, options):
    """the start of a confined program"""
    return {"confinement": scenarios.confinement(os.path.abspath(options.cost))}


def concurrent(scenarios, _):
    """concurrent VMs and their memory"""
    at_once, memory = scenarios.at_once()
    return {"at_once": at_once, "memory": memory}


def start(scenarios, _):
    """starts by memory size and by number of running VMs"""
    sizes = scenarios.memory_size()
    return {"memory_size": sizes, "first_command": sizes["1024"], "live": scenarios.live()}


# By their names on the command line, in the order in which they run.
PARTS = {
    "one-shot": one_shot,
    "long-lived": long_lived,
    "control-groups": control_groups,
    "keys": keys,
    "input": input_output,
    "live-directories": live_directories,
    "environments": all_environments,
    "tasks": tasks,
    "mcp": mcp,
    "python": python,
    "network": networks,
    "confinement": confinement,
    "concurrent": concurrent,
    "start": start,
}
# What they need besides debian:12.
ENVIRONMENTS = {"live-directories": [mounts.ENVIRONMENT], "environments": environments.MEASURED}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pyro", help="the executable")
    parser.add_argument("--measure", required=True, metavar="PROGRAM", help="pyro-engine's example `measure`")
    parser.add_argument("--cost", required=True, metavar="PROGRAM", help="pyro-confine's example `cost`")
    parser.add_argument("--cache", required=True, metavar="DIR", help="environment cache; what is missing is installed there")
    parser.add_argument("--output", metavar="DIR", help="directory for results.json and plots")
    parser.add_argument("--page", metavar="FILE", help="Markdown file whose tables are updated")
    parser.add_argument("--quick", action="store_true", help="a fifth of the runs, to try the suite itself")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART",
                        help=f"measure only this part, and only print; may be repeated: {', '.join(PARTS)}")
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
    results["machine"]["took_minutes"] = round((time.monotonic() - started) / 60)
    if options.output and options.page and not options.quick and not options.only:
        report.write(results, options.output, options.page)
    print(report.text(results))
    say(f"done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
