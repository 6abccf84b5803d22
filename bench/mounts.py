#!/usr/bin/env python3
"""Compares a live directory with a guest's own disk.

    bench/mounts.py [--cache DIR] [--files COUNT] PYRO

Makes a tree of small files, mounts it in a task, copies it to the task's disk as well, and runs the same commands in both, in turns.
Prints milliseconds, as the guest measures them, and their ratio. Needs `git` on this host.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

# By name; each runs in the tree. What a guest has cached is dropped before the first.
COMMANDS = {
    "git status, cold": "git status --short",
    "git status, again": "git status --short",
    "find": "find . -type f | wc -l",
    "tar of 200 files": "tar cf - dir0 dir1 | wc -c",
    "write 64 MiB": "dd if=/dev/zero of=big bs=1M count=64",
    "read 64 MiB": "cat big",
    "copy, rename, remove, 9 times": "for i in 1 2 3 4 5 6 7 8 9; do cp dir0/file0 new; mv new moved; rm moved; done",
}
FILES_IN_DIRECTORY = 100


def make_tree(path, files):
    """Makes a repository of small files."""
    for number in range(files):
        directory = path / f"dir{number // FILES_IN_DIRECTORY}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file{number % FILES_IN_DIRECTORY}").write_text(f"line of file {number}\n" * 15)
    git = ["git", "-C", str(path), "-c", "user.name=bench", "-c", "user.email=bench@example.test"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "tree"]):
        subprocess.run([*git, *words], check=True)


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
            "task", "create", "debian:12", "--mount", mount, "--mem-mib", "2048", "--ttl-seconds", "3600", "--json")
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", help="environment cache")
    parser.add_argument("--files", type=int, default=20_000, help="number of files [default: 20000]")
    parser.add_argument("pyro", metavar="PYRO", help="the executable")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        tree = pathlib.Path(work, "tree")
        make_tree(tree, options.files)
        env = {**os.environ, "PYRO_BASE_DIR": f"{work}/state", "PYRO_GUEST_KERNEL": "environment"}
        if options.cache:
            env["PYRO_ENVIRONMENT_CACHE_DIR"] = os.path.abspath(options.cache)
        with Task(os.path.abspath(options.pyro), env, tree) as task:
            task.copy()
            own, live = task.measure("/own"), task.measure("/live")
    print(f"{'':32}{'own disk':>12}{'live':>12}{'ratio':>8}")
    for name, at_own, at_live in zip(COMMANDS, own, live):
        print(f"{name:32}{at_own:>9} ms{at_live:>9} ms{at_live / max(at_own, 1):>8.1f}")


if __name__ == "__main__":
    sys.exit(main())
