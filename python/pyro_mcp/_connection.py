"""One `pyro rpc` process: JSON-RPC over its standard input and output, a line a message.

    callers ──write──► process ──lines──► reader thread ──put──► call of that id

The reader never waits for a caller: what it puts is bounded by the window of output that the other side keeps to. Callers
wait for their own call only.
"""

import itertools
import json
import os
import subprocess
import threading
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Union

from ._version import __version__
from .errors import PyroError, PyroRuntimeError, from_code

PROTOCOL = 1
# Longest request and longest answer, in bytes; the other side keeps to the same.
MAX_REQUEST = 32 << 20
MAX_RESPONSE = 256 << 20
# Longest wait for the answer to the first message, and for the end of a process that was told to, in seconds.
START_LIMIT = 30.0
END_LIMIT = 30.0
# So much of what the process wrote to its standard error is told, in bytes.
LAST_WORDS = 2000


# Plain classes: named tuples take ten times as long to import.
class Event:
    """Something that happened during a call."""

    def __init__(self, value: Dict[str, Any]) -> None:
        self.value = value


class OutputEvent:
    """Output of the command of a call."""

    def __init__(self, stream: str, data: bytes) -> None:
        self.stream = stream
        self.data = data


class Result:
    """The call succeeded."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Failed:
    """The call did not."""

    def __init__(self, error: PyroError) -> None:
        self.error = error


Item = Union[Event, OutputEvent, Result, Failed]
Put = Callable[[Item], None]


class Connection:
    """A process that is connected, from its start until it is closed or lost. Safe to use from any thread."""

    def __init__(self, executable: str, variables: Dict[str, str]) -> None:
        """Starts the process and agrees with it on a version.

        Raises:
            PyroRuntimeError: `executable_failed`, `version_mismatch`, `protocol_error`.
        """
        self.executable = executable
        self._numbers = itertools.count(1)
        self._calls: Dict[int, Put] = {}
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        # Calls that nobody holds any more, for whoever writes next to cancel.
        self._dropped: Deque[int] = deque()
        self._lost = False
        self._why_lost: Optional[PyroError] = None
        self._closing = False
        # Whoever asked for a log wants to see it; otherwise there are only last words, which belong into an error.
        self._words = None if os.environ.get("PYRO_LOG") else os.memfd_create("pyro-stderr")
        try:
            # In a session of its own: Ctrl-C at the terminal is for this program, which then cancels its calls.
            self._process = subprocess.Popen(
                [executable, "rpc"], env=variables, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self._words, start_new_session=True)
        except OSError as error:
            self._forget_words()
            raise PyroRuntimeError(f"cannot start {executable}: {error.strerror}", "executable_failed") from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input = self._process.stdin
        self._output = self._process.stdout
        self._reader = threading.Thread(target=self._read, name="pyro-rpc", daemon=True)
        self._reader.start()
        try:
            self._agree()
        except BaseException:
            self.close(0)
            raise

    def _agree(self) -> None:
        import queue

        answers: "queue.SimpleQueue[Item]" = queue.SimpleQueue()
        client = {"name": "pyro-mcp", "version": __version__}
        number = self.begin("initialize", {"protocol": PROTOCOL, "client": client}, answers.put)
        if number is None and self._why_lost is not None:
            raise self._why_lost
        try:
            answer = answers.get(timeout=START_LIMIT)
        except queue.Empty:
            raise PyroRuntimeError(
                f"{self.executable} did not answer within {START_LIMIT:.0f} s", "executable_failed",
                ["is it pyro? name the right one in PYRO_EXECUTABLE"]) from None
        if isinstance(answer, Failed):
            raise answer.error
        if isinstance(answer, Result):
            try:
                version = answer.value["server"]["version"]
            except (KeyError, TypeError):
                version = None
            if version == __version__:
                return
            raise PyroRuntimeError(
                f"{self.executable} is pyro {version}, and this package is pyro-mcp {__version__}: both must be of the same "
                "version", "version_mismatch", [f"install pyro-mcp=={version}, or name another executable in PYRO_EXECUTABLE"])
        raise self._garbage("an event before the first answer")

    def begin(self, method: str, params: Dict[str, Any], put: Put) -> Optional[int]:
        """Sends a request. All that comes back is given to `put`, in the reader's thread; the last is a `Result` or
        `Failed`.

        Returns:
            The number of the call; `None` if the process was lost before: nothing was sent.

        Raises:
            PyroValueError: The parameters cannot be sent.
        """
        number = next(self._numbers)
        request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        line = encode(request)
        with self._lock:
            if self._lost:
                return None
            self._calls[number] = put
        try:
            self._write(line)
        except OSError:
            # The reader sees the end of the process as well, and tells why.
            pass
        return number

    def notify(self, method: str, params: Dict[str, Any]) -> None:
        """Sends what has no answer. A process that is lost needs no notice."""
        try:
            self._write(encode({"jsonrpc": "2.0", "method": method, "params": params}))
        except OSError:
            pass

    def drop(self, number: int) -> None:
        """Cancels a call that nobody holds any more. The garbage collector asks for it, at any point of any thread, such as
        one that is just writing: this waits for nobody."""
        self._dropped.append(number)
        self._cancel_dropped()

    def _cancel_dropped(self) -> None:
        # Whoever has the lock looks again when it is free.
        while self._dropped and self._writing.acquire(blocking=False):
            try:
                while self._dropped:
                    params = {"id": self._dropped.popleft()}
                    self._write_all(encode({"jsonrpc": "2.0", "method": "cancel", "params": params}))
            except OSError:
                self._dropped.clear()
            finally:
                self._writing.release()

    def _write(self, line: bytes) -> None:
        with self._writing:
            self._write_all(line)
        self._cancel_dropped()

    def _write_all(self, line: bytes) -> None:
        if self._closing:
            raise BrokenPipeError
        rest = memoryview(line)
        while rest:
            rest = rest[self._input.write(rest):]

    @property
    def is_lost(self) -> bool:
        """Nothing can be asked any more."""
        return self._lost

    def close(self, limit: float = END_LIMIT) -> None:
        """Ends the process: what it is doing is cancelled, and waited for at most `limit` seconds."""
        with self._writing:
            self._closing = True
            self._input.close()
        # Whose thread it is, is not known when this is the work of the garbage collector.
        if self._reader is not threading.current_thread():
            self._reader.join(limit)
            if self._reader.is_alive():
                self._process.kill()
                self._reader.join()

    def forget_in_child(self) -> None:
        """After a fork, in the child, which has no reader: lets go of the process, which is the parent's."""
        self._input.close()
        self._output.close()
        self._forget_words()
        # So that nobody waits for what is no child of this process.
        self._process.returncode = 0
        self._lost = True
        for put in self._calls.values():
            put(Failed(PyroRuntimeError("the call belongs to the process that forked", "connection_lost")))

    def _read(self) -> None:
        lines = Lines(self._output.fileno())
        try:
            for line in lines:
                self._take(line)
            error = None
        except PyroError as garbage:
            error = garbage
        self._end(error)

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            number = message["params"]["id"] if message.get("method") == "event" else message["id"]
            with self._lock:
                is_last = "method" not in message
                put = self._calls.pop(number, None) if is_last else self._calls.get(number)
            item = read_item(message)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._garbage(repr(line[:80])) from error
        if put is not None:
            put(item)

    def _garbage(self, what: str) -> PyroError:
        return PyroRuntimeError(
            f"{self.executable} does not speak the protocol of `pyro rpc`: {what}", "protocol_error",
            ["is it pyro? name the right one in PYRO_EXECUTABLE"])

    def _end(self, error: Optional[PyroError]) -> None:
        """The process ended, or has to."""
        # Nothing can come from it any more. If it has ended by itself, this changes nothing.
        self._process.kill()
        self._process.wait()
        error = error or self._describe_end()
        self._output.close()
        self._forget_words()
        with self._lock:
            self._lost = True
            self._why_lost = error
            calls: List[Put] = list(self._calls.values())
            self._calls.clear()
        for put in calls:
            # An error of its own for each, as each is raised elsewhere.
            put(Failed(type(error)(error.message, error.code, error.hints)))

    def _describe_end(self) -> PyroError:
        status = self._process.returncode
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        if self._closing:
            return PyroRuntimeError("the connection was closed", "connection_lost")
        words = self._last_words()
        if status == 2 and "rpc" in words:
            return PyroRuntimeError(
                f"{self.executable} does not know `pyro rpc`: it is older than this package, pyro-mcp {__version__}",
                "version_mismatch", ["install both anew, or name another executable in PYRO_EXECUTABLE"])
        hints = [f"it wrote: {words}"] if words else []
        return PyroRuntimeError(
            f"{self.executable} {how} during the call, which may have been carried out", "connection_lost", hints)

    def _last_words(self) -> str:
        if self._words is None:
            return ""
        size = os.fstat(self._words).st_size
        last = os.pread(self._words, LAST_WORDS, max(0, size - LAST_WORDS))
        return last.decode(errors="replace").strip()

    def _forget_words(self) -> None:
        if self._words is not None:
            os.close(self._words)
            self._words = None


