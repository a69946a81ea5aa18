"""Guesses of what a row draws next, from what stands in it already: names, code and tables repeat themselves.

The tokens that followed the last few ones, where those stood before, are guessed to follow again. A guess costs
nothing but the width of a pass: all guessed tokens are read at once, each position draws with its own random
number, and what was drawn up to the first wrong guess is what single steps would have drawn. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from linnet.decoding.scheduler import Row

LONGEST, SHORTEST = 4, 2  # tokens that have to stand there again


class Written:
    """The tokens of one row, and where each short piece of them was followed by something last."""

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self.ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self.add(ids)

    def add(self, ids: Sequence[int]) -> None:
        for token in ids:
            end = len(self.ids)
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._after[tuple(self.ids[end - length :])] = end
            self.ids.append(token)

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens; none where the last ones stand there for the first time."""
        for length in range(LONGEST, SHORTEST - 1, -1):
            start = self._after.get(tuple(self.ids[-length:])) if length <= len(self.ids) else None
            if start is not None:
                back, guessed = len(self.ids) - start, list[int]()
                for index in range(most):  # a piece that reaches the end goes on as it began
                    guessed.append(self.ids[start + index] if index < back else guessed[index - back])
                return guessed
        return []


class Guesses:
    """What the rows of a batch are guessed to draw."""

    def __init__(self) -> None:
        self._written: dict[int, Written] = {}

    def after(self, row: Row, most: int) -> list[int]:
        """The guess for this row, at most as long as it may go on."""
        written = self._written.setdefault(row.index, Written(row.request.prompt))
        written.add(row.drawn[len(written.ids) - len(row.request.prompt) :])
        return written.guess(min(most, row.left - 1))


def accepted(drawn: Sequence[int], guessed: Sequence[int]) -> int:
    """How many tokens count: those up to the first that was guessed wrong, that one included."""
    right = 0
    while right < len(guessed) and drawn[right] == guessed[right]:
        right += 1
    return right + 1
