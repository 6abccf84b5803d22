"""The sandbox of inspect-ai: its own self-check, and what that does not ask."""

import asyncio
import types

import anyio
import pytest
from inspect_ai.util import (
    OutputLimitExceededError, SandboxEnvironmentSpec, SandboxUnavailableError, SandboxUserUnsupportedError)
from inspect_ai.util._sandbox import self_check
from inspect_ai.util._sandbox.limits import override_max_exec_output_size, override_max_read_file_size
from inspect_ai.util._sandbox.self_check import *  # noqa: F403

from pyro_mcp import PyroRuntimeError
from pyro_mcp.integrations import inspect as provider
from pyro_mcp.integrations.inspect import PyroSandboxConfig, PyroSandboxEnvironment

pytestmark = pytest.mark.anyio

ROOT_MAY = "commands run as root, whom permissions of files do not stop"
CANNOT = {
    "test_read_file_not_allowed": ROOT_MAY,
    "test_write_text_file_without_permissions": ROOT_MAY,
    "test_write_binary_file_without_permissions": ROOT_MAY,
}

PS = """#!/bin/sh
for line in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$line; echo; done 2>/dev/null
"""


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
async def shared(module_sandbox):
    await PyroSandboxEnvironment.task_init("check", None)
    environments = await PyroSandboxEnvironment.sample_init("check", None, {})
    # The self-check looks for processes with `ps`, which the guest does not have.
    await environments["default"].write_file("/usr/local/bin/ps", PS)
    await environments["default"].exec(["chmod", "+x", "/usr/local/bin/ps"])
    yield environments["default"]
    await PyroSandboxEnvironment.sample_cleanup("check", None, environments, False)
    await PyroSandboxEnvironment.task_cleanup("check", None, True)


async def no_wait(seconds):
    pass


@pytest.fixture
def sandbox_env(request, shared, monkeypatch):
    # A command whose time is over has ended: no need to wait for that.
    monkeypatch.setattr(self_check, "anyio", types.SimpleNamespace(sleep=no_wait))
    reason = CANNOT.get(request.node.originalname)
    if reason:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError))
    return shared


# Commands

async def test_what_a_command_started_ends_with_its_time(sandbox_env):
    with pytest.raises(TimeoutError) as caught:
        await sandbox_env.exec(["sh", "-c", "echo begun; sleep 1234 & sleep 1234"], timeout=1)
    assert caught.value.truncated_output.startswith("begun\n")
    found = await sandbox_env.exec(["sh", "-c", "ps | grep -c 'sleep 123[4]'"])
    assert found.stdout == "0\n"


async def test_a_command_that_is_given_up_ends(sandbox_env):
    with anyio.move_on_after(1) as scope:
        await sandbox_env.exec(["sh", "-c", "sleep 4321 & sleep 4321"])
    assert scope.cancelled_caught
    gone = "while ps | grep -q 'sleep 432[1]'; do sleep 0.05; done"
    assert (await sandbox_env.exec(["sh", "-c", gone], timeout=20)).success


async def test_statuses_are_the_commands_own(sandbox_env):
    for status in (126, 127):
        ended = await sandbox_env.exec(["sh", "-c", f"echo Permission denied >&2; exit {status}"])
        assert (ended.success, ended.returncode, ended.stderr) == (False, status, "Permission denied\n")
    ended = await sandbox_env.exec(["no-such-program"])
    assert ended.returncode == 127
    assert ended.stderr.endswith("no-such-program: not found\n"), "and nothing that the provider told itself"
    ended = await sandbox_env.exec(["true", "x" * 200_000])
    assert ended.returncode == 126 and "too long" in ended.stderr


async def test_a_directory_that_is_missing(sandbox_env):
    ended = await sandbox_env.exec(["pwd"], cwd="no/such")
    assert ended.returncode == 1 and "/workspace/no/such" in ended.stderr


async def test_words_stay_as_they_are(sandbox_env):
    words = ["", " ", "'", '"', "$HOME", "`id`", "\\", "a\nb", "*", "-n", "~", "ü"]
    ended = await sandbox_env.exec(["printf", "<%s>", *words], env={"HOME": "/nowhere", "X": "$(id)'\n"})
    assert ended.stdout == "".join(f"<{word}>" for word in words)


