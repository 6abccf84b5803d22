"""One `pyro rpc` process: JSON-RPC over its standard input and output, one message per line.

    callers ──write──► process ──lines──► reader thread ──put──► call of that id

The reader never waits for a caller: the executable respects a window for unacknowledged output, which bounds the queues. Each
caller waits only for its own call.
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
# Maximum size of a request and of a response, in bytes. The executable has the same limits.
MAX_REQUEST = 32 << 20
MAX_RESPONSE = 256 << 20
# Maximum wait for the first response and for the end of a closed process, in seconds.
START_LIMIT = 30.0
END_LIMIT = 30.0
# How much of the end of the process's standard error an error includes, in bytes.
LAST_WORDS = 2000


# Plain classes, because named tuples take ten times as long to import.
class Event:
    """An event of a call."""

    def __init__(self, value: Dict[str, Any]) -> None:
        self.value = value


class OutputEvent:
    """Output of a call's command."""

    def __init__(self, stream: str, data: bytes) -> None:
        self.stream = stream
        self.data = data


class Result:
    """The call succeeded."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Failed:
    """The call failed."""

    def __init__(self, error: PyroError) -> None:
        self.error = error


class Credit:
    """`count` more bytes of input may be sent."""

    def __init__(self, count: int) -> None:
        self.count = count


class InputFailed:
    """The source of the input failed, on this side."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


Item = Union[Event, OutputEvent, Credit, InputFailed, Result, Failed]
Put = Callable[[Item], None]


