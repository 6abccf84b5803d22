"""Sends the input of a command while it runs, no faster than the command reads. `Feeder` is a thread, `AsyncFeeder` a task
of an event loop."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Optional, Union

if TYPE_CHECKING:
    import asyncio

# A file is anything with a method `read`.
Input = Union[bytes, str, Iterable[Union[bytes, str]], AsyncIterable[Union[bytes, str]], Any, None]
# Sends a piece of the input; the second argument is whether the input ends after it.
Send = Callable[[bytes, bool], None]
Fail = Callable[[BaseException], None]

# How much may be sent before the executable gives credit, in bytes. The executable has the same limit.
WINDOW = 1 << 20
# Maximum size of a piece, in bytes.
PIECE = 48 << 10


class Feeder:
    """Sends the input of a call that a thread waits for."""

    def __init__(self, source: Input, send: Send, fail: Fail) -> None:
        self._send = send
        self._fail = fail
        self._source = source
        self._credit = WINDOW
        self._is_over = False
        self._changed = threading.Condition()
        self._process = os.getpid()

    def start(self) -> None:
        """Begins to send. The caller stores the feeder first, so that credit reaches it."""
        # A source that never returns must not keep the program from ending.
        threading.Thread(target=self._run, name="pyro-input", daemon=True).start()

    def add(self, count: int) -> None:
        """Allows `count` more bytes."""
        with self._changed:
            self._credit += count
            self._changed.notify()

    def stop(self) -> None:
        """Ends the feeder, at the latest when its source returns: the command takes no more."""
        if os.getpid() != self._process:
            # A forked child does not have the thread, which may have held the lock.
            return
        with self._changed:
            self._is_over = True
            self._changed.notify()

    def _run(self) -> None:
        try:
            for data in pieces(self._source):
                rest = memoryview(data)
                while rest:
                    count = self._take(len(rest))
                    if count == 0:
                        return
                    self._send(bytes(rest[:count]), False)
                    rest = rest[count:]
            self._send(b"", True)
        except BaseException as error:
            self._fail(error)

    def _take(self, wanted: int) -> int:
        """Waits for credit and returns how much of it the next piece uses; 0 if the call is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._credit > 0)
            count = 0 if self._is_over else min(wanted, self._credit, PIECE)
            self._credit -= count
            return count


class AsyncFeeder:
    """Sends the input of a call that an event loop waits for. All methods are called in the loop."""

    def __init__(self, source: Input, send: Send, fail: Fail) -> None:
        import asyncio

        self._send = send
        self._fail = fail
        self._source = source
        self._credit = WINDOW
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task: Optional[asyncio.Task[None]] = None

    def start(self) -> None:
        """Begins to send."""
        self._task = self._loop.create_task(self._run())

    def add(self, count: int) -> None:
        """Allows `count` more bytes."""
        self._credit += count
        self._changed.set()

    def stop(self) -> None:
        """Ends the feeder: the command takes no more."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            async for data in async_pieces(self._source):
                rest = memoryview(data)
                while rest:
                    while self._credit == 0:
                        self._changed.clear()
                        await self._changed.wait()
                    count = min(len(rest), self._credit, PIECE)
                    self._credit -= count
                    # The pipe may be full.
                    await self._loop.run_in_executor(None, self._send, bytes(rest[:count]), False)
                    rest = rest[count:]
            await self._loop.run_in_executor(None, self._send, b"", True)
        except Exception as error:
            self._fail(error)


def check(source: Any, *, is_async: bool) -> None:
    """Checks the type of an input, before a command starts that would wait for it.

    Raises:
        TypeError: It is neither bytes, text, a file, nor an iterable. Only an event loop takes an asynchronous iterable.
    """
    usable = (bytes, bytearray, memoryview, str, Iterable, *((AsyncIterable,) if is_async else ()))
    if source is not None and not isinstance(source, usable) and not hasattr(source, "read"):
        raise unusable(source)


def pieces(source: Any) -> Iterator[bytes]:
    """Yields the bytes of an input.

    Raises:
        TypeError: It is neither bytes, text, a file, nor an iterable of bytes or text.
    """
    if isinstance(source, (bytes, bytearray, memoryview, str)):
        yield encoded(source)
    elif hasattr(source, "read"):
        while True:
            data = source.read(PIECE)
            if not data:
                return
            yield encoded(data)
    elif isinstance(source, Iterable):
        yield from map(encoded, source)
    else:
        raise unusable(source)


async def async_pieces(source: Any) -> AsyncIterator[bytes]:
    """Like `pieces`, without blocking the event loop, and also takes asynchronous files and iterables."""
    import asyncio
    import inspect

    if hasattr(source, "read"):
        loop = asyncio.get_running_loop()
        while True:
            if inspect.iscoroutinefunction(source.read):
                data = await source.read(PIECE)
            else:
                data = await loop.run_in_executor(None, source.read, PIECE)
            if not data:
                return
            yield encoded(data)
    elif isinstance(source, AsyncIterable):
        async for data in source:
            yield encoded(data)
    elif isinstance(source, (bytes, bytearray, memoryview, str)):
        yield encoded(source)
    else:
        # The next piece may take as long as that of a file.
        loop = asyncio.get_running_loop()
        rest = pieces(source)
        while True:
            piece = await loop.run_in_executor(None, next, rest, None)
            if piece is None:
                return
            yield piece


def encoded(data: Any) -> bytes:
    """Returns a piece of an input as bytes."""
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise unusable(data)


def unusable(source: Optional[object]) -> TypeError:
    """Returns the error for something that cannot be an input."""
    return TypeError(f"input must be bytes, text, a file, or an iterable of bytes or text, not {type(source).__name__}")