async def test_variables(sandbox_env):
    ended = await sandbox_env.exec(["/usr/bin/env"], env={"PATH": "/opt/bin:/bin", "QUOTES": "'$(id)\""})
    assert "PATH=/opt/bin:/bin" in ended.stdout.splitlines() and "QUOTES='$(id)\"" in ended.stdout.splitlines()
    assert not [line for line in ended.stdout.splitlines() if line.split("=")[0] in ("entry", "uid", "secret")]
    with pytest.raises(ValueError):
        await sandbox_env.exec(["true"], env={"a b": ""})
    for cmd in ([], ["echo", "\0"]):
        with pytest.raises(ValueError):
            await sandbox_env.exec(cmd)


async def test_a_user(sandbox_env):
    ended = await sandbox_env.exec(["sh", "-c", 'id -u; id -G; echo $HOME $USER; pwd; cat'], user="nobody", input="word")
    assert ended.stdout == "65534\n65534\n/nonexistent nobody\n/workspace\nword"
    assert (await sandbox_env.exec(["id", "-un"], user="65534")).stdout == "nobody\n"
    assert (await sandbox_env.exec(["cat", "/etc/shadow"], user="nobody")).returncode == 1
    words = ["x" * 60_000, "'" * 60_000]
    ended = await sandbox_env.exec(["printf", "%s", *words], user="nobody", input="word")
    assert ended.stdout == "".join(words)
    with pytest.raises(PermissionError):
        await sandbox_env.exec(["/etc/passwd"], user="nobody")
    for user in ("no-such-user", "4242", "'; id"):
        with pytest.raises(SandboxUserUnsupportedError):
            await sandbox_env.exec(["id"], user=user)


async def test_a_user_cannot_supply_what_root_runs(sandbox_env):
    trap = b"#!/bin/sh\necho trapped\n"
    for name in ("getent", "setpriv", "rm", "cat"):
        await sandbox_env.write_file(f"/tmp/traps/{name}", trap)
    await sandbox_env.exec(["chmod", "-R", "755", "/tmp/traps"])
    ended = await sandbox_env.exec(
        ["id", "-un"], user="nobody", input="x", env={"PATH": "/tmp/traps:/usr/bin:/bin", "ENV": "/tmp/traps/cat"})
    assert (ended.stdout, ended.stderr) == ("nobody\n", "")


async def test_nothing_of_what_was_given_is_left(sandbox_env):
    await sandbox_env.exec(["true", *["x" * 60_000] * 3], input=b"y" * (2 << 20), user="nobody")
    assert (await sandbox_env.exec(["sh", "-c", "ls -A /root | grep -c pyro"])).stdout == "0\n"


async def test_output_beyond_the_limit_ends_the_command(sandbox_env):
    with override_max_exec_output_size(1000), pytest.raises(OutputLimitExceededError) as caught:
        await sandbox_env.exec(["sh", "-c", "exec yes 4567"])
    assert caught.value.truncated_output == "4567\n" * 200
    found = await sandbox_env.exec(["sh", "-c", "ps | grep -c 'yes 456[7]'"])
    assert found.stdout == "0\n"


async def test_output_beyond_what_the_engine_keeps(sandbox_env):
    size = 17 << 20
    with override_max_exec_output_size(size):
        ended = await sandbox_env.exec(["head", "-c", str(size), "/dev/zero"])
    assert len(ended.stdout) == size


# Files

