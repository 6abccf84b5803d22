"""Everything that can be asked for."""
# What comes back has the type that the schema gives it; nothing looks at run time.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Dict, List, Optional

from .._calls import Call
from .._manager import StrPath, VmManager
from .._output import OnOutput
from .._server import Server
from .caller import Caller, Env, OnProgress
from .stream import CommandStream
from .task import Task, TaskContext

if TYPE_CHECKING:
    from .. import types
else:
    # What it holds is asked for by nobody but tools that look at annotations.
    from .. import _lazy_types as types


class Pyro(Caller):
    """Disposable microVMs.

    Safe to use from any thread, by any number of calls at once, and after a fork. The executable is started when it is first
    needed and ends with `close`, with the context, or with the interpreter.

    Every method raises `PyroValueError` for what is wrong with the request and `PyroRuntimeError` for the rest; what their
    codes mean stands at `PyroError`. A call that is interrupted is cancelled, and what it held is freed.

    Args:
        manager: Settings and a process to share with others; the arguments after it are then ignored.
        backend_name, base_dir, cache_dir, max_active_vms, warm, executable: See `VmManager`.
    """

    def __init__(
        self, manager: Optional[VmManager] = None, *, backend_name: Optional[str] = None, base_dir: Optional[StrPath] = None,
        cache_dir: Optional[StrPath] = None, max_active_vms: Optional[int] = None, warm: Optional[int] = None,
        executable: Optional[StrPath] = None,
    ) -> None:
        super().__init__(manager or VmManager(
            backend_name=backend_name, base_dir=base_dir, cache_dir=cache_dir, max_active_vms=max_active_vms, warm=warm,
            executable=executable))

    @property
    def manager(self) -> VmManager:
        """Settings and process, to be shared with others."""
        return self._manager

    def __enter__(self) -> Pyro:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the executable. Calls that are under way are cancelled; tasks, and VMs that were created, stay."""
        Call.end(self._manager)

    def create_server(self) -> Server:
        """An MCP server with the same settings."""
        return Server(self._manager)

    # Environments

    def list_environments(self) -> List[types.Environment]:
        """Every environment of the catalog, sorted by name, and whether it is installed."""
        return self._call("list_environments", {})

    def pull_environment(
        self, environment: str, *, on_progress: Optional[OnProgress] = None,
    ) -> types.PulledEnvironment:
        """Installs an environment, unless it is installed, and prepares fast starts.

        Args:
            environment: Its name, such as `debian:12`.
            on_progress: Called with each step.
        """
        return self._call("pull_environment", {"environment": environment}, on_progress=on_progress)

    def inspect_environment(self, environment: str) -> types.Environment:
        """One environment of the catalog."""
        return self._call("inspect_environment", {"environment": environment})

    def prune_environments(self) -> types.Pruned:
        """Removes installed environments and templates that this version cannot use."""
        return self._call("prune_environments", {})

    # VMs

    def create_vm(
        self, *, environment: str, vcpu_count: int = 1, mem_mib: int = 1024, ttl_seconds: int = 600, network: bool = False,
        allow_host_compat: bool = False, on_progress: Optional[OnProgress] = None,
    ) -> types.Vm:
        """Makes a VM without starting it, and installs its environment if need be.

        Args:
            environment: Its name, such as `debian:12`.
            vcpu_count: Virtual CPUs, 1 to 8.
            mem_mib: Memory in MiB, 256 to 32768.
            ttl_seconds: Seconds after which the VM is removed, 60 to 3600. Using it does not extend that.
            network: Give the guest outbound network.
            allow_host_compat: Agree to run commands on the host, without isolation, if VMs cannot run there.
            on_progress: Called with what happens meanwhile.
        """
        params = _spec(environment, vcpu_count, mem_mib, ttl_seconds, network, allow_host_compat)
        return self._call(
            "create_vm", params, on_progress=on_progress, undo=lambda vm: ("delete_vm", {"vm_id": vm["vm_id"]}))

    def start_vm(self, vm_id: str, *, on_progress: Optional[OnProgress] = None) -> types.Vm:
        """Boots a VM that was created or stopped until it takes commands."""
        return self._call("start_vm", {"vm_id": vm_id}, on_progress=on_progress)

    def exec_vm(
        self, vm_id: str, *, command: str, timeout_seconds: int = 30, cwd: Optional[str] = None, env: Env = None,
        on_output: Optional[OnOutput] = None,
    ) -> types.RunResult:
        """Runs one command in a started VM, then removes the VM, whatever the exit code.

        Args:
            vm_id: Id that `create_vm` returned.
            command: Text for `/bin/sh -lc`, at most 128 KiB.
            timeout_seconds: Longest time the command may take, at least 1; then it is ended, and `exit_code` is 124.
            cwd: Working directory, which must exist; below `/workspace` unless it is absolute.
            env: Variables for the command, at most 32 KiB together.
            on_output: Called with each piece of output while the command runs.
        """
        params = {"vm_id": vm_id, **_command(command, timeout_seconds, cwd, env, on_output)}
        return self._call("exec_vm", params, on_output=on_output)

    def stop_vm(self, vm_id: str) -> types.Vm:
        """Stops a VM. Its disk is kept until it is deleted or its lifetime ends."""
        return self._call("stop_vm", {"vm_id": vm_id})

    def delete_vm(self, vm_id: str) -> types.Deleted:
        """Removes a VM and its files."""
        return self._call("delete_vm", {"vm_id": vm_id})

    def status_vm(self, vm_id: str) -> types.Vm:
        """State and settings of a VM."""
        return self._call("status_vm", {"vm_id": vm_id})

    def network_info_vm(self, vm_id: str) -> types.NetworkInfo:
        """Network settings of a VM."""
        return self._call("network_info_vm", {"vm_id": vm_id})

    def reap_expired(self) -> types.Reaped:
        """Removes VMs whose lifetime has ended."""
        return self._call("reap_expired", {})

    def run_in_vm(
        self, *, environment: str, command: str, vcpu_count: int = 1, mem_mib: int = 1024, timeout_seconds: int = 30,
        ttl_seconds: int = 600, network: bool = False, allow_host_compat: bool = False, cwd: Optional[str] = None,
        env: Env = None, on_output: Optional[OnOutput] = None, on_progress: Optional[OnProgress] = None,
    ) -> types.RunResult:
        """Runs one command in a VM of its own and removes the VM, whatever happens.

        Args:
            environment, vcpu_count, mem_mib, ttl_seconds, network, allow_host_compat: See `create_vm`.
            command, timeout_seconds, cwd, env, on_output: See `exec_vm`. The boot does not count as the command's time.
            on_progress: Called with what happens meanwhile.

        Returns:
            `exit_code`, `stdout`, `stderr` (at most 16 MiB each) and more. A command that fails is no error.
        """
        spec = _spec(environment, vcpu_count, mem_mib, ttl_seconds, network, allow_host_compat)
        params = {**spec, **_command(command, timeout_seconds, cwd, env, on_output)}
        return self._call("run_in_vm", params, on_output=on_output, on_progress=on_progress)

    def stream_in_vm(
        self, *, environment: str, command: str, vcpu_count: int = 1, mem_mib: int = 1024, timeout_seconds: int = 30,
        ttl_seconds: int = 600, network: bool = False, allow_host_compat: bool = False, cwd: Optional[str] = None,
        env: Env = None, on_progress: Optional[OnProgress] = None,
    ) -> CommandStream[types.RunResult]:
        """`run_in_vm` of which the output is read while it runs, however much it is."""
        spec = _spec(environment, vcpu_count, mem_mib, ttl_seconds, network, allow_host_compat)
        params = {**spec, **_command(command, timeout_seconds, cwd, env), "output": "stream"}
        return CommandStream(self._manager, "run_in_vm", params, on_progress)

    def stream_vm(
        self, vm_id: str, *, command: str, timeout_seconds: int = 30, cwd: Optional[str] = None, env: Env = None,
    ) -> CommandStream[types.RunResult]:
        """`exec_vm` of which the output is read while it runs, however much it is."""
        params = {"vm_id": vm_id, **_command(command, timeout_seconds, cwd, env), "output": "stream"}
        return CommandStream(self._manager, "exec_vm", params)

    # Tasks

    def create_task(
        self, *, environment: str, vcpu_count: int = 1, mem_mib: int = 1024, ttl_seconds: int = 600, network: bool = False,
        allow_host_compat: bool = False, disk_mib: Optional[int] = None, on_progress: Optional[OnProgress] = None,
    ) -> types.Task:
        """Makes a task and starts it: a VM that stays, with a persistent `/workspace`, until it is deleted.

        Args:
            environment, vcpu_count, mem_mib, network, allow_host_compat, on_progress: See `create_vm`.
            ttl_seconds: Seconds after which the task is stopped, 60 to 3600; `extend_task` renews it.
            disk_mib: Size of its disk in MiB, 256 to 1048576; `None`: 8192, or less if the host's disk could not hold that.
        """
        params = _spec(environment, vcpu_count, mem_mib, ttl_seconds, network, allow_host_compat)
        return self._call(
            "create_task", {**params, "disk_mib": disk_mib}, on_progress=on_progress,
            undo=lambda task: ("delete_task", {"task_id": task["task_id"]}))

    def exec_task(
        self, task_id: str, *, command: str, timeout_seconds: int = 30, cwd: Optional[str] = None, env: Env = None,
        on_output: Optional[OnOutput] = None,
    ) -> types.TaskExec:
        """Runs one command in the `/workspace` of a task, and keeps the task. Commands may run at the same time.

        Args:
            task_id: Id that `create_task` returned.
            command, timeout_seconds, cwd, env, on_output: See `exec_vm`.

        Returns:
            `exit_code`, `stdout`, `stderr` (at most 16 MiB each), the number `sequence` of the command and more. A command
            that fails is no error.
        """
        params = {"task_id": task_id, **_command(command, timeout_seconds, cwd, env, on_output)}
        return self._call("exec_task", params, on_output=on_output)

    def stream_task(
        self, task_id: str, *, command: str, timeout_seconds: int = 30, cwd: Optional[str] = None, env: Env = None,
    ) -> CommandStream[types.TaskExec]:
        """`exec_task` of which the output is read while it runs, however much it is."""
        params = {"task_id": task_id, **_command(command, timeout_seconds, cwd, env), "output": "stream"}
        return CommandStream(self._manager, "exec_task", params)

    def detach_task(
        self, task_id: str, *, command: str, timeout_seconds: int = 30, cwd: Optional[str] = None, env: Env = None,
    ) -> types.TaskDetached:
        """Begins a command in a task and does not wait for it. It outlives this program."""
        params = {"task_id": task_id, **_command(command, timeout_seconds, cwd, env)}
        return self._call("detach_task", params)

    def wait_task(
        self, task_id: str, *, sequence: int, timeout_seconds: Optional[float] = None,
    ) -> types.TaskLogEntry:
        """Waits until a command of a task has ended.

        Args:
            task_id: Id of the task.
            sequence: Number of the command.
            timeout_seconds: Longest time to wait; `None`: as long as it takes.

        Raises:
            TimeoutError: The command has not ended in that time. It goes on.
        """
        params = {"task_id": task_id, "sequence": sequence}
        return self._call("wait_task", params, timeout=timeout_seconds)

    def follow_task(self, task_id: str, *, sequence: int) -> CommandStream[types.TaskLogEntry]:
        """The output of a command of a task, from its beginning to its end. Whoever leaves does not end it."""
        params = {"task_id": task_id, "sequence": sequence}
        return CommandStream(self._manager, "follow_task", params)

    def kill_task(self, task_id: str, *, sequence: int) -> types.TaskLogEntry:
        """Ends a command of a task."""
        return self._call("kill_task", {"task_id": task_id, "sequence": sequence})

    def status_task(self, task_id: str) -> types.Task:
        """State of a task and its latest command."""
        return self._call("status_task", {"task_id": task_id})

    def logs_task(self, task_id: str, *, sequence: Optional[int] = None) -> types.TaskLogs:
        """Every command of a task with its output, or the one with this number."""
        entries: List[types.TaskLogEntry] = []
        after: Optional[int] = 0
        while after is not None:
            page = self._call("logs_task", {"task_id": task_id, "sequence": sequence, "after": after})
            entries += page["logs"]["entries"]
            after = page["next_after"]
        return {"task_id": task_id, "count": len(entries), "entries": entries}

    def list_tasks(self) -> types.TaskList:
        """Every task, oldest first."""
        return self._call("list_tasks", {})

    def start_task(self, task_id: str, *, on_progress: Optional[OnProgress] = None) -> types.Task:
        """Starts a stopped task again, with the files it had and another lifetime."""
        return self._call("start_task", {"task_id": task_id}, on_progress=on_progress)

    def stop_task(self, task_id: str) -> types.Task:
        """Stops a task; its files and its journal are kept."""
        return self._call("stop_task", {"task_id": task_id})

    def extend_task(self, task_id: str, *, ttl_seconds: int) -> types.Task:
        """Gives a task another lifetime of 60 to 3600 seconds, which begins now."""
        return self._call("extend_task", {"task_id": task_id, "ttl_seconds": ttl_seconds})

    def delete_task(self, task_id: str) -> types.TaskDeleted:
        """Removes a task with its files and its journal."""
        return self._call("delete_task", {"task_id": task_id})

    def copy_to_task(self, task_id: str, *, source: StrPath, path: str) -> types.TaskCopied:
        """Copies a file or directory of the host into a task; at most a million entries and 8 GiB.

        Args:
            task_id: Id of the task.
            source: Path on the host.
            path: Path in the task, below `/workspace` unless it is absolute. If it is a directory, the copy goes into it.
        """
        params = {"task_id": task_id, "source": os.path.abspath(source), "path": path}
        return self._call("copy_to_task", params)

    def copy_from_task(self, task_id: str, *, path: str, target: StrPath) -> types.TaskCopied:
        """Copies a file or directory of a task to the host. See `copy_to_task`."""
        params = {"task_id": task_id, "path": path, "target": os.path.abspath(target)}
        return self._call("copy_from_task", params)

    def read_task_file(
        self, task_id: str, *, path: str, offset: int = 0, max_bytes: int = 16777216,
    ) -> types.TaskFile:
        """A file of a task, or a part of it: as text if it is UTF-8, else as base64. The file may have at most 16 MiB.

        Args:
            task_id: Id of the task.
            path: Path in the task, below `/workspace` unless it is absolute.
            offset: Byte to begin at.
            max_bytes: Most bytes to return.
        """
        params = {"task_id": task_id, "path": path, "offset": offset, "max_bytes": max_bytes}
        return self._call("read_task_file", params)

    def write_task_file(
        self, task_id: str, *, path: str, content: str, encoding: str = "utf-8", executable: bool = False,
    ) -> types.TaskFileWritten:
        """Makes or replaces a file of a task, and the directories on the way to it.

        Args:
            task_id: Id of the task.
            path: Path in the task, below `/workspace` unless it is absolute.
            content: All that it shall hold, at most 16 MiB.
            encoding: How `content` is written, `utf-8` or `base64`.
            executable: Give it mode 0755 instead of 0644.
        """
        params = {
            "task_id": task_id, "path": path, "content": content, "encoding": encoding, "executable": executable,
        }
        return self._call("write_task_file", params)

    def task(
        self, environment: str, *, vcpu_count: int = 1, mem_mib: int = 1024, ttl_seconds: int = 600, network: bool = False,
        allow_host_compat: bool = False, disk_mib: Optional[int] = None, on_progress: Optional[OnProgress] = None,
    ) -> TaskContext:
        """A context with a new task, which is deleted at its end. The arguments are those of `create_task`."""
        params = _spec(environment, vcpu_count, mem_mib, ttl_seconds, network, allow_host_compat)
        return TaskContext(self, {**params, "disk_mib": disk_mib, "on_progress": on_progress})

    def open_task(self, task_id: str) -> Task:
        """A task that there is already, to be used by its methods. Nothing is asked yet."""
        return Task(self, task_id)

    # The host

    def doctor(self) -> types.DoctorReport:
        """What this host can do, and what to change if it cannot run VMs."""
        return self._call("doctor", {})


def _spec(
    environment: str, vcpu_count: int, mem_mib: int, ttl_seconds: int, network: bool, allow_host_compat: bool,
) -> Dict[str, Any]:
    return {
        "environment": environment, "vcpu_count": vcpu_count, "mem_mib": mem_mib, "ttl_seconds": ttl_seconds,
        "network": network, "allow_host_compat": allow_host_compat,
    }


def _command(
    command: str, timeout_seconds: int, cwd: Optional[str], env: Env, on_output: Optional[OnOutput] = None,
) -> Dict[str, Any]:
    return {
        "command": command, "timeout_seconds": timeout_seconds, "cwd": cwd, "env": None if env is None else dict(env),
        # The result holds the output as well.
        "output": None if on_output is None else "capture_and_stream",
    }
