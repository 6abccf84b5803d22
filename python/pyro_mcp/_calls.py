"""A single call: start, wait, cancel. `Call` is for threads, `AsyncCall` for event loops."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Coroutine, Dict, Optional, TypeVar

from ._connection import Connection, Credit, Failed, InputFailed, Item, Put, Result
from ._feeding import AsyncFeeder, Feeder, Input, check
from ._manager import VmManager

if TYPE_CHECKING:
    import asyncio
    import queue

R = TypeVar("R")

# A longer request might not fit into the pipe's buffer, so an event loop sends it from a thread. In characters.
SHORT = 32 << 10


class _Begun:
    """State shared by both kinds of call."""

    def __init__(self) -> None:
        self._connection: Optional[Connection] = None
        self._number = 0
        self._is_cancelled = False
        self._has_ended = False

    def _begin(self, manager: VmManager, method: str, params: Dict[str, Any], put: Put) -> None:
        connection, self._number = manager.begin(method, params, put)
        self._connection = connection
        if self._is_cancelled:
            self.cancel()

    def acknowledge(self, count: int) -> None:
        """Acknowledges `count` bytes of output, so that the executable can send as many more."""
        if self._connection is not None:
            self._connection.notify("ack", {"id": self._number, "bytes": count})

    def _send_input(self, data: bytes, finished: bool) -> None:
        import binascii

        if self._connection is not None:
            text = binascii.b2a_base64(data, newline=False).decode()
            self._connection.notify("input", {"id": self._number, "data": text, "finished": finished})

    def cancel(self) -> None:
        """Requests cancellation, now or as soon as the call has been sent."""
        self._is_cancelled = True
        if self._connection is not None:
            self._connection.notify("cancel", {"id": self._number})

    def drop(self) -> None:
        """Cancels without blocking. For the garbage collector, when no reference to the call remains."""
        if self._connection is not None:
            self._connection.drop(self._number)


class Call(_Begun):
    """A call that a thread waits for."""

    def __init__(self) -> None:
        import queue

        super().__init__()
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._feeder: Optional[Feeder] = None

    def begin(self, manager: VmManager, method: str, params: Dict[str, Any], input: Input = None) -> None:
        """Sends the request, and `input` while the call goes on. Raises the same errors as `VmManager.begin`, and `TypeError` for
        an unusable input."""
        check(input, is_async=False)
        self._begin(manager, method, params, self._put)
        if input is not None:
            feeder = Feeder(input, self._send_input, lambda error: self._items.put(InputFailed(error)))
            # The reader passes on credit from now on, and the feeder has used none before.
            self._feeder = feeder
            feeder.start()
            if self._has_ended:
                feeder.stop()

    def _put(self, item: Item) -> None:
        feeder = self._feeder
        if isinstance(item, Credit):
            if feeder is not None:
                feeder.add(item.count)
            return
        if isinstance(item, (Result, Failed)):
            # The order matters: a feeder that is made meanwhile sees it.
            self._has_ended = True
            if self._feeder is not None:
                self._feeder.stop()
        self._items.put(item)

    def get(self, deadline: Optional[float] = None) -> Item:
        """Returns the next item. Raises `TimeoutError` if none arrives before `deadline` on the monotonic clock."""
        import queue

        if deadline is None:
            return self._items.get()
        try:
            return self._items.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise TimeoutError("timed out waiting for the call") from None

    @staticmethod
    def carry_through(done: R) -> R:
        """Returns the result of work that is already complete. The counterpart of `AsyncCall.carry_through`."""
        return done

    @staticmethod
    def end(manager: VmManager) -> None:
        """Closes the manager."""
        manager.close()


class AsyncCall(_Begun):
    """A call that an event loop waits for."""

    def __init__(self) -> None:
        import asyncio

        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Item] = asyncio.Queue()
        self._feeder: Optional[AsyncFeeder] = None

    def _put(self, item: Item) -> None:
        try:
            self._loop.call_soon_threadsafe(self._take, item)
        except RuntimeError:
            # The loop is closed, so no caller is waiting.
            pass

    def _take(self, item: Item) -> None:
        feeder = self._feeder
        if isinstance(item, Credit):
            if feeder is not None:
                feeder.add(item.count)
            return
        if isinstance(item, (Result, Failed)):
            self._has_ended = True
            if feeder is not None:
                feeder.stop()
        self._items.put_nowait(item)

    async def begin(self, manager: VmManager, method: str, params: Dict[str, Any], input: Input = None) -> None:
        """Sends the request, and `input` while the call goes on. Raises the same errors as `VmManager.begin`, and `TypeError` for
        an unusable input."""
        check(input, is_async=True)
        await self._send(manager, method, params)
        if input is not None:
            self._feeder = AsyncFeeder(
                input, self._send_input, lambda error: self._items.put_nowait(InputFailed(error)))
            self._feeder.start()
            if self._has_ended:
                self._feeder.stop()

    async def _send(self, manager: VmManager, method: str, params: Dict[str, Any]) -> None:
        is_short = all(len(value) < SHORT for value in params.values() if isinstance(value, str))
        if manager.is_connected and is_short:
            self._begin(manager, method, params, self._put)
            return
        try:
            await self._loop.run_in_executor(None, self._begin, manager, method, params, self._put)
        except BaseException:
            # The thread continues. If it still sends the request, the call is cancelled.
            self.cancel()
            raise

    async def get(self, deadline: Optional[float] = None) -> Item:
        """Returns the next item. Raises `TimeoutError` if none arrives before `deadline` on the monotonic clock."""
        import asyncio

        if deadline is None:
            return await self._items.get()
        try:
            return await asyncio.wait_for(self._items.get(), max(0.0, deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise TimeoutError("timed out waiting for the call") from None

    @staticmethod
    async def carry_through(work: Coroutine[Any, Any, R]) -> R:
        """Completes `work` even if the caller is cancelled in the meantime, possibly repeatedly."""
        import asyncio

        doing = asyncio.ensure_future(work)
        cancelled: Optional[asyncio.CancelledError] = None
        while not doing.done():
            try:
                await asyncio.wait([doing])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            # Retrieve the exception, so that asyncio does not report it as never retrieved.
            if not doing.cancelled():
                doing.exception()
            raise cancelled
        return doing.result()

    @staticmethod
    async def end(manager: VmManager) -> None:
        """Closes the manager."""
        import asyncio

        await asyncio.get_running_loop().run_in_executor(None, manager.close)