async def test_files_of_every_kind_are_read(sandbox_env):
    assert "MemTotal" in await sandbox_env.read_file("/proc/meminfo")
    await sandbox_env.exec(["sh", "-c", "head -c 3000000 /dev/zero >large; ln -s large link; mkfifo fifo; echo piped >fifo &"])
    assert await sandbox_env.read_file("link", text=False) == bytes(3_000_000)
    assert await sandbox_env.read_file("fifo") == "piped\n"
    await sandbox_env.write_file("crlf", "a\r\nb\n")
    assert await sandbox_env.read_file("crlf") == "a\r\nb\n"
    for path in ("large", "crlf", "/dev/zero"):
        with override_max_read_file_size(4), pytest.raises(OutputLimitExceededError):
            await sandbox_env.read_file(path)
    for path in ("link/x", "", "/etc/"):
        with pytest.raises((FileNotFoundError, IsADirectoryError)):
            await sandbox_env.read_file(path)
    await sandbox_env.write_file("binary", b"\xff")
    with pytest.raises(UnicodeDecodeError):
        await sandbox_env.read_file("binary")
    await sandbox_env.exec(["sh", "-c", "rm large link fifo crlf binary"])


async def test_a_file_that_is_replaced_keeps_its_mode_and_its_links(sandbox_env):
    await sandbox_env.exec(["sh", "-c", "echo old >-file; chmod 711 ./-file; ln -s ./-file other"])
    await sandbox_env.write_file("other", "new")
    assert (await sandbox_env.exec(["stat", "-c", "%a %F", "./-file"])).stdout == "711 regular file\n"
    assert await sandbox_env.read_file("-file") == "new"
    await sandbox_env.exec(["rm", "./-file", "other"])


async def test_a_file_that_cannot_be_made(sandbox_env):
    with pytest.raises(OSError, match="No space left"):
        await sandbox_env.write_file("/dev/full", "x")
    with pytest.raises(OSError):
        await sandbox_env.write_file("/etc/passwd/x", "x")


# Samples

async def test_a_stopped_guest_is_unavailable(module_sandbox):
    environments = await PyroSandboxEnvironment.sample_init("check", None, {})
    environment = environments["default"]
    connection = await environment.connection()
    prompt = await anyio.run_process(["sh", "-c", connection.command], input=b"echo $((6 * 7))\ngrep MemTotal /proc/meminfo\n")
    assert b"42\n" in prompt.stdout and b"MemTotal:" in prompt.stdout
    with pytest.raises(NotImplementedError):
        await environment.connection(user="nobody")
    await environment._task.stop()
    with pytest.raises(SandboxUnavailableError):
        await environment.exec(["true"])
    with pytest.raises(ConnectionError):
        await environment.connection()
    # As after Ctrl-C.
    with anyio.CancelScope() as scope:
        scope.cancel()
        await PyroSandboxEnvironment.sample_cleanup("check", None, environments, True)
    assert environment._task.task_id not in module_sandbox.machines()
    assert environment._renewal.done()


async def test_an_interruption_while_a_guest_is_made_loses_none(module_sandbox, shared):
    found = {}
    with anyio.move_on_after(0.01):
        found = await PyroSandboxEnvironment.sample_init("check", None, {})
        await anyio.sleep_forever()
    assert found["default"]._task.task_id in module_sandbox.machines()
    await PyroSandboxEnvironment.sample_cleanup("check", None, found, True)
    assert module_sandbox.machines() == [shared._task.task_id]


async def test_the_lifetime_is_renewed_again_and_again():
    lifetimes = asyncio.Queue()

    async def extend(ttl_seconds):
        lifetimes.put_nowait(ttl_seconds)
        raise PyroRuntimeError("not now", "outcome_unknown")
    renewal = asyncio.create_task(provider._renew(types.SimpleNamespace(task_id="x", extend=extend), 0.03))
    assert [await lifetimes.get() for _ in range(3)] == [0.03] * 3
    renewal.cancel()


async def test_settings():
    spec = SandboxEnvironmentSpec("pyro", PyroSandboxConfig(vcpu_count=2, network=True))
    assert SandboxEnvironmentSpec.model_validate(spec.model_dump()) == spec
    assert len({spec, SandboxEnvironmentSpec("pyro", PyroSandboxConfig(vcpu_count=2, network=True))}) == 1
    assert provider._settings("debian:12-build").environment == "debian:12-build"
    for wrong in ({"vcpu_count": 9}, {"ttl_seconds": 59}, {"image": "x"}):
        with pytest.raises(ValueError):
            PyroSandboxEnvironment.config_deserialize(wrong)
