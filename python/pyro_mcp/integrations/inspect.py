"""An inspect-ai sandbox: `sandbox="pyro"` gives each sample its own guest.

Inspect finds it through the entry point `pyro_mcp` of the group `inspect_ai`; importing this module also registers it. It needs
an asyncio event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import posixpath
import re
import shlex
from typing import Any, ClassVar, Iterator, Literal, overload

import anyio
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.util import (
    ExecResult, OutputLimitExceededError, SandboxConnection, SandboxEnvironment, SandboxEnvironmentConfigType,
    SandboxEnvironmentLimits, SandboxUnavailableError, sandboxenv)
from inspect_ai.util._sandbox.environment import HostMapping, PortMapping
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

from .. import types
from .._async.client import AsyncPyro
from .._async.task import AsyncTask
from ..errors import PyroError, PyroValueError
from . import _inspect_command as command
from . import _inspect_records as records

logger = logging.getLogger(__name__)

# The engine's default for `PYRO_MAX_ACTIVE_VMS`.
_MAX_ACTIVE_VMS = 4
# Time limit for commands without one, in seconds: a year.
_NO_LIMIT = 365 * 86400
# Time limit for reading or writing a file, in seconds.
_FILE_LIMIT = 600
_ROOT = ("root", "0")
# A part of the executable's message.
_PORT_IN_USE = "the port is in use"
_WITH_FIXED_PORTS = (
    ". Samples that run at once cannot share a port of this host: give `ports` only the number of the guest's port, or run one "
    "sample at a time (`--max-sandboxes 1`)")
_MOUNT = re.compile("(?P<host>.+?):(?P<guest>/[^:]*)(?::(?P<access>ro|rw))?")


class PyroSandboxConfig(BaseModel):
    """Configuration of a sample's guest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str = Field(default="debian:12", validation_alias=AliasChoices("environment", "image"))
    """Environment of the guest."""
    vcpu_count: int = Field(default=1, ge=1, le=8, validation_alias=AliasChoices("vcpu_count", "cpus"))
    """Virtual CPUs."""
    mem_mib: int = Field(default=1024, ge=256, le=32768, validation_alias=AliasChoices("mem_mib", "mem"))
    """Memory in MiB."""
    network: bool = False
    """Give the guest outbound network access."""
    ports: tuple[int | str, ...] = ()
    """TCP ports of the guest to publish on this host: `PORT` on a free one, or `[HOST_IP:]HOST_PORT:PORT`."""
    mounts: tuple[str, ...] = ()
    """Directories of this host to mount: `HOST:/GUEST` read-only, or `HOST:/GUEST:rw`."""
    user: str = "root"
    """Default user for commands and for reading and writing files: a name or a number. Owns `/workspace`."""
    disk_mib: int | None = Field(default=None, ge=256, le=1048576)
    """Size of the disk in MiB. Default: 8192, or less if the host's disk is too small."""
    ttl_seconds: int = Field(default=600, ge=60, le=3600)
    """Seconds after which the guest of a killed evaluation is stopped. Renewed while the sample runs."""

    @field_validator("user", mode="before")
    @classmethod
    def _read_user(cls, user: object) -> object:
        return str(user) if isinstance(user, int) else user

    @field_validator("mounts")
    @classmethod
    def _check_mounts(cls, mounts: tuple[str, ...]) -> tuple[str, ...]:
        for mount in mounts:
            if not _MOUNT.fullmatch(mount):
                raise ValueError(f"invalid mount {mount!r}: expected HOST:/GUEST, HOST:/GUEST:ro or HOST:/GUEST:rw")
        return mounts

    def fixed_ports(self) -> list[str]:
        """Returns the ports that are published on a chosen port of this host."""
        return [port for port in map(str, self.ports) if ":" in port and port.split(":")[-2] != "0"]

    def guest(self) -> dict[str, Any]:
        """Returns the arguments of `create_task`."""
        mounts = [found.groupdict() for found in map(_MOUNT.fullmatch, self.mounts) if found]
        return {
            **self.model_dump(exclude={"user", "ports", "mounts"}),
            "publish": [f"0:{port}" if isinstance(port, int) or ":" not in port else port for port in self.ports],
            "mounts": [
                {"host": mount["host"], "guest": mount["guest"], "writable": mount["access"] == "rw"} for mount in mounts],
        }


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
            try:
                created = await pyro.create_task(**settings.guest())
            except PyroError as error:
                if settings.fixed_ports() and _PORT_IN_USE in error.message:
                    raise PrerequisiteError(_in_full(error) + _WITH_FIXED_PORTS) from error
                raise
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
        if self._user not in _ROOT:
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
        if command.is_too_long(cmd, env):
            return ExecResult(False, 126, "", f"{cmd[0]}: argument list too long\n")
        prepared = command.prepare(cmd, input, env)
        try:
            ended, stdout, stderr = await self._run(
                prepared, cwd or None, user or self._user, _NO_LIMIT if timeout is None else max(1, timeout),
                SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE, SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE_STR)
        except PyroValueError as error:
            if error.code == "invalid_input":
                raise
            raise _unavailable(error) from error
        except PyroError as error:
            result = command.not_started(error, cmd)
            if result is None:
                raise _unavailable(error) from error
            return result
        out, err = stdout.decode(errors="replace"), stderr.decode(errors="replace")
        if ended["timed_out"]:
            late = TimeoutError(f"the command timed out after {timeout} s")
            late.truncated_output = out + err  # type: ignore[attr-defined]
            raise late
        code = ended["exit_code"]
        code = 128 - code if code < 0 else code
        return ExecResult(code == 0, code, out, err)

    async def _run(
        self, prepared: command.Prepared, cwd: str | None, user: str, seconds: int, limit: int, limit_str: str,
    ) -> tuple[types.TaskExec, bytes, bytes]:
        """Runs a command with a time limit and at most `limit` bytes per output stream. Returns its end and its output."""
        parts = {"stdout": bytearray(), "stderr": bytearray()}
        async with self._task.stream(
                argv=prepared.argv, input=prepared.input, cwd=cwd, env=prepared.env, user=user, timeout_seconds=seconds,
                extends_lifetime=True) as stream:
            async for chunk in stream:
                parts[chunk.stream] += chunk.data
                if len(parts[chunk.stream]) > limit:
                    start = b"".join(bytes(part[:limit]) for part in parts.values())
                    raise OutputLimitExceededError(limit_str, start.decode(errors="replace"))
        return stream.result, bytes(parts["stdout"]), bytes(parts["stderr"])

    async def connection(self, *, user: str | None = None) -> SandboxConnection:
        """Returns the command that opens a terminal in the guest, and the published ports."""
        try:
            task = await self._task.status()
        except PyroError as error:
            raise ConnectionError(_in_full(error)) from error
        if task["state"] != "started":
            raise ConnectionError(f"task {self._task.task_id} is {task['state']}")
        # Bash, because the shell of some users is one that refuses to start.
        words = [
            self._shared().manager.executable(), "task", "shell", self._task.task_id, "--user", user or self._user, "--",
            "exec /bin/bash -l"]
        ports = [
            PortMapping(
                container_port=port["guest_port"], protocol="tcp",
                mappings=[HostMapping(host_ip=port["host_ip"], host_port=port["host_port"])])
            for port in task.get("published_ports", [])]
        return SandboxConnection(
            type="pyro", command=shlex.join(words), ports=ports or None, container=self._task.task_id)

    # Files

    async def write_file(self, file: str, contents: str | bytes) -> None:
        await self._run_script(command.WRITE, file, contents)

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...

    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        data = await self._run_script(command.READ, file, None)
        return data.decode() if text else data

    async def _run_script(self, script: str, file: str, input: str | bytes | None) -> bytes:
        words = command.file_arguments(script, posixpath.join(command.WORKSPACE, file))
        prepared = command.Prepared(words, input, command.FILE_VARIABLES)
        try:
            ended, stdout, stderr = await self._run(
                prepared, "/", self._user, _FILE_LIMIT, SandboxEnvironmentLimits.MAX_READ_FILE_SIZE,
                SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR)
        except PyroError as error:
            raise _unavailable(error) from error
        if ended["timed_out"]:
            raise TimeoutError(f"timed out after {_FILE_LIMIT} s: {file}")
        if ended["exit_code"]:
            raise command.file_error(ended["exit_code"], stderr.decode(errors="replace"), file)
        return stdout


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


def _unavailable(error: PyroError) -> SandboxUnavailableError:
    return SandboxUnavailableError(_in_full(error))


def _in_full(error: PyroError) -> str:
    return "; ".join([error.message, *error.hints])
