"""The engine: a batch of rows that decode together, fork, finish and are replaced while the others go on.

Prompts are computed in one pass, once for all samples of a prompt. Rows that begin alike read the keys of what
they share once. `naive.generate` is the oracle: one row, no cache, the same samples.
Legend: R = seats, n = rows that draw, W = model width, V = vocabulary.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from linnet.decoding.asking import Ask, Decoding, Sample, check, limit
from linnet.decoding.drawing import Row, draw
from linnet.errors import BadInput
from linnet.model.inputs import Inputs
from linnet.model.model import Model, evaluating
from linnet.model.state import State

ROWS = 64
SHARED_TOKENS = 32  # a shorter beginning in common is not worth a product of its own
SHARED_ROWS = 8
PARTY = 8  # new rows sit down when one seat in so many is empty
CROWDED = 0.75  # a batch with fewer living rows than this is compacted
PASS = 1024  # tokens of prompts that are computed at once; more would only need more memory


class Step(Protocol):
    """How all rows read one token each."""

    def advance(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """The last hidden vectors [R, W] after these ids [R, 1]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits [n, V] of those rows that draw."""


@dataclass(frozen=True)
class Plain:
    """The step as torch runs it."""

    model: Model

    def advance(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        output = self.model(ids, state)
        assert output.state is not None
        return output.hidden[:, -1], output.state

    def logits(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.model.head(hidden)
        return found


@dataclass(frozen=True)
class Drawn:
    """One token of the ask at this place, as soon as it is known."""

    place: int
    token: int


@dataclass(frozen=True)
class Done:
    place: int
    sample: Sample


Event = Drawn | Done


def generate(
    model: Model,
    asks: Sequence[Ask],
    decoding: Decoding,
    *,
    rows: int = ROWS,
    step: Step | None = None,
    share: bool = True,
) -> Iterator[Sample]:
    """One sample for each ask, in their order; at most `rows` of them are computed together."""
    early: dict[int, Sample] = {}
    following = 0
    for event in events(model, asks, decoding, rows=rows, step=step, share=share):
        if isinstance(event, Done):
            early[event.place] = event.sample
        while following in early:
            yield early.pop(following)
            following += 1


def events(
    model: Model,
    asks: Sequence[Ask],
    decoding: Decoding,
    *,
    rows: int = ROWS,
    step: Step | None = None,
    share: bool = True,
) -> Iterator[Event]:
    """Tokens and finished samples as they come. Without `share` each row holds its whole prompt itself."""
    check(model, asks, decoding)
    if rows < 1:
        raise BadInput(f"rows is {rows}; at least one row must be computed")
    pending = [Row.of(place, ask, limit(model, ask, decoding), decoding.seed) for place, ask in enumerate(asks)]
    for wave in waves(pending, rows) if share else [Together(pending, 0)] if pending else []:
        yield from Wave(model, wave, decoding, rows, Plain(model) if step is None else step).run()


@dataclass(frozen=True)
class Together:
    """Rows that are decoded in one batch, and how many tokens all of their prompts begin with and share."""

    rows: list[Row]
    shared: int


def waves(rows: Sequence[Row], seats: int) -> Iterator[Together]:
    """Many samples of one long prompt share it whole; all others share what their prompts begin with."""
    by_prompt: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(row.ask.prompt, []).append(row)
    mixed = []
    for prompt, samples in by_prompt.items():
        if len(prompt) >= SHARED_TOKENS and len(samples) >= max(SHARED_ROWS, seats // 2):
            yield Together(samples, len(prompt))
        else:
            mixed += samples
    if mixed:
        # Samples of one prompt sit down one after the other, so that it need not be computed again.
        order = {prompt: place for place, prompt in enumerate(by_prompt)}
        mixed.sort(key=lambda row: (order[row.ask.prompt], row.place))
        alike = len(os.path.commonprefix([row.ask.prompt for row in mixed]))
        different = len({row.ask.prompt for row in mixed}) > 1
        # A prompt that is the beginning of all others needs a token of its own to be computed from.
        alike = min(alike, min(len(row.ask.prompt) for row in mixed) - 1) if different else alike
        yield Together(mixed, alike if alike >= SHARED_TOKENS and len(mixed) >= SHARED_ROWS else 0)


class Wave:
    """The seats of one batch: who sits where, what they remember, and who waits."""

    def __init__(self, model: Model, together: Together, decoding: Decoding, rows: int, step: Step) -> None:
        self.model, self.decoding, self.step = model, decoding, step
        self.shared = together.shared
        self.waiting = deque(together.rows)
        self.seats: list[Row | None] = [None] * min(rows, len(together.rows))
        most = max(len(row.ask.prompt) - self.shared + row.limit for row in together.rows)
        self.slots = min(most, model.config.context - self.shared)
        self.computed: dict[tuple[int, ...], tuple[State, Tensor]] = {}  # one-row states of prompts still wanted
        self.recurrent = "gru" in model.config.mixers
        self.state: State | None = None
        self.beginning: tuple[State, Tensor] | None = None

    @property
    def living(self) -> list[int]:
        return [seat for seat, row in enumerate(self.seats) if row is not None]

    def run(self) -> Iterator[Event]:
        while self.waiting or self.living:
            happened: list[Event] = []
            # Between two yields only: whoever reads the events must not find gradients switched off.
            with evaluating(self.model):
                happened += self._admit() if self._inviting() else self._advance()
            yield from happened

    def _inviting(self) -> bool:
        """Whether waiting rows sit down now: prompts are cheaper together, and empty seats cost like full ones."""
        empty = len(self.seats) - len(self.living)
        enough = 1 if self.recurrent else max(1, len(self.seats) // PARTY)
        return bool(self.waiting) and (empty >= enough or not self.living)

    def _advance(self) -> list[Event]:
        """Every living row reads its last token and draws the next."""
        self._compact()
        living = self.living
        assert self.state is not None
        rows = [row for row in self.seats if row is not None]
        tokens = [0 if row is None else row.drawn[-1] for row in self.seats]
        ids = torch.tensor(tokens, device=self.model.device)[:, None]
        # What the longest living row remembers bounds what is read; rows that have left are cut to it.
        state = self.state.truncate(max(row.remembered for row in rows))
        hidden, self.state = self.step.advance(ids, state)
        if len(living) < len(self.seats):
            hidden = hidden[torch.tensor(living, device=hidden.device)]
        return self._draw(rows, hidden)

    def _draw(self, rows: Sequence[Row], hidden: Tensor) -> list[Event]:
        """These rows draw from their last hidden vectors; those that have ended leave their seats."""
        written = [len(row.drawn) for row in rows]
        draw(self.step.logits(hidden), rows, self.decoding)
        happened: list[Event] = []
        for row, before in zip(rows, written, strict=True):
            happened += [Drawn(row.place, token) for token in row.drawn[before:]]
            if row.stop is not None:
                happened.append(Done(row.place, row.sample))
        self.seats = [None if row is None or row.stop is not None else row for row in self.seats]
        return happened

    def _compact(self) -> None:
        """Empty seats go when they are many. A recurrent layer cannot be cut back, so there they go at once."""
        living = self.living
        enough = len(self.seats) - 1 if self.recurrent else CROWDED * len(self.seats)
        if self.waiting or self.state is None or len(living) > enough:
            return
        if len(living) == 1 and not self.recurrent:
            # A single row is another graph to a compiler: two are kept, and nothing is compiled amid a batch.
            living.append(next(seat for seat, row in enumerate(self.seats) if row is None))
        if len(living) < len(self.seats):
            # Who sits behind takes a free seat in front: nothing else is copied.
            behind = [seat for seat in living if seat >= len(living)]
            kept = [seat if seat in living else behind.pop() for seat in range(len(living))]
            self.state = self.state.compact(torch.tensor(kept))
            self.seats = [self.seats[seat] for seat in kept]

    def _admit(self) -> list[Event]:
        """Waiting rows take the empty seats: their prompts are computed, and each draws its first token."""
        empty = [seat for seat, row in enumerate(self.seats) if row is None]
        rows = [self.waiting.popleft() for _ in range(min(len(empty), len(self.waiting)))]
        happened: list[Event] = []
        for group in list(self._groups(rows)):
            happened += self._sit(group, empty)
        return happened

    def _groups(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Rows whose prompts are computed in one pass, so many that it does not need much memory of its own."""
        most = max(PASS, len(self.seats) * self.slots // 16)
        group: list[Row] = []
        tokens = 0
        for prompt, samples in groupby(rows, key=lambda row: row.ask.prompt):
            added = len(prompt) - self.shared
            if group and (tokens + added > most or group[-1].ask.prompt in self.computed):
                yield group
                group, tokens = [], 0
            group += samples
            tokens += added
        yield group

    def _sit(self, rows: list[Row], empty: list[int]) -> list[Event]:
        """These rows draw their first tokens and sit down, unless that was the last one."""
        prompts = list(dict.fromkeys(row.ask.prompt for row in rows))
        if self.state is None and len(prompts) == len(self.seats) and self._following not in prompts:
            # All seats at once: the prompts are computed where they stay.
            self.state, hidden = self._read(prompts, seated=True)
            self.seats = list(rows)
            return self._draw(rows, hidden)
        state, hidden = self._prompts(prompts)
        places = torch.tensor([prompts.index(row.ask.prompt) for row in rows], device=hidden.device)
        happened = self._draw(rows, hidden[places])
        staying = [number for number, row in enumerate(rows) if row.stop is None]
        if staying:
            seats = [empty.pop(0) for _ in staying]
            for seat, number in zip(seats, staying, strict=True):
                self.seats[seat] = rows[number]
            self.state = self._seated().place(torch.tensor(seats), state, places[torch.tensor(staying)])
        return happened

    def _seated(self) -> State:
        """The state of all seats; empty until the first row sits down."""
        if self.state is not None:
            return self.state
        if self.beginning is None:
            return self.model.empty_state(len(self.seats), self.slots)
        return self._begun(len(self.seats)).reserve(self.slots)

    def _begun(self, rows: int) -> State:
        """Rows that have read what all prompts begin with."""
        assert self.beginning is not None
        return self.beginning[0].select(torch.zeros(rows, dtype=torch.int64))

    @property
    def _following(self) -> tuple[int, ...] | None:
        """The prompt that is the next in line; all its samples stand there together."""
        return self.waiting[0].ask.prompt if self.waiting else None

    def _prompts(self, prompts: Sequence[tuple[int, ...]]) -> tuple[State, Tensor]:
        """The states after these prompts, and the last hidden vectors [n, W]; what comes again is kept."""
        known = self.computed.get(prompts[0])
        state, hidden = self._read(prompts) if known is None else known
        self.computed = {}
        if self._following in prompts:
            again = prompts.index(self._following)
            chosen = torch.tensor([again], device=hidden.device)
            self.computed[prompts[again]] = (state.select(chosen), hidden[chosen])
        return state, hidden

    def _read(self, prompts: Sequence[tuple[int, ...]], *, seated: bool = False) -> tuple[State, Tensor]:
        """One pass over what these prompts do not share, in the state of all seats or in one of its own."""
        if self.shared and self.beginning is None:
            state, hidden = self._pass([prompts[0][: self.shared]], self.model.empty_state(1, self.shared))
            self.beginning = (state.share(), hidden)
        rest = [prompt[self.shared :] for prompt in prompts]
        if self.beginning is not None and not rest[0]:  # one prompt, shared whole
            return self._seated() if seated else self._begun(1), self.beginning[1]
        if seated:
            return self._pass(rest, self._seated())
        if self.beginning is not None:
            return self._pass(rest, self._begun(len(rest)))
        return self._pass(rest, self.model.empty_state(len(rest), max(map(len, rest))))

    def _pass(self, prompts: Sequence[Sequence[int]], state: State) -> tuple[State, Tensor]:
        device = self.model.device
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        lengths = lengths.to(device)
        output = self.model(Inputs(ids.to(device), lengths=lengths), state)
        assert output.state is not None
        return output.state, output.hidden[torch.arange(len(prompts), device=device), lengths - 1]
