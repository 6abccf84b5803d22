"""Executes calls: sends the request, handles events, and returns the result."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional, Sequence, Tuple, Union

from .._calls import AsyncCall
from .._connection import Event, Failed, InputFailed, Item, OutputEvent, Result
from .._feeding import Input
from .._manager import StrPath, VmManager
from .._output import Decoder, OnOutput
from ..errors import PyroError

# Returns the method, with its parameters, that undoes the call with this result.
Undo = Callable[[Any], Tuple[str, Dict[str, Any]]]
Env = Optional[Mapping[str, str]]
Argv = Optional[Sequence[str]]
# Labels of a task.
Labels = Optional[Mapping[str, str]]
# Whether a guest trusts the host's certification authorities, or those in a file.
HostCa = Union[bool, StrPath, None]
# Directories of the host in a guest, each with `host` and `guest`, and optionally `writable` and `uid`.
Mounts = Sequence[Mapping[str, Any]]

if TYPE_CHECKING:
    from .. import types

    OnProgress = Callable[[types.Progress], None]
else:
    # `types` is not loaded for this alias. A quoted name does not help: compiling it is slow the first time.
    OnProgress = Callable[[Dict[str, Any]], None]

# Maximum wait for the end of an abandoned call, in seconds.
END_LIMIT = 60.0


class AsyncCaller:
    """Base class of objects that make calls."""

    def __init__(self, manager: VmManager) -> None:
        self._manager = manager

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self), (self._manager,)

    async def _call(
        self, method: str, params: Dict[str, Any], *, on_progress: Optional[OnProgress] = None,
        on_output: Optional[OnOutput] = None, timeout: Optional[float] = None, undo: Optional[Undo] = None,
        input: Input = None,
    ) -> Any:
        """Makes a call and returns its result.

        If the call is interrupted, for example by an exception in a callback, it is cancelled, and its end is awaited. If it
        completes before the cancellation takes effect, `undo` reverts it. Raises `TimeoutError` after `timeout` seconds.
        """
        call = AsyncCall()
        decoder = Decoder()
        deadline = None if timeout is None else time.monotonic() + timeout
        await call.begin(self._manager, method, without_none(params), input)
        has_ended = False
        try:
            while True:
                item = await call.get(deadline)
                has_ended = isinstance(item, (Result, Failed))
                if isinstance(item, Result):
                    if on_output is not None:
                        for chunk in decoder.finish():
                            on_output(chunk)
                    return item.value
                if isinstance(item, OutputEvent):
                    if on_output is not None:
                        on_output(decoder.decode(item.stream, item.data))
                    call.acknowledge(len(item.data))
                else:
                    tell(item, on_progress)
        finally:
            if not has_ended:
                await AsyncCall.carry_through(self._give_up(call, undo))

    async def _give_up(self, call: AsyncCall, undo: Optional[Undo]) -> Optional[Result]:
        """Like `give_up`, and reverts the call if it completed."""
        result = await give_up(call)
        if result is not None and undo is not None:
            method, params = undo(result.value)
            try:
                await self._call(method, params)
            except PyroError as error:
                import logging

                logging.getLogger("pyro_mcp").warning("%s failed after an interrupted call: %s", method, error)
        return result


def tell(item: Item, on_progress: Optional[OnProgress]) -> None:
    """Passes an event to the log and the callback; raises the error of a failure."""
    if isinstance(item, (Failed, InputFailed)):
        raise item.error
    if isinstance(item, Event):
        if item.value["type"] == "warning":
            import logging

            logging.getLogger("pyro_mcp").warning("%s", item.value["text"])
        if on_progress is not None:
            on_progress(item.value)  # type: ignore[arg-type]


async def give_up(call: AsyncCall) -> Optional[Result]:
    """Cancels a call and waits until it has released its resources. Returns its result if it completed first."""
    call.cancel()
    deadline = time.monotonic() + END_LIMIT
    try:
        while True:
            item = await call.get(deadline)
            if isinstance(item, (Result, Failed)):
                return item if isinstance(item, Result) else None
    except TimeoutError:
        # The executable completes the cancellation by itself.
        return None


def without_none(params: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the parameters that are not `None`."""
    return {name: value for name, value in params.items() if value is not None}
