"""The host: what it is, which processes belong to a directory, and how nothing is left of them."""

import contextlib
import datetime
import os
import platform
import shutil
import signal
import subprocess
import time


def facts(pyro, accelerator, qemu):
    """What has to be known of the machine to compare results."""
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
    """Memory that processes could still get."""
    with open("/proc/meminfo") as meminfo:
        return next(int(line.split()[1]) for line in meminfo if line.startswith("MemAvailable")) >> 10


def processes(directory):
    """Those whose arguments name the directory: by process id, their arguments."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                arguments = file.read()
                if os.fsencode(directory) in arguments:
                    found[int(name)] = [os.fsdecode(word) for word in arguments.split(b"\0")[:-1]]
    return found


def parent(pid):
    """The process that started `pid`."""
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rsplit(")", 1)[1].split()[1])


def memory_mib(pid):
    """Resident set of a process, and its proportional share of that, in MiB."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        values = {words[0]: words[1] for words in map(str.split, rollup) if len(words) > 2}
    return {"rss": int(values["Rss:"]) / 1024, "pss": int(values["Pss:"]) / 1024}


@contextlib.contextmanager
def work_directory():
    """A directory of our own, on a disk. At the end nothing of it is left: no process that names it, mount in it or
    control group named after it."""
    root = os.environ.get("TMPDIR", "/var/tmp")
    # Of one length, so that no name is the beginning of another.
    directory = f"{root}/pyro-bench-{os.getpid():07}"
    os.mkdir(directory, 0o700)
    try:
        yield directory
    finally:
        # Impatience must not leave half of it behind.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _remove(directory)


def end_processes(directory):
    """Kills those whose arguments name the directory."""
    # Killed processes may have started others a moment before.
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
    """Removes control groups of that name, and kills who is in them: a container names nothing of ours."""
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
