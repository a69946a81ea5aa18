"""A model that decodes: prompts in one pass, one step, and states that fork. Tensors and no policy.

A runner stands beside its model and never changes it. `Runner(model)` computes with the model as it is,
`Runner(packed(model, "int8"))` with a copy whose products are packed (`products`); given a `Compiling`, it
makes one graph of a step. What a search needs, all of it inside `evaluating(runner.network)`:

    logits, state = runner.prefill([prompt, other])        # [2, V]: what may follow, and the memory of both rows
    logits, state = runner.step(state, tokens)             # every row reads one token
    forks = state.select(torch.tensor([0, 0, 1]))          # copies of rows by index, each as often as it is named
    _, begun = runner.share(beginning)                     # one row, read and held once for all that begin with it
    logits, state = runner.prefill(endings, after=begun)   # a batch of prefixes that share their beginning
    logits, state = runner.extend(state, more)             # every row reads several tokens, of any lengths
    logprobs, ends = runner.score(logits, state, more)     # of each of these tokens

A state is linear (`model.state`): passing it on consumes it, the one that comes back goes on, and `select`
before that is how one continues twice. `after` is not consumed.
Legend: R = rows of a state, n = rows that answer, T = tokens, W = model width, V = vocabulary.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from linnet.decoding.compiling import Compiling
from linnet.machine import graph_cache
from linnet.model.contract import fault
from linnet.model.inputs import Inputs
from linnet.model.model import Model
from linnet.model.state import State
from linnet.model.taps import Edit

if TYPE_CHECKING:
    from linnet.decoding.loop import Loop

Ids = Sequence[Sequence[int]]
Columns = Callable[[Sequence[int]], Mapping[str, np.ndarray]]  # ids of a row -> further columns at each of them
Advance = Callable[[Tensor, State], tuple[Tensor, State]]
ALL = slice(None)
SCORED = 1 << 22  # logits that may exist at once where several tokens of a row are scored
SHAPES = 64  # graphs of a step that may be compiled
TOLERANCE = 0.03  # relative difference of the logits of the first compiled step and of an eager one


class Runner:
    """One model at work; `notes` has what a person should know about its steps.

    `columns` gives the further columns that a model reads beside the tokens, from all ids of a row so far: known
    in advance, constant, or computed. Then each call needs what its rows have read `before`, too.
    Where loops are `fixed`, as on a GPU, they keep their tensors and what was recorded of them for the next call.
    `edit` holds in every call; its rows have to be one, since rows of a batch come and go.
    """

    numbers: ClassVar[itertools.count[int]] = itertools.count()

    def __init__(
        self,
        network: Model,
        compiling: Compiling | None = None,
        *,
        columns: Columns | None = None,
        fixed: bool | None = None,
        edit: tuple[tuple[str, Edit], ...] = (),
    ) -> None:
        if network.config.columns and columns is None:
            raise ValueError(f"this model reads further columns: {', '.join(network.config.columns)}")
        self.columns = columns if network.config.columns else None
        self.network, self.device, self.compiling = network, network.device, compiling
        self.vocabulary = network.config.vocabulary
        self.fixed = self.device.type == "cuda" if fixed is None else fixed
        # The memory of a recurrent layer is another tensor after each step, and columns are made on the host.
        self.fixed &= "gru" not in network.config.mixers and self.columns is None and not edit
        self.edit = edit
        self.loops: dict[Hashable, Loop] = {}
        self.notes: list[str] = []
        self.compile_seconds = 0.0  # of the first compiled step
        self.name = f"runner {next(self.numbers)}"
        self._unchecked = compiling is not None
        self._advance: Advance = self._eager
        self._scores: Callable[[Tensor], Tensor] = self.logits

    def empty(self, rows: int, slots: int, *, after: State | None = None) -> State:
        """Rows that have read nothing, or what `after` has, with room for `slots` further tokens."""
        if after is None:
            return self.network.empty_state(rows, slots)
        return after.select(torch.zeros(rows, dtype=torch.int64)).reserve(slots)

    def prefill(self, prompts: Ids, *, after: State | None = None, before: Ids = ()) -> tuple[Tensor, State]:
        """Logits [n, V] after these prompts, none of them empty, and their state; all go on from `after`."""
        return self.extend(self.empty(len(prompts), max(map(len, prompts)), after=after), prompts, before)

    def share(self, ids: Sequence[int]) -> tuple[Tensor, State]:
        """Logits [1, V] after these ids, and their state, which all copies by `select` share."""
        logits, state = self.prefill([ids])
        return logits, state.share()

    def extend(self, state: State, ids: Ids, before: Ids = ()) -> tuple[Tensor, State]:
        """Each row reads its ids, at least one, all in one pass: logits [R, V] after the last of them."""
        hidden, state = self._read(state, ids, before)
        last = torch.tensor([len(row) - 1 for row in ids])
        return self.logits(hidden[torch.arange(len(ids)), last]), state

    def read(self, state: State, ids: Ids, rows: Tensor) -> tuple[Tensor, State]:
        """Each row reads its ids, all in one pass: logits [n, T, V] of these rows at each of them."""
        hidden, state = self._read(state, ids, ())
        return self.logits(hidden[rows]), state

    def step(
        self, state: State, tokens: Tensor, rows: Tensor | slice = ALL, before: Ids = ()
    ) -> tuple[Tensor, State]:
        """Each row reads its token [R]: logits [R, V], or those [n, V] of the rows that are named."""
        if self.columns is not None:
            hidden, state = self._read(state, tokens[:, None].tolist(), before)
            return self.logits(hidden[rows, -1]), state
        if self._unchecked:
            self._unchecked = False
            return self._first_compiled(state, tokens, rows)
        found, state = self._advance(tokens[:, None], state)
        return self._scores(found[rows]), state

    def score(
        self, logits: Tensor, state: State, ids: Ids, ends: Sequence[int] = (), before: Ids = ()
    ) -> tuple[list[tuple[float, ...]], list[float]]:
        """Log-probabilities of each of these tokens after `logits` [R, V], and of one of `ends` after the last."""
        hidden = self._read(state, ids, before)[0] if any(map(len, ids)) else None
        tokens, ending = [], []
        rows = max(1, SCORED // (max(1, *map(len, ids)) * self.vocabulary))
        for first in range(0, len(ids), rows):
            part = slice(first, first + rows)
            later = [] if hidden is None else [self.logits(hidden[part])]
            scores = torch.cat((logits[part, None], *later), dim=1).float().log_softmax(-1)
            for row, given in zip(scores, ids[part], strict=True):
                tokens.append(tuple(row[torch.arange(len(given)), list(given)].tolist()))
                ending.append(float(row[len(given), list(ends)].logsumexp(-1)) if ends else 0.0)
        return tokens, ending

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits [..., V] of hidden vectors [..., W]."""
        return self.network.head(hidden)

    def fault(self) -> str:
        """Why logits may not be numbers."""
        return fault(self.network)

    def _read(self, state: State, ids: Ids, before: Ids) -> tuple[Tensor, State]:
        """Hidden vectors [R, T, W] of these ids, padded on the right."""
        lengths = torch.tensor([len(row) for row in ids])
        longest = max(map(len, ids))
        padded = torch.tensor([[*row, *(0,) * (longest - len(row))] for row in ids])
        columns = {"ids": padded.to(self.device), **self._further(ids, before)}
        inputs = Inputs(columns, lengths=lengths.to(self.device))
        output = self.network(inputs, state, edit=self.edit)
        assert output.state is not None
        return output.hidden, output.state

    def _further(self, ids: Ids, before: Ids) -> dict[str, Tensor]:
        """The further columns [R, T, ...] of these ids, padded on the right."""
        if self.columns is None:
            return {}
        names, rows = tuple(self.network.config.columns), []
        for number, row in enumerate(ids):
            read = before[number] if before else ()
            made = self.columns((*read, *row))
            rows.append({name: torch.from_numpy(np.asarray(made[name]))[len(read) :] for name in names})
        pad = torch.nn.utils.rnn.pad_sequence
        return {name: pad([row[name] for row in rows], batch_first=True).to(self.device) for name in names}

    def _eager(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Hidden vectors [R, W] after one token of each row."""
        output = self.network(ids, state, edit=self.edit)
        assert output.state is not None
        return output.hidden[:, -1], output.state

    def _single(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [1, V]: for one row the head is part of the graph."""
        hidden, state = self._eager(ids, state)
        return self.network.head(hidden), state

    def _compiled(self, step: Callable[..., tuple[Tensor, State]]) -> Advance:
        """A graph of this step that does not look at the modules of its network in each call: they never change.

        The compiler keeps graphs by the code that they come from, which all runners share, and takes one whose
        guards hold: the name is guarded because the step reads it, and keeps the graphs of two runners apart.
        """

        def named(ids: Tensor, state: State) -> tuple[Tensor, State]:
            assert self.name
            return step(ids, state)

        options: dict[str, Any] = {
            "guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe,
            "size_asserts": False,
        }
        return torch.compile(named, dynamic=True, options=options)

    def _first_compiled(self, state: State, tokens: Tensor, rows: Tensor | slice) -> tuple[Tensor, State]:
        """The first step, eager, and compiled beside it: a compiler that fails or is wrong is not used."""
        assert self.compiling is not None
        twin = state.select(torch.arange(state.rows))
        expected, state = self.step(state, tokens, rows)
        began = time.perf_counter()
        graph_cache()
        try:
            # Each size of a batch and each span of its memory may be a graph; beyond the limit parts are compiled.
            torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
            self._advance = self._compiled(self._single if self.compiling.single else self._eager)
            self._scores = _unchanged if self.compiling.single else self.logits
            found, _ = self.step(twin, tokens, rows)
            off = float((found.float() - expected.float()).norm() / expected.float().norm())
            problem = "" if off < TOLERANCE else f"its first step is off by {off:.1%}"
        except Exception as error:  # the same step has just been computed without a compiler
            problem = (str(error).splitlines() or [type(error).__name__])[0]
        if problem:
            self.notes.append(f"steps are not compiled: {problem}")
            self._advance, self._scores = self._eager, self.logits
        else:
            self.compile_seconds = time.perf_counter() - began
            self.compiling.remember(self.compile_seconds)
        return expected, state


def _unchanged(logits: Tensor) -> Tensor:
    return logits
