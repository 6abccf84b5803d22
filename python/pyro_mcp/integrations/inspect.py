"""An inspect-ai sandbox: `sandbox="pyro"` gives each sample its own guest.

Inspect finds it through the entry point `pyro_mcp` of the group `inspect_ai`; importing this module also registers it. It needs
an asyncio event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import pathlib
import posixpath
import shlex
import tempfile
from typing import Any, ClassVar, Iterator, Literal, overload

import anyio
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.util import (
    ExecResult, OutputLimitExceededError, SandboxConnection, SandboxEnvironment, SandboxEnvironmentConfigType,
    SandboxEnvironmentLimits, SandboxUnavailableError, SandboxUserUnsupportedError, sandboxenv)
from pydantic import BaseModel, ConfigDict, Field

from .. import types
from .._async.client import AsyncPyro
from .._async.task import AsyncTask
from ..errors import PyroError
from . import _inspect_command as command
from . import _inspect_records as records

logger = logging.getLogger(__name__)

# The engine's default for `PYRO_MAX_ACTIVE_VMS`.
_MAX_ACTIVE_VMS = 4
# Time limit for commands without one, in seconds: a year.
_NO_LIMIT = 365 * 86400
# Time limit for reading or writing a file, in seconds.
_FILE_LIMIT = 600
# Time limit for a fifo, in seconds.
_FIFO_LIMIT = 10
# Longer contents are copied through a file on the host, which is faster, in bytes.
_LONG = 1 << 20

# Arguments: the marker, the path, its directory, and the size above which a file is long. Only these scripts know the
# marker, so no other program can report a status.
_BEGIN = f"""PATH=/usr/sbin:/usr/bin:/sbin:/bin
report() {{ printf '%s %s\\n' "$1" "$2" >&2; exit 1; }}
[ ! -d "$2" ] || report "$1" directory
# A fifo whose other end is not open would wait without end.
limited() {{ timeout {_FIFO_LIMIT} "$@"; status=$?; [ $status -ne 124 ] || report "$mark" fifo; exit $status; }}
mark=$1
"""
_READ = f"""{_BEGIN}[ -e "$2" ] || case $(LC_ALL=C cat -- "$2" 2>&1) in
*": Not a directory") report "$1" parent ;;
*) report "$1" missing ;;
esac
if [ -f "$2" ] && size=$(stat -Lc %s -- "$2") && [ "$size" -gt "$4" ]; then
    report "$1" "long $size $(readlink -f -- "$2")"
fi
[ ! -p "$2" ] || limited cat -- "$2"
exec cat -- "$2"
"""
_WRITE = f"""{_BEGIN}mkdir -p -- "$3" || {{ [ -d "$3" ] || report "$1" parent; exit 1; }}
[ ! -p "$2" ] || limited sh -c 'exec cat >"$0"' "$2"
exec cat >"$2"
"""


class PyroSandboxConfig(BaseModel):
    """Configuration of a sample's guest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str = "debian:12"
    """Environment of the guest."""
    vcpu_count: int = Field(default=1, ge=1, le=8)
    """Virtual CPUs."""
    mem_mib: int = Field(default=1024, ge=256, le=32768)
    """Memory in MiB."""
    network: bool = False
    """Give the guest outbound network access."""
    user: str = "root"
    """Default user for commands and for reading and writing files. Owns `/workspace`."""
    disk_mib: int | None = Field(default=None, ge=256, le=1048576)
    """Size of the disk in MiB. Default: 8192, or less if the host's disk is too small."""
    ttl_seconds: int = Field(default=600, ge=60, le=3600)
    """Seconds after which the guest of a killed evaluation is stopped. Renewed while the sample runs."""

    def guest(self) -> dict[str, Any]:
        """Returns the arguments of `create_task`."""
        return self.model_dump(exclude={"user"})


