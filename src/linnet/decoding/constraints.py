"""Which tokens may come next: a pattern that the text has to match. No torch.

A constraint masks tokens one by one, so its samples are not distributed like those of the model that happen to
satisfy it: a beginning that the model likes is taken even where all that may follow it is unlikely. A finite
set of choices has an exact distribution: see `choices`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from linnet.errors import BadInput, library
from linnet.tokenized_text import whole

REMEMBERED = 256  # beginnings of which a pattern still knows what follows


class Constraint(Protocol):
    def after(self, drawn: Sequence[int]) -> Sequence[int] | None:
        """The ids that may follow these; None where every id may, no id where the sample is complete."""


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
        regex = library("regex", "patterns need the regex library", "text")
        try:
            return regex.compile(self.expression)
        except regex.error as error:
            raise BadInput(f"the pattern {self.expression!r} is no regular expression: {error}") from error

    @functools.cached_property
    def _texts(self) -> tuple[str, ...]:
        """What each id writes; nothing for those that are not allowed."""
        return tuple(piece.decode(errors="ignore") if whole(piece) else "" for piece in self.pieces)

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
        self.after(())

    def after(self, drawn: Sequence[int]) -> Sequence[int] | None:
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
