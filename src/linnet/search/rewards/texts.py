"""Rewards that read the text of an answer: patterns, labels, a classifier, length.

Each is a frozen dataclass; its fields are what `--set reward.FIELD=value` changes. `bounds` are the least and the
largest reward that it can give.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from linnet.domains.registry import imported
from linnet.errors import BadInput
from linnet.search.reward import Bounds, Ids

SHARE: Bounds = (0.0, 1.0)


@dataclass(frozen=True)
class Regex:
    """1 for an answer in which the pattern is found, 0 for others; with `whole` it has to match all of it."""

    pattern: str
    whole: bool = False
    bounds: ClassVar[Bounds] = SHARE

    def __post_init__(self) -> None:
        try:
            self._compiled  # noqa: B018
        except re.error as error:
            raise BadInput(f"the pattern {self.pattern!r} is no regular expression: {error}") from None

    @functools.cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern)

    def __call__(self, texts: Sequence[str], ids: Sequence[Ids], prompt: str) -> np.ndarray:
        match = self._compiled.fullmatch if self.whole else self._compiled.search
        return np.array([match(text) is not None for text in texts], float)


@dataclass(frozen=True)
class Label:
    """1 for an answer that is this label, whatever its case, spaces and punctuation around it.

    With `after`, such as `Answer:`, what stands behind the last of these words is compared.
    """

    label: str
    after: str = ""
    bounds: ClassVar[Bounds] = SHARE

    def __post_init__(self) -> None:
        if not _plain(self.label):
            raise BadInput(f"the label {self.label!r} has no letter or digit, so no answer could be told from it")

    def __call__(self, texts: Sequence[str], ids: Sequence[Ids], prompt: str) -> np.ndarray:
        wanted = _plain(self.label)
        return np.array([_plain(self._answer(text)) == wanted for text in texts], float)

    def _answer(self, text: str) -> str:
        if not self.after:
            return text
        _, found, rest = text.rpartition(self.after)
        return rest if found else ""


def _plain(text: str) -> str:
    return text.strip(string.whitespace + string.punctuation).casefold()


@dataclass(frozen=True)
class Classifier:
    """The probability of a label under a classifier, `module:function`.

    The function gets texts and gives one result each: a label (1 if it is the wanted one, else 0), or a mapping
    from labels to probabilities.
    """

    function: str
    label: str
    bounds: ClassVar[Bounds] = SHARE

    def __post_init__(self) -> None:
        imported("classifier", self.function)

    def __call__(self, texts: Sequence[str], ids: Sequence[Ids], prompt: str) -> np.ndarray:
        found = imported("classifier", self.function)(list(texts))
        return np.array([self._share(one) for one in found], float)

    def _share(self, found: str | Mapping[str, float]) -> float:
        return float(found == self.label) if isinstance(found, str) else float(found.get(self.label, 0.0))


@dataclass(frozen=True)
class Length:
    """The share of a wanted length that an answer has; longer ones give 1."""

    target: Annotated[int, Field(ge=1)] = 20
    unit: Literal["tokens", "characters", "words"] = "tokens"
    bounds: ClassVar[Bounds] = SHARE

    def __call__(self, texts: Sequence[str], ids: Sequence[Ids], prompt: str) -> np.ndarray:
        if self.unit == "words":
            sizes = [len(text.split()) for text in texts]
        else:
            sizes = [len(one) for one in (ids if self.unit == "tokens" else texts)]
        return np.minimum(np.array(sizes, float) / self.target, 1.0)
