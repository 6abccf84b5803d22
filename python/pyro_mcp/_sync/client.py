"""The client: one method for each operation."""
# Results have the types of the schema; they are not checked at run time.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence

from .._calls import Call
from .._feeding import Input
from .._manager import StrPath, VmManager
from .._output import OnOutput
from .._server import Server
from .caller import Argv, Caller, Env, HostCa, Labels, Mounts, OnProgress
from .stream import CommandStream
from .task import Task, TaskContext

if TYPE_CHECKING:
    from .. import types
else:
    # Only tools that resolve annotations need its contents.
    from .. import _lazy_types as types

# Time limit of a command in seconds, as in the executable.
_DEFAULT_TIMEOUT = 30


class Pyro(Caller):
    """A client for disposable microVMs.

    Safe to use from any thread, for concurrent calls, and after a fork. The first call starts the executable, which ends with
    `close`, at the end of a `with` block, or with the interpreter.

    An object can be pickled: it is then its settings, with a process of its own.

    Every method raises `PyroValueError` for an invalid request and `PyroRuntimeError` for any other failure; `PyroError`
    documents their codes. An interrupted call is cancelled, and its resources are released.

    Args:
        manager: Settings and process to share with other clients. If given, the other arguments are ignored.
        backend_name, base_dir, cache_dir, max_active_vms, warm, require_confinement, executable: See `VmManager`.
    """

    def __init__(
        self, manager: Optional[VmManager] = None, *, backend_name: Optional[str] = None, base_dir: Optional[StrPath] = None,
        cache_dir: Optional[StrPath] = None, max_active_vms: Optional[int] = None, warm: Optional[int] = None,
        require_confinement: Optional[str] = None, executable: Optional[StrPath] = None,
    ) -> None:
        super().__init__(manager or VmManager(
            backend_name=backend_name, base_dir=base_dir, cache_dir=cache_dir, max_active_vms=max_active_vms, warm=warm,
            require_confinement=require_confinement, executable=executable))

    @property
    def manager(self) -> VmManager:
        """The settings and process, which other clients can share."""
        return self._manager

    def __enter__(self) -> Pyro:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the executable. Calls in flight are cancelled; tasks and created VMs stay."""
        Call.end(self._manager)

    def create_server(self) -> Server:
        """Returns an MCP server with the same settings."""
        return Server(self._manager)

    # Environments

    def list_environments(self) -> List[types.Environment]:
        """Lists every environment of the catalog, sorted by name, and whether it is installed."""
        return self._call("list_environments", {})

    def pull_environment(
        self, environment: str, *, on_progress: Optional[OnProgress] = None,
    ) -> types.PulledEnvironment:
        """Installs an environment, unless it is installed, and prepares fast starts.

        Args:
            environment: Name of the environment, such as `debian:12`.
            on_progress: Called with each step.
        """
        return self._call("pull_environment", {"environment": environment}, on_progress=on_progress)

    def inspect_environment(self, environment: str) -> types.Environment:
        """Describes one environment of the catalog."""
        return self._call("inspect_environment", {"environment": environment})

    def prune_environments(self) -> types.Pruned:
        """Removes installed environments and templates that this version cannot use."""
        return self._call("prune_environments", {})

    def remove_environment(self, environment: str) -> types.RemovedEnvironment:
        """Removes an installed environment and its templates. Fails while a VM or task uses it."""
        return self._call("remove_environment", {"environment": environment})

    # VMs

    def create_vm(
        self, *, environment: str, vcpu_count: int = 1, mem_mib: int = 1024, ttl_seconds: int = 600, network: bool = False,
        network_policy: Optional[types.NetworkPolicy] = None, host_ca: HostCa = None, host_proxy: Optional[bool] = None,
        mounts: Mounts = (), allow_host_compat: bool = False, on_progress: Optional[OnProgress] = None,
    ) -> types.Vm:
        """Creates a VM without starting it. Installs its environment if necessary.

        Args:
            environment: Name of the environment, such as `debian:12`.
            vcpu_count: Virtual CPUs, 1 to 8.
            mem_mib: Memory in MiB, 256 to 32768.
            ttl_seconds: Lifetime in seconds, 60 to 3600, after which the VM is removed. Using the VM does not extend it.
            network: Give the guest outbound network access.
            network_policy: What a guest with a network may reach, such as
                `{"egress": "allowlist", "allow_domains": ["*.example.com"]}`. Default: the public internet.
            host_ca: Certification authorities for the guest to trust: `True` for those that this host trusts, or the path
                of a PEM file. Default: `PYRO_HOST_CA`.
            host_proxy: Give a guest with a network the proxy settings of this host, credentials included, and access to
                these proxies. Default: `PYRO_HOST_PROXY`.
            mounts: Directories of this host that the guest has mounted, each as `mount_task` takes it in `host`, `guest`,
                `writable` and `uid`.
            allow_host_compat: Run commands on the host, without isolation, if the host cannot run VMs.
            on_progress: Called with each progress event.
        """
        params = _spec(
            environment, vcpu_count, mem_mib, ttl_seconds, network, network_policy, host_ca, host_proxy, mounts,
            allow_host_compat)
        return self._call(
            "create_vm", params, on_progress=on_progress, undo=lambda vm: ("delete_vm", {"vm_id": vm["vm_id"]}))

    def start_vm(self, vm_id: str, *, on_progress: Optional[OnProgress] = None) -> types.Vm:
        """Boots a created or stopped VM and returns when it accepts commands."""
        return self._call("start_vm", {"vm_id": vm_id}, on_progress=on_progress)

    def exec_vm(
        self, vm_id: str, *, command: Optional[str] = None, timeout_seconds: float = 30, cwd: Optional[StrPath] = None,
        env: Env = None, user: Optional[str] = None, shell: Optional[str] = None, argv: Argv = None, input: Input = None,
        on_output: Optional[OnOutput] = None,
    ) -> types.RunResult:
        """Runs one command in a started VM, then removes the VM, whatever the exit code.

        Args:
            vm_id: ID that `create_vm` returned.
            command: Shell text, at most 1 MiB.
            timeout_seconds: Time limit of the command in seconds, at least 1, rounded up to whole seconds. On timeout, the
                command is ended, and `exit_code` is 124.
            cwd: Working directory, which must exist; relative to `/workspace` unless absolute.
            env: Environment variables for the command, at most 32 KiB in total.
            user: User of the guest to run it as: `NAME`, `UID`, `NAME:GROUP` or `UID:GID`. Default: root.
            shell: Shell that runs `command`, such as `bash`. Default: `/bin/sh`, or what the environment uses.
            argv: Program and its arguments, run without a shell instead of `command`.
            input: Its standard input, sent as fast as the command reads: bytes, text, a file, or an iterable of either. An
                asynchronous client also takes asynchronous files and iterables. Default: empty.
            on_output: Called with each chunk of output while the command runs, beyond what the result keeps, too.
        """
        params = {
            "vm_id": vm_id,
            **_command(command, timeout_seconds, cwd, env, on_output, user=user, shell=shell, argv=argv, input=input),
        }
        return self._call("exec_vm", params, on_output=on_output, input=input)

    def stop_vm(self, vm_id: str) -> types.Vm:
        """Stops a VM. Its disk is kept until the VM is deleted or its lifetime ends."""
        return self._call("stop_vm", {"vm_id": vm_id})

    def delete_vm(self, vm_id: str) -> types.Deleted:
        """Removes a VM and its files."""
        return self._call("delete_vm", {"vm_id": vm_id})

    def status_vm(self, vm_id: str) -> types.Vm:
        """Returns the state and settings of a VM."""
        return self._call("status_vm", {"vm_id": vm_id})

    def network_info_vm(self, vm_id: str) -> types.NetworkInfo:
        """Returns the network settings of a VM."""
        return self._call("network_info_vm", {"vm_id": vm_id})

    def reap_expired(self) -> types.Reaped:
        """Removes VMs whose lifetime has ended."""
        return self._call("reap_expired", {})

    def run_in_vm(
        self, *, environment: str, command: Optional[str] = None, vcpu_count: int = 1, mem_mib: int = 1024,
        timeout_seconds: float = 30, ttl_seconds: int = 600, network: bool = False,
        network_policy: Optional[types.NetworkPolicy] = None, host_ca: HostCa = None, host_proxy: Optional[bool] = None,
        mounts: Mounts = (), allow_host_compat: bool = False, cwd: Optional[StrPath] = None, env: Env = None,
        user: Optional[str] = None, shell: Optional[str] = None, argv: Argv = None, input: Input = None,
        on_output: Optional[OnOutput] = None, on_progress: Optional[OnProgress] = None,
    ) -> types.RunResult:
        """Runs one command in a new VM and always removes the VM.

        Args:
            environment, vcpu_count, mem_mib, ttl_seconds, network, network_policy, host_ca, host_proxy,
                allow_host_compat: See `create_vm`.
            command, timeout_seconds, cwd, env, user, shell, argv, input, on_output: See `exec_vm`. The boot does not count
                towards the time limit.
            on_progress: Called with each progress event.

        Returns:
            `exit_code`, `stdout`, `stderr` (at most 16 MiB each), and more. A failed command does not raise an error.
        """
        spec = _spec(
            environment, vcpu_count, mem_mib, ttl_seconds, network, network_policy, host_ca, host_proxy, mounts,
            allow_host_compat)
        params = {
            **spec,
            **_command(command, timeout_seconds, cwd, env, on_output, user=user, shell=shell, argv=argv, input=input),
        }
        return self._call("run_in_vm", params, on_output=on_output, on_progress=on_progress, input=input)

    def stream_in_vm(
        self, *, environment: str, command: Optional[str] = None, vcpu_count: int = 1, mem_mib: int = 1024,
        timeout_seconds: float = 30, ttl_seconds: int = 600, network: bool = False,
        network_policy: Optional[types.NetworkPolicy] = None, host_ca: HostCa = None, host_proxy: Optional[bool] = None,
        mounts: Mounts = (), allow_host_compat: bool = False, cwd: Optional[StrPath] = None, env: Env = None,
        user: Optional[str] = None, shell: Optional[str] = None, argv: Argv = None, input: Input = None,
        on_progress: Optional[OnProgress] = None,
    ) -> CommandStream[types.RunResult]:
        """Like `run_in_vm`, but streams the output, without a size limit."""
        spec = _spec(
            environment, vcpu_count, mem_mib, ttl_seconds, network, network_policy, host_ca, host_proxy, mounts,
            allow_host_compat)
        params = {
            **spec, **_command(command, timeout_seconds, cwd, env, user=user, shell=shell, argv=argv, input=input),
            "output": "stream",
        }
        return CommandStream(self._manager, "run_in_vm", params, on_progress, input)

    def stream_vm(
        self, vm_id: str, *, command: Optional[str] = None, timeout_seconds: float = 30, cwd: Optional[StrPath] = None,
        env: Env = None, user: Optional[str] = None, shell: Optional[str] = None, argv: Argv = None, input: Input = None,
    ) -> CommandStream[types.RunResult]:
        """Like `exec_vm`, but streams the output, without a size limit."""
        params = {
            "vm_id": vm_id, **_command(command, timeout_seconds, cwd, env, user=user, shell=shell, argv=argv, input=input),
            "output": "stream",
        }
        return CommandStream(self._manager, "exec_vm", params, input=input)

    # Tasks

    def create_task(
        self, *, environment: str, vcpu_count: int = 1, mem_mib: int = 1024, ttl_seconds: int = 600, network: bool = False,
        network_policy: Optional[types.NetworkPolicy] = None, host_ca: HostCa = None, host_proxy: Optional[bool] = None,
        mounts: Mounts = (), allow_host_compat: bool = False, disk_mib: Optional[int] = None,
        publish: Sequence[str] = (), name: Optional[str] = None, labels: Labels = None, ttl_from: str = "create",
        on_progress: Optional[OnProgress] = None,
    ) -> types.Task:
        """Creates and starts a task: a VM with a persistent `/workspace` that stays until it is deleted.

        Args:
            environment, vcpu_count, mem_mib, network, network_policy, host_ca, host_proxy, mounts, allow_host_compat,
                on_progress: See `create_vm`.
            ttl_seconds: Lifetime in seconds, 60 to 3600, after which the task is stopped. `extend_task` renews it.
            disk_mib: Size of the disk in MiB, 256 to 1048576. Default: 8192, or less if the host's disk is too small.
            publish: TCP ports of the guest to publish on this host, each as for `publish_task`, from the start on.
            name: Name of the task, usable wherever its ID is. No other task of the same owner may have it.
            labels: Labels of the task, by which `list_tasks` selects tasks.
            ttl_from: `create`: the lifetime begins when the task is created. `use`: it begins again with each use.
        """
        params = _spec(
            environment, vcpu_count, mem_mib, ttl_seconds, network, network_policy, host_ca, host_proxy, mounts,
            allow_host_compat)
        more = {
            "disk_mib": disk_mib, "publish": _strings("publish", publish), "name": name, "labels": _labels(labels),
            "ttl_from": ttl_from,
        }
        return self._call(
            "create_task", {**params, **more}, on_progress=on_progress,
            undo=lambda task: ("delete_task", {"task_id": task["task_id"]}))

    def exec_task(
        self, task_id: str, *, command: Optional[str] = None, timeout_seconds: float = 30, cwd: Optional[StrPath] = None,
        env: Env = None, user: Optional[str] = None, shell: Optional[str] = None, argv: Argv = None, input: Input = None,
        on_output: Optional[OnOutput] = None, extends_lifetime: bool = False,
    ) -> types.TaskExec:
        """Runs one command in a task, by default in its `/workspace`. A task can run several commands at once.

        Args:
            task_id: ID that `create_task` returned.
            command, timeout_seconds, cwd, env, user, shell, argv, input, on_output: See `exec_vm`.
            extends_lifetime: This program extends the lifetime of the task while the command runs. Otherwise a time limit
                beyond what is left of the lifetime is refused.

        Returns:
            `exit_code`, `stdout`, `stderr` (at most 16 MiB each), the command's number `sequence`, and more. A failed
            command does not raise an error.
        """
        params = {
            "task_id": task_id,
            **_command(command, timeout_seconds, cwd, env, on_output, user=user, shell=shell, argv=argv, input=input),
            "extends_lifetime": extends_lifetime,
        }
        return self._call("exec_task", params, on_output=on_output, input=input)

    def stream_task(
        self, task_id: str, *, command: Optional[str] = None, timeout_seconds: float = 30, cwd: Optional[StrPath] = None,
        env: Env = None, user: Optional[str] = None, shell: Optional[str] = None, argv: Argv = None, input: Input = None,
        extends_lifetime: bool = False,
    ) -> CommandStream[types.TaskExec]:
        """Like `exec_task`, but streams the output, without a size limit."""
        params = {
            "task_id": task_id,
            **_command(command, timeout_seconds, cwd, env, user=user, shell=shell, argv=argv, input=input),
            "output": "stream", "extends_lifetime": extends_lifetime,
        }
        return CommandStream(self._manager, "exec_task", params, input=input)

    def detach_task(
        self, task_id: str, *, command: Optional[str] = None, timeout_seconds: float = 30, cwd: Optional[StrPath] = None,
        env: Env = None, user: Optional[str] = None, shell: Optional[str] = None, argv: Argv = None,
        takes_input: bool = False, extends_lifetime: bool = False,
    ) -> types.TaskDetached:
        """Starts a command in a task without waiting for it. The command outlives this program.

        Args:
            task_id: ID of the task.
            command, timeout_seconds, cwd, env, user, shell, argv: See `exec_vm`.
            takes_input: Keep its standard input open for `input_task`. Otherwise it is empty.
            extends_lifetime: See `exec_task`.
        """
        params = {
            "task_id": task_id, **_command(command, timeout_seconds, cwd, env, user=user, shell=shell, argv=argv),
            "extends_lifetime": extends_lifetime,
        }
        if takes_input:
            params["input"] = "stream"
        return self._call("detach_task", params)

    def input_task(self, task_id: str, *, sequence: int, input: Input) -> types.TaskInput:
        """Sends the standard input of a command that was started with `takes_input`, and its end. Returns when the command
        has taken it, or takes no more. An interrupted call leaves the input open for another one.

        Args:
            task_id: ID of the task.
            sequence: Number of the command.
            input: See `exec_vm`.
        """
        params = {"task_id": task_id, "sequence": sequence}
        return self._call("input_task", params, input=input)

    def open_task_shell(
        self, task_id: str, *, command: Optional[str] = None, argv: Argv = None, shell: Optional[str] = None,
        cwd: Optional[StrPath] = None, env: Env = None, user: Optional[str] = None, columns: int = 120, rows: int = 30,
    ) -> types.TaskShell:
        """Opens a shell in a task, which goes on without this program until it ends, is closed, or the task is stopped.

        Args:
            task_id: ID of the task.
            command, argv, shell, cwd, env, user: See `exec_vm`. Without a command, it is a login shell.
            columns, rows: Size of its terminal, 1 to 1000 each.

        Returns:
            `shell_id`, by which the other methods name the shell. It is also its number in the task's journal.
        """
        params = {
            "task_id": task_id, "command": command, "argv": None if argv is None else _strings("argv", argv), "shell": shell,
            "cwd": None if cwd is None else os.fspath(cwd), "env": None if env is None else dict(env), "user": user,
            "columns": columns, "rows": rows,
        }
        return self._call("open_task_shell", params)

    def list_task_shells(self, task_id: str) -> types.TaskShells:
        """Lists the shells of a task: those that run, and the latest 16 that have ended since it was started."""
        return self._call("list_task_shells", {"task_id": task_id})

    def read_task_shell(
        self, task_id: str, *, shell_id: int, cursor: Optional[int] = None, max_bytes: int = 65536, wait_seconds: float = 0,
        idle_seconds: float = 0, format: str = "raw",
    ) -> types.TaskShellOutput:
        """Returns output of a shell. Reading removes nothing; the latest 1 MiB is kept, 256 KiB of a shell that has ended.

        Args:
            task_id: ID of the task.
            shell_id: Number of the shell.
            cursor: `cursor` of an earlier result, to continue there. Default: the latest output.
            max_bytes: Maximum number of bytes of the terminal, 4 to 1048576.
            wait_seconds: Maximum time to wait for output, at most 3600. By default, returns at once.
            idle_seconds: Wait until there is output and then none for this time. By default, returns as soon as there is any.
            format: `raw`, with escape sequences; `plain`, lines without them; `screen`, the rows of the screen as they are now.

        Returns:
            `text`; `cursor`, where to continue; `dropped_bytes`, which are no longer kept; `reason`, why the text ends there;
            `running` and `exit_code`.
        """
        params = {
            "task_id": task_id, "shell_id": shell_id, "cursor": cursor, "max_bytes": max_bytes, "wait_seconds": wait_seconds,
            "idle_seconds": idle_seconds, "format": format,
        }
        return self._call("read_task_shell", params)

    def write_task_shell(
        self, task_id: str, *, shell_id: int, text: str = "", keys: Sequence[str] = (), cursor: Optional[int] = None,
        max_bytes: int = 65536, wait_seconds: float = 0, idle_seconds: float = 0, format: str = "raw",
    ) -> types.TaskShellOutput:
        """Types text into a shell, presses keys, and returns the output that follows.

        Args:
            task_id: ID of the task.
            shell_id: Number of the shell.
            text: Text to type, at most 64 KiB. Nothing is added: a line ends with `\\n`.
            keys: Keys to press after it, such as `Enter`, `Ctrl-C`, `Escape`, `Up`, or `F1`.
            cursor: Where to begin. Default: where the output ended before.
            max_bytes, wait_seconds, idle_seconds, format: See `read_task_shell`.
        """
        params = {
            "task_id": task_id, "shell_id": shell_id, "text": text, "keys": _strings("keys", keys), "cursor": cursor,
            "max_bytes": max_bytes, "wait_seconds": wait_seconds, "idle_seconds": idle_seconds, "format": format,
        }
        return self._call("write_task_shell", params)

    def signal_task_shell(self, task_id: str, *, shell_id: int, signal: str) -> types.TaskShell:
        """Sends a signal, such as `INT` or `TERM`, to what runs in the foreground of a shell's terminal."""
        return self._call("signal_task_shell", {"task_id": task_id, "shell_id": shell_id, "signal": signal})

    def resize_task_shell(
        self, task_id: str, *, shell_id: int, columns: int = 120, rows: int = 30,
    ) -> types.TaskShell:
        """Changes the size of a shell's terminal, 1 to 1000 columns and rows."""
        params = {"task_id": task_id, "shell_id": shell_id, "columns": columns, "rows": rows}
        return self._call("resize_task_shell", params)

    def close_task_shell(self, task_id: str, *, shell_id: int) -> types.TaskShell:
        """Ends a shell and everything that runs in it. Succeeds if it has ended already."""
        return self._call("close_task_shell", {"task_id": task_id, "shell_id": shell_id})

    def attach_task_shell(
        self, task_id: str, *, shell_id: int, columns: int = 120, rows: int = 30, input: Input = None,
    ) -> CommandStream[types.TaskShell]:
        """Streams the screen of a shell and then what it writes. Leaving the stream leaves the shell running.

        Args:
            task_id: ID of the task.
            shell_id: Number of the shell.
            columns, rows: Size that its terminal gets.
            input: What to type. The stream ends with it. See `exec_vm`.
        """
        params = {"task_id": task_id, "shell_id": shell_id, "columns": columns, "rows": rows}
        return CommandStream(self._manager, "attach_task_shell", params, input=input)

    def wait_task(
        self, task_id: str, *, sequence: int, timeout_seconds: Optional[float] = None,
    ) -> types.TaskLogEntry:
        """Waits until a command of a task has ended.

        Args:
            task_id: ID of the task.
            sequence: Number of the command.
            timeout_seconds: Maximum time to wait, in seconds. Default: no limit.

        Raises:
            TimeoutError: The command did not end in time. It keeps running.
        """
        params = {"task_id": task_id, "sequence": sequence}
        return self._call("wait_task", params, timeout=timeout_seconds)

    def follow_task(self, task_id: str, *, sequence: int) -> CommandStream[types.TaskLogEntry]:
        """Streams the output of a task's command from the beginning. Leaving the stream does not end the command."""
        params = {"task_id": task_id, "sequence": sequence}
        return CommandStream(self._manager, "follow_task", params)

    def kill_task(self, task_id: str, *, sequence: int) -> types.TaskLogEntry:
        """Kills a command of a task."""
        return self._call("kill_task", {"task_id": task_id, "sequence": sequence})

    def status_task(self, task_id: str) -> types.Task:
        """Returns the state of a task and its latest command."""
        return self._call("status_task", {"task_id": task_id})

    def logs_task(self, task_id: str, *, sequence: Optional[int] = None) -> types.TaskLogs:
        """Returns all commands of a task with their output, or the one with this number."""
        logs: types.TaskLogs = {"task_id": task_id, "count": 0, "entries": []}
        damaged: List[int] = []
        after: Optional[int] = 0
        while after is not None:
            # All pages are those of the task that the name stood for at first.
            params = {"task_id": logs["task_id"], "sequence": sequence, "after": after}
            page = self._call("logs_task", params)
            entries = logs["entries"] + page["logs"]["entries"]
            damaged += page["logs"].get("damaged", [])
            logs = page["logs"]
            logs["count"], logs["entries"] = len(entries), entries
            after = page["next_after"]
        if damaged:
            logs["damaged"] = damaged
        return logs

    def list_tasks(self, *, labels: Sequence[str] = ()) -> types.TaskList:
        """Lists tasks, oldest first.

        Args:
            labels: List only tasks with all of these labels, each as `KEY=VALUE`, or as `KEY` for any value.
        """
        return self._call("list_tasks", {"labels": _strings("labels", labels)})

    def update_task(
        self, task_id: str, *, name: Optional[str] = None, labels: Labels = None, remove_labels: Sequence[str] = (),
        ttl_from: Optional[str] = None,
    ) -> types.Task:
        """Changes the name, the labels, or the renewal of a task. What is left out stays as it is.

        Args:
            task_id: ID or name of the task.
            name: New name. An empty text takes the name away.
            labels: Labels to add or replace.
            remove_labels: Keys of labels to remove.
            ttl_from: See `create_task`.
        """
        params = {
            "task_id": task_id, "name": name, "labels": _labels(labels), "remove_labels": _strings("remove_labels", remove_labels),
            "ttl_from": ttl_from,
        }
        return self._call("update_task", params)

    def start_task(self, task_id: str, *, on_progress: Optional[OnProgress] = None) -> types.Task:
        """Starts a stopped task with its files and a new lifetime."""
        return self._call("start_task", {"task_id": task_id}, on_progress=on_progress)

    def stop_task(self, task_id: str) -> types.Task:
        """Stops a task. Its files and its journal are kept."""
        return self._call("stop_task", {"task_id": task_id})

    def extend_task(self, task_id: str, *, ttl_seconds: int) -> types.Task:
        """Gives a task a new lifetime of 60 to 3600 seconds, starting now."""
        return self._call("extend_task", {"task_id": task_id, "ttl_seconds": ttl_seconds})

    def publish_task(
        self, task_id: str, *, mapping: str, on_progress: Optional[OnProgress] = None,
    ) -> types.TaskPublished:
        """Publishes a TCP port of a running task on this host until it is unpublished or the task is deleted.

        Clients reach what listens on the guest's loopback interface. The guest needs no network.

        Args:
            task_id: ID of the task.
            mapping: `[HOST_IP:]HOST_PORT:GUEST_PORT`. The address is 127.0.0.1 by default; host port 0 is one that is free.
            on_progress: See `create_vm`. Gets a warning if other hosts can connect.

        Returns:
            `host_ip` and `host_port`, where this host listens, and `guest_port`.
        """
        params = {"task_id": task_id, "mapping": mapping}
        return self._call("publish_task", params, on_progress=on_progress)

    def unpublish_task(self, task_id: str, *, host_port: int) -> types.Task:
        """Closes the published ports of a task with this number on this host, with their connections."""
        return self._call("unpublish_task", {"task_id": task_id, "host_port": host_port})

    def start_task_service(
        self, task_id: str, *, name: str, command: Optional[str] = None, argv: Argv = None, cwd: Optional[StrPath] = None,
        env: Env = None, user: Optional[str] = None, shell: Optional[str] = None, ready_tcp: Optional[int] = None,
        ready_http: Optional[str] = None, ready_file: Optional[StrPath] = None, ready_command: Optional[str] = None,
        ready_timeout_seconds: Optional[float] = None, restart: str = "no", start_with_task: bool = False,
        publish: Sequence[str] = (), wait: bool = True, on_progress: Optional[OnProgress] = None,
    ) -> types.Service:
        """Starts a service of a task: a command that is kept running without this program, until it or the task is stopped.

        Args:
            task_id: ID of the task.
            name: Name of the service: 1 to 63 letters, digits, `-`, `_` and `.`, beginning with a letter or digit.
            command, argv, cwd, env, user, shell: See `exec_vm`. Without `command` and `argv`, a service that exists and does
                not run is started again unchanged.
            ready_tcp: The service is ready when it accepts connections to this port of the guest. At most one of the four
                checks can be given.
            ready_http: It is ready when it answers a GET request with a status from 200 to 399, such as
                `http://localhost:8000/health`.
            ready_file: It is ready when this file exists; relative to `/workspace` unless absolute.
            ready_command: It is ready when this shell command ends with exit code 0.
            ready_timeout_seconds: Time limit for becoming ready, 1 to 3600, rounded up to whole seconds. A service that is not
                ready by then is ended. Default: 60.
            restart: When to run the command again after it has ended: `no`, `on-failure`, or `always`.
            start_with_task: Start the service again with the task.
            publish: TCP ports of the guest to publish on this host, each as for `publish_task`.
            wait: Return when the service is ready, or has ended or failed before that, which is not an error. If the call is
                interrupted, the service goes on.
            on_progress: See `create_vm`. Gets a warning if other hosts can connect to a published port.

        Returns:
            `state`, such as `ready`, `running` without a check, or `failed` with `reason`, `exit_code`, and `last_output`.
        """
        params = {
            "task_id": task_id, "name": name, "command": command, "argv": None if argv is None else _strings("argv", argv),
            "cwd": None if cwd is None else os.fspath(cwd), "env": None if env is None else dict(env), "user": user,
            "shell": shell, "ready_tcp": ready_tcp, "ready_http": ready_http,
            "ready_file": None if ready_file is None else os.fspath(ready_file), "ready_command": ready_command,
            "ready_timeout_seconds": None if ready_timeout_seconds is None else _whole_seconds(ready_timeout_seconds),
            "restart": restart, "start_with_task": start_with_task, "publish": _strings("publish", publish), "wait": wait,
        }
        return self._call("start_task_service", params, on_progress=on_progress)

    def list_task_services(self, task_id: str) -> types.ServiceList:
        """Lists the services of a task, also while it is stopped."""
        return self._call("list_task_services", {"task_id": task_id})

    def status_task_service(self, task_id: str, *, name: str) -> types.Service:
        """Returns the state of a service."""
        return self._call("status_task_service", {"task_id": task_id, "name": name})

    def logs_task_service(
        self, task_id: str, *, name: str, tail: Optional[int] = None, offset: Optional[int] = None,
        max_bytes: Optional[int] = None,
    ) -> types.ServiceLog:
        """Returns a part of what a service has written, in all of its runs. About the last 8 MiB are kept.

        Args:
            task_id: ID of the task.
            name: Name of the service.
            tail: Begin with this many last lines. Default: everything that is kept.
            offset: Begin at this offset instead, such as `next_offset` of an earlier result.
            max_bytes: Maximum number of bytes to return, at most 16 MiB. Default: 1 MiB.
        """
        params = {"task_id": task_id, "name": name, "tail": tail, "offset": offset, "max_bytes": max_bytes}
        return self._call("logs_task_service", params)

    def follow_task_service(
        self, task_id: str, *, name: str, tail: Optional[int] = None,
    ) -> CommandStream[types.Service]:
        """Streams what a service writes until it has ended for good or the stream is left, which does not affect the service.

        Args:
            task_id: ID of the task.
            name: Name of the service.
            tail: Begin with this many last lines. Default: everything that is kept.
        """
        params = {"task_id": task_id, "name": name, "tail": tail}
        return CommandStream(self._manager, "follow_task_service", params)

    def stop_task_service(self, task_id: str, *, name: str) -> types.Service:
        """Stops a service and returns when nothing of it runs. Succeeds if it does not run."""
        return self._call("stop_task_service", {"task_id": task_id, "name": name})

    def remove_task_service(self, task_id: str, *, name: str) -> types.ServiceRemoved:
        """Stops a service and removes it with its log."""
        return self._call("remove_task_service", {"task_id": task_id, "name": name})

    def mount_task(
        self, task_id: str, *, host: StrPath, guest: str, writable: bool = False, uid: int = 0,
    ) -> types.Task:
        """Mounts a directory of this host in a running task until it is unmounted or the task is deleted.

        Changes on this host are seen in the task within a second, and the reverse at once. A stopped task gets it back when
        it starts.

        Args:
            task_id: ID of the task.
            host: Path of the directory on this host.
            guest: Absolute path in the guest. A directory that does not exist is made.
            writable: Let the guest change the directory.
            uid: Number of the user and the group of the guest that own everything in it, as the guest sees it. What is made
                in it belongs to the user of this host.
        """
        (mount,) = _mounts([{"host": os.fspath(host), "guest": guest, "writable": writable, "uid": uid}])
        return self._call("mount_task", {"task_id": task_id, **mount})

    def unmount_task(self, task_id: str, *, guest: str) -> types.Task:
        """Unmounts a directory of this host from a task, after what the guest has written is on this host.

        Processes in the guest that still use it get errors.
        """
        return self._call("unmount_task", {"task_id": task_id, "guest": guest})

    def delete_task(self, task_id: str) -> types.TaskDeleted:
        """Deletes a task with its files and its journal."""
        return self._call("delete_task", {"task_id": task_id})

    def copy_to_task(self, task_id: str, *, source: StrPath, path: str, strict: bool = False) -> types.TaskCopied:
        """Copies a file or directory from the host into a task; at most a million entries and 8 GiB. Holes stay holes.

        Args:
            task_id: ID of the task.
            source: Path on the host.
            path: Path in the task, relative to `/workspace` unless absolute. If it is a directory, the copy goes into it.
            strict: Raise `PyroValueError` if something was left out, such as sockets, after the rest is copied. Otherwise
                `left_out` counts it.
        """
        params = {"task_id": task_id, "source": os.path.abspath(source), "path": path, "strict": strict}
        return self._call("copy_to_task", params)

    def copy_from_task(
        self, task_id: str, *, path: str, target: StrPath, preserve_mode: bool = False, strict: bool = False,
    ) -> types.TaskCopied:
        """Copies a file or directory from a task to the host. See `copy_to_task`.

        Args:
            task_id: ID of the task.
            path: Path in the task, relative to `/workspace` unless absolute.
            target: Path on the host. If it is a directory, the copy goes into it.
            preserve_mode: Keep the modes of the task's files. Otherwise the umask applies.
            strict: See `copy_to_task`.
        """
        params = {
            "task_id": task_id, "path": path, "target": os.path.abspath(target), "preserve_mode": preserve_mode,
            "strict": strict,
        }
        return self._call("copy_from_task", params)

    def read_task_file(
        self, task_id: str, *, path: str, offset: int = 0, max_bytes: int = 16777216,
    ) -> types.TaskFile:
        """Reads a file of a task, or a part of it: as text if it is UTF-8, otherwise as base64.

        Args:
            task_id: ID of the task.
            path: Path in the task, relative to `/workspace` unless absolute. The file may be at most 16 MiB.
            offset: Byte offset to start at.
            max_bytes: Maximum number of bytes to return.
        """
        params = {"task_id": task_id, "path": path, "offset": offset, "max_bytes": max_bytes}
        return self._call("read_task_file", params)

    def write_task_file(
        self, task_id: str, *, path: str, content: str, encoding: str = "utf-8", executable: bool = False,
    ) -> types.TaskFileWritten:
        """Creates a file of a task, with missing parent directories, or writes over one, which keeps its owner and mode, but no
        set-user-ID, set-group-ID, or sticky bit. Symbolic links are followed.

        Args:
            task_id: ID of the task.
            path: Path in the task, relative to `/workspace` unless absolute.
            content: Contents of the file, at most 16 MiB.
            encoding: Encoding of `content`: `utf-8` or `base64`.
            executable: Make it executable. A new file has mode 0755 instead of 0644.
        """
        params = {
            "task_id": task_id, "path": path, "content": content, "encoding": encoding, "executable": executable,
        }
        return self._call("write_task_file", params)

    def stat_task_file(self, task_id: str, *, path: str) -> types.TaskFileInfo:
        """Describes a file or directory of a task. A symbolic link is not followed.

        Args:
            task_id: ID of the task.
            path: Path in the task, relative to `/workspace` unless absolute.
        """
        return self._call("stat_task_file", {"task_id": task_id, "path": path})

    def list_task_files(
        self, task_id: str, *, path: str = ".", recursive: bool = False, max_entries: int = 1000,
    ) -> types.TaskFileList:
        """Lists a directory of a task, each directory before its own entries.

        Args:
            task_id: ID of the task.
            path: Directory in the task, relative to `/workspace` unless absolute.
            recursive: Also list what is in its directories, except in those where another file system is mounted.
            max_entries: Maximum number of entries to return, 1 to 100,000. The result says if there are more.
        """
        params = {"task_id": task_id, "path": path, "recursive": recursive, "max_entries": max_entries}
        return self._call("list_task_files", params)

    def move_task_file(
        self, task_id: str, *, source: str, destination: str, replace: bool = False,
    ) -> types.TaskFileMoved:
        """Moves or renames a file or directory of a task, also to another file system.

        Args:
            task_id: ID of the task.
            source: Path in the task, relative to `/workspace` unless absolute.
            destination: Its new path, in an existing directory.
            replace: Replace a file, or an empty directory by a directory, that has the new path.
        """
        params = {"task_id": task_id, "source": source, "destination": destination, "replace": replace}
        return self._call("move_task_file", params)

    def remove_task_file(self, task_id: str, *, path: str, recursive: bool = False) -> types.TaskFileChanged:
        """Removes a file or an empty directory of a task; of a symbolic link, only the link.

        Args:
            task_id: ID of the task.
            path: Path in the task, relative to `/workspace` unless absolute.
            recursive: Remove a directory with what is in it.
        """
        return self._call("remove_task_file", {"task_id": task_id, "path": path, "recursive": recursive})

    def make_task_directory(self, task_id: str, *, path: str) -> types.TaskFileChanged:
        """Makes a directory in a task, with its missing parents. Succeeds if it exists.

        Args:
            task_id: ID of the task.
            path: Path in the task, relative to `/workspace` unless absolute.
        """
        return self._call("make_task_directory", {"task_id": task_id, "path": path})

    def watch_task_files(
        self, task_id: str, *, path: str = ".", recursive: bool = False, timeout_seconds: float = 60.0,
        idle_seconds: Optional[float] = None, max_changes: int = 1000,
        on_progress: Optional[OnProgress] = None,
    ) -> types.TaskFileChanges:
        """Watches a file or a directory of a task, and returns what has changed.

        Args:
            task_id: ID of the task.
            path: Directory or file in the task, relative to `/workspace` unless absolute.
            recursive: Also watch its directories, at most 8,192.
            timeout_seconds: Maximum time to watch, at most 3,600.
            idle_seconds: Return when something has changed and then nothing for this time.
            max_changes: Return after this number of changes, at most 100,000. 0: no maximum; the result then has no changes.
            on_progress: Called with an event of type `watching` when the watch has begun, and then with one of type `file_change` for
                each change.
        """
        params = {
            "task_id": task_id, "path": path, "recursive": recursive, "timeout_seconds": timeout_seconds,
            "idle_seconds": idle_seconds, "max_changes": max_changes,
        }
        return self._call("watch_task_files", params, on_progress=on_progress)

    def task(
        self, environment: str, *, vcpu_count: int = 1, mem_mib: int = 1024, ttl_seconds: int = 600, network: bool = False,
        network_policy: Optional[types.NetworkPolicy] = None, host_ca: HostCa = None, host_proxy: Optional[bool] = None,
        mounts: Mounts = (), allow_host_compat: bool = False, disk_mib: Optional[int] = None,
        publish: Sequence[str] = (), name: Optional[str] = None, labels: Labels = None, ttl_from: str = "create",
        on_progress: Optional[OnProgress] = None,
    ) -> TaskContext:
        """Returns a context manager that creates a task and deletes it on exit. See `create_task` for the arguments."""
        params = _spec(
            environment, vcpu_count, mem_mib, ttl_seconds, network, network_policy, host_ca, host_proxy, mounts,
            allow_host_compat)
        more = {"disk_mib": disk_mib, "publish": publish, "name": name, "labels": labels, "ttl_from": ttl_from}
        return TaskContext(self, {**params, **more, "on_progress": on_progress})

    def open_task(self, task_id: str) -> Task:
        """Returns an object for an existing task. Makes no call."""
        return Task(self, task_id)

    # The host

    def doctor(self) -> types.DoctorReport:
        """Reports what this host can do, and what to change if it cannot run VMs."""
        return self._call("doctor", {})


