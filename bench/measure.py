"""Taking times: of processes and of calls, several contenders in turns, with a limit on everything."""

import contextlib
import os
import signal
import statistics
import sys
import time


class Unavailable(Exception):
    """Something that is compared is not there, or cannot be used here, and why."""


@contextlib.contextmanager
def at_most(seconds):
    """Ends what takes longer with TimeoutError. Does not nest."""
    def late(_signal, _frame):
        raise TimeoutError(f"not done after {seconds} s")
    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def process_ms(command, env, log, limit=120):
    """Time from a process's start to its end, which must be a success. `log` takes what it writes."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    pid = None
    try:
        with at_most(limit):
            start = time.perf_counter_ns()
            # posix_spawn does not copy this process, so its size does not count.
            pid = os.posix_spawnp(command[0], command, env, file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
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
    """Time that a call takes."""
    start = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - start) / 1e6


def summary(samples):
    """Median and quartiles of some values."""
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3
    return {"median": round(statistics.median(samples), 3), "p25": round(low, 3), "p75": round(high, 3),
            "runs": len(samples)}


def in_turns(contenders, rounds, seldom=()):
    """Lets contenders, callables that return a value, take turns, so that whatever else the machine does meets all
    of them alike; those in `seldom` only in every third round. The first turn of each is not counted. Gives the
    summary of each, or {"unavailable": why}."""
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
    """Progress, for people."""
    print(f"bench: {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
