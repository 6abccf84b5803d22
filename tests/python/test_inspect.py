"""The inspect-ai sandbox: its self-check, and tests beyond it."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import pty
import socket
import subprocess
import termios
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

@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"


@contextlib.asynccontextmanager
async def sample(config=None):
    await PyroSandboxEnvironment.task_init("check", config)
    environments = await PyroSandboxEnvironment.sample_init("check", config, {})
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


# File permissions do not apply to root.
NOT_FOR_ROOT = {
    "test_read_file_not_allowed", "test_write_text_file_without_permissions", "test_write_binary_file_without_permissions"}


@pytest.fixture(params=["environment", "of_nobody"])
def sandbox_env(request, monkeypatch):
    """The sandboxes for the self-check."""
    if request.param == "environment" and request.node.originalname in NOT_FOR_ROOT:
        request.applymarker(pytest.mark.xfail(strict=True))
    # A command that timed out has ended, so there is no need to wait for it.
    monkeypatch.setattr(self_check, "anyio", types.SimpleNamespace(sleep=no_wait))
    return request.getfixturevalue(request.param)


# Commands

async def test_timeout_ends_the_processes_of_a_command(environment):
    with pytest.raises(TimeoutError) as caught:
        await environment.exec(["sh", "-c", "echo begun; sleep 1234 & sleep 1234"], timeout=1)
    assert caught.value.truncated_output.startswith("begun\n")
    found = await environment.exec(["sh", "-c", "ps aux | grep -c 'sleep 123[4]'"])
    assert found.stdout == "0\n"


async def test_nothing_goes_on_after_a_timeout(environment):
    loop = "while sleep 0.1; do echo x >>/workspace/goes-on; done"
    for start in (f"setsid sh -c '{loop}' & sleep 60", f"timeout 600 sh -c '{loop}'; true", f"nohup setsid sh -c '{loop}' & sleep 60"):
        with pytest.raises(TimeoutError):
            await environment.exec(["sh", "-c", start], timeout=2)
        found = await environment.exec(["sh", "-c", "ps aux | grep -c '[w]hile sleep'; rm goes-on"])
        assert found.stdout == "0\n", start


async def test_cancelled_command_ends(environment):
    with anyio.move_on_after(1) as scope:
        await environment.exec(["sh", "-c", "sleep 4321 & sleep 4321"])
    assert scope.cancelled_caught
    gone = "while ps aux | grep -q 'sleep 432[1]'; do sleep 0.05; done"
    assert (await environment.exec(["sh", "-c", gone], timeout=20)).success


async def test_exit_codes(environment):
    for status in (126, 127):
        ended = await environment.exec(["sh", "-c", f"echo Permission denied >&2; exit {status}"])
        assert (ended.success, ended.returncode, ended.stderr) == (False, status, "Permission denied\n")
    ended = await environment.exec(["no-such-program"])
    assert ended.returncode == 127
    assert ended.stderr == "the guest could not start the command: starting no-such-program: No such file or directory (os error 2)\n"
    ended = await environment.exec(["true", "x" * 200_000])
    assert ended.returncode == 126 and "too long" in ended.stderr


async def test_missing_directory(environment):
    for cwd in ("no/such", "/etc/passwd"):
        ended = await environment.exec(["pwd"], cwd=cwd)
        assert ended.returncode == 1 and cwd in ended.stderr


async def test_arguments_are_passed_unchanged(environment):
    words = ["", " ", "'", '"', "$HOME", "`id`", "\\", "a\nb", "*", "-n", "~", "ü"]
    ended = await environment.exec(["printf", "<%s>", *words], env={"HOME": "/nowhere", "X": "$(id)'\n"})
    assert ended.stdout == "".join(f"<{word}>" for word in words)


async def test_variables(environment):
    ended = await environment.exec(["/usr/bin/env"], env={"PATH": "/opt/bin:/bin", "QUOTES": "'$(id)\""})
    assert "PATH=/opt/bin:/bin" in ended.stdout.splitlines() and "QUOTES='$(id)\"" in ended.stdout.splitlines()
    with pytest.raises(ValueError):
        await environment.exec(["true"], env={"a b": ""})
    for cmd in ([], ["echo", "\0"]):
        with pytest.raises(ValueError):
            await environment.exec(cmd)


async def test_a_user(environment):
    ended = await environment.exec(["sh", "-c", 'id -u; id -G; echo $HOME $USER; pwd; cat'], user="nobody", input="word")
    assert ended.stdout == "65534\n65534\n/nonexistent nobody\n/workspace\nword"
    assert (await environment.exec(["id", "-un"], user="65534")).stdout == "nobody\n"
    ended = await environment.exec(["sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr"], user="nobody")
    assert (ended.stdout, ended.stderr) == ("out\n", "err\n")
    assert (await environment.exec(["cat", "/etc/shadow"], user="nobody")).returncode == 1
    words = ["x" * 60_000, "'" * 60_000]
    ended = await environment.exec(["printf", "%s", *words], user="nobody", input="word")
    assert ended.stdout == "".join(words)
    assert (await environment.exec(["id", "-u"], user="4242")).stdout == "4242\n", "a number needs no entry"
    with pytest.raises(PermissionError):
        await environment.exec(["/etc/passwd"], user="nobody")
    for user in ("no-such-user", "'; id"):
        with pytest.raises(SandboxUserUnsupportedError):
            await environment.exec(["id"], user=user)


async def test_a_long_command_gets_its_input_and_its_variables(environment):
    words = ["'" * 100_000] * 12
    show = 'echo "$X"; id -un; pwd; printf "%s\\n" "$@" | md5sum; cat'
    ended = await environment.exec(
        ["sh", "-c", show, "sh", *words], input=b"\xff input\n", user="nobody", cwd="/tmp", env={"X": "it's"})
    digest = hashlib.md5("".join(f"{word}\n" for word in words).encode()).hexdigest()
    assert ended.stdout == f"it's\nnobody\n/tmp\n{digest}  -\n\ufffd input\n"
    # Names that a script for long commands could use.
    names = {name: "of the caller" for name in ("size", "text", "n", "x", "command")}
    show = 'for name in size text n x command; do printenv "$name" || exit; done; printf %s "$#"; cat'
    ended = await environment.exec(["sh", "-c", show, "sh", *words], input="!", env=names)
    assert ended.stdout == "of the caller\n" * 5 + "12!", ended.stderr


async def test_large_variables(environment):
    large = {f"V{number}": "it's $(id) " * 1000 + f"{number}" for number in range(10)}
    env = {"SMALL": "x", "size": "y", "text": "z" * 100_000, **large}
    show = 'printf "%s\n" "$SMALL" "$size"; printf %s "$text" | wc -c; printf %s "$V0$V1$V2$V3$V4$V5$V6$V7$V8$V9" | md5sum; cat; pwd; id -un'
    ended = await environment.exec(["sh", "-c", show], input="input\n", env=env, cwd="/tmp", user="nobody")
    digest = hashlib.md5("".join(large.values()).encode()).hexdigest()
    assert ended.stdout == f"x\ny\n100000\n{digest}  -\ninput\n/tmp\nnobody\n", ended.stderr
    ended = await environment.exec(["true"], env={"X": "x" * (128 * 1024)})
    assert ended.returncode == 126 and "too long" in ended.stderr
    with pytest.raises(ValueError):
        await environment.exec(["true"], env={"a b": "x" * 40_000})


async def test_a_user_cannot_replace_the_programs_that_read_files(of_nobody):
    for name in ("cat", "dd", "mkdir", "timeout"):
        await of_nobody.write_file(f"/tmp/traps/{name}", "#!/bin/sh\necho trapped\n")
    await of_nobody.exec(["chmod", "-R", "755", "/tmp/traps"])
    await of_nobody.exec(["sh", "-c", "echo 'PATH=/tmp/traps:$PATH' >/etc/profile.d/traps.sh"], user="root")
    await of_nobody.write_file("trap", "mine")
    assert await of_nobody.read_file("trap") == "mine"
    await of_nobody.exec(["rm", "/etc/profile.d/traps.sh"], user="root")


async def test_output_beyond_the_limit_ends_the_command(environment):
    with override_max_exec_output_size(1000), pytest.raises(OutputLimitExceededError) as caught:
        await environment.exec(["sh", "-c", "exec yes 4567"])
    assert caught.value.truncated_output == "4567\n" * 200
    found = await environment.exec(["sh", "-c", "ps aux | grep -c 'yes 456[7]'"])
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


async def test_connection_opens_a_terminal_and_shows_the_ports(module_sandbox, tmp_path):
    (tmp_path / "file").write_text("of the host")
    config = PyroSandboxConfig(image="debian:12", cpus=1, mem=512, user=4242, ports=(8000,), mounts=(f"{tmp_path}:/host",))
    environments = await PyroSandboxEnvironment.sample_init("check", config, {})
    environment = environments["default"]
    assert await environment.read_file("/host/file") == "of the host"
    with pytest.raises(OSError):
        await environment.write_file("/host/file", "of the guest")
    connection = await environment.connection()
    [port] = connection.ports
    assert (port.container_port, port.protocol) == (8000, "tcp")
    assert port.mappings[0].host_ip == "127.0.0.1" and port.mappings[0].host_port > 0
    for user, uid in ((None, "4242"), ("nobody", "65534")):
        connection = await environment.connection(user=user)
        assert await type_into(connection.command, "tty; echo \"<$(id -u)>\"; exit\n", f"<{uid}>")
    await PyroSandboxEnvironment.sample_cleanup("check", config, environments, False)


async def test_a_chosen_port_is_for_one_sample_at_a_time(module_sandbox):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        config = PyroSandboxConfig(ports=(f"{other.getsockname()[1]}:8000",))
        before = module_sandbox.machines()
        with pytest.raises(PrerequisiteError, match="in use.*--max-sandboxes 1"):
            await PyroSandboxEnvironment.sample_init("check", config, {})
        assert module_sandbox.machines() == before
    assert config.fixed_ports() and not PyroSandboxConfig(ports=(80, "0:80", "127.0.0.1:0:80")).fixed_ports()


async def type_into(command, text, expected):
    """Runs a command on a terminal, types a text, and returns whether the terminal shows what is expected."""
    ours, theirs = pty.openpty()

    def lead():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    process = subprocess.Popen(
        ["sh", "-c", command], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=lead)
    os.close(theirs)
    shown = b""

    def run():
        nonlocal shown
        os.write(ours, text.encode())
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 4096):
                shown += piece
        process.wait()
    await asyncio.to_thread(run)
    os.close(ours)
    assert b"/dev/pts/" in shown, shown
    return expected.encode() in shown


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
    short = PyroSandboxConfig(image="debian:12-build", cpus=2, mem=512, ports=(80, "8080:80"), mounts=("/a:/b:rw", "c:/d"))
    assert SandboxEnvironmentSpec.model_validate(SandboxEnvironmentSpec("pyro", short).model_dump()).config == short
    assert PyroSandboxEnvironment.config_deserialize(short.model_dump()) == short
    assert short.guest() == {
        "environment": "debian:12-build", "vcpu_count": 2, "mem_mib": 512, "network": False, "disk_mib": None,
        "ttl_seconds": 600, "publish": ["0:80", "8080:80"], "mounts": [
            {"host": "/a", "guest": "/b", "writable": True}, {"host": "c", "guest": "/d", "writable": False}]}
    for wrong in ({"vcpu_count": 9}, {"cpus": 9}, {"ttl_seconds": 59}, {"compose": "x"}, {"mounts": ["/a"]}):
        with pytest.raises(ValueError):
            PyroSandboxEnvironment.config_deserialize(wrong)


async def test_files_belong_to_the_user(of_nobody):
    size = 2 << 20
    secret = f"head -c {size} /dev/zero >/var/secret; chmod 600 /var/secret"
    assert (await of_nobody.exec(["sh", "-c", secret], user="root")).success
    for path in ("/var/secret", "/root/anything"):
        with pytest.raises(PermissionError):
            await of_nobody.read_file(path)
        with pytest.raises(PermissionError):
            await of_nobody.write_file(path, "x")
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
