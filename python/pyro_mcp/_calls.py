"""One call: begun, waited for, given up. A thread waits in one way, an event loop in another."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Coroutine, Dict, Optional, TypeVar

from ._connection import Connection, Item, Put
from ._manager import VmManager

if TYPE_CHECKING:
    import asyncio
    import queue

R = TypeVar("R")

# A longer request might not fit into the pipe at once: an event loop does not wait for that.
SHORT = 32 << 10


class _Begun:
    """What is the same for both."""

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
        """Makes room for so many more bytes of output."""
        if self._connection is not None:
            self._connection.notify("ack", {"id": self._number, "bytes": count})

    def cancel(self) -> None:
        """Asks for the call's end, now or as soon as it has begun."""
        self._is_cancelled = True
        if self._connection is not None:
            self._connection.notify("cancel", {"id": self._number})

    def drop(self) -> None:
        """The same for the garbage collector: nobody holds the call any more, and nothing may be waited for."""
        if self._connection is not None:
            self._connection.drop(self._number)


class Call(_Begun):
    """A call for which a thread waits."""

    def __init__(self) -> None:
        import queue

        super().__init__()
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()

    def begin(self, manager: VmManager, method: str, params: Dict[str, Any]) -> None:
        """Sends the request. Raises what `VmManager.begin` does."""
        self._begin(manager, method, params, self._items.put)

    def get(self, deadline: Optional[float] = None) -> Item:
        """What comes next; raises `TimeoutError` if nothing does before `deadline` of the monotonic clock."""
        import queue

        if deadline is None:
            return self._items.get()
        try:
            return self._items.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise TimeoutError("the time to wait is over") from None

    @staticmethod
    def carry_through(done: R) -> R:
        """What was to be done, has been done."""
        return done

    @staticmethod
    def end(manager: VmManager) -> None:
        """Closes the manager."""
        manager.close()


class AsyncCall(_Begun):
    """A call for which an event loop waits."""

    def __init__(self) -> None:
        import asyncio

        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Item] = asyncio.Queue()

    def _put(self, item: Item) -> None:
        try:
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            pass

    async def begin(self, manager: VmManager, method: str, params: Dict[str, Any]) -> None:
        """Sends the request. Raises what `VmManager.begin` does."""
        is_short = all(len(value) < SHORT for value in params.values() if isinstance(value, str))
        if manager.is_connected and is_short:
            self._begin(manager, method, params, self._put)
            return
        try:
            await self._loop.run_in_executor(None, self._begin, manager, method, params, self._put)
        except BaseException:
            # It goes on in its thread; what it begins must not stay.
            self.cancel()
            raise

    async def get(self, deadline: Optional[float] = None) -> Item:
        """What comes next; raises `TimeoutError` if nothing does before `deadline` of the monotonic clock."""
        import asyncio

        if deadline is None:
            return await self._items.get()
        try:
            return await asyncio.wait_for(self._items.get(), max(0.0, deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise TimeoutError("the time to wait is over") from None

    @staticmethod
    async def carry_through(work: Coroutine[Any, Any, R]) -> R:
        """Does something to its end, also if the caller is cancelled meanwhile, once or again."""
        import asyncio

        doing = asyncio.ensure_future(work)
        cancelled: Optional[asyncio.CancelledError] = None
        while not doing.done():
            try:
                await asyncio.wait([doing])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            # Looked at, so that no failure is reported as forgotten.
            if not doing.cancelled():
                doing.exception()
            raise cancelled
        return doing.result()

    @staticmethod
    async def end(manager: VmManager) -> None:
        """Closes the manager."""
        import asyncio

        await asyncio.get_running_loop().run_in_executor(None, manager.close)
