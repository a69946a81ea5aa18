"""What is requested of a model and what it answers: prompts, how to draw, when to stop, and samples. No torch."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from linnet.codecs import Codec, known
from linnet.errors import BadInput

if TYPE_CHECKING:
    from linnet.decoding.constraints import Constraint
    from linnet.model.config import ModelConfig

Reason = Literal["end", "length", "stop"]
Text = Callable[[Sequence[int], Sequence[int]], str]  # of a prompt and of what was drawn after it


@dataclass(frozen=True)
class Request:
    """One sample to draw: the ids of its prompt (a begin token included), and its number among the samples."""

    prompt: tuple[int, ...]
    sample: int = 0

    def noise(self, seed: int) -> np.random.Generator:
        """The random numbers of this sample: one for each of its tokens, whatever else is in the batch."""
        name = f"{seed}/{self.sample}/{','.join(map(str, self.prompt))}"
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "big")
        return np.random.Generator(np.random.Philox(key=key))


@dataclass(frozen=True)
class Sample:
    """Generated ids (tokens that stop are excluded), their log-probability under the model, and why they end.

    The log-probability is that of the model itself at temperature 1, before any cut, penalty or constraint, and
    counts the token that stopped the sample; `token_logprobs` has one number for each id. `near_ties` are the
    tokens that another arithmetic might have drawn otherwise; they are counted only on request.
    """

    ids: tuple[int, ...]
    logprob: float
    stop: Reason
    near_ties: int = 0
    token_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy. The cuts apply in the order top_k, top_p, min_p, each to what the last one left.

    A repetition penalty above 1 divides positive logits, and multiplies negative ones, of tokens that stand in the
    prompt or in the sample already.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise BadInput(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise BadInput(f"top_k is {self.top_k}; it must be at least 1")
        for name, share in (("top_p", self.top_p), ("min_p", self.min_p)):
            if share is not None and not 0 < share <= 1:
                raise BadInput(f"{name} is {share}; it must lie above 0 and not above 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise BadInput(f"repetition_penalty is {self.repetition_penalty}; it must be a number above 0")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True)
class Stopping:
    """What ends a sample early: the model's end tokens, further ids, or strings in what was written.

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
        broken = next((string for string in self.strings if not _is_text(string)), None)
        if broken is not None:
            raise BadInput(f"the stop string {broken!r} has a character that no text contains")
        if self.strings and self.pieces is None and self.text is None:
            raise ValueError("stop strings need the written form of ids")

    @functools.cached_property
    def ends(self) -> frozenset[int]:
        """All end tokens of the model."""
        return self.further_ends if self.end is None else self.further_ends | {self.end}

    @functools.cached_property
    def final(self) -> frozenset[int]:
        """The ids that end a sample without belonging to it."""
        return self.ends | self.ids

    def reason(self, prompt: Sequence[int], drawn: Sequence[int], token: int) -> Reason | None:
        """Why `token` ends the sample; it has not been added to `drawn` yet."""
        if token in self.ends:
            return "end"
        if token in self.ids:
            return "stop"
        if not self.strings:
            return None
        if self.pieces is not None:
            tail = self._tail(self.pieces, drawn, token)
            return "stop" if any(string in tail for string in self._encoded) else None
        assert self.text is not None
        written = self.text(prompt, [*drawn, token])
        return "stop" if any(string in written for string in self.strings) else None

    @functools.cached_property
    def _encoded(self) -> tuple[bytes, ...]:
        return tuple(string.encode() for string in self.strings)

    def _tail(self, pieces: Sequence[bytes], drawn: Sequence[int], token: int) -> bytes:
        """The last bytes: all of this token's, and before them as many as a stop string may need."""
        wanted = max(map(len, self._encoded)) - 1
        tail = pieces[token] if token < len(pieces) else b""
        wanted += len(tail)
        for before in reversed(drawn):
            if len(tail) >= wanted:
                break
            tail = (pieces[before] if before < len(pieces) else b"") + tail
        return tail

    def cut(self, text: str) -> str:
        """The text up to the first stop string."""
        positions = [text.find(string) for string in self.strings]
        return text[: min((position for position in positions if position >= 0), default=len(text))]

    def certain(self, text: str) -> int:
        """How many characters stay whatever follows: none from a stop string on, or from what may become one."""
        end = len(self.cut(text))
        for string in self.strings:
            for length in range(min(len(string) - 1, len(text)), 0, -1):
                if text.endswith(string[:length]):
                    end = min(end, len(text) - length)
                    break
        return end


def _is_text(string: str) -> bool:
    """Lone surrogates cannot be written, and U+FFFD only stands for bytes that are no text."""
    return "\ufffd" not in string and not any("\ud800" <= character <= "\udfff" for character in string)


@dataclass(frozen=True)
class Decoding:
    """How samples are drawn and when they end."""

    sampling: Sampling = Sampling()
    max_tokens: int = 256
    stopping: Stopping = field(default_factory=Stopping)
    constraint: Constraint | None = None
    seed: int = 0
    count_ties: bool = False
    lookup: int = 0  # tokens that are guessed from what is written already, and read in one pass; the samples stay

    def limit(self, config: ModelConfig, prompt: Sequence[int]) -> int:
        """Most tokens of a sample: the last one that is drawn need not fit, since it is never read."""
        return min(self.max_tokens, config.context - len(prompt) + 1)

    def check(self, config: ModelConfig, requests: Sequence[Request]) -> None:
        """Refuse what cannot be generated from, naming it."""
        if self.max_tokens < 1:
            raise BadInput(f"max tokens is {self.max_tokens}; it must be at least 1")
        self._check_lookup(config)
        vocabulary, context = config.vocabulary, config.context
        outside = [token for token in self.stopping.ids if not 0 <= token < vocabulary]
        if outside:
            raise BadInput(f"stop id {outside[0]} is outside the vocabulary (0..{vocabulary - 1})")
        for prompt in {request.prompt: None for request in requests}:
            if not prompt:
                raise BadInput("a prompt is empty, and this model has no begin token to start from")
            wrong = [token for token in prompt if not 0 <= token < vocabulary]
            if wrong:
                raise BadInput(f"token {wrong[0]} of a prompt is outside the vocabulary (0..{vocabulary - 1})")
            if len(prompt) > context:
                raise BadInput(f"a prompt has {len(prompt)} tokens, and the context of this model is {context}")

    def _check_lookup(self, config: ModelConfig) -> None:
        """Refuse to guess where one token must be known before the next is drawn."""
        if self.lookup < 0:
            raise BadInput(f"lookup is {self.lookup}; it is a number of tokens, 0 for none")
        reasons = {
            "a repetition penalty looks at each token before the next": self.sampling.repetition_penalty != 1,
            "a pattern decides after each token what may follow": self.constraint is not None,
            "a recurrent mixer cannot take back what was guessed wrong": "gru" in config.mixers,
            "this model reads further columns, which are made token by token": bool(config.columns),
        }
        for reason, applies in reasons.items():
            if self.lookup and applies:
                raise BadInput(f"lookup guesses several tokens at once, and {reason}; leave one of them out")


class Streaming:
    """The text of one sample as it comes: what comes out is never taken back.

    Held back is what a later id may still change: a character of which bytes are missing, and what may become the
    beginning of a stop string. All pieces together are the whole text, cut before its first stop string. `prompt`
    and the ids that are added are without begin and end.
    """

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
