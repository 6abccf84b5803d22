"""A task as an object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Optional, Sequence, Union

from .._calls import Call
from .._feeding import Input
from .._manager import StrPath
from .._output import OnOutput
from ..errors import PyroValueError
from .caller import Argv, Env, Labels, OnProgress
from .stream import CommandStream

if TYPE_CHECKING:
    from .. import types
    from .client import Pyro
else:
    # Only tools that resolve annotations need its contents.
    from .. import _lazy_types as types


class Task:
    """A task: a VM with a persistent `/workspace`. The methods correspond to those of `Pyro`."""

    def __init__(self, pyro: Pyro, task_id: str) -> None:
        self._pyro = pyro
        self.task_id = task_id
        """ID of the task. Any program of the same user can use it."""

    def __repr__(self) -> str:
        return f"<pyro task {self.task_id}>"

    def exec(
        self, command: Optional[str] = None, *, timeout_seconds: float = 30, cwd: Optional[StrPath] = None, env: Env = None,
        user: Optional[str] = None, shell: Optional[str] = None, argv: Argv = None, input: Input = None,
        on_output: Optional[OnOutput] = None, extends_lifetime: bool = False,
    ) -> types.TaskExec:
        """Runs one command. See `exec_task`."""
        return self._pyro.exec_task(
            self.task_id, command=command, timeout_seconds=timeout_seconds, cwd=cwd, env=env, user=user, shell=shell,
            argv=argv, input=input, on_output=on_output, extends_lifetime=extends_lifetime)

    def stream(
        self, command: Optional[str] = None, *, timeout_seconds: float = 30, cwd: Optional[StrPath] = None, env: Env = None,
        user: Optional[str] = None, shell: Optional[str] = None, argv: Argv = None, input: Input = None,
        extends_lifetime: bool = False,
    ) -> CommandStream[types.TaskExec]:
        """Runs one command and streams its output. See `stream_task`."""
        return self._pyro.stream_task(
            self.task_id, command=command, timeout_seconds=timeout_seconds, cwd=cwd, env=env, user=user, shell=shell,
            argv=argv, input=input, extends_lifetime=extends_lifetime)

    def detach(
        self, command: Optional[str] = None, *, timeout_seconds: float = 30, cwd: Optional[StrPath] = None, env: Env = None,
        user: Optional[str] = None, shell: Optional[str] = None, argv: Argv = None, takes_input: bool = False,
        extends_lifetime: bool = False,
    ) -> types.TaskDetached:
        """Starts a command without waiting for it. See `detach_task`."""
        return self._pyro.detach_task(
            self.task_id, command=command, timeout_seconds=timeout_seconds, cwd=cwd, env=env, user=user, shell=shell,
            argv=argv, takes_input=takes_input, extends_lifetime=extends_lifetime)

    def send_input(self, sequence: int, input: Input) -> types.TaskInput:
        """Sends the input of a detached command, and its end. See `input_task`."""
        return self._pyro.input_task(self.task_id, sequence=sequence, input=input)

    def shell_open(
        self, command: Optional[str] = None, *, argv: Argv = None, shell: Optional[str] = None, cwd: Optional[StrPath] = None,
        env: Env = None, user: Optional[str] = None, columns: int = 120, rows: int = 30,
    ) -> types.TaskShell:
        """Opens a shell that goes on without this program. See `open_task_shell`."""
        return self._pyro.open_task_shell(
            self.task_id, command=command, argv=argv, shell=shell, cwd=cwd, env=env, user=user, columns=columns, rows=rows)

    def shell_list(self) -> types.TaskShells:
        """Lists the shells of the task. See `list_task_shells`."""
        return self._pyro.list_task_shells(self.task_id)

    def shell_read(
        self, shell_id: int, *, cursor: Optional[int] = None, max_bytes: int = 65536, wait_seconds: float = 0,
        idle_seconds: float = 0, format: str = "raw",
    ) -> types.TaskShellOutput:
        """Returns output of a shell. See `read_task_shell`."""
        return self._pyro.read_task_shell(
            self.task_id, shell_id=shell_id, cursor=cursor, max_bytes=max_bytes, wait_seconds=wait_seconds,
            idle_seconds=idle_seconds, format=format)

    def shell_write(
        self, shell_id: int, text: str = "", *, keys: Sequence[str] = (), cursor: Optional[int] = None, max_bytes: int = 65536,
        wait_seconds: float = 0, idle_seconds: float = 0, format: str = "raw",
    ) -> types.TaskShellOutput:
        """Types into a shell and returns the output that follows. See `write_task_shell`."""
        return self._pyro.write_task_shell(
            self.task_id, shell_id=shell_id, text=text, keys=keys, cursor=cursor, max_bytes=max_bytes,
            wait_seconds=wait_seconds, idle_seconds=idle_seconds, format=format)

    def shell_signal(self, shell_id: int, signal: str) -> types.TaskShell:
        """Sends a signal to what runs in the foreground of a shell. See `signal_task_shell`."""
        return self._pyro.signal_task_shell(self.task_id, shell_id=shell_id, signal=signal)

    def shell_resize(self, shell_id: int, *, columns: int = 120, rows: int = 30) -> types.TaskShell:
        """Changes the size of a shell's terminal."""
        return self._pyro.resize_task_shell(self.task_id, shell_id=shell_id, columns=columns, rows=rows)

    def shell_close(self, shell_id: int) -> types.TaskShell:
        """Ends a shell and everything that runs in it."""
        return self._pyro.close_task_shell(self.task_id, shell_id=shell_id)

    def shell_attach(
        self, shell_id: int, *, columns: int = 120, rows: int = 30, input: Input = None,
    ) -> CommandStream[types.TaskShell]:
        """Streams the screen of a shell and then what it writes. See `attach_task_shell`."""
        return self._pyro.attach_task_shell(self.task_id, shell_id=shell_id, columns=columns, rows=rows, input=input)

    def wait(self, sequence: int, *, timeout_seconds: Optional[float] = None) -> types.TaskLogEntry:
        """Waits until a command has ended. See `wait_task`."""
        return self._pyro.wait_task(self.task_id, sequence=sequence, timeout_seconds=timeout_seconds)

    def follow(self, sequence: int) -> CommandStream[types.TaskLogEntry]:
        """Streams the output of a command from the beginning. See `follow_task`."""
        return self._pyro.follow_task(self.task_id, sequence=sequence)

    def kill(self, sequence: int) -> types.TaskLogEntry:
        """Kills a command."""
        return self._pyro.kill_task(self.task_id, sequence=sequence)

    def status(self) -> types.Task:
        """Returns the task's state and its latest command."""
        return self._pyro.status_task(self.task_id)

    def logs(self, *, sequence: Optional[int] = None) -> types.TaskLogs:
        """Returns all commands with their output, or the one with this number."""
        return self._pyro.logs_task(self.task_id, sequence=sequence)

    def start(self) -> types.Task:
        """Starts the task after it was stopped."""
        return self._pyro.start_task(self.task_id)

    def stop(self) -> types.Task:
        """Stops the task. Its files and its journal are kept."""
        return self._pyro.stop_task(self.task_id)

    def update(
        self, *, name: Optional[str] = None, labels: Labels = None, remove_labels: Sequence[str] = (),
        ttl_from: Optional[str] = None,
    ) -> types.Task:
        """Changes the name, the labels, or the renewal of the task. See `update_task`."""
        return self._pyro.update_task(
            self.task_id, name=name, labels=labels, remove_labels=remove_labels, ttl_from=ttl_from)

    def extend(self, *, ttl_seconds: int) -> types.Task:
        """Gives the task a new lifetime of 60 to 3600 seconds, starting now."""
        return self._pyro.extend_task(self.task_id, ttl_seconds=ttl_seconds)

    def service_start(self, name: str, command: Optional[str] = None, **options: Any) -> types.Service:
        """Starts a service. `options` are those of `start_task_service`."""
        return self._pyro.start_task_service(self.task_id, name=name, command=command, **options)

    def service_list(self) -> types.ServiceList:
        """Lists the services."""
        return self._pyro.list_task_services(self.task_id)

    def service_status(self, name: str) -> types.Service:
        """Returns the state of a service."""
        return self._pyro.status_task_service(self.task_id, name=name)

    def service_logs(
        self, name: str, *, tail: Optional[int] = None, offset: Optional[int] = None,
        max_bytes: Optional[int] = None,
    ) -> types.ServiceLog:
        """Returns a part of what a service has written. See `logs_task_service`."""
        return self._pyro.logs_task_service(
            self.task_id, name=name, tail=tail, offset=offset, max_bytes=max_bytes)

    def service_follow(self, name: str, *, tail: Optional[int] = None) -> CommandStream[types.Service]:
        """Streams what a service writes. See `follow_task_service`."""
        return self._pyro.follow_task_service(self.task_id, name=name, tail=tail)

    def service_stop(self, name: str) -> types.Service:
        """Stops a service."""
        return self._pyro.stop_task_service(self.task_id, name=name)

    def service_remove(self, name: str) -> types.ServiceRemoved:
        """Stops a service and removes it with its log."""
        return self._pyro.remove_task_service(self.task_id, name=name)

    def publish(self, mapping: str) -> types.TaskPublished:
        """Publishes a port on this host. See `publish_task`."""
        return self._pyro.publish_task(self.task_id, mapping=mapping)

    def unpublish(self, host_port: int) -> types.Task:
        """Closes a published port. See `unpublish_task`."""
        return self._pyro.unpublish_task(self.task_id, host_port=host_port)

    def mount(self, host: StrPath, guest: str, *, writable: bool = False, uid: int = 0) -> types.Task:
        """Mounts a directory of this host. See `mount_task`."""
        return self._pyro.mount_task(self.task_id, host=host, guest=guest, writable=writable, uid=uid)

    def unmount(self, guest: str) -> types.Task:
        """Unmounts a directory of this host. See `unmount_task`."""
        return self._pyro.unmount_task(self.task_id, guest=guest)

    def delete(self) -> types.TaskDeleted:
        """Deletes the task with its files and its journal."""
        return self._pyro.delete_task(self.task_id)

    def copy_to(self, source: StrPath, path: str, *, strict: bool = False) -> types.TaskCopied:
        """Copies a file or directory from the host into the task. See `copy_to_task`."""
        return self._pyro.copy_to_task(self.task_id, source=source, path=path, strict=strict)

    def copy_from(
        self, path: str, target: StrPath, *, preserve_mode: bool = False, strict: bool = False,
    ) -> types.TaskCopied:
        """Copies a file or directory from the task to the host. See `copy_from_task`."""
        return self._pyro.copy_from_task(
            self.task_id, path=path, target=target, preserve_mode=preserve_mode, strict=strict)

    def read_file(self, path: str) -> bytes:
        """Returns the contents of a file of at most 16 MiB. `path` is relative to `/workspace` unless absolute."""
        import binascii

        file = self._pyro.read_task_file(self.task_id, path=path)
        return binascii.a2b_base64(file["content"]) if file["encoding"] == "base64" else file["content"].encode()

    def read_text(self, path: str) -> str:
        """Returns the text of a file of at most 16 MiB. Raises `UnicodeDecodeError` if it is not UTF-8."""
        return (self.read_file(path)).decode()

    def write_file(
        self, path: str, content: Union[str, bytes], *, executable: bool = False,
    ) -> types.TaskFileWritten:
        """Creates a file, with missing parent directories, or writes over one. See `write_task_file`."""
        import binascii

        data = content.encode() if isinstance(content, str) else content
        text = binascii.b2a_base64(data, newline=False).decode()
        return self._pyro.write_task_file(
            self.task_id, path=path, content=text, encoding="base64", executable=executable)

    def stat(self, path: str) -> types.FileInfo:
        """Describes a file or directory. See `stat_task_file`."""
        return (self._pyro.stat_task_file(self.task_id, path=path))["file"]

    def list_files(self, path: str = ".", *, recursive: bool = False, max_entries: int = 1000) -> types.TaskFileList:
        """Lists a directory. See `list_task_files`."""
        return self._pyro.list_task_files(self.task_id, path=path, recursive=recursive, max_entries=max_entries)

    def move_file(self, source: str, destination: str, *, replace: bool = False) -> types.TaskFileMoved:
        """Moves or renames a file or directory. See `move_task_file`."""
        return self._pyro.move_task_file(
            self.task_id, source=source, destination=destination, replace=replace)

    def remove_file(self, path: str, *, recursive: bool = False) -> types.TaskFileChanged:
        """Removes a file or directory. See `remove_task_file`."""
        return self._pyro.remove_task_file(self.task_id, path=path, recursive=recursive)

    def make_directory(self, path: str) -> types.TaskFileChanged:
        """Makes a directory with its missing parents. See `make_task_directory`."""
        return self._pyro.make_task_directory(self.task_id, path=path)

    def watch_files(
        self, path: str = ".", *, recursive: bool = False, timeout_seconds: float = 60.0,
        idle_seconds: Optional[float] = None, max_changes: int = 1000,
        on_progress: Optional[OnProgress] = None,
    ) -> types.TaskFileChanges:
        """Watches a file or a directory, and returns what has changed. See `watch_task_files`."""
        return self._pyro.watch_task_files(
            self.task_id, path=path, recursive=recursive, timeout_seconds=timeout_seconds, idle_seconds=idle_seconds,
            max_changes=max_changes, on_progress=on_progress)


class TaskContext:
    """Creates a task on entry and deletes it on exit."""

    def __init__(self, pyro: Pyro, arguments: Dict[str, Any]) -> None:
        self._pyro = pyro
        self._arguments = arguments
        self._task: Optional[Task] = None

    def __enter__(self) -> Task:
        created = self._pyro.create_task(**self._arguments)
        self._task = Task(self._pyro, created["task_id"])
        return self._task

    def __exit__(self, *_: object) -> None:
        task, self._task = self._task, None
        if task is not None:
            try:
                Call.carry_through(task.delete())
            except PyroValueError as error:
                # The task may have been deleted within the block.
                if error.code != "not_found":
                    raise
