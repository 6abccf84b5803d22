"""A VM without pyro: QEMU, and just enough of the guest agent's protocol to run commands.

This is the floor that pyro is measured against. It uses the same kernel, agent, disks, template, and QEMU command line,
but no pyro process on the host, no registry, no checks, and no clean-up. The command lines are read from pyro's own
QEMU processes.
"""

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import time

import host
from measure import Unavailable, at_most

CONTROL, STDOUT, STDERR = range(3)
# Flags of yamux.
OPEN, CLOSE = 1, 4
# Maximum time without data from a guest or its QEMU.
SILENCE_SECONDS = 60
# What the guest of a VM with a network is given.
NETWORK = {"address": "10.0.2.15", "prefix_len": 24, "gateway": "10.0.2.2", "dns_servers": ["10.0.2.3"], "mtu": 65520}


class Kind:
    """How pyro starts QEMU for one kind of VM: from the kernel, and from a template where templates are supported."""

    def __init__(self, pyro, env, options=()):
        self.directory = env["PYRO_BASE_DIR"]
        self.kernel = self.clone = None
        self.initrd = f"{self.directory}-initrd"
        command = [pyro, "run", "debian:12", *options, "--", "echo up; sleep 60"]
        with subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL) as process:
            try:
                with at_most(300):
                    while not select.select([process.stdout], [], [], 0.005)[0]:
                        self._look()
                self._look()
                up = process.stdout.readline()
                process.send_signal(signal.SIGINT)
            except BaseException:
                process.kill()
                raise
        if up != b"up\n":
            raise RuntimeError("pyro cannot run a command on this host; see `pyro doctor`")
        if not self.kernel:
            raise RuntimeError("no QEMU process that boots a kernel was found")

    def _look(self):
        for command in host.processes(self.directory).values():
            if "-incoming" in command:
                self.clone = command
            elif "-kernel" in command and not self.kernel:
                self.kernel = command
                shutil.copyfile(_after(command, "-initrd"), self.initrd)

    def qemu(self):
        """The QEMU program."""
        return self.kernel[0]

    def accelerator(self):
        """`kvm` or `tcg`."""
        return _after(self.kernel, "-accel").split(",")[0]

    def base_image(self):
        """The base image, which all guests share."""
        disks = [json.loads(word) for word in self.kernel if word.startswith('{"') and "node-name" in word]
        return next(disk["file"]["filename"] for disk in disks if disk["node-name"] == "base")

    def boot(self, link=None):
        """Starts a VM from its kernel and waits until it accepts commands. `link` is the socket of its network."""
        command = list(self.kernel)
        # Only a template needs the memory in a file.
        for option, value in [("-object", "memory-backend"), ("-mon", "control"), ("-chardev", "id=control")]:
            for at in range(len(command) - 2, 0, -1):
                if command[at] == option and value in command[at + 1]:
                    del command[at:at + 2]
        command[command.index("-machine") + 1] = _after(command, "-machine").replace(",memory-backend=memory", "")
        command[command.index("-initrd") + 1] = self.initrd
        return lambda layer: RawVM(command, layer, link).up_from_kernel()

    def restore(self):
        """Starts a VM from pyro's template and waits until it accepts commands."""
        if not self.clone:
            raise Unavailable("pyro does not create templates on this host")
        return lambda layer: RawVM(self.clone, layer).up_from_template(f"{self._template()}/state")

    def _template(self):
        return os.path.dirname(json.loads(_after(self.clone, "-object"))["mem-path"])

    def layer(self, start):
        """Creates a fresh writable layer: the template's, or an empty one for a cold boot. Returns its path."""
        if start == "restore":
            source = f"{self._template()}/layer.img"
        else:
            layers = f"{self.directory}/layers"
            source = next(f"{layers}/{name}" for name in os.listdir(layers) if name.startswith("scratch-"))
        target = f"{self.directory}-layer.img"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        subprocess.run(["cp", "--sparse=always", source, target], check=True)
        os.chmod(target, 0o600)
        return target


def _after(command, option):
    return command[command.index(option) + 1]


