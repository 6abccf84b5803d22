#!/usr/bin/env python3
"""Runs pyro on KVM: on this host if it has one that pyro uses, else in the lab.

The lab is a machine that QEMU emulates. Its processor has SVM, so that it has a real /dev/kvm.

    lab.py test [TEST...]     runs the VM tests (make test-kvm)
    lab.py smoke              runs the smoke test (make test-kvm-smoke)
    lab.py hosts              runs the smoke test in each Debian, as each kind of user (make test-kvm-hosts)
    lab.py keep               starts a machine and keeps it until Ctrl-C, for trying things by hand
    lab.py image              builds the machine's disk only
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import parcel
import places
import vmtests
from image import image
from machine import Lost, Machine

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRIPLE = "x86_64-unknown-linux-gnu"
ENVIRONMENT = "debian:12"
SUITES = ("bookworm", "trixie", "sid")
# What pyro can run a VM with.
VMMS = ("qemu", "firecracker")
# Users of the machine, and the accelerator that pyro has to choose for each.
USERS = {"root": "kvm", "member": "kvm", "outsider": "tcg"}


def say(text):
    print(f"kvm-lab: {text}", flush=True)


class Lab:
    """The settings of this program."""

    def __init__(self, options):
        self.options = options
        self.built = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve()
        self.store = self.built / "kvm-lab"
        self.store.mkdir(parents=True, exist_ok=True)
        self.cache = pathlib.Path(os.environ.get("PYRO_TEST_CACHE") or self.built / "test-environments").resolve()
        self.servers = pathlib.Path(os.environ.get("PYRO_TEST_SERVERS") or self.built / "test-servers").resolve()
        self.firecracker = None
        if "firecracker" in getattr(options, "vmms", ()):
            self.firecracker = pathlib.Path(os.environ.get("PYRO_TEST_FIRECRACKER", "")).resolve()
            if not self.firecracker.is_file():
                raise SystemExit("kvm-lab: PYRO_TEST_FIRECRACKER has to name Firecracker's program; --vmm qemu needs none")
        # What `make build-test` has built.
        self.pyro = self.built / TRIPLE / "debug/pyro"

    def image(self, suite):
        return image(suite, self.store, say)

    def machine(self, suite, parcel=None, share=None):
        console = self.store / f"console-{suite}-{self.options.name}.log"
        return Machine(self.image(suite), console, say, self.options.cpus, self.options.memory, parcel, share)

    def is_native(self):
        """Whether the tests run on this host. `PYRO_TEST_KVM_LAB=always` makes them run in the lab."""
        return os.environ.get("PYRO_TEST_KVM_LAB") != "always" and places.has_kvm(self.pyro)

    def pull(self):
        subprocess.run([self.pyro, "env", "pull", ENVIRONMENT], check=True, stdin=subprocess.DEVNULL,
                       env={**os.environ, "PYRO_ENVIRONMENT_CACHE_DIR": str(self.cache)}, stdout=subprocess.DEVNULL)

    def packed(self, target):
        """Returns a parcel with executables in `target`, the sources, and the environment."""
        packed = parcel.Parcel(self.store)
        packed.add("target", target)
        packed.add_listed("source", ROOT, parcel.sources(ROOT))
        # Without the environments that have longer names.
        installed = re.compile(re.escape(ENVIRONMENT.replace(":", "_")) + r"-\d.*")
        names = [entry.name for entry in (self.cache / "linux-x86_64").iterdir() if installed.fullmatch(entry.name)]
        packed.add("cache", self.cache, *(f"linux-x86_64/{name}" for name in names))
        nextest = subprocess.run(["sh", "-c", "command -v cargo-nextest"], capture_output=True, text=True).stdout.strip()
        packed.add_file("bin/cargo-nextest", pathlib.Path(nextest).resolve())
        if self.firecracker:
            packed.add_file("bin/firecracker", self.firecracker)
        return packed


def test(lab):
    """Runs the VM tests with each VMM. They end in time, and say what did not run."""
    deadline = time.monotonic() + 60 * lab.options.minutes
    archive = lab.store / "vm.tar.zst"
    words = ["cargo", "nextest", "archive", "--locked", "--package=pyro-cli", "--test=vm", f"--archive-file={archive}"]
    subprocess.run(words, cwd=ROOT, check=True)
    lab.pull()
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(parcel.unpacked(archive, lab.store))
        digest = parcel.digest(target, ROOT)
        if lab.is_native():
            say("this host has a KVM that pyro uses")
            place = places.Host(ROOT, lab.built, lab.cache, lab.servers, lab.firecracker)
        else:
            packed = lab.packed(target)
            machine = stack.enter_context(lab.machine(lab.options.suite, packed))
            place = places.Lab(machine, ROOT, lab.built)
        complete = True
        for vmm in lab.options.vmms:
            variables = {**place.variables(vmm), "PYRO_TEST_SERVERS": str(place.servers)}
            factor = measured_factor(place, vmm, variables)
            results = vmtests.Results(lab.store / "results" / digest / vmm)
            if results.passed:
                say(f"{len(results.passed)} tests have passed in an earlier run and are not run again")
            listing = results.directory / "list.toml"
            listing.write_text(vmtests.config(factor, set()))
            wanted = vmtests.wanted(ROOT, listing, filters(lab))
            before, earlier = place.machines(), set(results.passed)
            if wanted - earlier:
                vmtests.run(place, results, factor, variables, filters(lab), deadline, say)
            complete &= report(place, vmm, wanted, results, earlier, before)
    if not complete:
        raise SystemExit(1)


def measured_factor(place, vmm, variables):
    first = vmtests.measure(place, variables)
    factor = vmtests.factor(first)
    say(f"a first run takes {first:.1f} s on {vmm} in {place.name}: limits of time are multiplied by {factor}")
    return factor


def filters(lab):
    return [f"--filterset=test(/{name}/)" for name in lab.options.tests]


def report(place, vmm, wanted, results, earlier, before):
    """Says how many tests ran on KVM, and which did not. Returns whether all have passed."""
    passed, failed = wanted & results.passed, {test: results.failed[test] for test in wanted if test in results.failed}
    left = sorted(wanted - passed - set(failed))
    for test in sorted(failed):
        say(f"{failed[test]}: {test}")
    for test in left:
        say(f"not run: {test}")
    proof, is_proven = proof_of(place, vmm, before)
    say(f"{vmm}: {len(passed) + len(failed)} of {len(wanted)} tests ran on KVM in {place.name}: {len(passed)} passed, "
        f"{len(failed)} failed, {len(left)} not run; {proof}; results are in {results.directory}")
    return not failed and not left and (is_proven or not wanted - earlier)


def proof_of(place, vmm, before):
    """Returns how many KVM machines a VMM has made since a count, in words, and whether any. Only the lab counts them."""
    if not place.counts_machines:
        return f"KVM machines of {vmm} are not counted here", True
    made = sum(count - before.get(name, 0) for name, count in place.machines().items() if name.startswith(vmm))
    return f"{vmm} made {made} KVM machines in this run", made > 0


def smoke(lab):
    """Runs the smoke test with each VMM."""
    limit = time.monotonic() + 60 * lab.options.minutes
    if lab.is_native():
        say("this host has a KVM that pyro uses")
        place = places.Host(ROOT, lab.built, lab.cache, lab.servers, lab.firecracker, lab.options.python)
        results = [passes(lab, place, vmm, "root", 1, limit) for vmm in lab.options.vmms]
    else:
        results = list(in_machine(lab, lab.options.suite, lab.options.users, limit).values())
    if not all(results):
        raise SystemExit(1)


def in_machine(lab, suite, users, limit):
    """Runs the smoke test in a machine with each VMM as each user. Returns which of them have passed."""
    with built_files(lab) as target, lab.machine(suite, lab.packed(target)) as machine:
        place = places.Lab(machine, ROOT, lab.built)
        results = {}
        for vmm in lab.options.vmms:
            factor = measured_factor(place, vmm, place.variables(vmm))
            results |= {(vmm, user): passes(lab, place, vmm, user, factor, limit) for user in users}
        return results


@contextlib.contextmanager
def built_files(lab):
    """A directory that holds pyro where nextest's archive would have it."""
    with parcel.temporary(lab.store) as directory:
        path = directory / "target" / TRIPLE / "debug"
        path.mkdir(parents=True)
        os.link(lab.pyro, path / "pyro")
        yield directory / "target"


