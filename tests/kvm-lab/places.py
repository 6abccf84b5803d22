"""Where tests run: in the lab's machine, or on this host if it has a usable KVM."""

import json
import os
import pathlib
import shlex
import signal
import subprocess

from machine import dies_with_parent
from parcel import PLACE

# In the lab, how many KVM machines each program has made since the boot, and the probe's own.
COUNT_MACHINES = """
(cd /sys/kernel/tracing && echo 'p:pyro/vm kvm_arch_init_vm program=$comm' >kprobe_events &&
    echo 'hist:keys=program' >events/pyro/vm/trigger)
"""


class Place:
    """What both places have."""

    def variables(self, vmm):
        """Returns what tests need to use a VMM."""
        found = {"PYRO_TEST_CACHE": str(self.cache), "PYRO_TEST_VMM": vmm}
        if vmm == "firecracker":
            found["PYRO_TEST_FIRECRACKER"] = str(self.firecracker)
        return found


class Host(Place):
    """This host."""

    name = "this host"
    suite = "host"
    counts_machines = False

    def __init__(self, root, built, cache, servers, firecracker, python="python3"):
        self.root = root
        self.target = built
        self.cache, self.servers, self.firecracker = cache, servers, firecracker
        self.nextest = ["cargo", "nextest", "run", "--locked", "--package=pyro-cli", "--test=vm"]
        self.pyro = built / "x86_64-unknown-linux-gnu/debug/pyro"
        self.python = python

    def start(self, words, variables, user="root", **options):
        """Starts a program in the repository."""
        return subprocess.Popen(
            words, cwd=self.root, env={**os.environ, **variables}, stdin=subprocess.DEVNULL, preexec_fn=dies_with_parent,
            start_new_session=True, **options)

    def interrupt(self, process):
        """Asks nextest to end."""
        process.send_signal(signal.SIGINT)

    def write(self, path, text):
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(path).write_text(text)
        return path

    def read(self, path):
        """Returns the text of a file, or nothing if there is none."""
        path = pathlib.Path(path)
        return path.read_text() if path.exists() else ""

    def remove(self, path):
        pathlib.Path(path).unlink(missing_ok=True)

    @staticmethod
    def report(path):
        """Returns where a program has to write a file that is kept as `path`."""
        return path

    def machines(self):
        """Only the lab counts them."""
        return {}

    def log(self):
        """This host's log is not the tests'."""
        return ""


class Lab(Place):
    """The lab's machine, with a parcel."""

    counts_machines = True

    def __init__(self, machine, root, built):
        self.machine = machine
        self.suite = machine.image.suite
        self.name = f"the lab ({self.suite})"
        self.root = root
        self.target = pathlib.Path(PLACE) / "target"
        self.cache, self.servers, self.firecracker = f"{PLACE}/cache", f"{PLACE}/servers", f"{PLACE}/bin/firecracker"
        described = f"{PLACE}/target/nextest"
        self.nextest = [
            f"{PLACE}/bin/cargo-nextest", "nextest", "run", f"--cargo-metadata={described}/cargo-metadata.json",
            f"--binaries-metadata={described}/binaries-metadata.json", f"--target-dir-remap={built}",
            f"--workspace-remap={root}",
        ]
        self.pyro = self.target / "x86_64-unknown-linux-gnu/debug/pyro"
        self.python = "python3"
        # Tests have been compiled for these paths of this host. They are links in the machine.
        source, target = shlex.quote(str(root)), shlex.quote(str(built))
        machine.run(f"""
            set -eu
            mkdir -p {PLACE} && cd {PLACE}
            tar --extract --ignore-zeros --file /dev/disk/by-id/virtio-parcel
            chmod 755 {PLACE}
            mkdir -p servers/usr/sbin
            ln -s /usr/sbin/nginx /usr/sbin/dnsmasq servers/usr/sbin
            for link in {source} {target}; do
                mkdir -p "$(dirname "$link")"
                case $link in {source}) ln -s {PLACE}/source "$link";; *) ln -s {PLACE}/target "$link";; esac
            done
            {COUNT_MACHINES}
            for user in member outsider; do
                home=$(getent passwd $user | cut -d: -f6)
                cp --archive cache "$home/cache" && chown -R $user: "$home/cache"
            done
            """)

    def start(self, words, variables, user="root", **options):
        """Starts a program in the repository."""
        variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **variables}
        if user != "root":
            variables["PYRO_TEST_CACHE"] = f"/home/{user}/cache"
        assigned = [f"{name}={value}" for name, value in variables.items()]
        # nextest has its own group, which a file names so that it can be interrupted.
        text = f"cd {PLACE}/source && echo $$ >/tmp/running-{user} && exec env {shlex.join([*assigned, *words])}"
        return self.machine.start(text, user, stdin=subprocess.DEVNULL, **options)

    def interrupt(self, process):
        """Asks nextest to end."""
        self.machine.run("kill -INT $(cat /tmp/running-root)", check=False)

    def write(self, path, text):
        name = f"{PLACE}/{pathlib.Path(path).name}"
        self.machine.run(f"printf %s {shlex.quote(text)} >{name}")
        return name

    def read(self, path):
        """Returns the text of a file, or nothing if there is none."""
        return self.machine.run(f"cat {shlex.quote(str(path))}", check=False)

    def remove(self, path):
        self.machine.run(f"rm -f {shlex.quote(str(path))}")

    @staticmethod
    def report(path):
        """Returns where a program has to write a file that is kept as `path`."""
        return f"/tmp/{path.name}"

    def log(self):
        """Returns the latest lines of the machine's log."""
        return self.machine.run("journalctl --no-pager --boot --output=short-monotonic --lines=5000", check=False)

    def machines(self):
        """Returns how many KVM machines each program has made."""
        listing = self.machine.run("cat /sys/kernel/tracing/events/pyro/vm/hist", check=False)
        found = {}
        for line in listing.splitlines():
            if line.startswith("{ program:"):
                program, count = line.removeprefix("{ program:").split("} hitcount:")
                found[program.strip()] = int(count.split()[0])
        return found


def doctor(pyro):
    """Returns what `pyro doctor` says of this host."""
    ended = subprocess.run([pyro, "doctor", "--json"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return json.loads(ended.stdout)


def has_kvm(pyro):
    """Whether pyro would use KVM on this host."""
    return doctor(pyro)["accelerator"]["selected"] == "kvm"