class RawVM:
    """One QEMU process. Use it in a `with` statement, which kills it."""

    def __init__(self, command, layer, link=None):
        self.network = NETWORK if link else None
        self.console = open(f"{layer}.console", "w+b")
        self.agent, agent = socket.socketpair()
        self.control, control = socket.socketpair()
        self.lines = self.control.makefile("r")
        self.stream = 1
        for connection in (self.agent, self.control):
            connection.settimeout(SILENCE_SECONDS)
        ends = {"socket,id=agent,fd=": agent, "socket,id=control,fd=": control}
        if link:
            ends["stream,id=net,addr.type=fd,addr.str="] = link
        words = []
        for word in command:
            for prefix, end in ends.items():
                if word.startswith(prefix):
                    word = f"{prefix}{end.fileno()}"
            if word.startswith("{") and json.loads(word).get("node-name") == "layer":
                disk = json.loads(word)
                disk["file"]["filename"] = layer
                word = json.dumps(disk)
            words.append(word)
        self.process = subprocess.Popen(
            words, pass_fds=[end.fileno() for end in ends.values()], env={}, cwd="/",
            stdin=subprocess.DEVNULL, stdout=self.console, stderr=self.console,
        )
        agent.close()
        control.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for end in (self.agent, self.lines, self.control, self.console):
            end.close()

    def up_from_kernel(self):
        """Completes a start from the kernel: returns when the guest accepts commands."""
        with self._explained():
            # Same build as the pyro whose command line is used, so the generation always matches.
            generation = self._receive()["generation"]
            self._set_up({"generation": generation, "base_filesystem": "erofs", "warm_up": False})
            self._bootstrap()
        return self

    def up_from_template(self, state):
        """Loads the device state and waits until the guest accepts commands."""
        with self._explained():
            self.lines.readline()
            self._qmp("qmp_capabilities")
            self._qmp("migrate-set-capabilities", capabilities=[
                {"capability": "x-ignore-shared", "state": True}, {"capability": "events", "state": True}])
            self._qmp("migrate-incoming", channels=[
                {"channel-type": "main", "addr": {"transport": "file", "filename": state, "offset": 0}}])
            self._bootstrap()
        return self

    def exec(self, command):
        """Runs a command that must succeed and returns its standard output."""
        with self._explained():
            code, output = self._exec(command)
        if code != 0:
            raise RuntimeError(f"`{command}` ended with {code} in the raw VM")
        return output

    def shell(self):
        """Starts a login shell on a terminal. Returns a function that presses a key and returns what the terminal writes next.
        No commands can run meanwhile."""
        terminal = {"columns": 120, "rows": 30}
        command = self._command("login_shell", id=1, input=True, terminal=terminal)
        frames = self._frames(self._open({"exec": command}))
        keys = self._open({"input": {"command": 1}})

        def press(key):
            with self._explained():
                self._send(keys, struct.pack("<IB", len(key), STDOUT) + key)
                return next(frames)[1]
        with self._explained():
            prompt = b""
            while not prompt.endswith(b"# "):
                prompt += next(frames)[1]
        return press

    @contextlib.contextmanager
    def _explained(self):
        """Kills a guest that hangs or dies, and adds its console output to the error."""
        try:
            yield
        except (OSError, EOFError, ValueError) as error:
            self.console.seek(0)
            text = self.console.read().decode(errors="replace")[-2000:]
            self.__exit__()
            raise RuntimeError(f"the raw VM failed: {error!r}; its console:\n{text}") from error
        except BaseException:
            self.__exit__()
            raise

    # QEMU's control protocol

    def _qmp(self, command, **arguments):
        self.control.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            reply = json.loads(self.lines.readline())
            if "error" in reply:
                raise ValueError(reply["error"]["desc"])
            if "return" in reply:
                return

    # The agent's protocol: plain frames first, then yamux streams

    def _read(self, count):
        data = b""
        while len(data) < count:
            part = self.agent.recv(count - len(data))
            if not part:
                raise EOFError("the guest closed its channel")
            data += part
        return data

    def _receive(self):
        length, _ = struct.unpack("<IB", self._read(5))
        return json.loads(self._read(length))

    @staticmethod
    def _frame(message):
        payload = json.dumps(message).encode()
        return struct.pack("<IB", len(payload), CONTROL) + payload

    def _set_up(self, message):
        self.agent.sendall(self._frame(message))
        reply = self._receive()
        if reply != "done":
            raise ValueError(reply)

    def _bootstrap(self):
        self._set_up({
            "unix_time_ns": time.time_ns(), "seed": secrets.token_hex(32), "hostname": "pyro-000000000000",
            "machine_id": secrets.token_hex(16), "network": self.network,
        })

    def _exec(self, command):
        stream = self._open({"exec": self._command({"shell": {"text": command}})})
        output = b""
        for kind, payload in self._frames(stream):
            if kind == CONTROL:
                # Close our half of the stream.
                self._send(stream, b"", CLOSE)
                return json.loads(payload)["exited"]["status"]["code"], output
            if kind == STDOUT:
                output += payload
        raise EOFError("the guest closed a stream")

    @staticmethod
    def _command(program, **more):
        return {"program": program, "cwd": "/workspace", "timeout_ms": 3_600_000, "kill_grace_ms": 1000,
                "output_limit": None, **more}

    def _open(self, request):
        """Opens a stream with a request and returns its number."""
        stream = self.stream
        self.stream += 2
        self._send(stream, self._frame(request), OPEN)
        return stream

    def _send(self, stream, data, flags=0):
        # yamux: version, type (0 data, 1 window update), flags, stream, length
        self.agent.sendall(struct.pack(">BBHII", 0, 0, flags, stream, len(data)) + data)

    def _frames(self, stream):
        """Yields the frames of a stream as pairs of kind and payload. What other streams receive is dropped."""
        data = b""
        while True:
            _, kind, _, number, length = struct.unpack(">BBHII", self._read(12))
            if kind != 0 or length == 0:
                continue
            body = self._read(length)
            if number != stream:
                continue
            # Return the credit, so that the guest can continue sending.
            self.agent.sendall(struct.pack(">BBHII", 0, 1, 0, stream, length))
            data += body
            while len(data) >= 5:
                length, kind = struct.unpack("<IB", data[:5])
                if len(data) < 5 + length:
                    break
                payload, data = data[5:5 + length], data[5 + length:]
                yield kind, payload