@sandboxenv(name="pyro")
class PyroSandboxEnvironment(SandboxEnvironment):
    """A guest with `/workspace`, created for one sample and deleted at its end. Commands run as the configured user."""

    # One process of the executable serves all samples, from the start of the first evaluation to the end of the last.
    _pyro: ClassVar[AsyncPyro | None] = None
    _users: ClassVar[int] = 0
    _open: ClassVar[set[PyroSandboxEnvironment]] = set()

    def __init__(self, task: AsyncTask, user: str, ttl_seconds: int) -> None:
        super().__init__()
        self._task = task
        self._user = user
        self._record = records.Record(task.task_id)
        self._renewal = asyncio.create_task(_renew(task, ttl_seconds))
        self._open.add(self)

    # Lifecycle

    @classmethod
    def default_concurrency(cls) -> int | None:
        named = os.environ.get("PYRO_MAX_ACTIVE_VMS", "")
        return int(named) if named.isdecimal() else _MAX_ACTIVE_VMS

    @classmethod
    def config_deserialize(cls, config: dict[str, Any]) -> BaseModel:
        return PyroSandboxConfig(**config)

    @classmethod
    async def task_init(cls, task_name: str, config: SandboxEnvironmentConfigType | None) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise PrerequisiteError("the sandbox `pyro` needs the asyncio event loop") from None
        settings, pyro = _settings(config), cls._shared()
        # The first guest of its kind installs the environment and creates the template that the samples start from.
        try:
            created = await pyro.create_task(**settings.guest())
            with anyio.CancelScope(shield=True):
                await pyro.delete_task(created["task_id"])
        except PyroError as error:
            raise PrerequisiteError(_in_full(error)) from error
        cls._users += 1

    @classmethod
    async def sample_init(
        cls, task_name: str, config: SandboxEnvironmentConfigType | None, metadata: dict[str, str],
    ) -> dict[str, SandboxEnvironment]:
        settings = _settings(config)
        pyro = cls._shared()
        # An interruption just after the task is created would lose its ID.
        with anyio.CancelScope(shield=True):
            created = await pyro.create_task(**settings.guest())
            task = pyro.open_task(created["task_id"])
            try:
                environment = cls(task, settings.user, settings.ttl_seconds)
            except BaseException:
                await task.delete()
                raise
        try:
            await environment._give_workspace()
        except BaseException:
            await environment._delete()
            raise
        return {"default": environment}

    async def _give_workspace(self) -> None:
        if not command.is_root_user(self._user):
            given = await self.exec(["chown", "--", self._user, command.WORKSPACE], user="root")
            if not given.success:
                raise PrerequisiteError(f"cannot make {self._user!r} the owner of the workspace: {given.stderr.strip()}")

    @classmethod
    async def sample_cleanup(
        cls, task_name: str, config: SandboxEnvironmentConfigType | None, environments: dict[str, SandboxEnvironment],
        interrupted: bool,
    ) -> None:
        for environment in environments.values():
            await environment.as_type(PyroSandboxEnvironment)._delete()

    @classmethod
    async def task_cleanup(cls, task_name: str, config: SandboxEnvironmentConfigType | None, cleanup: bool) -> None:
        cls._users = max(0, cls._users - 1)
        if cls._users:
            return
        for environment in list(cls._open):
            if cleanup:
                await environment._delete()
            else:
                await environment._leave()
        pyro, cls._pyro = cls._pyro, None
        if pyro is not None:
            await pyro.close()

    @classmethod
    async def cli_cleanup(cls, id: str | None) -> None:
        """Deletes a task, or all tasks that evaluations abandoned, for example because they were killed."""
        async with AsyncPyro() as pyro:
            for task_id in [id] if id else list(records.left()):
                try:
                    await pyro.delete_task(task_id)
                    print(f"deleted task {task_id}")
                except PyroError as error:
                    if error.code != "not_found":
                        raise PrerequisiteError(_in_full(error)) from error
                    print(error.message)
                records.forget(task_id)

    @classmethod
    def _shared(cls) -> AsyncPyro:
        if cls._pyro is None:
            cls._pyro = AsyncPyro()
        return cls._pyro

    async def _delete(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._end_renewal()
            try:
                await self._task.delete()
            except PyroError as error:
                if error.code != "not_found":
                    logger.warning("cannot delete task %s: %s", self._task.task_id, _in_full(error))
                    self._record.leave()
                    return
            self._record.remove()

    async def _leave(self) -> None:
        """Releases the task, which is stopped at the end of its lifetime."""
        await self._end_renewal()
        self._record.leave()
        print(f"kept task {self._task.task_id}; to delete it, run: inspect sandbox cleanup pyro {self._task.task_id}")

    async def _end_renewal(self) -> None:
        self._open.discard(self)
        self._renewal.cancel()
        await asyncio.wait([self._renewal])

    # Commands

    async def exec(
        self, cmd: list[str], input: str | bytes | None = None, cwd: str | None = None, env: dict[str, str] | None = None,
        user: str | None = None, timeout: int | None = None, timeout_retry: bool = True, concurrency: bool = True,
    ) -> ExecResult[str]:
        """See `SandboxEnvironment.exec`. A command that times out has ended and is never retried, so `timeout_retry` has no
        effect. Neither has `concurrency`, because a command needs no process on the host."""
        prepared = command.prepare(command.new_mark(), cmd, cwd=cwd, env=env, user=user or self._user, has_input=bool(input))
        ended, output = await self._run(
            prepared, input, _NO_LIMIT if timeout is None else max(1, timeout),
            SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE, SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE_STR)
        stdout, stderr = (part.decode(errors="replace") for part in (output.stdout, output.stderr))
        if ended["timed_out"]:
            late = TimeoutError(f"the command timed out after {timeout} s")
            late.truncated_output = stdout + stderr  # type: ignore[attr-defined]
            raise late
        if output.status == "user":
            raise SandboxUserUnsupportedError(f"user not found in the guest: {user!r}")
        if output.status == "exec 126" and "ermission denied" in stderr:
            raise PermissionError(errno.EACCES, stderr.strip(), cmd[0])
        code = ended["exit_code"]
        code = 128 - code if code < 0 else code
        return ExecResult(code == 0, code, stdout, stderr)

    async def _run(
        self, prepared: command.Prepared, input: str | bytes | None, seconds: int, limit: int, limit_str: str,
    ) -> tuple[types.TaskExec, command.Output]:
        """Runs a command with a time limit and at most `limit` bytes per output stream."""
        parts = {"stdout": bytearray(), "stderr": bytearray()}
        with _unavailable():
            if prepared.script is not None:
                await self._put(prepared.script_path, prepared.script)
            if input:
                await self._put(prepared.input_path, input.encode() if isinstance(input, str) else input)
            async with self._task.stream(prepared.text, timeout_seconds=seconds) as stream:
                async for chunk in stream:
                    parts[chunk.stream] += chunk.data
                    if len(parts[chunk.stream]) > limit:
                        start = b"".join(bytes(part[:limit]) for part in parts.values())
                        raise OutputLimitExceededError(limit_str, start.decode(errors="replace"))
        output = command.read(bytes(parts["stdout"]), bytes(parts["stderr"]), prepared.mark)
        if output.status.startswith("sandbox "):
            raise SandboxUnavailableError(f"the guest could not start the command: {output.stderr.decode(errors='replace')}")
        return stream.result, output

    async def connection(self, *, user: str | None = None) -> SandboxConnection:
        """Returns a prompt that runs each line in a separate shell in the guest. There is no terminal."""
        if not command.is_root_user(user or "root"):
            raise NotImplementedError("connections are available for root only")
        try:
            state = (await self._task.status())["state"]
        except PyroError as error:
            raise ConnectionError(_in_full(error)) from error
        if state != "started":
            raise ConnectionError(f"task {self._task.task_id} is {state}")
        words = shlex.join([self._shared().manager.executable(), "task", "exec", self._task.task_id])
        loop = f'while printf "%s> " {self._task.task_id} && IFS= read -r line; do {words} -- "$line"; done'
        return SandboxConnection(type="pyro", command=shlex.join(["sh", "-c", loop]), container=self._task.task_id)

    # Files

    async def write_file(self, file: str, contents: str | bytes) -> None:
        path = posixpath.join(command.WORKSPACE, file)
        ended, output = await self._run_script(_WRITE, path, contents)
        if ended["exit_code"]:
            raise _file_error(output, file)

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...

    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        path = posixpath.join(command.WORKSPACE, file)
        ended, output = await self._run_script(_READ, path)
        data = output.stdout
        if output.status.startswith("long "):
            _, size, real_path = output.status.split(" ", 2)
            if int(size) > SandboxEnvironmentLimits.MAX_READ_FILE_SIZE:
                raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None)
            data = await self._get(real_path)
        elif ended["exit_code"]:
            raise _file_error(output, file)
        return data.decode() if text else data

    async def _run_script(
        self, script: str, path: str, input: str | bytes | None = None,
    ) -> tuple[types.TaskExec, command.Output]:
        mark = command.new_mark()
        # Copies run with root's rights, so other users do not use them.
        long = _LONG if command.is_root_user(self._user) else SandboxEnvironmentLimits.MAX_READ_FILE_SIZE
        prepared = command.prepare(
            mark, ["/bin/sh", "-c", script, "sh", mark, path, posixpath.dirname(path), str(long)], cwd="/", env=None,
            user=self._user, has_input=bool(input))
        ended, output = await self._run(
            prepared, input, _FILE_LIMIT, SandboxEnvironmentLimits.MAX_READ_FILE_SIZE,
            SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR)
        if ended["timed_out"]:
            raise TimeoutError(f"timed out after {_FILE_LIMIT} s: {path}")
        return ended, output

    async def _put(self, path: str, data: bytes) -> None:
        """Creates a new file in the guest."""
        if len(data) <= _LONG:
            await self._task.write_file(path, data)
            return
        with tempfile.TemporaryDirectory(prefix="pyro-inspect-") as directory:
            source = pathlib.Path(directory, "file")
            await asyncio.to_thread(source.write_bytes, data)
            await self._task.copy_to(source, path)

    async def _get(self, path: str) -> bytes:
        """Returns the contents of a file in the guest. The path must not contain symbolic links."""
        with tempfile.TemporaryDirectory(prefix="pyro-inspect-") as directory:
            target = pathlib.Path(directory, "file")
            with _unavailable():
                await self._task.copy_from(path, target)
            return await asyncio.to_thread(target.read_bytes)


