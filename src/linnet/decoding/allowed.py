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

REMEMBERED = 256  # beginnings of which a pattern still knows what follows


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
        complete = set()
        for sequence in sequences:
            if not len(sequence):
                raise BadInput("a choice is empty: there is nothing to generate")
            inside = paths
            for token in (*sequence, *(() if end is None else (end,))):
                inside = inside.setdefault(int(token), {})
            complete.add(tuple(map(int, sequence)))
        if not paths:
            raise BadInput("there are no choices to choose from")
        tree = cls(paths, end)
        longer = next((known for known in complete if end is None and tree.after((), known)), None)
        if longer is not None:
            raise BadInput(
                f"the choice {list(longer)} begins another one, and this model has no end token to tell"
            )
        return tree

    @functools.cached_property
    def longest(self) -> int:
        """Tokens of the longest choice, its end not counted."""
        deepest, level = 0, [self.paths]
        while level := [after for paths in level for token, after in paths.items() if token != self.end]:
            deepest += 1
        return deepest

    def after(self, prompt: Sequence[int], drawn: Sequence[int]) -> Sequence[int] | None:
        inside = self.paths
        for token in drawn:
            inside = inside.get(token, {})
        return tuple(inside)


@dataclass(frozen=True)
class ByPrompt:
    """An allowance for each prompt."""

    allowances: Mapping[tuple[int, ...], Allowed]

    def after(self, prompt: Sequence[int], drawn: Sequence[int]) -> Sequence[int] | None:
        return self.allowances[tuple(prompt)].after(prompt, drawn)


@dataclass(frozen=True)
class Pattern:
    """Text that matches a regular expression as a whole, token by token.

    Ids that write a part of a character only are never allowed: whether their text matches is not known before
    the rest has come, and there may be no rest that does. A character that no id writes as a whole cannot be
    generated under a pattern, then.
    """

    expression: str
    pieces: Sequence[bytes]  # what each id writes; nothing for begin, end and the like
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
    def _texts(self) -> tuple[str, ...]:
        """What each id writes; nothing for those that are not allowed."""
        return tuple(piece.decode(errors="ignore") if _whole(piece) else "" for piece in self.pieces)

    @functools.cached_property
    def _by_first(self) -> Mapping[str, Sequence[tuple[int, str]]]:
        """Ids and their texts under the first character, so that most need not be looked at."""
        found: dict[str, list[tuple[int, str]]] = {}
        for token, text in enumerate(self._texts):
            if text:
                found.setdefault(text[0], []).append((token, text))
        return found

    @functools.cached_property
    def _known(self) -> dict[str, tuple[int, ...]]:
        return {}

    def check(self) -> None:
        """Refuse what is no regular expression, or cannot even begin."""
        self.after((), ())

    def after(self, prompt: Sequence[int], drawn: Sequence[int]) -> Sequence[int] | None:
        written = "".join(self._texts[token] for token in drawn)
        if written not in self._known:
            if len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[written] = self._find(written)
        return self._known[written]

    def _find(self, written: str) -> tuple[int, ...]:
        match = self._compiled.fullmatch
        going = [
            token
            for first, texts in self._by_first.items()
            if match(written + first, partial=True) is not None
            for token, text in texts
            if len(text) == 1 or match(written + text, partial=True) is not None
        ]
        complete = match(written) is not None
        if self.end is not None and complete:
            going.append(self.end)
        if not going and not complete:
            raise BadInput(f"no token of this model goes on from {written!r} in the pattern {self.expression!r}")
        return tuple(going)


def _whole(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True
