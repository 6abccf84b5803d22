"""Calls from their request to their result, with what happens in between."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional, Tuple

from .._calls import Call
from .._connection import Event, Failed, Item, OutputEvent, Result
from .._manager import VmManager
from .._output import Decoder, OnOutput
from ..errors import PyroError

# The method that takes back what a result tells of, and its parameters.
Undo = Callable[[Any], Tuple[str, Dict[str, Any]]]
Env = Optional[Mapping[str, str]]

if TYPE_CHECKING:
    from .. import types

    OnProgress = Callable[[types.Progress], None]
else:
    # The types are not loaded for it. A name in quotes is no way out: what compiles it takes long to get ready.
    OnProgress = Callable[[Dict[str, Any]], None]

# Longest wait for the end of a call that was given up, in seconds.
END_LIMIT = 60.0


class Caller:
    """Something that makes calls."""

    def __init__(self, manager: VmManager) -> None:
        self._manager = manager

    def _call(
        self, method: str, params: Dict[str, Any], *, on_progress: Optional[OnProgress] = None,
        on_output: Optional[OnOutput] = None, timeout: Optional[float] = None, undo: Optional[Undo] = None,
    ) -> Any:
        """The result of a call. What is left when it ends otherwise, by an exception of a callback for instance, is
        cancelled and waited for; if that comes too late, `undo` says what takes its result back. After `timeout` seconds
        it is a `TimeoutError`."""
        call = Call()
        decoder = Decoder()
        deadline = None if timeout is None else time.monotonic() + timeout
        call.begin(self._manager, method, without_none(params))
        has_ended = False
        try:
            while True:
                item = call.get(deadline)
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
                Call.carry_through(self._give_up(call, undo))

    def _give_up(self, call: Call, undo: Optional[Undo]) -> Optional[Result]:
        """See `give_up`. What a result tells of is taken back."""
        result = give_up(call)
        if result is not None and undo is not None:
            method, params = undo(result.value)
            try:
                self._call(method, params)
            except PyroError as error:
                import logging

                logging.getLogger("pyro_mcp").warning("%s failed after an interruption: %s", method, error)
        return result


def tell(item: Item, on_progress: Optional[OnProgress]) -> None:
    """Passes on what happened; raises it if it is a failure."""
    if isinstance(item, Failed):
        raise item.error
    if isinstance(item, Event):
        if item.value["type"] == "warning":
            import logging

            logging.getLogger("pyro_mcp").warning("%s", item.value["text"])
        if on_progress is not None:
            on_progress(item.value)  # type: ignore[arg-type]


def give_up(call: Call) -> Optional[Result]:
    """Ends a call and waits until what it held is freed. Its result, if it ended before."""
    call.cancel()
    deadline = time.monotonic() + END_LIMIT
    try:
        while True:
            item = call.get(deadline)
            if isinstance(item, (Result, Failed)):
                return item if isinstance(item, Result) else None
    except TimeoutError:
        # Its end is seen to by the executable, whoever waits.
        return None


def without_none(params: Dict[str, Any]) -> Dict[str, Any]:
    """Parameters without those that are left out."""
    return {name: value for name, value in params.items() if value is not None}
