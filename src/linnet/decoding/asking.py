"""What is asked of a model and what it answers: prompts, how to draw from them, when to stop, and samples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from linnet.decoding.allowed import Allowed
from linnet.decoding.sampling import Sampling
from linnet.errors import BadInput
from linnet.model.model import Model

Reason = Literal["end", "length", "stop"]
Text = Callable[[Sequence[int], Sequence[int]], str]  # of a prompt and of what was drawn after it


@dataclass(frozen=True)
class Ask:
    """What is to be generated from one prompt: its ids (a begin token included) and which sample it is."""

    prompt: tuple[int, ...]
    sample: int = 0


@dataclass(frozen=True)
class Sample:
    """Generated ids (tokens that stop are excluded), their log-probability under the model, and why they end.

    The log-probability is that of the model itself at temperature 1, before any cut, penalty or mask, and counts
    the token that stopped the sample. `near_ties` are the tokens that another arithmetic might have drawn
    otherwise; they are counted only where that was asked for.
    """

    ids: tuple[int, ...]
    logprob: float
    stop: Reason
    near_ties: int = 0


@dataclass(frozen=True)
class Stopping:
    """What ends a sample early: the model's end token, further ids, or strings in what was written.

    Strings are looked for in the bytes of the last `pieces`, or in the whole `text` where ids write no bytes of
    their own; ids beyond the pieces write nothing.
    """

    end: int | None = None
    ids: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()
    pieces: Sequence[bytes] | None = None  # what each id writes
    text: Text | None = None  # what ids write after a prompt
    further_ends: frozenset[int] = frozenset()  # other end tokens of this model

    def __post_init__(self) -> None:
        if "" in self.strings:
            raise BadInput("a stop string is empty; every text would stop before it began")
        broken = next((string for string in self.strings if not _spellable(string)), None)
        if broken is not None:
            raise BadInput(f"the stop string {broken!r} has a character that no text contains")
        if self.strings and self.pieces is None and self.text is None:
            raise ValueError("stop strings need the written form of ids")

    def reason(self, prompt: Sequence[int], drawn: Sequence[int], token: int) -> Reason | None:
        """Why `token` ends the sample; it has not been added to `drawn` yet."""
        if token == self.end or token in self.further_ends:
            return "end"
        if token in self.ids:
            return "stop"
        if not self.strings:
            return None
        if self.pieces is not None:
            tail = self._tail(self.pieces, drawn, token)
            return "stop" if any(string in tail for string in self._spelt) else None
        assert self.text is not None
        written = self.text(prompt, [*drawn, token])
        return "stop" if any(string in written for string in self.strings) else None

    def writes(self, token: int) -> bool:
        """Whether this token belongs to the sample: one that ends it does not."""
        return token != self.end and token not in self.further_ends and token not in self.ids

    @functools.cached_property
    def _spelt(self) -> tuple[bytes, ...]:
        return tuple(string.encode() for string in self.strings)

    def _tail(self, pieces: Sequence[bytes], drawn: Sequence[int], token: int) -> bytes:
        """The last bytes: all of this token's, and before them as many as a stop string may need."""
        wanted = max(map(len, self._spelt)) - 1
        tail = pieces[token] if token < len(pieces) else b""
        wanted += len(tail)
        for before in reversed(drawn):
            if len(tail) >= wanted:
                break
            tail = (pieces[before] if before < len(pieces) else b"") + tail
        return tail

    def cut(self, text: str) -> str:
        """The text up to the first stop string."""
        places = [text.find(string) for string in self.strings]
        return text[: min((place for place in places if place >= 0), default=len(text))]

    def certain(self, text: str) -> int:
        """How many characters stay whatever follows: none from a stop string on, or from what may become one."""
        end = len(self.cut(text))
        for string in self.strings:
            for length in range(min(len(string) - 1, len(text)), 0, -1):
                if text.endswith(string[:length]):
                    end = min(end, len(text) - length)
                    break
        return end


def _spellable(string: str) -> bool:
    """Lone surrogates cannot be written, and U+FFFD only stands for bytes that are no text."""
    return "\ufffd" not in string and not any("\ud800" <= character <= "\udfff" for character in string)


@dataclass(frozen=True)
class Decoding:
    """How samples are drawn and when they end."""

    sampling: Sampling = Sampling()
    max_tokens: int = 256
    stopping: Stopping = field(default_factory=Stopping)
    allowed: Allowed | None = None
    seed: int = 0
    count_ties: bool = False


def check(model: Model, asks: Sequence[Ask], decoding: Decoding) -> None:
    """Refuse what cannot be generated from, naming it."""
    if decoding.max_tokens < 1:
        raise BadInput(f"max tokens is {decoding.max_tokens}; it must be at least 1")
    vocabulary, context = model.config.vocabulary, model.config.context
    outside = [token for token in decoding.stopping.ids if not 0 <= token < vocabulary]
    if outside:
        raise BadInput(f"stop id {outside[0]} is outside the vocabulary (0..{vocabulary - 1})")
    for prompt in {ask.prompt: None for ask in asks}:
        if not prompt:
            raise BadInput("a prompt is empty, and this model has no begin token to start from")
        wrong = [token for token in prompt if not 0 <= token < vocabulary]
        if wrong:
            raise BadInput(f"token {wrong[0]} of a prompt is outside the vocabulary (0..{vocabulary - 1})")
        if len(prompt) > context:
            raise BadInput(f"a prompt has {len(prompt)} tokens, and the context of this model is {context}")


def limit(model: Model, ask: Ask, decoding: Decoding) -> int:
    """Most tokens of this sample: the last one that is drawn need not fit, since it is never read."""
    return min(decoding.max_tokens, model.config.context - len(ask.prompt) + 1)
