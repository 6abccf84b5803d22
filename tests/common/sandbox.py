"""A separate state directory for every test, with a check that nothing is left behind at the end."""

import contextlib
import os
import pathlib
import shutil
import signal
import tempfile
import time

# Files that pyro keeps on purpose.
KEPT = {
    "state.sqlite3", "state.sqlite3-wal", "state.sqlite3-shm", "accelerator.json", "boot-times.json", "mcp-token", "templates", "layers", "spares",
}
# How much slower this machine is than those for which limits were chosen; see CONTRIBUTING.md.
FACTOR = float(os.environ.get("PYRO_TEST_TIME_FACTOR", 1))
# Time limit, in seconds, for the clean-up after a server has ended. Generous, because the host may be busy.
GONE_WITHIN = 20 * FACTOR
# Time limit, in seconds, for polling.
LONG = 90 * FACTOR


class Sandbox:
    """The environment of one test. Use it in a `with` statement."""

    def __init__(self, pyro, cache):
        self.pyro = pyro
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="pyro-clients-"))
        self.state = self.directory / "state"
        home = self.directory / "home"
        home.mkdir()
        self.variables = {
            "HOME": str(home),
            "PATH": f"{pyro.parent}:{os.environ['PATH']}",
            "PYRO_BASE_DIR": str(self.state),
            # The sizes of disks do not depend on what is free on this host.
            "PYRO_DISK_OVERCOMMIT": "off",
            "PYRO_ENVIRONMENT_CACHE_DIR": str(cache),
            "PYRO_GUEST_KERNEL": os.environ.get("PYRO_TEST_GUEST_KERNEL", "environment"),
            "PYRO_VMM": os.environ.get("PYRO_TEST_VMM", "qemu"),
        }
        if self.variables["PYRO_VMM"] == "firecracker":
            # A path in this directory, because nothing else in its command line tells to which sandbox it belongs.
            program = shutil.copy(os.environ["PYRO_TEST_FIRECRACKER"], self.directory / "firecracker")
            self.variables["PYRO_FIRECRACKER"] = str(program)

    def __enter__(self):
        return self

    def expect_clean(self):
        """Waits until nothing is left of a VM."""
        left = self._wait_until_clean()
        assert not left, f"left behind: {left}"

    def __exit__(self, *_):
        left = self._wait_until_clean()
        # A failed test must not disturb the others.
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)
        assert not left, f"left behind: {left}"

    def processes(self):
        """Returns the command lines, by process ID, of processes whose command line or environment names this sandbox."""
        found = {}
        needle = os.fsencode(self.directory)
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes()
                    if needle in line or needle in (entry / "environ").read_bytes():
                        found[int(entry.name)] = line.replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    def machines(self):
        """Returns the directories of the existing VMs and tasks."""
        vms = self.state / "vms"
        return sorted(entry.name for entry in vms.iterdir()) if vms.is_dir() else []

    def _left(self):
        left = [f"process {pid}: {line}" for pid, line in self.processes().items()]
        left += [f"vms/{name}" for name in self.machines()]
        if self.state.is_dir():
            left += [f"file {entry.name}" for entry in self.state.iterdir() if entry.name not in KEPT | {"vms"}]
        return left

    def _wait_until_clean(self):
        with contextlib.suppress(TimeoutError):
            wait_until("clean-up", lambda: not self._left(), GONE_WITHIN)
        return self._left()


def wait_until(what, reached, limit=LONG):
    """Polls for a condition that has no event to wait for."""
    end = time.monotonic() + limit
    while not reached():
        if time.monotonic() > end:
            raise TimeoutError(f"timed out after {limit} s waiting for: {what}")
        time.sleep(0.02)
