"""Commands with streamed output."""

from __future__ import annotations

from collections import deque
from typing import Any, Deque, Dict, Generic, Optional, TypeVar

from .._calls import Call
from .._connection import Failed, OutputEvent, Result
from .._feeding import Input
from .._manager import VmManager
from .._output import Decoder, OutputChunk
from .caller import OnProgress, give_up, tell, without_none

R = TypeVar("R")


class CommandStream(Generic[R]):
    """A command with streamed output. Iterate over it to get the chunks, then read `result`.

    The command starts with the first iteration or on entering the context manager. It blocks, as on a full pipe, while about
    1 MiB of output is unread. Leaving the context manager early ends the command.
    """

    def __init__(
        self, manager: VmManager, method: str, params: Dict[str, Any], on_progress: Optional[OnProgress] = None,
        input: Input = None,
    ) -> None:
        self._manager = manager
        self._method = method
        self._params = without_none(params)
        self._on_progress = on_progress
        self._input = input
        self._call: Optional[Call] = None
        self._decoder = Decoder()
        self._rest: Deque[OutputChunk] = deque()
        self._has_ended = False
        self._result: Optional[R] = None
        # Size of the chunk that the caller holds, not yet acknowledged.
        self._taken = 0

    @property
    def result(self) -> R:
        """The result of the corresponding call without streaming, with empty `stdout` and `stderr`.

        Raises:
            RuntimeError: The command has not ended, or the call failed.
        """
        if self._result is None:
            raise RuntimeError("no result yet: read all output first")
        return self._result

    def __enter__(self) -> CommandStream[R]:
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> CommandStream[R]:
        return self

    def __next__(self) -> OutputChunk:
        if self._has_ended:
            if self._rest:
                return self._rest.popleft()
            raise StopIteration
        call = self._begin()
        if self._taken:
            call.acknowledge(self._taken)
            self._taken = 0
        while True:
            item = call.get()
            self._has_ended = isinstance(item, (Result, Failed))
            if isinstance(item, OutputEvent):
                self._taken = len(item.data)
                return self._decoder.decode(item.stream, item.data)
            if isinstance(item, Result):
                self._result = item.value
                self._rest.extend(self._decoder.finish())
                return self.__next__()
            try:
                tell(item, self._on_progress)
            except BaseException:
                self.close()
                raise

    def _begin(self) -> Call:
        if self._call is None:
            self._call = Call()
            self._call.begin(self._manager, self._method, self._params, self._input)
        return self._call

    def close(self) -> None:
        """Ends the command if it is still running, and waits for its end."""
        if self._call is not None and not self._has_ended:
            self._has_ended = True
            Call.carry_through(give_up(self._call))

    def __del__(self) -> None:
        if self._call is not None and not self._has_ended:
            self._call.drop()
