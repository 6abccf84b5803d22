"""A single call: start, wait, cancel. `Call` is for threads, `AsyncCall` for event loops."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Coroutine, Dict, Optional, TypeVar

from ._connection import Connection, Item, Put
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

    def _begin(self, manager: VmManager, method: str, params: Dict[str, Any], put: Put) -> None:
        connection, self._number = manager.begin(method, params, put)
        self._connection = connection
        if self._is_cancelled:
            self.cancel()

    def acknowledge(self, count: int) -> None:
        """Acknowledges `count` bytes of output, so that the executable can send as many more."""
        if self._connection is not None:
            self._connection.notify("ack", {"id": self._number, "bytes": count})

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

    def begin(self, manager: VmManager, method: str, params: Dict[str, Any]) -> None:
        """Sends the request. Raises the same errors as `VmManager.begin`."""
        self._begin(manager, method, params, self._items.put)

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

    def _put(self, item: Item) -> None:
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:
            # The loop is closed, so no caller is waiting.
            pass

    async def begin(self, manager: VmManager, method: str, params: Dict[str, Any]) -> None:
        """Sends the request. Raises the same errors as `VmManager.begin`."""
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
