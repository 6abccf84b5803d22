"""The protocol's conformance suite, which supports only HTTP."""

import pathlib
import subprocess

import pytest

pytestmark = pytest.mark.parametrize("server", ["http"], indirect=True)
# Revisions whose requirements are checked.
REVISIONS = ("2025-11-25", "2026-07-28")
# Further scenarios that do not need the suite's own tools.
MORE = (("server-session-lifecycle", "2025-11-25"), ("http-header-validation", "2026-07-28"))


@pytest.fixture
def suite(node, server, sandbox):
    """Runs the suite with arguments. Checks listed as expected failures must fail; all others must pass."""
    def run(*words):
        results = sandbox.directory / "results"
        line = [*node("conformance"), "server", "--url", server.url, "--output-dir", results, *words]
        ended = subprocess.run(
            line, env=sandbox.variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return list(results.glob("*/checks.json"))
    return run


@pytest.mark.parametrize("revision", REVISIONS)
def test_requirements(suite, revision):
    expected = pathlib.Path(__file__).with_name(f"conformance-{revision}.yaml")
    assert len(suite("--requirements", revision, "--expected-failures", expected)) >= 30


@pytest.mark.parametrize(("scenario", "revision"), MORE)
def test_optional_scenarios(suite, scenario, revision):
    assert len(suite("--scenario", scenario, "--spec-version", revision)) == 1
