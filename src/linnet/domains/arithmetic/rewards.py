"""The reward of a search in arithmetic: what somebody who checks an answer can see of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from linnet.domains.arithmetic.problems import guess_task, read_question, solve
from linnet.errors import BadInput

LENGTH, LEADING, RESIDUE = 0.2, 0.4, 0.2  # what a wrong answer can earn; together less than a right one's 1


@dataclass(frozen=True)
class Exact:
    """1 for the right answer, 0 for others.

    With `partial`, a wrong one gets 0.2 for the right number of digits, up to 0.4 for its share of right leading
    digits, and 0.2 for the right residue modulo 9, which are checks that need no full calculation.
    """

    partial: bool = False
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, texts: Sequence[str], ids: Sequence[Sequence[int]], prompt: str) -> np.ndarray:
        right = answer_to(prompt)
        return np.array([self._reward(text.strip(), right) for text in texts])

    def _reward(self, answer: str, right: str) -> float:
        if answer == right:
            return 1.0
        if not self.partial or not answer.isascii() or not answer.removeprefix("-").isalnum():
            return 0.0
        length = LENGTH * (len(answer) == len(right))
        return length + LEADING * leading(answer, right) + RESIDUE * same_residue(answer, right)


def answer_to(prompt: str) -> str:
    """The right answer to a question such as `12+34=`."""
    question = prompt.partition("=")[0].replace(" ", "")
    try:
        task = guess_task(question)
        return solve(task, read_question(task, True, question))
    except BadInput as error:
        raise BadInput(f"the reward exact checks arithmetic, and cannot read its prompt: {error}") from None


def leading(answer: str, right: str) -> float:
    """The share of the first characters that are right, before the first wrong one; only for the right length."""
    if len(answer) != len(right):
        return 0.0
    same = next(i for i, (one, other) in enumerate(zip(answer, right, strict=True)) if one != other)
    return same / len(right)


def same_residue(answer: str, right: str) -> bool:
    """Whether both are whole decimal numbers that leave the same rest when divided by 9."""
    if not all(text.removeprefix("-").isdecimal() for text in (answer, right)):
        return False
    return int(answer) % 9 == int(right) % 9
