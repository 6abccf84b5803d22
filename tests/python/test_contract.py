"""The public contract of version 2.1: names, signatures, and defaults. Everything beyond it must be optional."""

import inspect
import json
import subprocess

import pytest

import pyro_mcp
from pyro_mcp import AsyncPyro, Pyro

REQUIRED = inspect.Parameter.empty
SPEC = {
    "environment": REQUIRED, "vcpu_count": 1, "mem_mib": 1024, "ttl_seconds": 600, "network": False,
    "allow_host_compat": False,
}
# `argv` may replace `command`.
COMMAND = {"command": None, "timeout_seconds": 30}
# Method: names of positional parameters, and keyword parameters with their defaults.
METHODS = {
    "create_server": ([], {}),
    "list_environments": ([], {}),
    "pull_environment": (["environment"], {}),
    "inspect_environment": (["environment"], {}),
    "prune_environments": ([], {}),
    "create_vm": ([], SPEC),
    "create_task": ([], SPEC),
    "start_vm": (["vm_id"], {}),
    "exec_vm": (["vm_id"], COMMAND),
    "exec_task": (["task_id"], COMMAND),
    "stop_vm": (["vm_id"], {}),
    "delete_vm": (["vm_id"], {}),
    "delete_task": (["task_id"], {}),
    "status_vm": (["vm_id"], {}),
    "status_task": (["task_id"], {}),
    "logs_task": (["task_id"], {}),
    "network_info_vm": (["vm_id"], {}),
    "reap_expired": ([], {}),
    "run_in_vm": ([], {**SPEC, **COMMAND}),
}
# Parameters of the SDK that are not sent as they are: callbacks and the input.
LOCAL = {"on_output", "on_progress", "input", "takes_input"}
# Parameters of calls that the SDK sets, or for which it has other ways.
IMPLIED = {"output", "after", "platform", "input", "stdin", "terminal"}
# Methods of the SDK and the calls that they make.
STREAMS = {"stream_in_vm": "run_in_vm", "stream_vm": "exec_vm", "stream_task": "exec_task"}


def test_the_package():
    for name in ("Pyro", "create_server", "__version__"):
        assert name in pyro_mcp.__all__
    assert pyro_mcp.__version__ == "2.1.0"
    assert len(METHODS) == 19


@pytest.mark.parametrize("facade", [Pyro, AsyncPyro])
@pytest.mark.parametrize("name", METHODS)
def test_method_signatures(facade, name):
    positional, keywords = METHODS[name]
    parameters = list(inspect.signature(getattr(facade, name)).parameters.values())[1:]
    assert [parameter.name for parameter in parameters[:len(positional)]] == positional
    for parameter in parameters[:len(positional)]:
        assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and parameter.default is REQUIRED
    by_keyword = {parameter.name: parameter.default for parameter in parameters[len(positional):]}
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters[len(positional):])
    assert {name: by_keyword.get(name, "missing") for name in keywords} == keywords
    assert all(default is not REQUIRED for name, default in by_keyword.items() if name not in keywords)


def test_sync_and_async_facades_match():
    def surface(facade):
        return {
            name: [(parameter.name, parameter.kind, parameter.default) for parameter in inspect.signature(value).parameters.values()]
            for name, value in vars(facade).items() if inspect.isfunction(value) and not name.startswith("_")
        }
    assert surface(Pyro) == surface(AsyncPyro)
    assert surface(pyro_mcp.Task) == surface(pyro_mcp.AsyncTask)
    assert surface(pyro_mcp.CommandStream) == surface(pyro_mcp.AsyncCommandStream)


def test_schema_of_the_executable_matches_the_document(executable, root):
    printed = subprocess.run([executable, "rpc", "--schema"], capture_output=True, check=True, timeout=60).stdout
    assert json.loads(printed) == json.loads((root / "crates/pyro-rpc/openrpc.json").read_text())


def test_methods_match_the_parameters_and_defaults_of_calls(root):
    document = json.loads((root / "crates/pyro-rpc/openrpc.json").read_text())
    calls = {method["name"]: method["params"] for method in document["methods"]}
    for name in ("initialize", "rpc.discover"):
        del calls[name]
    for name, params in calls.items():
        signature = inspect.signature(getattr(Pyro, name)).parameters
        for param in params:
            if param["name"] in IMPLIED:
                continue
            parameter = signature[param["name"]]
            assert (parameter.default is REQUIRED) == param["required"], (name, param)
            # Without a terminal, which the SDK does not have.
            default = param["schema"].get("default", 30 if param["name"] == "timeout_seconds" else None)
            assert param["required"] or (parameter.default or None) == (default or None), (name, param)
        sent = {param["name"] for param in params} | LOCAL | {"self"}
        assert set(signature) - sent <= ({"timeout_seconds"} if name == "wait_task" else set()), name
    for stream, call in STREAMS.items():
        expected = set(inspect.signature(getattr(Pyro, call)).parameters) - {"on_output"}
        assert set(inspect.signature(getattr(Pyro, stream)).parameters) == expected
