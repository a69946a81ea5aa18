"""A person's own files as training and validation rows: which row goes where, and the codec that they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from linnet.domains.arithmetic.codec import ArithmeticCodec
from linnet.domains.arithmetic.files import Row
from linnet.domains.arithmetic.problems import canonical, hash_point, operands_of, part_of, solve
from linnet.errors import BadInput


class Parted(NamedTuple):
    train: list[Row]
    validation: list[Row]
    notes: tuple[str, ...]


def part_rows(rows: Sequence[Row]) -> Parted:
    """Rows of a test split are never trained on, and no training row asks what a held-out row asks.

    Validation rows are those of a dev or validation split; where there are none, the problems whose stable
    hash falls into the validation share (a tenth).
    """
    test = [row for row in rows if row.split == "test"]
    validation = [row for row in rows if row.split == "validation"]
    train = [row for row in rows if row.split not in ("test", "validation")]
    if not train:
        raise BadInput(f"the data has no training rows ({len(rows)} rows, {len(test)} of a test split)")
    if not validation:
        validation = [row for row in train if part_of(row.task, row.question) == "validation"]
    if not validation:
        chosen = min((hash_point(problem_of(row).encode()), problem_of(row)) for row in train)[1]
        validation = [row for row in train if problem_of(row) == chosen]
    held_out = {problem_of(row) for row in (*validation, *test)}
    kept = [row for row in train if problem_of(row) not in held_out]
    if not kept:
        raise BadInput("the data needs at least two different problems, one to train on and one to validate on")
    drawn = sum(row.split == "validation" for row in validation)
    dropped = len(train) - len(kept) - (0 if drawn else len(validation))
    return Parted(kept, validation, _notes(kept, dropped))


def _notes(train: Sequence[Row], dropped: int) -> tuple[str, ...]:
    notes = []
    if dropped:
        notes.append(f"{dropped} training rows ask what a held-out row asks too and are not trained on")
    wrong = [row for row in train if row.answer != solve(row.task, row.question)]
    if wrong:
        first = wrong[0]
        notes.append(
            f"{len(wrong)} training rows have a wrong answer and are kept as they are; the first is "
            f"{first.line.where}: {first.question}={first.answer}"
        )
    return tuple(notes)


def problem_of(row: Row) -> str:
    return canonical(row.task, row.question)


def codec_for(rows: Sequence[Row], codec: ArithmeticCodec) -> ArithmeticCodec:
    """The same form with room for the longest operands, the most operands and the signs of these rows."""
    operands = [operands_of(row.task, row.question) for row in rows]
    longest = max(len(str(abs(n))) for numbers in operands for n in numbers)
    return ArithmeticCodec(
        codec.task,
        codec.reverse,
        None if codec.width is None else max(codec.width, longest),
        max(codec.operands, *(len(numbers) for numbers in operands), 2),
        codec.signs or min(min(numbers) for numbers in operands) < 0,
        codec.scratchpad,
    )


def checked_pairs(rows: Sequence[Row], codec: ArithmeticCodec) -> list[tuple[str, str]]:
    """Questions and answers that this codec can give back; the first row that it cannot is named."""
    for row in rows:
        try:
            codec.encode(f"{row.question}={row.answer}")
        except BadInput as error:
            raise BadInput(f"{row.line.where}: {error}") from None
    return [(row.question, row.answer) for row in rows]
