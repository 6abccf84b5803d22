#!/usr/bin/env python3
"""Compares a live directory with a guest's own disk.

    bench/mounts.py [--cache DIR] [--files COUNT] PYRO

Makes a tree of small files and a C project, mounts it in a task, copies it to the task's disk as well, and runs the same commands
in both. Prints milliseconds, as the guest measures them, and their ratio. Needs `git` on this host.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

# It has git, make, and a compiler.
ENVIRONMENT = "debian:12-agent"
# By name; each runs in the tree. What a guest has cached is dropped before the first.
COMMANDS = {
    "git status, cold": "git status --short",
    "git status, again": "git status --short",
    "find": "find . -type f | wc -l",
    "tar of 200 files": "tar cf - dir0 dir1 | wc -c",
    "write 64 MiB": "dd if=/dev/zero of=big bs=1M count=64",
    "read 64 MiB": "cat big",
    "copy, rename, remove, 9 times": "for i in 1 2 3 4 5 6 7 8 9; do cp dir0/file0 new; mv new moved; rm moved; done",
    "build of 12 C files": "make -C project",
    "build, again": "make -C project",
}
FILES_IN_DIRECTORY = 100
SOURCES = 12
FUNCTIONS = 10
MAKEFILE = """\
OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))
program: $(OBJECTS)
\t$(CC) -o $@ $^
%.o: %.c sums.h
\t$(CC) -O1 -c -o $@ $<
"""


def make_tree(path, files):
    """Makes a repository of small files."""
    for number in range(files):
        directory = path / f"dir{number // FILES_IN_DIRECTORY}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file{number % FILES_IN_DIRECTORY}").write_text(f"line of file {number}\n" * 15)
    make_project(path / "project")
    git = ["git", "-C", str(path), "-c", "user.name=bench", "-c", "user.email=bench@example.test"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "tree"]):
        subprocess.run([*git, *words], check=True)


def make_project(path):
    """Makes a C project of some files that use the system's headers."""
    path.mkdir()
    (path / "Makefile").write_text(MAKEFILE)
    (path / ".gitignore").write_text("*.o\nprogram\n")
    names = [[f"sum_{source}_{function}" for function in range(FUNCTIONS)] for source in range(SOURCES)]
    declared = "".join(f"long {name}(long);\n" for of_source in names for name in of_source)
    (path / "sums.h").write_text(f"#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n{declared}")
    for source, of_source in enumerate(names):
        functions = "".join(
            f"long {name}(long n) {{ long sum = {at}; for (long i = 0; i < n; i++) sum = sum * 31 + i % {at + 2}; return sum; }}\n"
            for at, name in enumerate(of_source))
        (path / f"sums{source}.c").write_text(f'#include "sums.h"\n{functions}')
    (path / "main.c").write_text('#include "sums.h"\nint main(void) { return printf("%ld\\n", sum_0_0(9)) < 0; }\n')


class Task:
    """A task with the tree mounted. Use it in a `with` statement."""

    def __init__(self, pyro, env, tree):
        self.pyro, self.env, self.tree = pyro, env, tree

    def _call(self, *words):
        called = subprocess.run([self.pyro, *words], env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
        return called.stdout.decode()

    def __enter__(self):
        mount = f"{self.tree}:/live:rw"
        created = self._call(
            "task", "create", ENVIRONMENT, "--mount", mount, "--mem-mib", "2048", "--ttl-seconds", "3600", "--json")
        self.id = json.loads(created)["task_id"]
        return self

    def __exit__(self, *_):
        self._call("task", "delete", self.id)

    def copy(self):
        """Copies the tree to the task's disk."""
        self._call("task", "cp", str(self.tree), f"{self.id}:/own")
        self.exec("chown -R 0:0 /own && sync && git config --global --add safe.directory '*'")

    def exec(self, line):
        """Runs a command and returns its output."""
        return self._call("task", "exec", self.id, "--timeout-seconds", "1800", "--", line)

    def measure(self, directory):
        """Returns the milliseconds of each command."""
        timed = "".join(
            f"s=$(date +%s%N); ( {line} ) >/dev/null 2>&1; echo $(( ($(date +%s%N) - s) / 1000000 ))\n" for line in COMMANDS.values())
        output = self.exec(f"cd {directory} && sync && echo 3 > /proc/sys/vm/drop_caches\n{timed}rm big")
        return [int(line) for line in output.split()]


def measure(pyro, env, work, files=20_000):
    """Returns the milliseconds of each command, by name, on the guest's own disk and in a live directory."""
    tree = pathlib.Path(work, "tree")
    make_tree(tree, files)
    try:
        with Task(pyro, env, tree) as task:
            task.copy()
            own, live = task.measure("/own"), task.measure("/live")
    finally:
        shutil.rmtree(tree)
    return {name: {"own disk": at_own, "live": at_live} for name, at_own, at_live in zip(COMMANDS, own, live)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", help="environment cache")
    parser.add_argument("--files", type=int, default=20_000, help="number of files [default: 20000]")
    parser.add_argument("pyro", metavar="PYRO", help="the executable")
    options = parser.parse_args()
    env = {"PYRO_GUEST_KERNEL": "environment", **os.environ}
    if options.cache:
        env["PYRO_ENVIRONMENT_CACHE_DIR"] = os.path.abspath(options.cache)
    with tempfile.TemporaryDirectory() as work:
        env["PYRO_BASE_DIR"] = f"{work}/state"
        results = measure(os.path.abspath(options.pyro), env, work, options.files)
    print(f"{'':32}{'own disk':>12}{'live':>12}{'ratio':>8}")
    for name, row in results.items():
        print(f"{name:32}{row['own disk']:>9} ms{row['live']:>9} ms{row['live'] / max(row['own disk'], 1):>8.1f}")


if __name__ == "__main__":
    sys.exit(main())
