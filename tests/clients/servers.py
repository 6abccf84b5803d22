"""The ways in which clients get at a server."""

from mcp.client.stdio import StdioServerParameters, stdio_client


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


KINDS = {"stdio": Stdio}
