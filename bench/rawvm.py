"""A VM without pyro: QEMU started by hand, and just enough of the guest agent's protocol to run one command.

It is what `pyro run` is measured against: the same kernel, agent, disks and machine, but no process of ours on
the host, no registry, no checks, no clean-up.
"""

import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import time

KERNEL_ARGUMENTS = "console=ttyS0 quiet reboot=t panic=-1 no_timer_check"
CONTROL, STDOUT, STDERR = range(3)
GENERATION = 2


class RawVM:
    """One QEMU process. `files` has the paths `kernel`, `initrd`, `base` and `layer`; with `restore`, a directory
    with `memory` and `state`, it starts from there, else from the kernel. With `memory` the guest's memory is in
    that file, so that it can be saved."""

    def __init__(self, qemu, files, mem_mib=1024, restore=None, memory=None, append="", cpu="max", console=subprocess.DEVNULL):
        self.console = console
        self.agent, agent = socket.socketpair()
        self.control, control = socket.socketpair()
        backend = {"qom-type": "memory-backend-file", "id": "memory", "size": mem_mib << 20}
        if restore:
            backend |= {"mem-path": f"{restore}/memory", "share": False, "readonly": True, "rom": "off"}
            start = ["-incoming", "defer"]
        else:
            backend |= {"mem-path": memory, "share": True}
            start = ["-kernel", files["kernel"], "-append", f"{KERNEL_ARGUMENTS} {append}"]
            if files.get("initrd"):
                start += ["-initrd", files["initrd"]]
        machine = "microvm,acpi=on,rtc=on,pit=on,pic=on,isa-serial=on,usb=off,pcie=off"
        in_file = restore or memory
        command = [
            qemu, "-no-user-config", "-nodefaults", "-no-reboot", "-display", "none",
            "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-machine", machine + (",memory-backend=memory" if in_file else ""),
            "-accel", "tcg,thread=single", "-cpu", cpu, "-smp", "1", "-m", f"{mem_mib}M",
            *(["-object", json.dumps(backend)] if in_file else []),
            *start,
            "-chardev", f"socket,id=control,fd={control.fileno()}", "-mon", "chardev=control,mode=control",
            "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
            "-device", "virtio-serial-device", "-chardev", f"socket,id=agent,fd={agent.fileno()}",
            "-device", "virtserialport,chardev=agent,name=pyro.agent", "-device", "virtio-rng-device",
            "-blockdev", self._disk("base", files["base"], True),
            "-device", "virtio-blk-device,drive=base,serial=pyro-base",
            "-blockdev", self._disk("layer", files["layer"], False),
            "-device", "virtio-blk-device,drive=layer,serial=pyro-layer,rerror=report,werror=report",
        ]
        self.process = subprocess.Popen(
            command, pass_fds=[agent.fileno(), control.fileno()],
            stdin=subprocess.DEVNULL, stdout=self.console, stderr=self.console,
        )
        agent.close()
        control.close()
        self.lines = self.control.makefile("r")
        self.stream = 1

    @staticmethod
    def _disk(name, path, read_only):
        return json.dumps({
            "driver": "raw", "node-name": name, "read-only": read_only, "discard": "unmap",
            "cache": {"direct": False, "no-flush": True},
            "file": {"driver": "file", "filename": path, "locking": "off"},
        })

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.agent.close()
        self.lines.close()
        self.control.close()

    # QEMU's control protocol

    def qmp(self, command, **arguments):
        self.control.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            reply = json.loads(self.lines.readline())
            if "error" in reply:
                raise RuntimeError(reply["error"]["desc"])
            if "return" in reply:
                return

    def greet(self):
        self.lines.readline()
        self.qmp("qmp_capabilities")
        self.qmp("migrate-set-capabilities", capabilities=[
            {"capability": "x-ignore-shared", "state": True}, {"capability": "events", "state": True}])

    @staticmethod
    def _channel(path):
        address = {"transport": "file", "filename": path, "offset": 0}
        return [{"channel-type": "main", "addr": address}]

    def save(self, path):
        self.qmp("migrate", channels=self._channel(path))
        while json.loads(self.lines.readline()).get("data", {}).get("status") != "completed":
            pass

    def restore(self, path):
        self.qmp("migrate-incoming", channels=self._channel(path))

    # The agent's protocol: frames, first bare, then in yamux streams

    def _read(self, count):
        data = b""
        while len(data) < count:
            part = self.agent.recv(count - len(data))
            if not part:
                raise EOFError("the guest closed its channel")
            data += part
        return data

    def _receive(self):
        length, kind = struct.unpack("<IB", self._read(5))
        return kind, self._read(length)

    @staticmethod
    def _frame(message):
        payload = json.dumps(message).encode()
        return struct.pack("<IB", len(payload), CONTROL) + payload

    def hello(self):
        return json.loads(self._receive()[1])

    def set_up(self, message):
        self.agent.sendall(self._frame(message))
        reply = json.loads(self._receive()[1])
        if reply != "done":
            raise RuntimeError(reply)

    def prepare(self, warm_up=True):
        self.set_up({"generation": GENERATION, "base_filesystem": "erofs", "warm_up": warm_up})

    def bootstrap(self):
        self.set_up({
            "unix_time_ns": time.time_ns(), "seed": secrets.token_hex(32), "hostname": "pyro-000000000000",
            "machine_id": secrets.token_hex(16), "network": None,
        })

    def exec(self, command):
        """Runs the command; its exit status and its standard output."""
        request = self._frame({"exec": {
            "command": command, "cwd": "/workspace", "timeout_ms": 60_000, "kill_grace_ms": 1000,
            "output_limit": None,
        }})
        # yamux: version, type (0 data, 1 window update), flags (1 opens the stream), stream, length
        self.agent.sendall(struct.pack(">BBHII", 0, 0, 1, self.stream, len(request)) + request)
        data, output = b"", b""
        while True:
            _, kind, _, stream, length = struct.unpack(">BBHII", self._read(12))
            if kind != 0 or length == 0:
                continue
            body = self._read(length)
            if stream != self.stream:
                continue
            # Let the guest send on.
            self.agent.sendall(struct.pack(">BBHII", 0, 1, 0, stream, length))
            data += body
            while len(data) >= 5:
                length, kind = struct.unpack("<IB", data[:5])
                if len(data) < 5 + length:
                    break
                payload, data = data[5:5 + length], data[5 + length:]
                if kind == CONTROL:
                    # Our half of the stream is done, too.
                    self.agent.sendall(struct.pack(">BBHII", 0, 0, 4, self.stream, 0))
                    self.stream += 2
                    reply = json.loads(payload)
                    return reply["exited"]["status"]["code"], output
                if kind == STDOUT:
                    output += payload


def sparse_copy(source, target):
    subprocess.run(["cp", "--sparse=always", source, target], check=True)


def make_initrd(agent, modules, target):
    """The initrd of pyro's guests: the agent as /init, /dev/console, and the environment's modules."""
    import tempfile
    with tempfile.TemporaryDirectory() as root:
        os.mkdir(f"{root}/dev")
        os.mknod(f"{root}/dev/console", 0o600 | 0o020000, os.makedev(5, 1))
        subprocess.run(["install", "-m755", agent, f"{root}/init"], check=True)
        with open(target, "wb") as out:
            subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, check=True,
                           input=b"dev\ndev/console\ninit\n", stdout=out)
            if modules:
                with open(modules, "rb") as archive:
                    out.write(archive.read())