def _spec(
    environment: str, vcpu_count: int, mem_mib: int, ttl_seconds: int, network: bool,
    network_policy: Optional[types.NetworkPolicy], host_ca: HostCa, host_proxy: Optional[bool], mounts: Mounts,
    allow_host_compat: bool,
) -> Dict[str, Any]:
    return {
        "environment": environment, "vcpu_count": vcpu_count, "mem_mib": mem_mib, "ttl_seconds": ttl_seconds,
        "network": network, "network_policy": network_policy, "allow_host_compat": allow_host_compat,
        "host_ca": host_ca if host_ca is None or isinstance(host_ca, bool) else os.path.abspath(host_ca),
        "host_proxy": host_proxy, "mounts": _mounts(mounts),
    }


def _command(
    command: Optional[str], timeout_seconds: float, cwd: Optional[StrPath], env: Env, on_output: Optional[OnOutput] = None,
    *, user: Optional[str], shell: Optional[str], argv: Argv, input: Input = None,
) -> Dict[str, Any]:
    # The default is left out, because the executable holds only chosen time limits against what is left of a lifetime.
    chosen = None if timeout_seconds == _DEFAULT_TIMEOUT else _whole_seconds(timeout_seconds)
    return {
        "command": command, "timeout_seconds": chosen,
        "cwd": None if cwd is None else os.fspath(cwd),
        "env": None if env is None else dict(env), "user": user, "shell": shell,
        "argv": None if argv is None else _strings("argv", argv), "input": None if input is None else "stream",
        # The result also contains the output.
        "output": None if on_output is None else "capture_and_stream",
    }


def _strings(name: str, values: Sequence[str]) -> List[str]:
    """Returns a parameter that is a sequence of strings as a list. One string would be taken for its characters."""
    if isinstance(values, (str, bytes)):
        raise TypeError(f"{name} must be a sequence of strings, not {type(values).__name__}")
    return list(values)


def _mounts(mounts: Mounts) -> List[Dict[str, Any]]:
    if isinstance(mounts, (str, bytes, Mapping)):
        raise TypeError(f"mounts must be a sequence of mappings, not {type(mounts).__name__}")
    return [{**mount, "host": os.path.abspath(mount["host"])} for mount in mounts]


def _labels(labels: Labels) -> Dict[str, str]:
    if isinstance(labels, (str, bytes)):
        raise TypeError(f"labels must be a mapping of strings, not {type(labels).__name__}")
    return dict(labels or {})


def _whole_seconds(seconds: float) -> int:
    """Returns a time limit for the executable, which takes whole seconds. Rounded up, so that no command gets less time."""
    if isinstance(seconds, float) and math.isfinite(seconds):
        return math.ceil(seconds)
    # Anything else is rejected with a message that names the parameter.
    return seconds  # type: ignore[return-value]
