"""Executes the snippets of the documentation and the examples."""

import re
import subprocess
import sys

import pytest

# A part of each example's output.
EXAMPLES = {
    "run_script.py": "hello from Linux",
    "fan_out.py": "     7     49 ",
    "inspect_eval.py": "accuracy: 1.0",
}


def execute(*words):
    ended = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=170)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_documentation_snippets(sandbox, root):
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=root, capture_output=True, text=True, check=True)
    programs = {}
    for name in listed.stdout.split():
        blocks = re.findall(r"^```python\n(.*?)^```$", (root / name).read_text(), re.MULTILINE | re.DOTALL)
        if blocks:
            programs[name] = "\n".join(blocks)
    assert {"README.md", "docs/python/README.md", "docs/python/inspect.md"} <= set(programs)
    for name, program in programs.items():
        execute("-c", program)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(sandbox, root, name):
    assert EXAMPLES[name] in execute(root / "examples" / name)


def test_all_examples_are_tested(root):
    assert {path.name for path in (root / "examples").glob("*.py")} == set(EXAMPLES)
