"""The Inspector's command line, with the arguments that a user would type."""

import functools
import json
import subprocess

import pytest

from servers import Http

ENVIRONMENT = "environment=debian:12"
ERAS = ("legacy", "modern")


@pytest.fixture
def inspector(node, sandbox):
    """Runs the Inspector with arguments and returns its output. The exit status of a failed call is 5."""
    def run(*words, status=0):
        line = [*node("inspector"), "--cli", *words, "--format", "json"]
        ended = subprocess.run(
            line, env=sandbox.variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90)
        assert ended.returncode == status, ended
        return json.loads(ended.stdout or ended.stderr)
    return run


@pytest.fixture
def inspect(inspector, server):
    """Like `inspector`, with the arguments for `server`."""
    return functools.partial(inspector, *server.for_inspector())


def call(tool, *arguments):
    """Returns the arguments for a tool call."""
    return ["--method", "tools/call", "--tool-name", tool, *(word for each in arguments for word in ("--tool-arg", each))]


def test_one_command(inspect):
    result = inspect(*call("vm_run", ENVIRONMENT, "command=git --version"))["result"]
    assert result["isError"] is False
    assert result["structuredContent"]["stdout"].startswith("git version ")
    # The Inspector converts arguments to the types of the schema.
    arguments = (ENVIRONMENT, "command=exit 3", "mem_mib=1024", "timeout_seconds=20", "network=false")
    result = inspect("--protocol-era", "modern", *call("vm_run", *arguments))["result"]
    assert result["structuredContent"]["exit_code"] == 3


@pytest.mark.parametrize("era", ERAS)
def test_lists(inspect, era):
    # With --strict, it also checks the schemas, and exits with 6 for one that clients cannot use.
    tools = inspect("--protocol-era", era, "--method", "tools/list", "--strict")["result"]["tools"]
    assert {"vm_run", "task_create"} <= {tool["name"] for tool in tools}
    resources = inspect("--protocol-era", era, "--method", "resources/list")["result"]["resources"]
    assert "pyro://policy" in [resource["uri"] for resource in resources]
    (policy,) = inspect("--protocol-era", era, "--method", "resources/read", "--uri", "pyro://policy")["result"]["contents"]
    assert json.loads(policy["text"])["no_network"] is False
    prompts = inspect("--protocol-era", era, "--method", "prompts/list")["result"]["prompts"]
    assert "run_in_vm" in [prompt["name"] for prompt in prompts]
    asked = ["--prompt-name", "run_in_vm", "--prompt-args", "goal=Count."]
    (message,) = inspect("--protocol-era", era, "--method", "prompts/get", *asked)["result"]["messages"]
    assert message["content"]["text"].startswith("Count.")


@pytest.mark.parametrize("era", ERAS)
def test_failed_call(inspect, era):
    result = inspect("--protocol-era", era, *call("vm_run", "environment=windows:11", "command=ver"), status=5)["result"]
    assert result["isError"] is True
    assert "windows:11" in result["content"][0]["text"]


@pytest.mark.parametrize("era", ERAS)
def test_unknown_tool(inspect, era):
    assert inspect("--protocol-era", era, *call("nosuch"), status=5)["error"]["code"] == "tool_not_found"


def test_a_token(inspector, sandbox):
    token = "0123456789abcdef"
    file = sandbox.directory / "token"
    file.write_text(f"{token}\n")
    file.chmod(0o600)
    with Http(sandbox, "--token-file", file) as server:
        words = [*server.for_inspector(), "--stored-auth-only", "--method", "tools/list"]
        assert inspector(*words, "--header", f"Authorization: Bearer {token}")["result"]["tools"]
        refused = inspector(*words, "--header", "Authorization: Bearer 0123456789abcdeF", status=3)
        assert refused["error"]["code"] == "auth_required"
