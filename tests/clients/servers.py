"""The transports by which clients reach a server."""

import re
import signal
import subprocess

from mcp.client.stdio import StdioServerParameters, stdio_client

from sandbox import wait_until


class Stdio:
    """A separate server for each client, over standard input and output. Use it in a `with` statement."""

    def __init__(self, sandbox):
        self.sandbox = sandbox
        self.log = sandbox.directory / "stderr"

    def __enter__(self):
        self.errors = self.log.open("w")
        return self

    def __exit__(self, *_):
        self.errors.close()
        # Clients present output on standard error as a problem.
        assert self.log.read_text() == ""

    def for_sdk(self):
        """Returns the transport for the SDK's `Client`, for one connection."""
        parameters = StdioServerParameters(command="pyro", args=["mcp", "serve"], env=self.sandbox.variables)
        return stdio_client(parameters, errlog=self.errors)

    def for_inspector(self):
        """Returns the first arguments of the Inspector's command line. The Inspector passes few of its variables to a server."""
        variables = [f"{name}={value}" for name, value in self.sandbox.variables.items() if name.startswith("PYRO_")]
        return [*(word for variable in variables for word in ("-e", variable)), "pyro", "mcp", "serve"]


class Http:
    """One HTTP server for all clients, with optional flags. Use it in a `with` statement."""

    def __init__(self, sandbox, *flags):
        self.sandbox = sandbox
        self.flags = flags if "--token-file" in flags else (*flags, "--no-token")
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
        """Returns the URL for the SDK's `Client`."""
        return self.url

    def for_inspector(self):
        """Returns the first arguments of the Inspector's command line."""
        return [self.url]


KINDS = {"stdio": Stdio, "http": Http}
