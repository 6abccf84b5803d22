"""A guest's network, pyro's and plain passt's: two network namespaces, a server in one, and guests in the other.

The server measures all times, because the clock of an emulated guest is not exact.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import host
from measure import Unavailable, at_most
from rawvm import RawVM
from talk import Talker

# Public addresses, which pyro's policy allows. No packet leaves the namespaces.
GUESTS, SERVER = "5.6.7.1", "5.6.7.8"
SINK, SOURCE, CONNECT, HOLD = 9001, 9002, 9003, 9004
TRANSFER_MIB = 64
CONNECTIONS = 50
FLOOD = 2_000
PIECE = bytes(1 << 20)

# What runs in a guest. Perl is in every Debian image, and needs less time to start than the transfers take.
_CONNECT = "my $s = IO::Socket::INET->new(PeerAddr => q({address}), PeerPort => {port}, Proto => q(tcp)) or die"
COMMANDS = {
    "send": f"perl -MIO::Socket::INET -e '{_CONNECT}; my $d = chr(0) x (1 << 17); print $s $d for 1 .. {TRANSFER_MIB * 8}'",
    "receive": f"perl -MIO::Socket::INET -e '{_CONNECT}; 1 while sysread $s, my $d, 1 << 17'",
    "connect": f"perl -MIO::Socket::INET -e 'for (0 .. {CONNECTIONS}) {{{{ {_CONNECT}; sysread $s, my $d, 1 }}}}'",
    "flood": f"ulimit -n 10000; perl -MIO::Socket::INET -e 'my @s; for (1 .. {FLOOD}) {{{{ push @s, IO::Socket::INET->new("
             "PeerAddr => q({address}), PeerPort => {port}, Proto => q(tcp), Timeout => 1) }}'",
}
PORTS = {"send": SINK, "receive": SOURCE, "connect": CONNECT, "flood": HOLD}


def command(name):
    """Returns the command line for a guest."""
    return COMMANDS[name].format(address=SERVER, port=PORTS[name])


class Uplink:
    """The namespaces. Use it in a `with` statement."""

    def __init__(self, work):
        if os.geteuid() != 0:
            raise Unavailable("network namespaces need root")
        self.work = work

    def __enter__(self):
        self.stack = contextlib.ExitStack()
        try:
            self.guests, self.beyond = self._namespace(), self._namespace()
            for line in (
                f"ip link add outside type veth peer name beyond netns {self.beyond}",
                f"ip address add {GUESTS}/24 dev outside", "ip link set outside up",
                f"ip route add default via {SERVER}",
            ):
                self._run(self.guests, line)
            for line in (f"ip address add {SERVER}/24 dev beyond", "ip link set beyond up"):
                self._run(self.beyond, line)
            program = [sys.executable, os.path.abspath(__file__), self.work]
            self.server = self.stack.enter_context(Talker(self._inside(self.beyond) + program, os.environ, f"{self.work}/server.log"))
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, *error):
        if error[0]:
            # It may wait for a connection that does not come.
            self.server.process.kill()
        return self.stack.__exit__(*error)

    def of_guests(self, line):
        """Returns the command line that runs `line` where guests are."""
        return self._inside(self.guests) + line

    def measured(self, name, run):
        """Runs a command that uses the network, and returns what the server measured, in ms."""
        self.server.say(name)
        run(command(name))
        with at_most(60):
            return self.server.answer("result")["ms"]

    def _namespace(self):
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec cat", self.work],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)

        def end():
            holder.kill()
            holder.wait()
            holder.stdin.close()
            holder.stdout.close()
        self.stack.callback(end)
        if holder.stdout.readline() != b"up\n":
            raise Unavailable("this host does not allow network namespaces")
        return holder.pid

    @staticmethod
    def _inside(namespace):
        return ["nsenter", f"--net=/proc/{namespace}/ns/net", "--"]

    def _run(self, namespace, line):
        subprocess.run(self._inside(namespace) + line.split(), check=True)


class PyroGuest:
    """A task of pyro with a network."""

    def __init__(self, uplink, pyro, env):
        self.uplink, self.pyro, self.env = uplink, pyro, env

    def __enter__(self):
        created = self._pyro("task", "create", "debian:12", "--network", "--json")
        self.task = json.loads(created)["task_id"]
        return self

    def __exit__(self, *_):
        self._pyro("task", "delete", self.task)

    def exec(self, line):
        """Runs a command."""
        self._pyro("task", "exec", self.task, "--timeout-seconds", "120", "--", line)

    def _pyro(self, *arguments):
        line = self.uplink.of_guests([self.pyro, *arguments])
        ended = subprocess.run(line, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, timeout=300, check=False)
        if ended.returncode != 0:
            raise RuntimeError(f"pyro {arguments[0]} {arguments[1]} failed: {ended.stderr.decode(errors='replace')[-500:]}")
        return ended.stdout

    def process(self):
        """Returns the ID of the process that carries the guest's packets."""
        supervisors = host.processes(self.env["PYRO_BASE_DIR"])
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError, IndexError, ValueError):
                    with open(f"/proc/{name}/cmdline", "rb") as file:
                        words = file.read().split(b"\0")
                    if words[1:2] == [b"network"] and host.parent(int(name)) in supervisors:
                        return int(name)
        raise RuntimeError("the network's process was not found")


