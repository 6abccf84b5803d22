"""Commands in a running guest: their input, the echo of a key in a shell, and the cost of their control groups."""

import contextlib
import os
import pty
import select
import signal
import statistics
import subprocess

import sdk
from measure import Unavailable, at_most, call_ms, in_turns, process_ms

DATA_MIB = 64
# Number of commands in a row, of which the median counts.
COMMANDS = 20
# A letter, and the key that removes it.
KEYS = (b"x", b"\x7f")
GROUPS = "/sys/fs/cgroup/pyro"


def throughput(scenarios):
    """Measures the same bytes as input and as output of a command in a task, in MB/s, from the start of `pyro` to its end."""
    data = f"{scenarios.work}/zeros"
    with open(data, "wb") as file:
        for _ in range(DATA_MIB):
            file.write(bytes(1 << 20))

    def rate(task, options, command, stdin=os.devnull):
        line = [scenarios.pyro, "task", "exec", *options, task, "--", command]
        elapsed = process_ms(line, scenarios.env, "/dev/null", stdin)
        return DATA_MIB * 1.048576 / elapsed * 1000

    with scenarios.engine() as engine:
        task = engine.task()
        # The command fails unless it was given all.
        take = f"test $(wc -c) = {DATA_MIB << 20}"
        try:
            return in_turns({
                "input": lambda: rate(task, ["-i"], take, data),
                "output": lambda: rate(task, [], f"head -c {DATA_MIB << 20} /dev/zero"),
            }, scenarios.rounds(10))
        finally:
            os.unlink(data)


def keys(scenarios):
    """Measures the time from a key to its echo in a login shell: through a terminal, and through the calls of programs, next to
    the same on the raw port of a raw VM."""
    kind = scenarios.kind
    start = "restore" if kind.clone else "boot"
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(scenarios.engine())
        client = stack.enter_context(sdk.Client(scenarios.pyro, scenarios.env, f"{scenarios.work}/sdk.log"))
        raw = stack.enter_context(getattr(kind, start)()(kind.layer(start)))
        task = engine.task()
        shells = [engine.open_shell(task) for _ in range(2)]
        press_raw = raw.shell()
        terminal = stack.enter_context(Terminal([scenarios.pyro, "task", "shell", task], scenarios.env))
        contenders = {
            "raw port": lambda key: call_ms(lambda: _echoed(key, press_raw(key))),
            "`pyro task shell`": lambda key: call_ms(lambda: _echoed(key, terminal.press(key))),
            "`write_task_shell`, engine": lambda key: engine.press(task, shells[0], key.decode()),
            "`write_task_shell`, Python": lambda key: client.press(task, shells[1], key.decode()),
        }
        return in_turns({
            name: lambda press=press: statistics.mean(press(key) for key in KEYS) for name, press in contenders.items()
        }, scenarios.rounds(100))


def _echoed(key, echo):
    """Checks the echo of a key: a letter is written, and its removal begins with a step back."""
    if not echo.startswith(b"\b" if key == b"\x7f" else key):
        raise Unavailable(f"unexpected echo of {key}: {echo}")


class Terminal:
    """A program with a login shell on a terminal. Use it in a `with` statement."""

    def __init__(self, command, env):
        self.command, self.env = command, env

    def __enter__(self):
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            self.command, env=self.env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        seen = b""
        while not seen.endswith(b"# "):
            seen += self._read()
        return self

    def __exit__(self, *_):
        # The shell ends with its terminal.
        os.close(self.ours)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def press(self, key):
        """Presses a key and returns what is written next."""
        os.write(self.ours, key)
        return self._read()

    def _read(self):
        if not select.select([self.ours], [], [], 60)[0]:
            raise Unavailable("timed out waiting for the terminal")
        return os.read(self.ours, 4096)


def control_groups(scenarios):
    """Measures `true` on the raw port of a raw VM, in a control group and without one.

    The kernel refuses to make groups beyond a maximum, and the agent does not use a group again that a program has read. It then
    runs commands without one.
    """
    kind = scenarios.kind
    start = "restore" if kind.clone else "boot"
    with getattr(kind, start)()(kind.layer(start)) as raw:
        def true_ms(maximum, group):
            raw.exec(f"echo {maximum} > {GROUPS}/cgroup.max.descendants; ls {GROUPS}/*")
            actual = raw.exec("cat /proc/self/cgroup")
            if not actual.startswith(group):
                raise Unavailable(f"unexpected control group: {actual}")
            # After the groups of the commands above were removed.
            raw.exec("true")
            with at_most(60):
                return statistics.median(call_ms(lambda: raw.exec("true")) for _ in range(COMMANDS))
        return in_turns({
            "in a group": lambda: true_ms("max", b"0::/pyro/"),
            "without": lambda: true_ms("0", b"0::/\n"),
        }, scenarios.rounds(50))
