"""Captions of the series in a file: by a trained run, or by rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from linnet.domains.series.captions import grammar
from linnet.domains.series.captions.data import CaptionData, captioning, read_series
from linnet.domains.series.captions.facts import measure
from linnet.domains.series.captions.patches import MOST
from linnet.domains.series.captions.scores import facts_of
from linnet.domains.series.captions.writing import greedy
from linnet.domains.tokens import decoder
from linnet.errors import BadInput
from linnet.records import CaptionRecord, NoteRecord
from linnet.workbench.open import Opened, load

ROWS = 64  # series whose captions are written together


def captions_run(path: Path, checkpoint: int | None = None) -> Opened:
    opened = load(path, checkpoint=checkpoint)
    if not isinstance(opened.run.data, CaptionData):
        raise BadInput(f"{path} is no run on captions; train one with: linnet train captions")
    return opened


def captioned(path: Path, files: Sequence[Path], *, rules: bool = False) -> Iterator[CaptionRecord | NoteRecord]:
    """A caption of each series of these files, in their order."""
    opened = captions_run(path)
    found = read_series(files)
    longer = sum(len(values) > MOST for _, values in found)
    if longer:
        yield NoteRecord(
            step=0, text=f"{longer} series are longer than {MOST} values: captions are of the last {MOST}"
        )
    for first in range(0, len(found), ROWS):
        part = [(name, values[-MOST:]) for name, values in found[first : first + ROWS]]
        series = [values for _, values in part]
        if rules:
            texts = [by_rules(values, first + index) for index, values in enumerate(series)]
        else:
            with opened.region():
                texts = greedy(decoder(opened.network), captioning(opened.codec), series)
        for (name, values), text in zip(part, texts, strict=True):
            yield CaptionRecord(id=name, text=text, facts=facts_of(text, values))


def by_rules(values: np.ndarray, seed: int) -> str:
    """A caption whose facts are computed and put into the wordings of the grammar."""
    return grammar.caption(measure(values), np.random.default_rng(seed))
