"""The inspect-ai sandbox: its self-check, and tests beyond it."""

import asyncio
import contextlib
import types

import anyio
import pytest
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.util import (
    OutputLimitExceededError, SandboxEnvironmentSpec, SandboxUnavailableError, SandboxUserUnsupportedError)
from inspect_ai.util._sandbox import self_check
from inspect_ai.util._sandbox.limits import override_max_exec_output_size, override_max_read_file_size
from inspect_ai.util._sandbox.self_check import *  # noqa: F403

from pyro_mcp import PyroRuntimeError
from pyro_mcp.integrations import inspect as provider
from pyro_mcp.integrations.inspect import PyroSandboxConfig, PyroSandboxEnvironment

pytestmark = pytest.mark.anyio

PS = """#!/bin/sh
for line in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$line; echo; done 2>/dev/null
"""


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@contextlib.asynccontextmanager
async def sample(config=None):
    await PyroSandboxEnvironment.task_init("check", config)
    environments = await PyroSandboxEnvironment.sample_init("check", config, {})
    # The tests use `ps`, which the guest does not have.
    made = "cat >/usr/local/bin/ps && chmod +x /usr/local/bin/ps"
    assert (await environments["default"].exec(["sh", "-c", made], input=PS, user="root")).success
    yield environments["default"]
    await PyroSandboxEnvironment.sample_cleanup("check", config, environments, False)
    await PyroSandboxEnvironment.task_cleanup("check", config, True)


@pytest.fixture(scope="module")
async def environment(module_sandbox):
    async with sample() as environment:
        yield environment


@pytest.fixture(scope="module")
async def of_nobody(module_sandbox):
    async with sample(PyroSandboxConfig(user="nobody")) as environment:
        yield environment


async def no_wait(seconds):
    pass


@pytest.fixture
def sandbox_env(of_nobody, monkeypatch):
    """The sandbox for the self-check. Not root, because file permissions do not apply to root."""
    # A command that timed out has ended, so there is no need to wait for it.
    monkeypatch.setattr(self_check, "anyio", types.SimpleNamespace(sleep=no_wait))
    return of_nobody


# Commands

async def test_timeout_ends_the_processes_of_a_command(environment):
    with pytest.raises(TimeoutError) as caught:
        await environment.exec(["sh", "-c", "echo begun; sleep 1234 & sleep 1234"], timeout=1)
    assert caught.value.truncated_output.startswith("begun\n")
    found = await environment.exec(["sh", "-c", "ps | grep -c 'sleep 123[4]'"])
    assert found.stdout == "0\n"


async def test_cancelled_command_ends(environment):
    with anyio.move_on_after(1) as scope:
        await environment.exec(["sh", "-c", "sleep 4321 & sleep 4321"])
    assert scope.cancelled_caught
    gone = "while ps | grep -q 'sleep 432[1]'; do sleep 0.05; done"
    assert (await environment.exec(["sh", "-c", gone], timeout=20)).success


async def test_exit_codes(environment):
    for status in (126, 127):
        ended = await environment.exec(["sh", "-c", f"echo Permission denied >&2; exit {status}"])
        assert (ended.success, ended.returncode, ended.stderr) == (False, status, "Permission denied\n")
    ended = await environment.exec(["no-such-program"])
    assert ended.returncode == 127
    assert ended.stderr.endswith("no-such-program: not found\n"), "and nothing that the provider told itself"
    ended = await environment.exec(["true", "x" * 200_000])
    assert ended.returncode == 126 and "too long" in ended.stderr


async def test_missing_directory(environment):
    ended = await environment.exec(["pwd"], cwd="no/such")
    assert ended.returncode == 1 and "/workspace/no/such" in ended.stderr


async def test_arguments_are_passed_unchanged(environment):
    words = ["", " ", "'", '"', "$HOME", "`id`", "\\", "a\nb", "*", "-n", "~", "ü"]
    ended = await environment.exec(["printf", "<%s>", *words], env={"HOME": "/nowhere", "X": "$(id)'\n"})
    assert ended.stdout == "".join(f"<{word}>" for word in words)


