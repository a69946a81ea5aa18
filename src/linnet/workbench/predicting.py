"""Next places for histories of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from linnet.domains.places.codec import PlacesCodec
from linnet.domains.places.data import PlacesData
from linnet.domains.places.histories import Histories, read_histories
from linnet.domains.places.rows import VisitRows
from linnet.errors import BadInput
from linnet.model.places.copying import filter_of
from linnet.model.places.published import CopyModel
from linnet.model.places.ranking import answer, filtered, name_dense
from linnet.model.places.scorer import Scorer
from linnet.records import Candidate, PredictionRecord
from linnet.workbench.opening import Opened, load
from linnet.workbench.using import settings_of


def places_run(
    path: Path | str, device: str | None = None, precision: str | None = None
) -> tuple[Opened, PlacesCodec]:
    """An opened run on places; any other run is refused."""
    opened = load(path, device=device, precision=precision)
    if not isinstance(opened.codec, PlacesCodec):
        raise BadInput(f"{path} is a run on {opened.run.data.domain}, and only runs on places name next places")
    return opened, opened.codec


def predict(
    path: Path | str,
    file: Path,
    *,
    k: int = 10,
    settings: tuple[str, ...] = (),
    device: str | None = None,
    precision: str | None = None,
) -> Iterator[PredictionRecord]:
    """The k most probable next places of every history, in the order of the file."""
    if k < 1:
        raise BadInput(f"k is {k}; at least one place must be asked for")
    if not file.exists():
        raise BadInput(f"there is no file {file}")
    chosen = settings_of(list(settings), batch=256, filter="")
    opened, codec = places_run(path, device, precision)
    data = opened.run.data
    assert isinstance(data, PlacesData)
    histories = read_histories(file, codec, tz=data.tz, local=data.local)
    past = data.reads == "past"
    rows = VisitRows(
        histories.visits, histories.samples, codec, past, data.longest, data.suggestions if past else 0
    )
    network = opened.network
    if isinstance(network, CopyModel):
        kind = filter_of(chosen["filter"] or network.config.filter)
        places, cells = name_dense(network, rows, chosen["batch"], opened.region)
        yield from _from_dense(filtered(network, places, cells, kind), histories, codec, k)
    elif isinstance(network, Scorer):
        if chosen["filter"] not in ("", "none"):
            raise BadInput("filter is for the copying networks")
        ranking = answer(network, rows, chosen["batch"], opened.region).ranking
        for index, name in enumerate(histories.ids):
            entries = slice(ranking.starts[index], ranking.starts[index + 1])
            best = np.argsort(-ranking.score[entries], kind="stable")[:k]
            yield _record(
                name, histories.visits.places[ranking.label[entries][best]], ranking.score[entries][best]
            )


def _from_dense(
    logits: np.ndarray, histories: Histories, codec: PlacesCodec, k: int
) -> Iterator[PredictionRecord]:
    """A copying network can also copy the class of unseen places; it is named as such."""
    names = np.array(codec.tokens, object)
    for index, name in enumerate(histories.ids):
        shares = np.exp(logits[index] - logits[index].max())
        shares[0] = 0
        shares /= shares.sum()
        best = np.argsort(-shares[: len(names)], kind="stable")[:k]
        yield _record(name, names[best], shares[best])


def _record(name: Any, places: np.ndarray, shares: np.ndarray) -> PredictionRecord:
    candidates = tuple(
        Candidate(value=place, probability=float(share))
        for place, share in zip(places.tolist(), shares.tolist(), strict=True)
    )
    return PredictionRecord(id=name, candidates=candidates)
