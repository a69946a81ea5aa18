"""Sums and differences as digit matrices: hundreds of thousands of rows framed without a Python loop.

The same bytes as `rows.example` row by row, which is the oracle of this path.
Legend: rows = problems, k = largest operand count, cells = columns of the matrix of ids.
"""

from __future__ import annotations

import numpy as np

from linnet.domains.arithmetic.codec import ArithmeticCodec
from linnet.domains.arithmetic.problems import OPERATORS
from linnet.domains.arithmetic.rows import Supervise
from linnet.rows import Rows

LONGEST_INT64 = 17  # digits whose sums of a few operands fit into 64 bits; longer ones are Python integers


def sum_answers(task: str, operands: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Right answers [rows] of sums or differences of operands [rows, k], of which the first `counts` are there."""
    there = np.where(np.arange(operands.shape[1]) < counts[:, None], operands, 0)
    return there.sum(1) if task == "add" else there[:, 0] - there[:, 1:].sum(1)


def sum_texts(task: str, operands: np.ndarray, counts: np.ndarray) -> list[str]:
    """The questions as a person writes them."""
    operator = OPERATORS[task]
    return [
        operator.join(map(str, row[:count])) for row, count in zip(operands.tolist(), counts.tolist(), strict=True)
    ]


def digit_counts(numbers: np.ndarray) -> np.ndarray:
    """How many digits each number (of any shape, signs left out) is written with."""
    sizes, counts, bound = abs(numbers), np.ones(numbers.shape, np.int64), 10
    largest = int(sizes.max()) if sizes.size else 0
    while bound <= largest:
        counts += (sizes >= bound).astype(np.int64)
        bound *= 10
    return counts


def frame_sums(codec: ArithmeticCodec, operands: np.ndarray, counts: np.ndarray, supervise: Supervise) -> Rows:
    """Framed rows of these sums with their right answers; for codecs without a scratchpad."""
    rows, k = operands.shape
    cells = _Cells(codec, rows)
    everywhere = np.ones(rows, bool)
    cells.symbol(codec.begin, everywhere)
    for position in range(k):
        there = counts > position
        if position:
            cells.symbol(cells.id_of(OPERATORS[codec.task]), there)
        width = codec.width
        cells.number(operands[:, position], there, width, codec.signs, codec.reverse == "all")
    cells.symbol(cells.id_of("="), everywhere)
    question_width = cells.width
    answers = sum_answers(codec.task, operands, counts)
    width = None if codec.width is None else codec.answer_width()
    cells.number(answers, everywhere, width, codec.negative_answers, codec.reverse != "none")
    cells.symbol(codec.end, everywhere)
    ids, kept = np.concatenate(cells.ids, 1), np.concatenate(cells.kept, 1)
    wanted = np.zeros(ids.shape, bool)
    wanted[:, question_width if supervise == "answer" else 1 :] = True
    starts = np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.int64)
    characters = digit_counts(answers) + (answers < 0)
    if supervise == "all":
        there = np.arange(k) < counts[:, None]
        written = digit_counts(operands) + (operands < 0)
        characters += (written * there).sum(1) + counts
    return Rows.of_ids(ids[kept], starts, wanted[kept], characters, characters)


class _Cells:
    """A matrix of ids that grows to the right, and which of its cells are really there."""

    def __init__(self, codec: ArithmeticCodec, rows: int) -> None:
        self.symbol_ids = {symbol: position + 2 for position, symbol in enumerate(codec.symbols)}
        self.rows = rows
        self.ids: list[np.ndarray] = []
        self.kept: list[np.ndarray] = []

    @property
    def width(self) -> int:
        return sum(block.shape[1] for block in self.ids)

    def id_of(self, symbol: str) -> int:
        return self.symbol_ids[symbol]

    def symbol(self, token: int, there: np.ndarray) -> None:
        self.ids.append(np.full((self.rows, 1), token, np.uint16))
        self.kept.append(there[:, None])

    def number(
        self, numbers: np.ndarray, there: np.ndarray, width: int | None, signed: bool, turned: bool
    ) -> None:
        """Sign and digits of each number; without a width, zeros in front are left out."""
        lengths = digit_counts(numbers)
        span = int(lengths.max(initial=1)) if width is None else width
        negative = (numbers < 0).astype(bool)
        if signed and width is not None:
            signs = np.where(negative, self.id_of("-"), self.id_of("_")).astype(np.uint16)
            self.ids.append(signs[:, None])
            self.kept.append(there[:, None])
        elif negative.any():
            self.symbol(self.id_of("-"), there & negative)
        powers = np.array([10**position for position in range(span)], dtype=numbers.dtype)
        digits = (abs(numbers)[:, None] // powers % 10).astype(np.uint16) + np.uint16(self.id_of("0"))
        inside = there[:, None] & ((np.arange(span) < lengths[:, None]) | (width is not None))
        self.ids.append(digits if turned else digits[:, ::-1])
        self.kept.append(inside if turned else inside[:, ::-1])