def passes(lab, place, vmm, user, factor, limit):
    """Runs the smoke test with a VMM as a user and returns whether it passed."""
    start = time.monotonic()
    kept = lab.store / "results" / f"smoke-{place.suite}-{vmm}-{user}.xml"
    kept.parent.mkdir(exist_ok=True)
    report = place.report(kept)
    words = [place.python, "-B", "-m", "pytest", "-c", "tests/smoke/pytest.ini", "tests/smoke", f"--pyro={place.pyro}",
             f"--accelerator={USERS[user]}", f"--junitxml={report}", "--verbose", "--durations=0", "--color=no"]
    before = place.machines()
    process = place.start(words, {**place.variables(vmm), "PYRO_TEST_TIME_FACTOR": str(factor)}, user=user)
    timer = threading.Timer(max(1, limit - time.monotonic()), process.kill)
    timer.daemon = True
    timer.start()
    try:
        process.wait()
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()
    if process.returncode < 0:
        say("the smoke test did not end in time")
    elif text := place.read(report):
        kept.write_text(text)
    proof, is_proven = proof_of(place, vmm, before)
    has_passed = process.returncode == 0 and (is_proven or USERS[user] != "kvm")
    say(f"smoke test on {vmm} as {user} in {place.name}: {'passed' if has_passed else 'FAILED'} after "
        f"{time.monotonic() - start:.0f} s; {proof}")
    return has_passed