async def _renew(task: AsyncTask, ttl_seconds: int) -> None:
    """Renews the task's lifetime until cancelled."""
    while True:
        # Leaves time for another attempt if one renewal fails.
        await asyncio.sleep(ttl_seconds / 3)
        try:
            await task.extend(ttl_seconds=ttl_seconds)
        except PyroError as error:
            logger.warning("cannot renew the lifetime of task %s: %s", task.task_id, _in_full(error))


def _settings(config: SandboxEnvironmentConfigType | None) -> PyroSandboxConfig:
    if isinstance(config, PyroSandboxConfig):
        return config
    if config is None:
        return PyroSandboxConfig()
    if isinstance(config, str):
        # Inspect takes a text for the name of a file, and puts the directory of the task before it.
        return PyroSandboxConfig(environment=posixpath.basename(config))
    raise PrerequisiteError(f"invalid configuration of the sandbox `pyro`: expected PyroSandboxConfig, got {type(config).__name__}")


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except PyroError as error:
        raise SandboxUnavailableError(_in_full(error)) from error


def _in_full(error: PyroError) -> str:
    return "; ".join([error.message, *error.hints])


def _file_error(output: command.Output, file: str) -> OSError:
    message = output.stderr.decode(errors="replace").strip()
    if output.status == "missing":
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file)
    if output.status == "parent":
        return NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), file)
    if output.status == "fifo":
        return OSError(errno.EAGAIN, f"the other end of the fifo was not open and done within {_FIFO_LIMIT} s", file)
    if output.status == "directory":
        return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), file)
    if "ermission denied" in message:
        return PermissionError(errno.EACCES, os.strerror(errno.EACCES), file)
    return OSError(errno.EIO, message or os.strerror(errno.EIO), file)
