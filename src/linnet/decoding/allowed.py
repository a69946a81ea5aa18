"""Which tokens may come next: a tree of choices, or a pattern that the text has to match.

An allowance is a frozen object that is asked once a token and a row. It returns ids, or None where everything may
come. No id at all means that the sample is complete.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from linnet.errors import BadInput


class Allowed(Protocol):
    def after(self, prompt: Sequence[int], drawn: Sequence[int]) -> Sequence[int] | None:
        """The ids that may follow these drawn ones."""


@dataclass(frozen=True)
class Tree:
    """One of several sequences of ids, as paths of a tree: a hierarchy, a list of names, a set of answers."""

    paths: Mapping[int, Any]  # id -> what follows it
    end: int | None  # drawn where a sequence is complete

    @classmethod
    def of(cls, sequences: Iterable[Sequence[int]], end: int | None) -> Tree:
        """A sequence that is the beginning of another needs an end token to be told from it."""
        paths: dict[int, Any] = {}
        for sequence in sequences:
            if not len(sequence):
                raise BadInput("a choice is empty: there is nothing to generate")
            inside = paths
            for token in (*sequence, *(() if end is None else (end,))):
                inside = inside.setdefault(int(token), {})
        if not paths:
            raise BadInput("there are no choices to choose from")
        return cls(paths, end)

    def after(self, prompt: Sequence[int], drawn: Sequence[int]) -> Sequence[int] | None:
        inside = self.paths
        for token in drawn:
            inside = inside.get(token, {})
        return tuple(inside)


@dataclass(frozen=True)
class Pattern:
    """Text that matches a regular expression as a whole, token by token."""

    expression: str
    tokens: tuple[str, ...]  # what each id writes; "" for ids that write nothing
    end: int | None

    @functools.cached_property
    def _compiled(self) -> Any:
        try:
            import regex
        except ImportError as error:
            raise BadInput("patterns need the regex library: pip install linnet[text]") from error
        try:
            return regex.compile(self.expression)
        except regex.error as error:
            raise BadInput(f"the pattern {self.expression!r} is no regular expression: {error}") from error

    @functools.cached_property
    def _known(self) -> dict[str, tuple[int, ...]]:
        return {}

    def after(self, prompt: Sequence[int], drawn: Sequence[int]) -> Sequence[int] | None:
        written = "".join(self.tokens[token] for token in drawn)
        if written not in self._known:
            self._known[written] = self._find(written)
        return self._known[written]

    def _find(self, written: str) -> tuple[int, ...]:
        match = self._compiled.fullmatch
        going = [
            token
            for token, piece in enumerate(self.tokens)
            if piece and match(written + piece, partial=True) is not None
        ]
        if self.end is not None and match(written) is not None:
            going.append(self.end)
        if not going and match(written) is None:
            raise BadInput(f"no token of this model goes on from {written!r} in the pattern {self.expression!r}")
        return tuple(going)
