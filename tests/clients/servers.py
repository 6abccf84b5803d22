"""The ways in which clients get at a server."""

import re
import signal
import subprocess

from mcp.client.stdio import StdioServerParameters, stdio_client

from sandbox import wait_until


class Stdio:
    """Each client starts a server of its own. To be used in a `with`."""

    def __init__(self, sandbox):
        self.sandbox = sandbox
        self.log = sandbox.directory / "stderr"

    def __enter__(self):
        self.errors = self.log.open("w")
        return self

    def __exit__(self, *_):
        self.errors.close()
        # Clients show it to people as trouble.
        assert self.log.read_text() == ""

    def for_sdk(self):
        """What the SDK's `Client` connects to, once."""
        parameters = StdioServerParameters(command="pyro", args=["mcp", "serve"], env=self.sandbox.variables)
        return stdio_client(parameters, errlog=self.errors)

    def for_inspector(self):
        """How the Inspector's command line begins. It hands few variables of its own to a server."""
        variables = [f"{name}={value}" for name, value in self.sandbox.variables.items() if name.startswith("PYRO_")]
        return [*(word for variable in variables for word in ("-e", variable)), "pyro", "mcp", "serve"]


class Http:
    """One server for all clients, with some more flags, to be used in a `with`."""

    def __init__(self, sandbox, *flags):
        self.sandbox = sandbox
        self.flags = flags
        self.log = sandbox.directory / "stderr"

    def __enter__(self):
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                [self.sandbox.pyro, "mcp", "serve", "--transport", "http", "--listen", "127.0.0.1:0", *self.flags],
                env=self.sandbox.variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        try:
            wait_until("address", lambda: self.process.poll() is not None or "\n" in self.log.read_text())
            self.url = re.fullmatch(r"pyro: serving MCP on (http://\S+/mcp)\n", self.log.read_text())[1]
        except BaseException:
            self.process.kill()
            self.process.communicate()
            raise
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            written, _ = self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        assert (self.process.returncode, written) == (128 + signal.SIGTERM, b"")

    def for_sdk(self):
        """What the SDK's `Client` connects to."""
        return self.url

    def for_inspector(self):
        """How the Inspector's command line begins."""
        return [self.url]


KINDS = {"stdio": Stdio, "http": Http}
