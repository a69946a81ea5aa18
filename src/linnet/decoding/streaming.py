"""Text as it comes: ids go in one by one, and what comes out is never taken back.

Held back is what a later id may still change: a character of which bytes are missing, and what may become the
beginning of a stop string. All pieces together are the whole text, cut before its first stop string.
"""

from __future__ import annotations

from collections.abc import Sequence

from linnet.codecs import Codec, known
from linnet.decoding.requests import Stopping


class Streaming:
    """The text of one sample; `prompt` and the ids that are added are without begin and end."""

    def __init__(self, codec: Codec, prompt: Sequence[int] = (), stopping: Stopping | None = None) -> None:
        self._codec, self._prompt = codec, known(prompt, len(codec.tokens))
        self._stopping = Stopping() if stopping is None else stopping
        self._ids: list[int] = []
        self._settled = self._given = 0  # ids whose text cannot change, characters that were handed out

    def add(self, token: int) -> str:
        """The text that is certain now and was not before; raises `BadInput` for an id that is no token."""
        self._ids += known([token], len(self._codec.tokens))
        settled = self._codec.settled(self._ids)
        if settled <= self._settled:
            return ""
        self._settled = settled
        text = self._codec.continuation(self._prompt, self._ids[:settled])
        return self._next(text[: self._stopping.certain(text)])

    def finish(self) -> str:
        """What was held back: no further id comes."""
        return self._next(self._stopping.cut(self._codec.continuation(self._prompt, self._ids)))

    def _next(self, certain: str) -> str:
        piece, self._given = certain[self._given :], max(self._given, len(certain))
        return piece