async def test_variables(environment):
    ended = await environment.exec(["/usr/bin/env"], env={"PATH": "/opt/bin:/bin", "QUOTES": "'$(id)\""})
    assert "PATH=/opt/bin:/bin" in ended.stdout.splitlines() and "QUOTES='$(id)\"" in ended.stdout.splitlines()
    assert not [line for line in ended.stdout.splitlines() if line.split("=")[0] in ("entry", "uid", "secret")]
    with pytest.raises(ValueError):
        await environment.exec(["true"], env={"a b": ""})
    for cmd in ([], ["echo", "\0"]):
        with pytest.raises(ValueError):
            await environment.exec(cmd)


async def test_a_user(environment):
    ended = await environment.exec(["sh", "-c", 'id -u; id -G; echo $HOME $USER; pwd; cat'], user="nobody", input="word")
    assert ended.stdout == "65534\n65534\n/nonexistent nobody\n/workspace\nword"
    assert (await environment.exec(["id", "-un"], user="65534")).stdout == "nobody\n"
    assert (await environment.exec(["cat", "/etc/shadow"], user="nobody")).returncode == 1
    words = ["x" * 60_000, "'" * 60_000]
    ended = await environment.exec(["printf", "%s", *words], user="nobody", input="word")
    assert ended.stdout == "".join(words)
    with pytest.raises(PermissionError):
        await environment.exec(["/etc/passwd"], user="nobody")
    for user in ("no-such-user", "4242", "'; id"):
        with pytest.raises(SandboxUserUnsupportedError):
            await environment.exec(["id"], user=user)


async def test_a_user_cannot_supply_what_root_runs(environment):
    trap = b"#!/bin/sh\necho trapped\n"
    for name in ("getent", "setpriv", "rm", "cat"):
        await environment.write_file(f"/tmp/traps/{name}", trap)
    await environment.exec(["chmod", "-R", "755", "/tmp/traps"])
    ended = await environment.exec(
        ["id", "-un"], user="nobody", input="x", env={"PATH": "/tmp/traps:/usr/bin:/bin", "ENV": "/tmp/traps/cat"})
    assert (ended.stdout, ended.stderr) == ("nobody\n", "")


async def test_no_input_is_left_in_the_guest(environment):
    await environment.exec(["true", *["x" * 60_000] * 3], input=b"y" * (2 << 20), user="nobody")
    assert (await environment.exec(["sh", "-c", "ls -A /root | grep -c pyro"])).stdout == "0\n"


async def test_output_beyond_the_limit_ends_the_command(environment):
    with override_max_exec_output_size(1000), pytest.raises(OutputLimitExceededError) as caught:
        await environment.exec(["sh", "-c", "exec yes 4567"])
    assert caught.value.truncated_output == "4567\n" * 200
    found = await environment.exec(["sh", "-c", "ps | grep -c 'yes 456[7]'"])
    assert found.stdout == "0\n"


async def test_output_beyond_the_capture_limit(environment):
    size = 17 << 20
    with override_max_exec_output_size(size):
        ended = await environment.exec(["head", "-c", str(size), "/dev/zero"])
    assert len(ended.stdout) == size


# Files

