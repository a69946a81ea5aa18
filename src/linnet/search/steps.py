"""The contract between a search and a model: log-probabilities of what may follow, in batches.

A `Step` works on one prompt at a time, the root. It answers for nodes: a node is the root and some tokens after
it, and has a handle, an integer that the step gives out. `begin` reads the root once; `extend` makes new nodes,
all in one batch, each from the handle of its parent and one token. The probabilities are those of the declared
`Target`: temperature and truncation are applied by the step, so that the search and its estimates need to know
nothing of them.

What may follow a node comes as `Rows`: the most probable tokens, the mass of the rest, and the full row for the
moment. A search keeps the first two. `row` gives a full row later; what the model must compute for it is counted.
Legend: n = nodes of a batch, K = children that are kept of each, V = vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from linnet.errors import BadInput

WIDTH = 256  # children that a node keeps


@dataclass(frozen=True)
class Target:
    """The base distribution p of a search, as the record declares it.

    A row that reaches `max_tokens` without an end token is cut. Such a leaf counts like any other
    (`cut="leaf"`), or has weight 0 (`cut="excluded"`), which makes the target p given that the text ends in
    time.
    """

    max_tokens: int = 50
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    cut: Literal["leaf", "excluded"] = "leaf"

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise BadInput(f"max_tokens is {self.max_tokens}; a search needs at least 1 token")
        if not 0 < self.temperature < float("inf"):
            raise BadInput(
                f"temperature is {self.temperature}; the target of a search needs a finite one above 0 "
                "(method greedy finds the likeliest tokens)"
            )
        if self.cut not in ("leaf", "excluded"):
            raise BadInput(f'cut is "{self.cut}"; a leaf that is cut is a "leaf" or "excluded"')


@dataclass(frozen=True)
class Rows:
    """What may follow each of n nodes.

    `ids` and `logprobs` [n, K] hold the K most probable tokens, the likeliest first, those of equal probability
    by their id; `rest` [n] is the logarithm of the mass of all others, -inf where there are none. `full(i)`
    gives all V log-probabilities of node i. `others(which, uniform)` draws a token from the rest of each of these
    nodes, with one uniform number each: tokens and their log-probabilities. Both are valid until the next call.
    """

    handles: np.ndarray
    ids: np.ndarray
    logprobs: np.ndarray
    rest: np.ndarray
    full: Callable[[int], np.ndarray]
    others: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Step(ABC):
    """One model at work. The counters start at 0 with each `begin`."""

    vocabulary: int
    ends: frozenset[int]  # tokens that end a text; may be empty, then each text is cut
    target: Target
    prompt: str  # in a person's form: what a reward is given
    prompt_tokens: int = 0  # of them the model has read
    forward_tokens: int = 0  # positions after the prompt that the model has computed
    widest: int = 1 << 20  # rows of one call of `extend`; the search splits larger batches

    @abstractmethod
    def begin(self, root: Sequence[int]) -> Rows:
        """Read these ids, the prompt: one node. What an earlier search held is released."""

    @abstractmethod
    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> Rows:
        """New nodes: the parent with this handle, and one token more. No token is an end, no pair comes twice."""

    @abstractmethod
    def recall(self, parents: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """Handles of nodes whose rows are known from an earlier search; nothing is computed for them now."""

    @abstractmethod
    def row(self, handle: int) -> np.ndarray:
        """All V log-probabilities after a node, once more."""

    @abstractmethod
    def release(self, handles: Collection[int]) -> None:
        """These nodes will not be asked for again, and none will be extended."""

    @abstractmethod
    def text(self, ids: Sequence[int]) -> str:
        """Generated ids, without an end token, in a person's form."""


def most_probable(logprobs: np.ndarray, handles: np.ndarray, width: int = WIDTH) -> Rows:
    """Rows of full log-probabilities [n, V]: the plain way, in numpy."""
    width = min(width, logprobs.shape[1])
    ids = np.argsort(-logprobs, axis=1, kind="stable")
    kept, others = ids[:, :width], ids[:, width:]
    rest = np.exp(np.take_along_axis(logprobs, others, axis=1)).sum(1)

    def draw(which: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        left = logprobs[which].copy()
        np.put_along_axis(left, kept[which], -np.inf, axis=1)
        tokens = np.array([inverse(np.exp(row), number) for row, number in zip(left, uniform, strict=True)], int)
        return tokens, logprobs[which, tokens]

    with np.errstate(divide="ignore"):
        return Rows(
            handles,
            kept.astype(np.int32),
            np.take_along_axis(logprobs, kept, axis=1),
            np.log(rest),
            lambda index: logprobs[index],
            draw,
        )


def inverse(shares: np.ndarray, uniform: float) -> int:
    """The index at which the running total of these shares passes a part of their total."""
    running = shares.cumsum()
    return int(min(np.searchsorted(running, uniform * running[-1], side="right"), shares.nonzero()[0][-1]))


class TableStep(Step):
    """A model that is a function from the ids so far to V probabilities: for tests, and for laws known exactly."""

    def __init__(
        self,
        law: Callable[[tuple[int, ...]], np.ndarray],
        target: Target,
        *,
        ends: Collection[int] = (),
        width: int = WIDTH,
    ) -> None:
        self.law, self.target, self.ends, self.width = law, target, frozenset(ends), width
        self.vocabulary = len(law(()))
        self.nodes: dict[int, tuple[int, ...]] = {}
        self._next = 0
        wrong = [token for token in self.ends if not 0 <= token < self.vocabulary]
        if wrong:
            raise BadInput(f"end id {wrong[0]} is outside the vocabulary (0..{self.vocabulary - 1})")

    def begin(self, root: Sequence[int]) -> Rows:
        self.nodes.clear()
        self.prompt = self.text(root)
        self._next, self.prompt_tokens, self.forward_tokens = 0, len(root), 0
        return self._rows([tuple(root)])

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> Rows:
        self.forward_tokens += len(parents)
        return self._rows([(*self.nodes[parent], token) for parent, token in zip(parents, tokens, strict=True)])

    def recall(self, parents: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        return self._added([(*self.nodes[p], token) for p, token in zip(parents, tokens, strict=True)])

    def row(self, handle: int) -> np.ndarray:
        self.forward_tokens += 1
        return self._logprobs([self.nodes[handle]])[0]

    def release(self, handles: Collection[int]) -> None:
        for handle in handles:
            del self.nodes[handle]

    def text(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def _rows(self, prefixes: list[tuple[int, ...]]) -> Rows:
        return most_probable(self._logprobs(prefixes), self._added(prefixes), self.width)

    def _added(self, prefixes: list[tuple[int, ...]]) -> np.ndarray:
        handles = np.arange(self._next, self._next + len(prefixes))
        self._next += len(prefixes)
        self.nodes.update(zip(handles.tolist(), prefixes, strict=True))
        return handles

    def _logprobs(self, prefixes: list[tuple[int, ...]]) -> np.ndarray:
        law = np.stack([np.asarray(self.law(prefix), dtype=np.float64) for prefix in prefixes])
        with np.errstate(divide="ignore"):
            heated = np.log(law) / self.target.temperature
        heated -= heated.max(1, keepdims=True)
        return heated - np.log(np.exp(heated).sum(1, keepdims=True))