class Lines:
    """Lines that come in at a descriptor, each of at most `MAX_RESPONSE` bytes. A last one that is cut off is none."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._bytes = bytearray()
        # So far there is no end of a line.
        self._searched = 0

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> bytes:
        while True:
            end = self._bytes.find(b"\n", self._searched)
            if end >= 0:
                line = bytes(self._bytes[:end])
                del self._bytes[:end + 1]
                self._searched = 0
                return line
            self._searched = len(self._bytes)
            if self._searched > MAX_RESPONSE:
                raise PyroRuntimeError(f"an answer of more than {MAX_RESPONSE} bytes", "protocol_error")
            piece = os.read(self._descriptor, 1 << 18)
            if not piece:
                raise StopIteration
            self._bytes += piece


def encode(message: Dict[str, Any]) -> bytes:
    """A message as a line.

    Raises:
        PyroValueError: It holds what JSON does not have, or is too long.
    """
    try:
        line = json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise from_code(f"the arguments cannot be sent: {error}", "invalid_input") from error
    if len(line) > MAX_REQUEST:
        raise from_code(
            f"the arguments take {len(line)} bytes; the most is {MAX_REQUEST}", "message_too_long",
            ["copy large files with copy_to_task"])
    return line


def read_item(message: Dict[str, Any]) -> Item:
    """What a message says."""
    if message.get("method") == "event":
        event = message["params"]["event"]
        if event["type"] == "output":
            import binascii

            return OutputEvent(event["stream"], binascii.a2b_base64(event["data"]))
        return Event(event)
    if "result" in message:
        return Result(message["result"])
    error = message["error"]
    data = error.get("data") or {}
    return Failed(from_code(str(error["message"]), str(data.get("code", "internal")), map(str, data.get("hints", ()))))
