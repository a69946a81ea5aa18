"""Which request runs in which row, what is computed together, and when rows end. No tensors, no torch.

A batch has a fixed number of rows. A row that has ended is empty until a waiting request takes it; when none
waits, the batch is compacted. A prompt is computed once for all of its samples, and what all prompts of a group
begin with is computed and held once. The scheduler decides (`Prefill`, `Step`); an engine computes and reports
what was drawn.
"""

from __future__ import annotations

import functools
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from linnet.decoding.requests import Decoding, Reason, Request, Sample
from linnet.errors import RunFailed

if TYPE_CHECKING:
    from linnet.decoding.constraints import Constraint

SHARED_TOKENS = 32  # a shorter beginning in common is not worth a product of its own
SHARED_ROWS = 8
REFILL = 8  # waiting requests are admitted when one row in so many is empty
CROWDED = 0.75  # a batch with fewer living rows than this is compacted
PREFILL_TOKENS = 1024  # tokens of prompts that are computed at once; more would only need more memory
PREFILL_ON_A_GPU = 1 << 15  # which few tokens do not keep busy


@dataclass
class Row:
    """A sample in the making; `index` is that of its request among all."""

    index: int
    request: Request
    limit: int
    seed: int
    drawn: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of the token that ended the sample, too
    ties: int = 0
    stop: Reason | None = None
    allowed: Sequence[int] | None = None  # what may come next; None: everything

    @classmethod
    def of(cls, index: int, request: Request, limit: int, decoding: Decoding) -> Row:
        row = cls(index, request, limit, decoding.seed)
        row.constrain(decoding.constraint)
        return row

    @functools.cached_property
    def noise(self) -> np.random.Generator:
        """The random numbers of this sample; greedy rows never ask for them."""
        return self.request.noise(self.seed)

    @property
    def remembered(self) -> int:
        """Tokens that the model has read before it reads the last one drawn."""
        return len(self.request.prompt) + len(self.drawn) - 1

    @property
    def last(self) -> int:
        """How many tokens the model has read before it reads the last one that it may."""
        return len(self.request.prompt) + self.limit - 2

    @property
    def left(self) -> int:
        """Most tokens that may still be drawn."""
        return self.limit - len(self.drawn)

    @property
    def sample(self) -> Sample:
        assert self.stop is not None
        logprobs = tuple(self.logprobs[: len(self.drawn)])
        return Sample(tuple(self.drawn), sum(self.logprobs), self.stop, self.ties, logprobs)

    def constrain(self, constraint: Constraint | None) -> None:
        """Ask what may come next; nothing means that the sample is complete."""
        if constraint is not None and self.stop is None:
            self.allowed = constraint.after(self.drawn)
            if self.allowed is not None and not len(self.allowed):
                self.stop = "stop"

    def take(
        self, tokens: Sequence[int], logprobs: Sequence[float], ties: Sequence[bool], decoding: Decoding
    ) -> tuple[int, ...]:
        """Note what was drawn, up to where the sample ends; returns the ids that belong to the sample."""
        before, stopping = len(self.drawn), decoding.stopping
        if math.isnan(sum(logprobs)):
            raise RunFailed("the probabilities of the next token are not numbers (NaN)")
        if not stopping.strings and decoding.constraint is None and stopping.final.isdisjoint(tokens):
            left = self.limit - before
            self.drawn += tokens[:left]
            self.logprobs += logprobs[:left]
            self.ties += sum(ties[:left])
            self.stop = None if len(tokens) < left else "length"
            return tuple(self.drawn[before:])
        for token, logprob, tie in zip(tokens, logprobs, ties, strict=True):
            self.logprobs.append(logprob)
            self.ties += tie
            self.stop = stopping.reason(self.request.prompt, self.drawn, token)
            if token not in stopping.final:
                self.drawn.append(token)
                if self.stop is None and not self.left:
                    self.stop = "length"
            self.constrain(decoding.constraint)
            if self.stop is not None:
                break
        return tuple(self.drawn[before:])


@dataclass(frozen=True)
class Group:
    """Rows that are decoded in one batch, and how many tokens all of their prompts begin with and share."""

    rows: list[Row]
    shared: int


