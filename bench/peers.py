"""Other tools that isolate a command, run in the same root file system as pyro's guests."""

import itertools
import json
import os
import shutil
import subprocess

from measure import Unavailable, process_ms

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Peers:
    """The contenders by name. Each is a function from a command to milliseconds."""

    def __init__(self, image, work):
        self.work = work
        self.root = f"{work}/rootfs"
        self.log = f"{work}/peer.log"
        self.env = {**os.environ, "CONTAINERS_CONF": f"{work}/containers.conf"}
        self.numbers = itertools.count()
        self.podman_options = None
        tool = shutil.which("fsck.erofs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        subprocess.run([tool, f"--extract={self.root}", image], check=True, stdout=subprocess.DEVNULL)
        with open(self.env["CONTAINERS_CONF"], "w") as file:
            # podman raises resource limits by default, which fails for a root user without that capability.
            file.write("[containers]\ndefault_ulimits = []\n")

    def contenders(self):
        """Returns all contenders."""
        return {"bwrap": self.bwrap, "runc": self.runc, "gVisor": self.gvisor, "podman": self.podman}

    def bwrap(self, command):
        """Bubblewrap: namespaces."""
        return self._time(["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", self.root, "/",
                           "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "/bin/sh", "-lc", command])

    def runc(self, command):
        """runc: namespaces, seccomp and capabilities, control groups."""
        bundle = self._bundle(command)
        return self._time(["runc", f"--root={self.work}/runc", "run", f"--bundle={bundle}", self._name()])

    def gvisor(self, command):
        """gVisor: a kernel in user space, never on its KVM platform."""
        bundle = self._bundle(command)
        return self._time(["runsc", f"--root={self.work}/runsc", "--network=none", "--ignore-cgroups",
                           "--platform=ptrace", "run", f"--bundle={bundle}", self._name()])

    def podman(self, command):
        """podman: runc or crun with storage, a monitor and locks."""
        if self.podman_options:
            return self._podman(self.podman_options, command)
        # crun does not support hosts with both versions of control groups; runc requires control groups.
        group = f"--cgroup-parent=/{os.path.basename(self.work)}"
        failures = []
        for options in (["--runtime=crun"], ["--cgroups=disabled"]), (["--runtime=runc"], [group]):
            try:
                time = self._podman(options, command)
                self.podman_options = options
                return time
            except Unavailable as error:
                failures.append(str(error))
        raise Unavailable("; ".join(failures))

    def _podman(self, options, command):
        before, after = options
        storage = [f"--root={self.work}/podman", f"--runroot={self.work}/podman-run", f"--tmpdir={self.work}/podman-tmp"]
        return self._time(["podman", *storage, "--cgroup-manager=cgroupfs", *before, "run", "--rm", "--network=none",
                           *after, "--rootfs", self.root, "/bin/sh", "-lc", command])

    def _time(self, command):
        return process_ms(command, self.env, self.log)

    def _name(self):
        return f"{os.path.basename(self.work)}-{next(self.numbers)}"

    def _bundle(self, command):
        bundle = f"{self.work}/bundle"
        os.makedirs(bundle, exist_ok=True)
        with open(f"{bundle}/config.json", "w") as file:
            json.dump({
                "ociVersion": "1.0.2",
                "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-lc", command], "env": [PATH],
                            "cwd": "/", "noNewPrivileges": True},
                "root": {"path": self.root, "readonly": True},
                "mounts": [
                    {"destination": "/proc", "type": "proc", "source": "proc"},
                    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                    {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
                ],
                "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
            }, file)
        return bundle
