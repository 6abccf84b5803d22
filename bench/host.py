"""The host: its properties, the processes that belong to a directory, and their removal."""

import contextlib
import datetime
import os
import platform
import shutil
import signal
import subprocess
import time


def facts(pyro, accelerator, qemu):
    """Returns the properties of the host that matter when comparing results."""
    version = [subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
               for program in (pyro, qemu)]
    with open("/proc/cpuinfo") as cpuinfo:
        models = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "pyro": version[0].removeprefix("pyro "),
        "accelerator": accelerator,
        "qemu": version[1].removeprefix("QEMU emulator version "),
        "cores": os.cpu_count(),
        "cpu": models[0] if models else "unknown",
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "kernel": platform.release(),
    }


def available_mib():
    """Returns the memory available to processes, in MiB."""
    with open("/proc/meminfo") as meminfo:
        return next(int(line.split()[1]) for line in meminfo if line.startswith("MemAvailable")) >> 10


def processes(directory):
    """Returns the arguments, by process ID, of the processes whose arguments contain the directory."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                arguments = file.read()
                if os.fsencode(directory) in arguments:
                    found[int(name)] = [os.fsdecode(word) for word in arguments.split(b"\0")[:-1]]
    return found


def parent(pid):
    """Returns the ID of the parent of process `pid`."""
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rsplit(")", 1)[1].split()[1])


def memory_mib(pid):
    """Returns the RSS and PSS of a process, in MiB."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        values = {words[0]: words[1] for words in map(str.split, rollup) if len(words) > 2}
    return {"rss": int(values["Rss:"]) / 1024, "pss": int(values["Pss:"]) / 1024}


def peak_mib(pid):
    """Returns the largest RSS that a process has had, in MiB."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


@contextlib.contextmanager
def work_directory():
    """Creates a work directory on disk. On exit, removes it with all processes that name it, mounts below it, and control
    groups named after it."""
    root = os.environ.get("TMPDIR", "/var/tmp")
    # Fixed length, so that no name is a prefix of another.
    directory = f"{root}/pyro-bench-{os.getpid():07}"
    os.mkdir(directory, 0o700)
    try:
        yield directory
    finally:
        # Another signal must not interrupt the clean-up.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _remove(directory)


def end_processes(directory):
    """Kills all processes whose arguments contain the directory."""
    # A process may have started others just before it was killed.
    for _ in range(50):
        left = processes(directory)
        if not left:
            break
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _remove(directory):
    end_processes(directory)
    with open("/proc/self/mountinfo") as mounts:
        points = [line.split()[4] for line in mounts]
    for point in reversed(points):
        if point.startswith(f"{directory}/"):
            subprocess.run(["umount", "--lazy", point], check=False)
    _end_groups(os.path.basename(directory))
    shutil.rmtree(directory)


def _end_groups(name):
    """Kills the members of control groups with this name and removes the groups.

    The arguments of a container's processes do not contain our directory, so they are found by control group.
    """
    for _ in range(50):
        left = [path for path, _, _ in os.walk("/sys/fs/cgroup", topdown=False) if f"/{name}" in path]
        if not left:
            break
        for path in left:
            with contextlib.suppress(OSError):
                with open(f"{path}/cgroup.procs") as members:
                    for pid in members:
                        os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.rmdir(path)
        time.sleep(0.1)
