"""Which documents are taken, and which of them are held out: exact counts, drawn as the stream goes by.

The n documents of a corpus are numbered as they are read. A draw is settled by the seed and n alone, and its
memory is one block of marks: neither the sample nor the split needs the corpus in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from linnet.errors import BadInput

MARKS = 1 << 16  # documents decided at a time


@dataclass(frozen=True)
class Draw:
    """`take` of `total` documents, each set of that size equally likely."""

    total: int
    take: int
    seed: int
    purpose: int = 0  # keeps draws of one seed apart

    def __post_init__(self) -> None:
        if not 0 <= self.take <= self.total:
            raise BadInput(f"{self.take:,} documents cannot be taken from {self.total:,}")

    def marks(self) -> Iterator[bool]:
        """One mark a document, in the order of reading."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, self.purpose]))
        left, wanted = self.total, self.take
        while left:
            size = min(MARKS, left)
            here = int(rng.hypergeometric(wanted, left - wanted, size)) if 0 < wanted < left else min(wanted, size)
            block = np.zeros(size, bool)
            block[rng.choice(size, here, replace=False)] = True
            yield from block.tolist()
            left -= size
            wanted -= here


@dataclass(frozen=True)
class Last:
    """The last `take` of `total` documents."""

    total: int
    take: int

    def marks(self) -> Iterator[bool]:
        return (i >= self.total - self.take for i in range(self.total))
