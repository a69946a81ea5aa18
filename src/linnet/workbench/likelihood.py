"""The reward `logprob`: how likely a text is under a model, the searched one or that of another run."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from linnet.codecs import Codec
from linnet.decoding.choices import tables
from linnet.decoding.products import packed
from linnet.decoding.runner import Runner
from linnet.errors import BadInput
from linnet.search.reward import Ids
from linnet.workbench.open import Opened, further_ends, load
from linnet.workbench.prompts import after_begin, choice_after, read_prompt

ROWS = 64


@dataclass(frozen=True)
class LogProbability:
    """The log-probability of an answer, its end included: of the searched model, or of `run`.

    An answer that the other run cannot write has none and is excluded. With `per_token` its log-probability is
    divided by the number of its tokens.
    """

    run: str = ""
    per_token: bool = False
    bounds: ClassVar[tuple[float, float]] = (-math.inf, 0.0)

    @property
    def own(self) -> bool:
        """Whether the search knows it already."""
        return not self.run

    @functools.cached_property
    def _model(self) -> tuple[Opened, Runner]:
        opened = load(self.run, precision="float32")
        columns = opened.run.data.further_columns(opened.codec)
        return opened, Runner(packed(opened.model, "float32"), columns=columns)

    def __call__(self, texts: Sequence[str], ids: Sequence[Ids], prompt: str) -> np.ndarray:
        opened, runner = self._model
        codec = opened.codec
        given = read_prompt(opened, prompt, "the prompt").ids
        known = after_begin(codec, given)
        answers = [_ids(codec, known, text) for text in texts]
        ends = [end for end in (codec.end, *further_ends(opened.folder, runner.vocabulary)) if end is not None]
        different = [answer for answer in dict.fromkeys(answers) if answer is not None]
        found: dict[Ids | None, float] = {None: -math.inf}
        if different:
            (table,) = (table for _, table in tables(runner, {given: different}, ends, ROWS))
            found |= zip(different, table.logprobs, strict=True)
        sizes = [len(answer or ()) + bool(ends) for answer in answers]
        logprobs = np.array([found[answer] for answer in answers])
        return logprobs / np.maximum(sizes, 1) if self.per_token else logprobs


def _ids(codec: Codec, prompt: Sequence[int], text: str) -> Ids | None:
    """The ids of an answer; None for one that the codec of the other run does not know."""
    try:
        return choice_after(codec, prompt, text) if text else ()
    except BadInput:
        return None
