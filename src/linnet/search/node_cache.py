"""What a model remembers of the nodes of a tree: one slot of numbers a token, found by the handle of its node.

A slot holds the keys and values of one token in all layers (or the vectors of recurrent layers after it). Slots
are a cache: where they do not suffice, those that were used longest ago make room, the deepest first, and whoever
needs them again computes them again.
Legend: N = slots, n = nodes, T = tokens of the longest path, M = numbers of a token.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from linnet.errors import BadInput

EVICTED = 16  # a part of all slots that is freed at once, so that sorting them stays rare
ROOT = 0  # its handle: the prompt, whose memory is not in slots
NOWHERE = 0  # the slot of zeros that stands for tokens which are not stored


class NodeCache:
    """Nodes by handle, and slots for as many of them as `limit` bytes allow."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device, limit: int) -> None:
        size = width * dtype.itemsize
        self.capacity = limit // size
        if self.capacity < 2:
            raise BadInput(f"{limit:,} bytes of memory hold no token of this model, which takes {size:,} bytes")
        # Pages of memory that is not written to are not taken from the machine.
        self.slots = torch.empty(self.capacity, width, dtype=dtype, device=device)
        self.slots[NOWHERE] = 0
        self.clear()

    def clear(self) -> None:
        """Only the root is left."""
        self.count = 1
        self.parent, self.token = np.full(64, -1, np.int64), np.full(64, -1, np.int64)
        self.depth, self.slot, self.used, self.gone = (np.zeros(64, np.int64) for _ in range(4))
        self._fresh = NOWHERE + 1  # from here on slots have never been used
        self._free = np.zeros(0, np.int64)
        self._clock = 0

    @property
    def stored(self) -> int:
        """How many nodes have slots."""
        return self._fresh - 1 - len(self._free)

    def add(self, parents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Handles of new nodes, of which nothing is stored yet."""
        handles = np.arange(self.count, self.count + len(parents))
        self.count += len(parents)
        if self.count > len(self.parent):
            for name in ("parent", "token", "depth", "slot", "used", "gone"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate((old, np.zeros(max(len(old), len(parents)), np.int64))))
        self.parent[handles], self.token[handles] = parents, tokens
        self.depth[handles], self.slot[handles] = self.depth[parents] + 1, NOWHERE
        return handles

    def paths(self, handles: np.ndarray) -> np.ndarray:
        """The nodes from below the root to each of these, int64 [n, T]; shorter paths end with the root."""
        depths = self.depth[handles]
        found = np.full((len(handles), int(depths.max(initial=0))), ROOT)
        rows, current = np.arange(len(handles)), handles
        for _ in range(found.shape[1]):
            below = self.depth[current] > 0
            found[rows[below], self.depth[current[below]] - 1] = current[below]
            current = np.where(below, self.parent[current], current)
        return found

    def remembered(self, paths: np.ndarray) -> np.ndarray:
        """How many of the first nodes of each path [n, T] are stored."""
        if not paths.shape[1]:
            return np.zeros(len(paths), np.int64)
        missing = self.slot[paths] == NOWHERE
        return np.where(missing.any(1), missing.argmax(1), paths.shape[1])

    def read(self, paths: np.ndarray) -> Tensor:
        """What is stored of these nodes, [n, T, M], and zeros for the others; they count as used now."""
        self._clock += 1
        self.used[paths] = self._clock
        where = torch.from_numpy(self.slot[paths].ravel()).to(self.slots.device)
        return self.slots.index_select(0, where).view(*paths.shape, self.slots.shape[1])

    def vacancy(self, handles: np.ndarray) -> np.ndarray:
        """Which of these nodes [n] (indices, each node once) are to be stored; room is made for them."""
        _, first = np.unique(handles, return_index=True)
        wanted = first[self.slot[handles[first]] == NOWHERE]
        room = self.capacity - 1
        if len(wanted) > room:  # the nodes next to the root are those that are read again
            wanted = wanted[np.argsort(self.depth[handles[wanted]], kind="stable")[:room]]
        lacking = len(wanted) - (self.capacity - self._fresh) - len(self._free)
        if lacking > 0:
            self._evict(max(lacking, self.capacity // EVICTED))
        return wanted

    def write(self, handles: np.ndarray, numbers: Tensor) -> None:
        """Store these numbers [n, M] for nodes that `vacancy` has named."""
        again = min(len(handles), len(self._free))
        slots, self._free = self._free[:again], self._free[again:]
        fresh = np.arange(self._fresh, self._fresh + len(handles) - again)
        self._fresh += len(fresh)
        slots = np.concatenate((slots, fresh))
        self.slots.index_copy_(0, torch.from_numpy(slots).to(self.slots.device), numbers)
        self.slot[handles], self.used[handles] = slots, self._clock

    def release(self, handles: Collection[int]) -> None:
        """Free the slots of these nodes; those above a node that stays are needed for it."""
        self.gone[np.fromiter(handles, np.int64, len(handles))] = 1
        needed = self.gone[: self.count] == 0
        depth = self.depth[: self.count]
        for level in range(int(depth.max()), 0, -1):
            needed[self.parent[np.flatnonzero(needed & (depth == level))]] = True
        self._vacate(np.flatnonzero(~needed & (self.slot[: self.count] != NOWHERE)))

    def _evict(self, count: int) -> None:
        stored = np.flatnonzero(self.slot[: self.count] != NOWHERE)
        order = np.lexsort((-self.depth[stored], self.used[stored]))
        self._vacate(stored[order[:count]])

    def _vacate(self, handles: np.ndarray) -> None:
        self._free = np.concatenate((self._free, self.slot[handles]))
        self.slot[handles] = NOWHERE
