"""The TypeScript SDK that many clients have: it compiles the output schemas of all tools when it lists them."""

import json
import pathlib
import subprocess

SCRIPT = pathlib.Path(__file__).parent / "typescript_sdk.mjs"


def test_it_compiles_the_schemas(request, node, sandbox):
    directory = request.config.getoption("node").resolve()
    program, _ = node("node")
    line = [program, SCRIPT, directory, sandbox.pyro, "mcp", "serve"]
    ended = subprocess.run(
        line, env=sandbox.variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90)
    assert ended.returncode == 0, ended.stderr
    # Ajv warns about what it does not know.
    assert ended.stderr == ""
    assert len(json.loads(ended.stdout)) == 34
