"""The MCP server that Python starts."""

import json
import subprocess
import sys

import pytest

from pyro_mcp import Pyro, create_server
from sandbox import wait_until

SERVE = "from pyro_mcp import create_server; create_server().run()"
HELLO = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


def start(code):
    return subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_server_on_standard_input_and_output(sandbox):
    server = start(SERVE)
    server.stdin.write(json.dumps(HELLO) + "\n")
    server.stdin.flush()
    assert json.loads(server.stdout.readline())["result"]["serverInfo"]["name"] == "pyro_mcp"
    assert server.communicate(timeout=60) == ("", "")
    assert server.returncode == 0


def test_server_ends_with_its_parent(sandbox):
    server = start("from pyro_mcp import create_server; create_server().run('streamable-http', flags=['--listen', '127.0.0.1:0'])")
    assert server.stderr.readline().startswith("pyro: serving MCP on http://127.0.0.1:")
    server.kill()
    server.communicate()
    wait_until("end of the server", lambda: not sandbox.processes())


def test_invalid_transport_and_flags(sandbox):
    assert Pyro().create_server().name == create_server().name == "pyro_mcp"
    with pytest.raises(ValueError, match="unknown transport 'sse'; expected one of: stdio, streamable-http"):
        create_server().run("sse")
    with pytest.raises(RuntimeError, match="exited with status 2"):
        create_server().run(flags=["--nonsense"])
