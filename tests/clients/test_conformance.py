"""The protocol's own conformance suite, which speaks HTTP only."""

import pathlib
import subprocess

import pytest

pytestmark = pytest.mark.parametrize("server", ["http"], indirect=True)
# What each revision requires.
REVISIONS = ("2025-11-25", "2026-07-28")
# What the suite has besides, as far as it needs no tools of the suite's own.
MORE = (("server-session-lifecycle", "2025-11-25"), ("http-header-validation", "2026-07-28"))


@pytest.fixture
def suite(node, server, sandbox):
    """Runs the suite with some words. All checks must be passed but those that are expected to fail, and these must fail."""
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
def test_what_is_not_required(suite, scenario, revision):
    assert len(suite("--scenario", scenario, "--spec-version", revision)) == 1
