"""The VM tests on KVM: what has to run, what ran, and how it ended."""

import json
import math
import pathlib
import re
import subprocess
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
# Time of a first run in an empty state directory on the host for which the limits of the tests were chosen, in seconds.
# Such a run makes a template, as the first run of each test does.
USUAL_FIRST_RUN = 4.0
# The other load of a machine changes during an hour.
MARGIN = 2
PERIOD = 90
# Time for nextest to end what runs and to write its report, in seconds.
GRACE = 60
# Tests wait for lifetimes and for guests, so one more than there are processors.
THREADS = 3
DONE = re.compile(r"^\s*(?P<status>[A-Z][A-Z0-9 +-]*) \[\s*[\d.]+s\] (\(\s*\d+/\d+\) )?pyro-cli::vm (?P<test>\S+)$")
# What is reported while a test runs.
RUNNING = {"SLOW", "TERMINATING", "SETUP"}


class Results:
    """The results of one build with one VMM. They are kept, so that a run that was cut off can be continued."""

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._file = directory / "passed"
        self.passed = set(self._file.read_text().split()) if self._file.exists() else set()
        self.failed = {}

    def add(self, test, status):
        if status == "PASS" or status == "LEAK":
            self.passed.add(test)
            self.failed.pop(test, None)
            with open(self._file, "a") as file:
                file.write(test + "\n")
        # What was interrupted at the end of the time has neither passed nor failed.
        elif status != "SIGINT":
            self.failed[test] = status

    def next_file(self, name, suffix):
        """Returns a path for a report of this run, next to those of earlier runs."""
        number = 1
        while (path := self.directory / f"{name}-{number}{suffix}").exists():
            number += 1
        return path


def factor(first_run):
    """Returns how many times the tests' limits are multiplied where a first run takes this many seconds."""
    return max(1, math.ceil(MARGIN * first_run / USUAL_FIRST_RUN))


def measure(place, variables):
    """Returns the time of a first run on KVM in an empty state directory, in seconds."""
    text = f"""
        state=$(mktemp -d) && trap 'rm -rf "$state"' EXIT
        export PYRO_VMM="$PYRO_TEST_VMM" PYRO_FIRECRACKER="${{PYRO_TEST_FIRECRACKER:-firecracker}}"
        export PYRO_ACCEL=kvm PYRO_BASE_DIR="$state" PYRO_ENVIRONMENT_CACHE_DIR="$PYRO_TEST_CACHE" PYRO_DISK_OVERCOMMIT=off
        start=$(date +%s%N) && {place.pyro} run --json debian:12 -- true >&2 && echo $((($(date +%s%N) - start) / 1000000))
    """
    with place.start(["sh", "-c", text], variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        output, errors = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"kvm-lab: a first run failed in {place.name}:\n{errors}")
    return int(output) / 1000


def config(factor, passed):
    """Returns nextest's configuration."""
    again = "".join(f"and not test(={test})\n" for test in sorted(passed))
    text = (HERE / "nextest.toml").read_text()
    return text.replace("@FACTOR_SECONDS@", str(PERIOD * factor)).replace("@NOT_AGAIN@", again)


def wanted(root, configuration, filters):
    """Returns the names of the tests that have to run."""
    listed = subprocess.run(
        ["cargo", "nextest", "list", "--locked", "--package=pyro-cli", "--test=vm", "--profile=kvm",
         f"--tool-config-file=pyro-kvm:{configuration}", "--message-format=json", *filters],
        cwd=root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if listed.returncode != 0:
        raise SystemExit(f"kvm-lab: the tests cannot be listed:\n{listed.stderr}")
    suites = json.loads(listed.stdout)["rust-suites"].values()
    return {
        name for suite in suites for name, test in suite["testcases"].items()
        if test["filter-match"]["status"] == "matches" and not test["ignored"]
    }


def run(place, results, factor, variables, filters, deadline, say):
    """Runs the tests that have not passed yet, until a time of `time.monotonic`."""
    configuration = place.write(results.directory / "nextest.toml", config(factor, results.passed))
    words = [*place.nextest, "--profile=kvm", f"--tool-config-file=pyro-kvm:{configuration}", f"--test-threads={THREADS}",
             "--color=never", "--no-input-handler", "--show-progress=none", *filters]
    # nextest's own directory is in the repository, wherever cargo's is.
    report = place.root / "target/nextest/kvm/junit.xml"
    place.remove(report)
    process = place.start(words, {**variables, "PYRO_TEST_TIME_FACTOR": str(factor)}, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    rest = max(1, deadline - time.monotonic())
    timers = [threading.Timer(rest, place.interrupt, [process]), threading.Timer(rest + GRACE, process.kill)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        with open(results.next_file("output", ".log"), "w") as log:
            for line in process.stdout:
                log.write(line)
                log.flush()
                done = DONE.match(line)
                if done and done["status"] not in RUNNING:
                    results.add(done["test"], done["status"])
                    say(line.strip())
                elif not done:
                    # Nextest's own lines and the output of failed tests.
                    say(line.rstrip("\n"))
    except BaseException:
        process.kill()
        raise
    finally:
        for timer in timers:
            timer.cancel()
        process.wait()
    # There is none if nextest had to be killed.
    if text := place.read(report):
        results.next_file("junit", ".xml").write_text(text)
    results.next_file("machine", ".log").write_text(place.log())
