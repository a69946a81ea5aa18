"""What the tokens of a problem stand for: labels that probes are trained to read, and hypotheses about the carry.

Labels of an answer stand at the step that predicts it, since there a model has to know it.
Legend: column = power of ten, counted from the least significant one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence

from linnet.domains.arithmetic.codec import SPECIALS, ArithmeticCodec
from linnet.domains.contract import Hypothesis

Labels = list[str | None]


def labels_of(codec: ArithmeticCodec, ids: Sequence[int]) -> Mapping[str, Labels]:
    """Labels of each of these ids by their question, as far as the task has them."""
    names = [codec.tokens[i] for i in ids]
    found: dict[str, Labels] = {}
    if codec.task == "add" and not codec.signs:
        found |= {"carry": _of_answer(codec, names, _carry), "digit": _of_answer(codec, names, _digit)}
    if codec.task in ("expression", "polynomial"):
        found["depth"] = _depths(names)
    if codec.task in ("expression", "polynomial", "add", "subtract", "multiply"):
        found["operation"] = _operations(names)
    return found


def _numbers(codec: ArithmeticCodec, names: Sequence[str]) -> list[int]:
    """The operands of a question."""
    question = "".join(name for name in names[: names.index("=")] if name not in SPECIALS)
    turned = codec.reverse == "all"
    return [int(number[::-1] if turned else number) for number in question.split("+")]


def _of_answer(codec: ArithmeticCodec, names: Sequence[str], value: Callable[[Sequence[int], int], int]) -> Labels:
    """A value for each column, at the step that predicts its digit."""
    labels: Labels = [None] * len(names)
    mark = ">" if codec.scratchpad else "="
    if mark not in names:
        return labels
    operands, first = _numbers(codec, names), names.index(mark)
    digits = sum(name.isdigit() for name in names[first + 1 :])
    for index in range(digits):
        column = index if codec.reverse != "none" else digits - 1 - index
        labels[first + index] = str(value(operands, column))
    return labels


def _carry(operands: Sequence[int], column: int) -> int:
    """What is carried into this column."""
    return int(sum(number % 10**column for number in operands)) // int(10**column)


def _digit(operands: Sequence[int], column: int) -> int:
    return sum(operands) // int(10**column) % 10


def _depths(names: Sequence[str]) -> Labels:
    """How many brackets are open after each character of the question."""
    labels, depth = list[str | None](), 0
    end = names.index("=") if "=" in names else len(names)
    for index, name in enumerate(names):
        depth += (name == "(") - (name == ")")
        labels.append(str(depth) if index < end and name not in SPECIALS else None)
    return labels


def _operations(names: Sequence[str]) -> Labels:
    """The operator that was read last, at every step of the question from the first one on.

    A minus is an operator behind a digit or a bracket, and elsewhere the sign of a number.
    """
    labels, last = list[str | None](), None
    end = names.index("=") if "=" in names else len(names)
    for index, (before, name) in enumerate(zip(("", *names), names, strict=False)):
        last = name if name in "+*" or (name == "-" and (before.isdigit() or before == ")")) else last
        labels.append(last if index < end else None)
    return labels


def carry_hypotheses(codec: ArithmeticCodec) -> Mapping[str, tuple[int, Hypothesis]]:
    """For each column of a padded sum: the step that predicts its digit, and the carry into it as a variable."""
    plain = codec.task == "add" and not codec.signs and not codec.scratchpad and codec.operands == 2
    if not plain or codec.width is None:
        return {}
    equals, digits = 2 * codec.width + 2, codec.answer_width()
    found: dict[str, tuple[int, Hypothesis]] = {}
    for column in range(1, digits):
        index = column if codec.reverse != "none" else digits - 1 - column
        found[f"carry.{column}"] = (equals + index, functools.partial(carry_into, codec, column))
    return found


def carry_into(
    codec: ArithmeticCodec, column: int, names: Sequence[str]
) -> tuple[Hashable, Callable[[Hashable], str]]:
    """The carry into this column, and the digit there for each carry."""
    operands = _numbers(codec, names)
    own = sum(_digit([number], column) for number in operands)

    def answer(carry: Hashable) -> str:
        assert isinstance(carry, int)
        return str((own + carry) % 10)

    return _carry(operands, column), answer
