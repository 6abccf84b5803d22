"""Streamed output of a command."""

import codecs
from typing import Callable, Dict, List, NamedTuple

STREAMS = ("stdout", "stderr")


class OutputChunk(NamedTuple):
    """A chunk of a command's output, split at an arbitrary byte."""

    stream: str
    """`stdout` or `stderr`."""
    data: bytes
    """The bytes."""
    text: str
    """The chunk as text. A character split across chunks is in the later one. U+FFFD replaces invalid UTF-8."""


class Decoder:
    """Turns incoming bytes into chunks, keeping characters intact."""

    def __init__(self) -> None:
        self._decoders: Dict[str, codecs.IncrementalDecoder] = {
            stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in STREAMS
        }

    def decode(self, stream: str, data: bytes) -> OutputChunk:
        """Returns the next chunk."""
        return OutputChunk(stream, data, self._decoders[stream].decode(data))

    def finish(self) -> List[OutputChunk]:
        """Returns chunks for incomplete characters at the end."""
        rests = ((stream, decoder.decode(b"", True)) for stream, decoder in self._decoders.items())
        return [OutputChunk(stream, b"", rest) for stream, rest in rests if rest]


OnOutput = Callable[[OutputChunk], None]
