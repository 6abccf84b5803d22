"""Output of a command while it runs."""

import codecs
from typing import Callable, Dict, List, NamedTuple

STREAMS = ("stdout", "stderr")


class OutputChunk(NamedTuple):
    """A piece of what a command wrote, cut anywhere."""

    stream: str
    """`stdout` or `stderr`."""
    data: bytes
    """The bytes."""
    text: str
    """The same as text. A character that was cut in two is in the piece that has its end; U+FFFD stands for what is no
    UTF-8."""


class Decoder:
    """Makes pieces of what comes in, with characters whole."""

    def __init__(self) -> None:
        self._decoders: Dict[str, codecs.IncrementalDecoder] = {
            stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in STREAMS
        }

    def decode(self, stream: str, data: bytes) -> OutputChunk:
        """The next piece."""
        return OutputChunk(stream, data, self._decoders[stream].decode(data))

    def finish(self) -> List[OutputChunk]:
        """Characters of which the end is missing."""
        rests = ((stream, decoder.decode(b"", True)) for stream, decoder in self._decoders.items())
        return [OutputChunk(stream, b"", rest) for stream, rest in rests if rest]


OnOutput = Callable[[OutputChunk], None]
