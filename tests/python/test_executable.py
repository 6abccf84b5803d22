"""Missing, wrong, and dying executables: a clear exception, no hang, and no process left behind."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

import pyro_mcp
from pyro_mcp import Pyro, PyroRuntimeError, PyroValueError, _connection
from sandbox import wait_until

# The response of a fake pyro of this version to the first request.
GREETING = """read line; echo '{"jsonrpc":"2.0","id":1,"result":{"protocol":1,"server":{"name":"pyro","version":"%s"}}}'"""


@pytest.fixture(autouse=True)
def no_leftover_children():
    yield
    # Neither a running child nor a zombie.
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def failure(executable, ask=Pyro.list_environments):
    """Returns the exception that a call raises."""
    with Pyro(executable=executable) as pyro, pytest.raises(PyroRuntimeError) as caught:
        ask(pyro)
    return caught.value


def test_missing_executable():
    error = failure("/nowhere/pyro")
    assert error.code == "executable_missing"
    assert str(error) == "invalid `executable`: /nowhere/pyro is not an executable file"


def test_missing_executable_from_the_variable(monkeypatch):
    monkeypatch.setenv("PYRO_EXECUTABLE", "/nowhere/pyro")
    error = failure(None)
    assert error.code == "executable_missing"
    assert "PYRO_EXECUTABLE" in str(error)


def test_no_executable_in_path(monkeypatch):
    monkeypatch.delenv("PYRO_EXECUTABLE", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    error = failure(None)
    assert error.code == "executable_missing"
    assert error.hints


def test_executable_that_cannot_be_started(tmp_path):
    path = tmp_path / "pyro"
    path.write_bytes(b"\x7fELF, it says")
    path.chmod(0o755)
    assert failure(path).code == "executable_failed"


def test_old_executable_without_the_rpc_command(program):
    error = failure(program("""echo "error: unrecognized subcommand 'rpc'" >&2; exit 2"""))
    assert error.code == "version_mismatch"
    assert "is older than this package, pyro-mcp 2." in str(error)


def test_executable_of_another_version(program):
    error = failure(program(GREETING % "1.9.3" + "; read line"))
    assert error.code == "version_mismatch"
    assert f"is pyro 1.9.3, and this package is pyro-mcp {pyro_mcp.__version__}" in str(error)
    assert error.hints


def test_package_of_another_version(executable, monkeypatch):
    monkeypatch.setattr(_connection, "__version__", "1.9.3")
    error = failure(executable)
    assert error.code == "version_mismatch"
    assert "1.9.3" in str(error) and pyro_mcp.__version__ in str(error)


@pytest.mark.parametrize("text", ["echo hello", "echo '[]'", "echo 7", "printf '{}\\n'", "cat", "head -c 100000 /dev/zero; echo"])
def test_garbage_instead_of_a_response(program, text):
    error = failure(program(f"{text}; exec sleep 1000"))
    assert error.code == "protocol_error"
    assert "does not speak the protocol" in str(error)


def test_garbage_before_the_first_request(program, monkeypatch):
    begin = _connection.Connection.begin

    def begin_late(self, *request):
        self._reader.join()
        return begin(self, *request)
    monkeypatch.setattr(_connection.Connection, "begin", begin_late)
    assert failure(program("echo hello; exec sleep 1000")).code == "protocol_error"


def test_garbage_between_responses(program):
    error = failure(program(f"{GREETING % pyro_mcp.__version__}; read line; echo oops; exec sleep 1000"))
    assert error.code == "protocol_error"


def test_endless_response(program, monkeypatch):
    monkeypatch.setattr(_connection, "MAX_RESPONSE", 1 << 20)
    assert failure(program("exec cat /dev/zero")).code == "protocol_error"


def test_silent_executable(program, monkeypatch):
    monkeypatch.setattr(_connection, "START_LIMIT", 0.2)
    error = failure(program("exec sleep 1000"))
    assert error.code == "executable_failed"
    assert "did not answer" in str(error)


def test_error_includes_stderr_of_an_executable_that_exits(program):
    error = failure(program("echo 'out of luck' >&2; exit 7"))
    assert error.code == "connection_lost"
    assert "exited with status 7" in str(error)
    assert error.hints == ("it wrote: out of luck",)


def test_killed_executable_is_restarted(pyro):
    pyro.list_environments()
    process = pyro.manager._slot.connection._process
    failures = []

    def run():
        with pytest.raises(PyroRuntimeError) as caught:
            pyro.run_in_vm(environment="debian:12", command="sleep 100")
        failures.append(caught.value)
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    begun = threading.Event()
    stream = pyro.stream_in_vm(
        environment="debian:12", command="sleep 100",
        on_progress=lambda event: event.get("phase") == "execute" and (begun.set() or os.kill(process.pid, signal.SIGKILL)))
    with pytest.raises(PyroRuntimeError) as caught:
        list(stream)
    failures.append(caught.value)
    assert begun.is_set()
    for thread in threads:
        thread.join()
    assert [failure.code for failure in failures] == ["connection_lost"] * 3
    assert "was killed by signal 9 during the call, which may have taken effect" in str(failures[0])
    assert pyro.run_in_vm(environment="debian:12", command="echo again")["stdout"] == "again\n"


def test_unencodable_arguments_are_value_errors(pyro):
    for command in ("\udcff", 5.5, object()):
        with pytest.raises(PyroValueError):
            pyro.run_in_vm(environment="debian:12", command=command)
    with pytest.raises(PyroValueError) as caught:
        pyro.write_task_file("9775b3af1eeb", path="big", content="x" * (33 << 20))
    assert caught.value.code == "message_too_long"
    assert pyro.list_environments(), "the connection is still usable"


def test_executable_ends_with_the_interpreter(sandbox):
    code = "from pyro_mcp import Pyro; pyro = Pyro(); print(len(pyro.list_environments()))"
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "4\n", "")


def test_executable_ends_with_a_killed_interpreter(sandbox):
    code = "from pyro_mcp import Pyro; pyro = Pyro(); pyro.list_environments(); print(flush=True); input()"
    program = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    program.stdout.readline()
    assert len(sandbox.processes()) == 2
    program.kill()
    program.communicate()
    wait_until("end of the executable", lambda: not sandbox.processes())


def test_executable_ends_when_the_client_is_collected(sandbox):
    pyro = Pyro()
    pyro.list_environments()
    process = pyro.manager._slot.connection._process
    del pyro
    assert process.poll() == 0


def test_stream_collected_while_its_thread_writes(program, tmp_path):
    requests = tmp_path / "requests"
    with Pyro(executable=program(f"{GREETING % pyro_mcp.__version__}; cat > {requests}")) as pyro:
        stream = pyro.stream_task("any", command="true")
        stream.__enter__()
        connection = pyro.manager._slot.connection
        with connection._writing:
            del stream
        connection.notify("ack", {"id": 2, "bytes": 1})
    assert [json.loads(line)["method"] for line in requests.open()] == ["exec_task", "ack", "cancel"]
