"""What is asked of a model and what it answers: prompts, how to draw from them, when to stop, and samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from linnet.decoding.allowed import Allowed
from linnet.decoding.sampling import Sampling
from linnet.errors import BadInput
from linnet.model.model import Model

Reason = Literal["end", "length", "stop"]
Text = Callable[[Sequence[int]], str]


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
    """What ends a sample early: the model's end token, further ids, or strings in what was written."""

    end: int | None = None
    ids: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()
    text: Text | None = None  # the written form of generated ids; needed by strings

    def __post_init__(self) -> None:
        if "" in self.strings:
            raise BadInput("a stop string is empty; every text would stop before it began")
        if self.strings and self.text is None:
            raise ValueError("stop strings need the written form of ids")

    def reason(self, drawn: Sequence[int], token: int) -> Reason | None:
        """Why `token` ends the sample; it has not been added to `drawn` yet."""
        if token == self.end:
            return "end"
        if token in self.ids:
            return "stop"
        if self.text is not None and self.strings:
            # A token writes at least a byte, so a string that has just been completed lies in the last ones.
            reach = max(len(string.encode()) for string in self.strings) + 1
            written = self.text([*drawn[-reach:], token])
            return "stop" if any(string in written for string in self.strings) else None
        return None

    def cut(self, text: str) -> str:
        """The text up to the first stop string."""
        places = [text.find(string) for string in self.strings]
        return text[: min((place for place in places if place >= 0), default=len(text))]


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