class Connection:
    """A connected process, from its start until it is closed or lost. Safe to use from any thread."""

    def __init__(self, executable: str, variables: Dict[str, str]) -> None:
        """Starts the process and checks its version.

        Raises:
            PyroRuntimeError: `executable_failed`, `version_mismatch`, `protocol_error`.
        """
        self.executable = executable
        self._numbers = itertools.count(1)
        self._calls: Dict[int, Put] = {}
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        # Dropped calls, which the next writer cancels.
        self._dropped: Deque[int] = deque()
        self._lost = False
        self._why_lost: Optional[PyroError] = None
        self._closing = False
        # With PYRO_LOG, diagnostics go to this program's standard error. Otherwise, they are kept for error messages.
        self._words = None if os.environ.get("PYRO_LOG") else os.memfd_create("pyro-stderr")
        try:
            # A separate session, so that Ctrl-C reaches only this program, which then cancels its calls.
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
                f"timed out after {START_LIMIT:.0f} s: {self.executable} did not answer", "executable_failed",
                ["check that it is pyro, or name another executable in PYRO_EXECUTABLE"]) from None
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
                f"{self.executable} is pyro {version}, and this package is pyro-mcp {__version__}: both must have the same "
                "version", "version_mismatch", [f"install pyro-mcp=={version}, or name another executable in PYRO_EXECUTABLE"])
        raise self._garbage("unexpected event before the first response")

    def begin(self, method: str, params: Dict[str, Any], put: Put) -> Optional[int]:
        """Sends a request. The reader thread passes all items of the call to `put`; the last one is a `Result` or `Failed`.

        Returns:
            The number of the call, or `None` if the process was already lost and nothing was sent.

        Raises:
            PyroValueError: The parameters cannot be encoded, or are too long.
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
            # The reader also sees the end of the process, and reports the reason.
            pass
        return number

    def notify(self, method: str, params: Dict[str, Any]) -> None:
        """Sends a notification. Does nothing if the process is lost."""
        try:
            self._write(encode({"jsonrpc": "2.0", "method": method, "params": params}))
        except OSError:
            pass

    def drop(self, number: int) -> None:
        """Cancels a call without blocking. The garbage collector may call this at any point of any thread, even of one that
        is writing."""
        self._dropped.append(number)
        self._cancel_dropped()

    def _cancel_dropped(self) -> None:
        # A lock holder checks again after it releases the lock.
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
        """Whether the process has ended, so that no more calls are possible."""
        return self._lost

    def close(self, limit: float = END_LIMIT) -> None:
        """Ends the process. Calls in flight are cancelled; waits at most `limit` seconds for the process before killing it."""
        with self._writing:
            self._closing = True
            self._input.close()
        # The garbage collector may run this in any thread, including the reader.
        if self._reader is not threading.current_thread():
            self._reader.join(limit)
            if self._reader.is_alive():
                self._process.kill()
                self._reader.join()

    def forget_in_child(self) -> None:
        """Releases the process, which belongs to the parent. For a forked child, which has no reader thread."""
        self._input.close()
        self._output.close()
        self._forget_words()
        # The process is not a child of this one, so it must not be waited for.
        self._process.returncode = 0
        self._lost = True
        for put in self._calls.values():
            put(Failed(PyroRuntimeError("the call belongs to the parent process of this fork", "connection_lost")))

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
            is_last = "method" not in message
            number = message["id"] if is_last else message["params"]["id"]
            with self._lock:
                put = self._calls.pop(number, None) if is_last else self._calls.get(number)
            item = read_item(message)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._garbage(repr(line[:80])) from error
        if put is not None:
            put(item)

    def _garbage(self, what: str) -> PyroError:
        return PyroRuntimeError(
            f"{self.executable} does not speak the protocol of `pyro rpc`: {what}", "protocol_error",
            ["check that it is pyro, or name another executable in PYRO_EXECUTABLE"])

    def _end(self, error: Optional[PyroError]) -> None:
        """Cleans up after the process ended or violated the protocol."""
        # Has no effect if the process ended by itself.
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
            # A separate error object for each call, because each is raised in another place.
            put(Failed(type(error)(error.message, error.code, error.hints, error.reason)))

    def _describe_end(self) -> PyroError:
        status = self._process.returncode
        how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        if self._closing:
            return PyroRuntimeError("the connection was closed", "connection_lost")
        words = self._last_words()
        if status == 2 and "rpc" in words:
            return PyroRuntimeError(
                f"{self.executable} does not know `pyro rpc`: it is older than this package, pyro-mcp {__version__}",
                "version_mismatch", ["install both again, or name another executable in PYRO_EXECUTABLE"])
        hints = [f"it wrote: {words}"] if words else []
        return PyroRuntimeError(
            f"{self.executable} {how} during the call, which may have taken effect", "connection_lost", hints)

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
    """Reads lines of at most `MAX_RESPONSE` bytes from a file descriptor. Ignores an incomplete last line."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._bytes = bytearray()
        # The bytes up to here contain no end of line.
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
                raise PyroRuntimeError(f"response is too large: the maximum is {MAX_RESPONSE} bytes", "protocol_error")
            piece = os.read(self._descriptor, 1 << 18)
            if not piece:
                raise StopIteration
            self._bytes += piece


def encode(message: Dict[str, Any]) -> bytes:
    """Encodes a message as a line.

    Raises:
        PyroValueError: The message cannot be represented in JSON, or is too long.
    """
    try:
        line = json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise from_code(f"cannot encode the arguments as JSON: {error}", "invalid_input") from error
    if len(line) > MAX_REQUEST:
        raise from_code(
            f"arguments are too large: {len(line)} bytes, the maximum is {MAX_REQUEST}", "message_too_long",
            ["copy large files with copy_to_task"])
    return line


def read_item(message: Dict[str, Any]) -> Item:
    """Decodes a message."""
    if message.get("method") == "event":
        event = message["params"]["event"]
        if event["type"] == "output":
            import binascii

            return OutputEvent(event["stream"], binascii.a2b_base64(event["data"]))
        return Event(event)
    if message.get("method") == "credit":
        return Credit(int(message["params"]["bytes"]))
    if "result" in message:
        return Result(message["result"])
    error = message["error"]
    data = error.get("data") or {}
    return Failed(from_code(
        str(error["message"]), str(data.get("code", "internal")), map(str, data.get("hints", ())), data.get("reason")))
