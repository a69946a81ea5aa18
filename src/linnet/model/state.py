"""The memory of a batch of sequences: keys and values, or recurrent vectors.

A state is linear. Passing it to a model consumes it and the state that comes back goes on; using a consumed
state raises, because its buffers have been written to. `select` copies rows and is how a sequence forks; copies
of a row that was told to `share` read the tokens of one row.
Legend: B = rows, Hk = key-value heads, S = slots, P = shared tokens, D = head width, W = model width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from linnet.model.config import ModelConfig


@dataclass(frozen=True)
class KeyValues:
    """The arena of one attention layer; slot s of a row holds its token P + s."""

    keys: Tensor  # [B, Hk, S, D]
    values: Tensor  # [B, Hk, S, D]
    shared: tuple[Tensor, Tensor] | None = None  # keys and values [Hk, P, D] that every row begins with

    def select(self, rows: Tensor) -> KeyValues:
        return replace(self, keys=self.keys.index_select(0, rows), values=self.values.index_select(0, rows))

    def share(self, tokens: int) -> KeyValues:
        """Of one row: its first tokens become what all copies read, and it has no slots of its own left."""
        shared = (self.keys[0, :, :tokens], self.values[0, :, :tokens])
        return KeyValues(self.keys[:, :, :0], self.values[:, :, :0], shared)

    def put(self, rows: Tensor, other: KeyValues, source: Tensor, slots: int) -> None:
        """Overwrite the first slots of these rows by those of `other`."""
        self.keys[rows, :, :slots] = other.keys[source, :, :slots]
        self.values[rows, :, :slots] = other.values[source, :, :slots]

    def compact(self, moved: Tensor, source: Tensor, rows: int) -> KeyValues:
        self.keys[moved], self.values[moved] = self.keys[source], self.values[source]
        return replace(self, keys=self.keys[:rows], values=self.values[:rows])

    def grown(self, slots: int) -> KeyValues:
        def grow(buffer: Tensor) -> Tensor:
            larger = buffer.new_zeros(*buffer.shape[:2], slots, buffer.shape[3])
            larger[:, :, : buffer.shape[2]] = buffer
            return larger

        return replace(self, keys=grow(self.keys), values=grow(self.values))


@dataclass(frozen=True)
class Recurrent:
    """The vector that one recurrent layer carries."""

    hidden: Tensor  # [B, W]

    def select(self, rows: Tensor) -> Recurrent:
        return Recurrent(self.hidden.index_select(0, rows))

    def compact(self, moved: Tensor, source: Tensor, rows: int) -> Recurrent:
        self.hidden[moved] = self.hidden[source]
        return Recurrent(self.hidden[:rows])


LayerMemory = KeyValues | Recurrent


@dataclass(frozen=True)
class Memory:
    """The bare tensors of a state, as layers read and write them.

    `filled` bounds `lengths` from above without asking the device, so that no step waits for a copy.
    """

    layers: tuple[LayerMemory, ...]
    lengths: Tensor  # int64 [B], shared tokens included
    filled: int
    shared: int = 0  # tokens that all rows begin with and that attention layers hold once

    @property
    def slots(self) -> int | None:
        """Room for the tokens of a row that are not shared; None when only recurrent layers remember."""
        return next((m.keys.shape[2] for m in self.layers if isinstance(m, KeyValues)), None)

    def room_for(self, tokens: int) -> Memory:
        """The same memory with at least this many free slots; growth doubles, so copies stay rare."""
        needed, slots = self.filled - self.shared + tokens, self.slots
        if slots is None or needed <= slots:
            return self
        wider = max(needed, 2 * slots)
        layers = tuple(m.grown(wider) if isinstance(m, KeyValues) else m for m in self.layers)
        return replace(self, layers=layers)


class ConsumedStateError(RuntimeError):
    """A state was used after it had been passed on."""


class State:
    """All memory of a batch of rows. Made by `empty`, consumed by a model call, forked by `select`."""

    def __init__(self, memory: Memory) -> None:
        self._memory: Memory | None = memory

    @classmethod
    def empty(
        cls, config: ModelConfig, rows: int, slots: int, *, dtype: torch.dtype, device: torch.device
    ) -> State:
        """No tokens yet, and room for `slots` of them a row (it grows when they are used up)."""

        def layer(mixer: str) -> LayerMemory:
            if mixer == "gru":
                return Recurrent(torch.zeros(rows, config.width, dtype=dtype, device=device))
            shape = (rows, config.kv_heads, slots, config.head_width)
            zeros = torch.zeros(shape, dtype=dtype, device=device)
            return KeyValues(zeros, torch.zeros_like(zeros))

        lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        return cls(Memory(tuple(layer(mixer) for mixer in config.mixers), lengths, 0))

    def _live(self) -> Memory:
        if self._memory is None:
            raise ConsumedStateError(
                "this state was consumed by an earlier call; go on with the state that the call returned, "
                "or fork it with select(rows) before"
            )
        return self._memory

    def take(self) -> Memory:
        """Hand the memory over; this state cannot be used again."""
        memory = self._live()
        self._memory = None
        return memory

    @property
    def lengths(self) -> Tensor:
        """Tokens that each row remembers, int64 [B]."""
        return self._live().lengths

    @property
    def rows(self) -> int:
        return len(self._live().lengths)

    @property
    def filled(self) -> int:
        """No row remembers more tokens than this; known without asking the device."""
        return self._live().filled

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, free slots included."""
        memory = self._live()
        tensors = [memory.lengths]
        for layer in memory.layers:
            if isinstance(layer, Recurrent):
                tensors.append(layer.hidden)
            else:
                tensors += [layer.keys, layer.values, *(layer.shared or ())]
        return sum(t.nbytes for t in tensors)

    def select(self, rows: Tensor) -> State:
        """A copy of these rows in this order (int64; a row may be named many times). This state stays usable."""
        memory = self._live()
        rows = rows.to(memory.lengths.device)
        layers = tuple(layer.select(rows) for layer in memory.layers)
        return State(replace(memory, layers=layers, lengths=memory.lengths.index_select(0, rows)))

    def share(self) -> State:
        """The same single row, whose copies by `select` read its tokens once; consumes this state."""
        memory = self._live()
        if len(memory.lengths) != 1:
            raise ValueError(f"one row can be shared by its copies, and this state has {len(memory.lengths)}")
        if memory.shared:
            raise ValueError("this row shares its first tokens already")
        memory, tokens = self.take(), int(memory.lengths)
        layers = tuple(m.share(tokens) if isinstance(m, KeyValues) else m for m in memory.layers)
        return State(replace(memory, layers=layers, filled=tokens, shared=tokens))

    def put(self, rows: Tensor, other: State, source: Tensor | None = None) -> State:
        """These rows go on as the rows of `other`, whatever they remembered; consumes both states.

        `source` names the row of `other` for each of them (a row may be named many times); None takes all in turn.
        """
        memory, new = self._live(), other._live()
        if _shared_by(memory) != _shared_by(new):
            raise ValueError("rows can only be placed among rows that share the same tokens with them")
        memory, new = self.take().room_for(max(0, new.filled - memory.filled)), other.take()
        rows = rows.to(memory.lengths.device)
        source = torch.arange(len(rows)) if source is None else source
        source = source.to(rows.device)
        for mine, theirs in zip(memory.layers, new.layers, strict=True):
            if isinstance(mine, KeyValues) and isinstance(theirs, KeyValues):
                mine.put(rows, theirs, source, new.filled - new.shared)
            elif isinstance(mine, Recurrent) and isinstance(theirs, Recurrent):
                mine.hidden[rows] = theirs.hidden[source]
        memory.lengths[rows] = new.lengths[source]
        return State(replace(memory, filled=max(memory.filled, new.filled)))

    def compact(self, rows: Tensor) -> State:
        """Only these rows go on, in this order and in the same buffers; consumes this state.

        Row i either stays where it is or comes from behind the rows that stay, so that nothing is copied twice.
        """
        memory = self._live()
        moved = (rows != torch.arange(len(rows))).nonzero()[:, 0]
        if len(rows) and int(rows.max()) >= len(memory.lengths):
            raise ValueError(f"row {int(rows.max())} cannot go on: this state has {len(memory.lengths)}")
        if len(moved) and int(rows[moved].min()) < len(rows):
            raise ValueError("a row stays where it is or comes from behind the rows that stay")
        memory, device = self.take(), memory.lengths.device
        into, source = moved.to(device), rows[moved].to(device)
        layers = tuple(layer.compact(into, source, len(rows)) for layer in memory.layers)
        memory.lengths[into] = memory.lengths[source]
        return State(replace(memory, layers=layers, lengths=memory.lengths[: len(rows)]))

    def reserve(self, tokens: int) -> State:
        """The same state with room for this many more tokens a row; consumes this one."""
        return State(self.take().room_for(tokens))

    def reading(self, filled: int) -> State:
        """The same state, reading at least `filled` tokens a row, so that shapes repeat; consumes this one."""
        memory = self.take()
        return State(replace(memory, filled=max(memory.filled, filled)))

    def truncate(self, length: int | Tensor) -> State:
        """Forget what lies beyond `length` tokens of each row, at no cost; consumes this state.

        A recurrent layer cannot go back: there, truncating to fewer tokens than a row holds raises.
        """
        memory = self._live()
        if isinstance(length, int) and length < 0:
            raise ValueError(f"a state cannot be truncated to {length} tokens")
        wanted = torch.as_tensor(length, device=memory.lengths.device)
        if memory.shared and int(wanted.min()) < memory.shared:
            raise ValueError(f"the first {memory.shared} tokens are shared by all rows and cannot be forgotten")
        shorter = torch.minimum(memory.lengths, wanted)
        recurrent = any(isinstance(layer, Recurrent) for layer in memory.layers)
        if recurrent and not torch.equal(shorter, memory.lengths):
            raise ValueError("a recurrent layer cannot forget its last tokens; fork with select before going on")
        memory = self.take()
        filled = min(memory.filled, length) if isinstance(length, int) else memory.filled
        return State(replace(memory, lengths=shorter, filled=filled))


def _shared_by(memory: Memory) -> tuple[int, ...]:
    """What tells shared tokens apart: equal for states that were forked from the same row."""
    layers = (m for m in memory.layers if isinstance(m, KeyValues) and m.shared is not None)
    return (memory.shared, *(m.shared[0].data_ptr() for m in layers if m.shared is not None))
