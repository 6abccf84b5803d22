"""Measures processes and calls, with contenders taking turns and a time limit on everything."""

import contextlib
import os
import signal
import statistics
import sys
import time


class Unavailable(Exception):
    """A contender is missing or cannot be used on this host. The message gives the reason."""


@contextlib.contextmanager
def at_most(seconds):
    """Raises TimeoutError if the block takes longer. Does not nest."""
    def late(_signal, _frame):
        raise TimeoutError(f"timed out after {seconds} s")
    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def process_ms(command, env, log, stdin=os.devnull, limit=120):
    """Returns the time from a process's start to its successful end. Its output goes to `log`."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    pid = None
    try:
        with at_most(limit):
            start = time.perf_counter_ns()
            # posix_spawn does not copy this process, so the size of this process does not affect the result.
            pid = os.posix_spawnp(command[0], command, env, file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, stdin, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2),
            ])
            _, status = os.waitpid(pid, 0)
            elapsed = time.perf_counter_ns() - start
            pid = None
    except FileNotFoundError as error:
        raise Unavailable(f"{command[0]} is not installed") from error
    finally:
        os.close(out)
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if status != 0:
        with open(log, errors="replace") as text:
            raise Unavailable(f"{os.path.basename(command[0])} failed: {text.read()[-500:].strip()}")
    return elapsed / 1e6


def call_ms(work):
    """Returns the time that a call takes."""
    start = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - start) / 1e6


def summary(samples):
    """Returns the median and quartiles of the samples."""
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
    return {"median": round(statistics.median(samples), 3), "p25": round(low, 3), "p75": round(high, 3),
            "runs": len(samples)}


def in_turns(contenders, rounds, seldom=()):
    """Runs contenders in turns and returns the summary of each, or {"unavailable": reason}.

    A contender is a callable that returns a value. Taking turns exposes all of them alike to other load on the host.
    Those in `seldom` run only in every third round. The first turn of each does not count.
    """
    samples, results = {name: [] for name in contenders}, {}
    for turn in range(rounds + 1):
        for name, contender in contenders.items():
            if name in results or (name in seldom and turn % 3 > 1):
                continue
            try:
                value = contender()
            except Unavailable as error:
                say(f"{name}: not available: {error}")
                results[name] = {"unavailable": str(error)}
                continue
            if turn > 0:
                samples[name].append(value)
    return {name: results.get(name) or summary(samples[name]) for name in contenders}


def say(text):
    """Prints progress to standard error."""
    print(f"bench: {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