def hosts(lab):
    """Runs the smoke test in each Debian as each user, and prints the rows of a table."""
    rows = []
    for suite in lab.options.suites:
        limit = time.monotonic() + 60 * lab.options.minutes
        for (_, user), passed in in_machine(lab, suite, list(USERS), limit).items():
            rows.append((suite, user, USERS[user], passed))
    for row in rows:
        say("{} as {}: {}: {}".format(*row[:3], "passed" if row[3] else "FAILED"))
    if not all(row[3] for row in rows):
        raise SystemExit(1)


def keep(lab):
    """Keeps a machine until a signal. Prints how to use it."""
    with lab.machine(lab.options.suite, share=lab.options.share) as machine:
        command = shlex.join(machine.ssh())
        if lab.options.command_file:
            pathlib.Path(lab.options.command_file).write_text(f"#!/bin/sh\nexec {command} \"$@\"\n")
            os.chmod(lab.options.command_file, 0o755)
        print(command, flush=True)
        machine.wait()
        raise Lost("the machine has ended")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="trixie", help="Debian release of the machine [default: trixie]")
    parser.add_argument("--cpus", type=int, default=2, help="processors of the machine [default: 2]")
    parser.add_argument("--memory", default="8G", help="memory of the machine [default: 8G]")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name")

    command = commands.add_parser("test")
    command.add_argument("--minutes", type=int, default=75, help="time limit in total, with the builds [default: 75]")
    command.add_argument("--vmm", dest="vmms", action="append", choices=VMMS, help="with this VMM [default: qemu]")
    command.add_argument("tests", nargs="*", metavar="TEST", help="only tests whose names match this regular expression")
    # Some of these tests are about QEMU.
    command.set_defaults(run=test, usual_vmms=["qemu"])

    command = commands.add_parser("smoke")
    command.add_argument("--minutes", type=int, default=15)
    command.add_argument("--python", default="python3", help="Python with pytest, for a host with KVM [default: python3]")
    command.add_argument("--vmm", dest="vmms", action="append", choices=VMMS, help="with this VMM [default: each]")
    command.add_argument("--user", dest="users", action="append", choices=USERS, help="as this user [default: root]")
    command.set_defaults(run=smoke, usual_vmms=list(VMMS))

    command = commands.add_parser("hosts")
    command.add_argument("--minutes", type=int, default=30, help="time limit for each release")
    command.add_argument("suites", nargs="*", metavar="SUITE", default=SUITES, help="releases [default: all]")
    command.set_defaults(run=hosts, vmms=["qemu"])

    command = commands.add_parser("keep")
    command.add_argument("--share", type=pathlib.Path, help="directory of this host, which is /mnt in the machine")
    command.add_argument("--command-file", help="writes a script there that runs its arguments in the machine")
    command.set_defaults(run=keep)

    command = commands.add_parser("image")
    command.set_defaults(run=lambda lab: print(lab.image(lab.options.suite).directory))
    options = parser.parse_args()
    if getattr(options, "vmms", ...) is None:
        options.vmms = options.usual_vmms
    if getattr(options, "users", ...) is None:
        options.users = ["root"]
    return options


def main():
    # The same as Ctrl-C: everything that was started ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = parse()
    try:
        options.run(Lab(options))
    except Lost as error:
        raise SystemExit(f"kvm-lab: {error}")
    except KeyboardInterrupt:
        raise SystemExit(130)


if __name__ == "__main__":
    main()
