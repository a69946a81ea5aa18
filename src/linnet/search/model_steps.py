"""A search over a model of ours: the decoding runner under the contract of steps.

The prompt is read once and its keys and values are held once, whatever the number of rows.
Legend: R = rows, T = tokens after the prompt, S = slots, Hk = key-value heads, D = head width, M = numbers of a
token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from linnet.decoding.runner import Ids, Runner
from linnet.model.contract import evaluating
from linnet.model.state import KeyValues, LayerMemory, Memory, Recurrent, State
from linnet.search.cached_steps import Batch, Reader

SPARE = 8  # slots of a new batch beyond what it remembers; they double when they are used up


class ModelReader(Reader):
    """A runner, and the prompt that its rows share."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.device, self.vocabulary = runner, runner.device, runner.vocabulary
        self.config = runner.network.config
        self.context = self.config.context
        self.whole = "gru" not in self.config.mixers
        self.reads_before = runner.columns is not None
        self.prompt: Sequence[int] = ()
        self.shared: State | None = None

    def begin(self, ids: Sequence[int]) -> Tensor:
        self.prompt = tuple(ids)
        with evaluating(self.runner.network):
            logits, self.shared = self.runner.share(ids)
        return logits

    @property
    def token_memory(self) -> tuple[int, torch.dtype]:
        config = self.config
        each = {"attention": 2 * config.kv_heads * config.head_width, "gru": config.width}
        return sum(each[mixer] for mixer in config.mixers), self.runner.network.embedding.weight.dtype

    def open(self, memory: Tensor, lengths: np.ndarray) -> Batch:
        assert self.shared is not None
        rows = len(lengths)
        begun = self.shared.select(torch.zeros(rows, dtype=torch.int64)).take()
        slots = memory.shape[1] + SPARE
        layers: list[LayerMemory] = []
        first = 0
        for layer in begun.layers:
            size = numbers_of(layer)
            layers.append(filled(layer, memory[:, :, first : first + size], lengths, slots))
            first += size
        known = torch.from_numpy(lengths).to(self.device) + begun.shared
        state = State(Memory(tuple(layers), known, begun.shared + memory.shape[1], begun.shared))
        return ModelBatch(self, state)

    def fault(self) -> str:
        return self.runner.fault()


def numbers_of(layer: LayerMemory) -> int:
    """How many numbers a token adds to the memory of this layer."""
    if isinstance(layer, Recurrent):
        return layer.hidden.shape[1]
    return 2 * layer.keys.shape[1] * layer.keys.shape[3]


def filled(layer: LayerMemory, numbers: Tensor, lengths: np.ndarray, slots: int) -> LayerMemory:
    """The memory of a layer after the prompt and the first `lengths` [R] of these tokens [R, T, M]."""
    rows, tokens, _ = numbers.shape
    if isinstance(layer, Recurrent):
        begun = np.flatnonzero(lengths)
        last = torch.from_numpy(lengths[begun] - 1).to(numbers.device)
        where = torch.from_numpy(begun).to(numbers.device)
        layer.hidden[where] = numbers[where, last]
        return layer
    heads, width = layer.keys.shape[1], layer.keys.shape[3]
    arena = numbers.new_zeros(2, rows, heads, slots, width)
    arena[:, :, :, :tokens] = numbers.view(rows, tokens, 2, heads, width).permute(2, 0, 3, 1, 4)
    return KeyValues(arena[0], arena[1], layer.shared)


class ModelBatch(Batch):
    """Rows of one state of the model."""

    def __init__(self, reader: ModelReader, state: State) -> None:
        self.reader, self.runner, self.state = reader, reader.runner, state

    def read(self, ids: Ids, before: Ids) -> Tensor:
        known = [(*self.reader.prompt, *row) for row in before]
        with evaluating(self.runner.network):
            if all(len(row) == 1 for row in ids):
                tokens = torch.tensor([row[0] for row in ids], device=self.reader.device)
                logits, self.state = self.runner.step(self.state, tokens, before=known)
            else:
                logits, self.state = self.runner.extend(self.state, ids, known)
        return logits

    def keep(self, rows: np.ndarray) -> None:
        self.state = self.state.compact(torch.from_numpy(rows))

    def fork(self, rows: np.ndarray) -> None:
        self.state = self.state.select(torch.from_numpy(rows))

    def memory(self, rows: np.ndarray, depths: np.ndarray) -> Tensor:
        held = self.state.take()
        self.state = State(held)
        row, slot = (torch.from_numpy(at).to(self.reader.device) for at in (rows, depths - 1))
        parts = []
        for layer in held.layers:
            if isinstance(layer, Recurrent):
                parts.append(layer.hidden[row])
            else:
                parts += [layer.keys[row, :, slot].flatten(1), layer.values[row, :, slot].flatten(1)]
        return torch.cat(parts, 1)