async def test_reading_files(environment):
    assert "MemTotal" in await environment.read_file("/proc/meminfo")
    await environment.exec(["sh", "-c", "head -c 3000000 /dev/zero >large; ln -s large link; mkfifo fifo; echo piped >fifo &"])
    assert await environment.read_file("link", text=False) == bytes(3_000_000)
    assert await environment.read_file("fifo") == "piped\n"
    await environment.write_file("crlf", "a\r\nb\n")
    assert await environment.read_file("crlf") == "a\r\nb\n"
    for path in ("large", "crlf", "/dev/zero"):
        with override_max_read_file_size(4), pytest.raises(OutputLimitExceededError):
            await environment.read_file(path)
    kinds = {"link/x": NotADirectoryError, "": IsADirectoryError, "/etc/": IsADirectoryError, "none": FileNotFoundError}
    for path, kind in kinds.items():
        with pytest.raises(kind):
            await environment.read_file(path)
    with pytest.raises(NotADirectoryError):
        await environment.write_file("link/x", "x")
    await environment.write_file("binary", b"\xff")
    with pytest.raises(UnicodeDecodeError):
        await environment.read_file("binary")
    with pytest.raises(OSError, match="the other end of the fifo"):
        await environment.read_file("fifo")
    await environment.exec(["sh", "-c", "rm large link fifo crlf binary"])


async def test_replaced_file_keeps_mode_and_links(environment):
    await environment.exec(["sh", "-c", "echo old >-file; chmod 711 ./-file; ln -s ./-file other"])
    await environment.write_file("other", "new")
    assert (await environment.exec(["stat", "-c", "%a %F", "./-file"])).stdout == "711 regular file\n"
    assert await environment.read_file("-file") == "new"
    await environment.exec(["rm", "./-file", "other"])


async def test_file_that_cannot_be_created(environment):
    with pytest.raises(OSError, match="No space left"):
        await environment.write_file("/dev/full", "x")
    with pytest.raises(OSError):
        await environment.write_file("/etc/passwd/x", "x")


# Samples

async def test_a_stopped_guest_is_unavailable(module_sandbox):
    environments = await PyroSandboxEnvironment.sample_init("check", None, {})
    stopped = environments["default"]
    connection = await stopped.connection()
    prompt = await anyio.run_process(["sh", "-c", connection.command], input=b"echo $((6 * 7))\ngrep MemTotal /proc/meminfo\n")
    assert b"42\n" in prompt.stdout and b"MemTotal:" in prompt.stdout
    with pytest.raises(NotImplementedError):
        await stopped.connection(user="nobody")
    await stopped._task.stop()
    with pytest.raises(SandboxUnavailableError):
        await stopped.exec(["true"])
    with pytest.raises(ConnectionError):
        await stopped.connection()
    # As after Ctrl-C.
    with anyio.CancelScope() as scope:
        scope.cancel()
        await PyroSandboxEnvironment.sample_cleanup("check", None, environments, True)
    assert stopped._task.task_id not in module_sandbox.machines()
    assert stopped._renewal.done()


async def test_interrupted_sample_init_leaves_no_guest(module_sandbox, environment, of_nobody):
    found = {}
    with anyio.move_on_after(0.01):
        found = await PyroSandboxEnvironment.sample_init("check", None, {})
        await anyio.sleep_forever()
    assert found["default"]._task.task_id in module_sandbox.machines()
    await PyroSandboxEnvironment.sample_cleanup("check", None, found, True)
    assert module_sandbox.machines() == sorted([environment._task.task_id, of_nobody._task.task_id])


async def test_lifetime_is_renewed():
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


async def test_files_belong_to_the_user(of_nobody):
    size = 2 << 20
    secret = f"head -c {size} /dev/zero >/var/secret; chmod 600 /var/secret"
    assert (await of_nobody.exec(["sh", "-c", secret], user="root")).success
    with pytest.raises(PermissionError):
        await of_nobody.read_file("/var/secret")
    await of_nobody.write_file("large", b"x" * size)
    assert (await of_nobody.exec(["stat", "-c", "%U", "large"])).stdout == "nobody\n"
    assert len(await of_nobody.read_file("large")) == size
    with override_max_read_file_size(size - 1), pytest.raises(OutputLimitExceededError):
        await of_nobody.read_file("large")


async def test_unknown_user_is_rejected(module_sandbox):
    before = module_sandbox.machines()
    with pytest.raises(PrerequisiteError, match="no-such-user"):
        await PyroSandboxEnvironment.sample_init("check", PyroSandboxConfig(user="no-such-user"), {})
    assert module_sandbox.machines() == before