def groups(rows: Sequence[Row], most: int) -> Iterator[Group]:
    """Many samples of one long prompt share it whole; all others share what their prompts begin with."""
    by_prompt: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(row.request.prompt, []).append(row)
    mixed = []
    for prompt, samples in by_prompt.items():
        if len(prompt) >= SHARED_TOKENS and len(samples) >= max(SHARED_ROWS, most // 2):
            yield Group(samples, len(prompt))
        else:
            mixed += samples
    if mixed:
        # Samples of one prompt follow each other, so that it need not be computed again.
        order = {prompt: index for index, prompt in enumerate(by_prompt)}
        mixed.sort(key=lambda row: (order[row.request.prompt], row.index))
        alike = len(os.path.commonprefix([row.request.prompt for row in mixed]))
        different = len({row.request.prompt for row in mixed}) > 1
        # A prompt that is the beginning of all others needs a token of its own to be computed from.
        alike = min(alike, min(len(row.request.prompt) for row in mixed) - 1) if different else alike
        yield Group(mixed, alike if alike >= SHARED_TOKENS and len(mixed) >= SHARED_ROWS else 0)


@dataclass(frozen=True)
class Prefill:
    """Compute these prompts in one pass; then each of `rows` draws a token, after its prompt in `sources`."""

    prompts: tuple[tuple[int, ...], ...]
    rows: tuple[Row, ...]
    sources: tuple[int, ...]
    held: bool  # the only prompt was computed before and its state was kept
    keep: int | None  # the prompt whose state more samples will need
    in_place: bool  # one prompt for each row of the batch, which is still empty


@dataclass(frozen=True)
class Step:
    """Each of `rows`, which run at `indices`, reads its last token and draws up to `tokens` further ones."""

    rows: tuple[Row, ...]
    indices: tuple[int, ...]
    tokens: int
    compact: tuple[int, ...] | None  # before that, only these rows of the batch go on, in this order

    @property
    def reach(self) -> int:
        """No row will have read more tokens than this before it reads its last one of this step."""
        return max(min(row.remembered + self.tokens - 1, row.last) for row in self.rows)


class Scheduler:
    """The rows of one group: ask `next` what to do, and report with `admitted` and `ended` when it is done."""

    def __init__(self, group: Group, rows: int, context: int, burst: int = 1, fixed: bool = False) -> None:
        self.shared, self.burst = group.shared, burst
        self.waiting = deque(group.rows)
        self.fixed = fixed
        self.rows: list[Row | None] = [None] * min(rows, self._size(len(group.rows)))
        most = max(len(row.request.prompt) - self.shared + row.limit for row in group.rows)
        self.slots = min(most, context - self.shared)
        self._fresh = True  # no row has run yet
        self._held: tuple[int, ...] | None = None  # the prompt whose state is kept
        self._prefills: deque[tuple[Row, ...]] = deque()

    @property
    def living(self) -> list[int]:
        return [index for index, row in enumerate(self.rows) if row is not None]

    def next(self) -> Prefill | Step | None:
        """What to do now; None when every row has ended."""
        if not self._prefills and self._refills():
            empty = len(self.rows) - len(self.living)
            rows = [self.waiting.popleft() for _ in range(min(empty, len(self.waiting)))]
            self._prefills += self._passes(rows)
        if self._prefills:
            return self._prefill(self._prefills.popleft())
        return self._step() if self.living else None

    def admitted(self, prefill: Prefill) -> tuple[list[int], list[int]]:
        """The rows that go on after their first token: indices in the batch, and their numbers in the pass."""
        going = [number for number, row in enumerate(prefill.rows) if row.stop is None]
        empty = going if prefill.in_place else [index for index, row in enumerate(self.rows) if row is None]
        indices = empty[: len(going)]
        for index, number in zip(indices, going, strict=True):
            self.rows[index] = prefill.rows[number]
        self._fresh = False
        return indices, going

    def ended(self) -> None:
        """Rows that have stopped leave."""
        self.rows = [None if row is None or row.stop is not None else row for row in self.rows]

    def _refills(self) -> bool:
        """Whether waiting rows are admitted now: prompts are cheaper together; empty rows cost like full ones."""
        empty = len(self.rows) - len(self.living)
        return bool(self.waiting) and (empty >= max(1, len(self.rows) // REFILL) or not self.living)

    def _passes(self, rows: Sequence[Row]) -> Iterator[tuple[Row, ...]]:
        """Rows whose prompts are computed in one pass, so many that it does not need much memory of its own."""
        most = max(PREFILL_ON_A_GPU if self.fixed else PREFILL_TOKENS, len(self.rows) * self.slots // 16)
        together: list[Row] = []
        tokens = 0
        for prompt, samples in groupby(rows, key=lambda row: row.request.prompt):
            added = len(prompt) - self.shared
            if together and (tokens + added > most or together[-1].request.prompt == self._held):
                yield tuple(together)
                together, tokens = [], 0
            together += samples
            tokens += added
        yield tuple(together)

    def _prefill(self, rows: tuple[Row, ...]) -> Prefill:
        prompts = tuple(dict.fromkeys(row.request.prompt for row in rows))
        following = self.waiting[0].request.prompt if self.waiting else None
        keep = prompts.index(following) if following in prompts else None
        held, self._held = prompts[0] == self._held, None if keep is None else following
        in_place = self._fresh and len(prompts) == len(self.rows) and keep is None
        sources = tuple(prompts.index(row.request.prompt) for row in rows)
        return Prefill(prompts, rows, sources, held, keep, in_place)

    def _step(self) -> Step:
        compact = self._compacted()
        if compact is not None:
            self.rows = [self.rows[index] for index in compact]
        indices = tuple(self.living)
        rows = tuple(row for row in self.rows if row is not None)
        # Requests that wait take the rows of those that end, so the round trips are shorter.
        most = max(1, self.burst // 2) if self.waiting else self.burst
        return Step(rows, indices, most if most == 1 else min(most, max(row.left for row in rows)), compact)

    def _compacted(self) -> tuple[int, ...] | None:
        """Empty rows go when they are many."""
        living = self.living
        if self.waiting or len(living) > CROWDED * len(self.rows):
            return None
        # A single row is another graph to a compiler: two are kept, and nothing is compiled amid a batch.
        size = max(2, self._size(len(living)))
        if size >= len(self.rows):
            return None
        empty = [index for index, row in enumerate(self.rows) if row is None]
        kept = living + empty[: size - len(living)]
        # Rows from behind move into free ones in front: nothing else is copied.
        behind = [index for index in kept if index >= size]
        return tuple(index if index in kept else behind.pop() for index in range(size))

    def _size(self, rows: int) -> int:
        """Rows of a batch for this many: where loops are fixed, one of few sizes, at most a quarter larger."""
        step = 1 << max(0, rows.bit_length() - 3) if self.fixed else 1
        return -(-rows // step) * step
