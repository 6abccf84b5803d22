"""Runs the MCP server, `pyro mcp serve`, from Python."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Optional, Sequence

from ._manager import VmManager
from .errors import PyroRuntimeError, PyroValueError

TRANSPORTS = {"stdio": "stdio", "streamable-http": "http"}


class Server:
    """A Model Context Protocol server for AI clients, with the tools `vm_*` and `task_*`."""

    name = "pyro_mcp"

    def __init__(self, manager: VmManager) -> None:
        self._manager = manager

    def run(self, transport: str = "stdio", *, flags: Sequence[str] = ()) -> None:
        """Serves until the client disconnects or the server is stopped.

        Args:
            transport: `stdio` for one client on this program's standard input and output; `streamable-http` for any number
                of clients at 127.0.0.1:8722/mcp, which send the token that standard error names.
            flags: Additional flags of `pyro mcp serve`, such as `["--listen", "127.0.0.1:9000", "--no-network"]`.

        Raises:
            PyroValueError: The transport is unknown.
            PyroRuntimeError: The server did not start, or failed. Its standard error gives the reason.
        """
        if transport not in TRANSPORTS:
            raise PyroValueError(
                f"unknown transport '{transport}'; expected one of: {', '.join(TRANSPORTS)}", "invalid_input")
        program = self._manager.executable()
        command = [program, "mcp", "serve", "--transport", TRANSPORTS[transport], *flags]
        sys.stdout.flush()
        # The server ends when the other end of the pipe closes, so it cannot outlive this program.
        lifeline, held = os.pipe()
        try:
            server = subprocess.Popen(
                [*command, "--lifeline-fd", str(lifeline)], env=self._manager.variables(), pass_fds=[lifeline])
        except OSError as error:
            os.close(held)
            raise PyroRuntimeError(f"cannot start {program}: {error.strerror}", "executable_failed") from error
        finally:
            os.close(lifeline)
        try:
            status = server.wait()
        finally:
            os.close(held)
            server.wait()
        if status != 0:
            raise PyroRuntimeError(f"the MCP server exited with status {status}", "executable_failed")


def create_server(manager: Optional[VmManager] = None) -> Server:
    """Returns an MCP server with the settings of `manager`, or with the default settings."""
    return Server(manager or VmManager())
