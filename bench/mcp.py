"""A minimal client of `pyro mcp serve`: JSON-RPC over the server's standard input and output."""

import json
import time

from measure import Unavailable, call_ms
from talk import Talker


class Client(Talker):
    """A server and its only client. Use it in a `with` statement."""

    def __init__(self, pyro, env, log):
        super().__init__([pyro, "mcp", "serve"], env, log)
        self.asked = 0

    def greet(self):
        """Performs the handshake."""
        self._ask("initialize", {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}})
        self.say(_message(method="notifications/initialized"))

    def tools(self):
        """Returns the server's tools."""
        return self._ask("tools/list", {})["tools"]

    def run_ms(self, environment, command):
        """Returns the time of a `vm_run` call, whose command must succeed."""
        result = {}

        def call():
            arguments = {"environment": environment, "command": command}
            result.update(self._ask("tools/call", {"name": "vm_run", "arguments": arguments}))
        elapsed = call_ms(call)
        if result.get("isError") or result["structuredContent"]["exit_code"] != 0:
            raise Unavailable(f"vm_run failed: {result['content'][0]['text'][-500:]}")
        return elapsed

    def _ask(self, method, params):
        self.asked += 1
        answer = self.answer(_message(id=self.asked, method=method, params=params))
        if "error" in answer:
            raise Unavailable(f"{method}: {answer['error']['message']}")
        return answer["result"]


def _message(**parts):
    return json.dumps({"jsonrpc": "2.0", **parts})


def start_ms(pyro, env, log):
    """Returns the time from starting a server to its tool list, which a starting client waits for."""
    start = time.perf_counter_ns()
    with Client(pyro, env, log) as client:
        client.greet()
        client.tools()
        return (time.perf_counter_ns() - start) / 1e6
