"""Next places for histories of a file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linnet.domains.places.codec import PlacesCodec
from linnet.domains.places.copying import CopyModel, filter_of
from linnet.domains.places.data import PlacesData
from linnet.domains.places.features import VisitRows
from linnet.domains.places.ranking import answer, filtered, name_dense
from linnet.domains.places.sample_files import Histories, read_histories
from linnet.domains.places.scorer import Scorer
from linnet.domains.places.scores import Ranking
from linnet.errors import BadInput
from linnet.records import Candidate, PredictionRecord
from linnet.workbench.open import Opened, load, options_of


def places_run(
    path: Path | str, device: str | None = None, precision: str | None = None, checkpoint: int | None = None
) -> tuple[Opened, PlacesCodec]:
    """An opened run on places; any other run is refused."""
    opened = load(path, checkpoint=checkpoint, device=device, precision=precision)
    if not isinstance(opened.codec, PlacesCodec):
        raise BadInput(f"{path} is a run on {opened.run.data.domain}, and only runs on places name next places")
    return opened, opened.codec


@dataclass(frozen=True)
class Predictions:
    """One record a history, in the order of the file; what was mended in it, and how long the naming took."""

    records: tuple[PredictionRecord, ...]
    notes: tuple[str, ...]
    seconds: float  # from histories in memory to named places; opening the run and reading the file not counted
    batch: int

    def __iter__(self) -> Iterator[PredictionRecord]:
        return iter(self.records)


def predict(
    path: Path | str,
    file: Path,
    *,
    k: int = 10,
    settings: tuple[str, ...] = (),
    device: str | None = None,
    precision: str | None = None,
    checkpoint: int | None = None,
) -> Predictions:
    """The k most probable next places of every history, in the order of the file."""
    if k < 1:
        raise BadInput(f"k is {k}; at least one place must be asked for")
    if not file.exists():
        raise BadInput(f"there is no file {file}")
    opened, codec = places_run(path, device, precision, checkpoint)
    data = opened.run.data
    assert isinstance(data, PlacesData)
    chosen = options_of(list(settings), batch=256, **({"filter": ""} if data.reads == "history" else {}))
    histories = read_histories(file, codec, data.reading)
    began = time.perf_counter()
    past = data.reads == "past"
    rows = VisitRows(
        histories.visits, histories.samples, codec, past, data.longest, data.suggestions if past else 0
    )
    network, batch = opened.network, chosen["batch"]
    if isinstance(network, CopyModel):
        kind = filter_of(chosen["filter"] or network.config.filter)
        places, cells = name_dense(network, rows, batch, opened.region)
        records = tuple(_from_dense(filtered(network, places, cells, kind), histories, codec, k))
    else:
        assert isinstance(network, Scorer)
        ranking = answer(network, rows, batch, opened.region).ranking
        records = tuple(_from_ranking(ranking, histories, k))
    return Predictions(records, histories.notes, time.perf_counter() - began, batch)


def _from_ranking(ranking: Ranking, histories: Histories, k: int) -> Iterator[PredictionRecord]:
    for index, name in enumerate(histories.ids):
        entries = slice(ranking.starts[index], ranking.starts[index + 1])
        best = np.argsort(-ranking.score[entries], kind="stable")[:k]
        yield _record(name, histories.visits.places[ranking.label[entries][best]], ranking.score[entries][best])


def _from_dense(
    logits: np.ndarray, histories: Histories, codec: PlacesCodec, k: int
) -> Iterator[PredictionRecord]:
    """A copying network can also copy the class of unseen places; it is named as such."""
    names = np.array(codec.tokens, object)
    for index, name in enumerate(histories.ids):
        shares = np.exp(logits[index] - logits[index].max())
        shares[0] = shares[len(names) :] = 0  # padding, and room in the tables that no place has taken
        shares /= shares.sum()
        best = np.argsort(-shares, kind="stable")[: min(k, int((shares > 0).sum()))]  # forgotten places have none
        yield _record(name, names[best], shares[best])


def _record(name: Any, places: np.ndarray, shares: np.ndarray) -> PredictionRecord:
    candidates = tuple(
        Candidate(value=place, probability=float(share))
        for place, share in zip(places.tolist(), shares.tolist(), strict=True)
    )
    return PredictionRecord(id=name, candidates=candidates)
