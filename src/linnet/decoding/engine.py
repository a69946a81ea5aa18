"""The engine: many requests in one batch, as the scheduler decides and the runner computes.

`naive.generate` is the oracle: one row, no cache, the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linnet.decoding.loop import Loop
from linnet.decoding.requests import Decoding, Request, Sample
from linnet.decoding.runner import Ids, Runner
from linnet.decoding.sampling import Drawn
from linnet.decoding.scheduler import Group, Prefill, Row, Scheduler, Step, groups
from linnet.errors import BadInput, RunFailed
from linnet.model.contract import evaluating
from linnet.model.state import State

ROWS = 64
BURST = 32  # tokens that a GPU draws for one round trip


@dataclass(frozen=True)
class Tokens:
    """The next ids of the request with this index, as soon as they are known."""

    index: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Done:
    index: int
    sample: Sample


Event = Tokens | Done


def generate(
    runner: Runner,
    requests: Sequence[Request],
    decoding: Decoding,
    *,
    rows: int = ROWS,
    share: bool = True,
    burst: int | None = None,
) -> Iterator[Sample]:
    """One sample for each request, in their order; at most `rows` of them are computed together."""
    early: dict[int, Sample] = {}
    following = 0
    for event in events(runner, requests, decoding, rows=rows, share=share, burst=burst):
        if isinstance(event, Done):
            early[event.index] = event.sample
        while following in early:
            yield early.pop(following)
            following += 1


def events(
    runner: Runner,
    requests: Sequence[Request],
    decoding: Decoding,
    *,
    rows: int = ROWS,
    share: bool = True,
    burst: int | None = None,
) -> Iterator[Event]:
    """Tokens and finished samples as they come.

    Without `share` each row holds its whole prompt itself. `burst` tokens are drawn for one round trip to the
    device; what may come next, or is guessed to, is decided on the host: then there is one round trip a token.
    """
    config = runner.network.config
    decoding.check(config, requests)
    if rows < 1:
        raise BadInput(f"rows is {rows}; at least one row must be computed")
    if decoding.constraint is not None or runner.columns is not None or decoding.lookup:
        burst = 1
    elif burst is None:
        burst = BURST if runner.device.type == "cuda" else 1
    waiting = []
    for index, request in enumerate(requests):
        row = Row.of(index, request, decoding.limit(config, request.prompt), decoding)
        if row.stop is None:
            waiting.append(row)
        else:
            yield Done(index, row.sample)
    for group in groups(waiting, rows) if share else [Group(waiting, 0)] if waiting else []:
        yield from Work(runner, group, decoding, rows, burst).run()


class Work:
    """One group of rows: the scheduler's decisions, carried out."""

    def __init__(self, runner: Runner, group: Group, decoding: Decoding, rows: int, burst: int) -> None:
        self.runner, self.decoding, self.burst = runner, decoding, burst
        self.scheduler = Scheduler(group, rows, runner.network.config.context, burst, runner.fixed)
        self.beginning: tuple[Tensor, State] | None = None  # what all prompts begin with
        self.held: tuple[Tensor, State] | None = None  # a prompt that more samples will need
        self.loop: Loop | None = None

    def run(self) -> Iterator[Event]:
        while True:
            # Between two yields only: whoever reads the events must not find gradients switched off.
            with evaluating(self.runner.network):
                work = self.scheduler.next()
                if work is None:
                    self._begun().end()
                    return
                happened = self._prefill(work) if isinstance(work, Prefill) else self._step(work)
            yield from happened

    def _prefill(self, work: Prefill) -> list[Event]:
        """Compute prompts, draw a first token for each row, and let the rows that go on join the batch."""
        shared = self.scheduler.shared
        if shared and self.beginning is None:
            self.beginning = self.runner.share(work.prompts[0][:shared])
        rest = [prompt[shared:] for prompt in work.prompts]
        before = [prompt[:shared] for prompt in work.prompts]
        loop = self._begun()
        if work.in_place:
            logits, state = loop.extend(rest, before), None
        else:
            logits, state = self._computed(work, rest, before, loop.after)
        sources = torch.tensor(work.sources, device=logits.device)
        happened = self._note(work.rows, loop.first(logits[sources], work.rows))
        indices, kept = self.scheduler.admitted(work)
        if indices:
            if state is not None:
                loop.put(indices, state, [work.sources[number] for number in kept])
            loop.admit(indices, [work.rows[number] for number in kept])
        return happened

    def _computed(self, work: Prefill, rest: Ids, before: Ids, after: State | None) -> tuple[Tensor, State]:
        """The logits and the states of these prompts; what will be needed again is kept."""
        if work.held and self.held is not None:
            logits, state = self.held
        elif self.beginning is not None and not rest[0]:  # one prompt, shared whole
            logits, state = self.beginning[0], self.runner.empty(1, 0, after=after)
        else:
            logits, state = self.runner.prefill(rest, after=after, before=before)
        self.held = None
        if work.keep is not None:
            again = torch.tensor([work.keep], device=logits.device)
            self.held = logits[again], state.select(again)
        return logits, state

    def _begun(self) -> Loop:
        """The rows of the batch; empty until the first prefill."""
        if self.loop is None:
            after = None if self.beginning is None else self.beginning[1]
            rows, slots = len(self.scheduler.rows), self.scheduler.slots
            self.loop = Loop.begin(self.runner, self.decoding, rows, slots, after, self.burst)
        return self.loop

    def _step(self, work: Step) -> list[Event]:
        """Every living row reads its last token and draws the next ones."""
        loop = self._begun()
        if work.compact is not None:
            loop.compact(work.compact)
        happened = self._note(work.rows, loop.run(work))
        self.scheduler.ended()
        return happened

    def _note(self, rows: Sequence[Row], drawn: Drawn) -> list[Event]:
        """What each row drew, and whether it has ended with that."""
        happened: list[Event] = []
        for row, (tokens, logprobs, ties) in zip(rows, drawn, strict=True):
            try:
                ids = row.take(tokens, logprobs, ties, self.decoding)
            except RunFailed as failed:
                raise RunFailed(f"{failed}: {self.runner.fault()}") from None
            if ids:
                happened.append(Tokens(row.index, ids))
            if row.stop is not None:
                happened.append(Done(row.index, row.sample))
        return happened