class PasstGuest:
    """A raw VM on plain passt, with the packets as large as pyro's."""

    def __init__(self, uplink, kind):
        self.uplink, self.kind = uplink, kind

    def __enter__(self):
        if not shutil.which("passt"):
            raise Unavailable("passt is not installed")
        link, far_end = socket.socketpair()
        line = ["passt", "--foreground", "--quiet", "--fd", str(far_end.fileno()), "-4", "--no-map-gw", "--runas", "0",
                "--tcp-ports", "none", "--udp-ports", "none", "--mtu", "65520",
                "--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2", "--dns-forward", "10.0.2.3"]
        with far_end:
            self.passt = subprocess.Popen(self.uplink.of_guests(line), pass_fds=[far_end.fileno()], stderr=subprocess.DEVNULL)
        with link:
            try:
                self.vm = self.kind.boot(link)(self.kind.layer("boot"))
            except BaseException:
                self._end()
                raise
        return self

    def __exit__(self, *error):
        self.vm.__exit__(*error)
        self._end()

    def _end(self):
        self.passt.kill()
        self.passt.wait()

    def exec(self, line):
        """Runs a command."""
        self.vm.exec(line)


def _serve():
    """The server: for each line of input, answers connections to one port, and measures them."""
    listeners = {}
    for port in PORTS.values():
        listener = socket.create_server((SERVER, port), backlog=4096)
        listener.settimeout(100)
        listeners[port] = listener
    for line in sys.stdin:
        name = line.strip()
        elapsed_ms = SERVICES[name](listeners[PORTS[name]])
        sys.stdin.readline()
        print(json.dumps({"ms": elapsed_ms}), flush=True)


def _sink(listener):
    connection, _ = listener.accept()
    with connection:
        connection.recv(1)
        start, left = time.perf_counter(), TRANSFER_MIB * len(PIECE) - 1
        while data := connection.recv(1 << 20):
            left -= len(data)
    if left:
        raise RuntimeError(f"{left} bytes are missing")
    return (time.perf_counter() - start) * 1000


def _source(listener):
    connection, _ = listener.accept()
    with connection:
        start = time.perf_counter()
        for _ in range(TRANSFER_MIB):
            connection.sendall(PIECE)
        connection.shutdown(socket.SHUT_WR)
        # The guest closes once it has read everything.
        connection.recv(1)
    return (time.perf_counter() - start) * 1000


def _connections(listener):
    start = None
    for _ in range(CONNECTIONS + 1):
        connection, _ = listener.accept()
        with connection:
            start = start or time.perf_counter()
            connection.sendall(b"x")
            connection.recv(1)
    return (time.perf_counter() - start) * 1000 / CONNECTIONS


def _hold(_listener):
    """Connections stay in the backlog, open for the guest."""
    return 0.0


SERVICES = {"send": _sink, "receive": _source, "connect": _connections, "flood": _hold}

if __name__ == "__main__":
    _serve()
