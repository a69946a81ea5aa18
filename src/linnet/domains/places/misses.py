"""The most surprising misses of a run on places: as records, and on a map where coordinates are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from linnet.domains.places.data import visit_rows
from linnet.domains.places.features import VisitRows, departures
from linnet.domains.places.predicting import places_run
from linnet.domains.places.ranking import Answers, answer
from linnet.domains.places.scorer import Scorer
from linnet.domains.places.scores import rank_truth
from linnet.domains.places.systems import first_visits
from linnet.errors import BadInput
from linnet.records import MissRecord
from linnet.workbench.open import located


def misses(
    path: Path | str,
    data: Sequence[Path],
    *,
    split: str | None = None,
    n: int = 20,
    map_file: Path | None = None,
    checkpoint: int | None = None,
    remark: Callable[[str], None] | None = None,
) -> list[MissRecord]:
    """The n samples whose true place surprised the run most, those with the surest wrong answer first.

    `remark` is told how the files were read and what was mended in them.
    """
    opened, codec = places_run(path, checkpoint=checkpoint)
    if not isinstance(opened.network, Scorer):
        raise BadInput("misses are listed for runs of the scorer, which names every place by itself")
    part = opened.run.data.read(codec, located(data), split)
    if remark is not None:
        for note in part.notes:
            remark(note)
    rows = visit_rows(part)
    said = answer(opened.network, rows, region=opened.region)
    found = surprising(rows, said, n)
    if map_file is not None:
        draw_map(rows, found, map_file)
    return [record(rows, said, index) for index in found]


def surprising(rows: VisitRows, said: Answers, n: int) -> list[int]:
    """Samples that were missed, by the probability of the wrong first answer."""
    truth = rows.visits.place[rows.samples.target].astype(np.int64)
    ranked = rank_truth(said.ranking, truth)
    sure = np.zeros(len(rows))
    np.maximum.at(sure, said.ranking.owner, said.ranking.score)
    order = np.argsort(np.where(ranked.rank > 1, -sure, np.inf), kind="stable")
    return [int(index) for index in order[:n] if ranked.rank[index] > 1]


def record(rows: VisitRows, said: Answers, index: int) -> MissRecord:
    visits, samples, ranking = rows.visits, rows.samples, said.ranking
    entries = slice(ranking.starts[index], ranking.starts[index + 1])
    labels, scores = ranking.label[entries], ranking.score[entries]
    truth = int(visits.place[samples.target[index]])
    own = scores[labels == truth]
    probability = float(own[0]) if len(own) else 0.0
    last = int(samples.last[index])
    left = np.datetime64(int(departures(visits)[last]), "s")
    name = visits.places.tolist()
    return MissRecord(
        user=visits.users[visits.user[last]].item(),
        left=str(left).replace("T", " "),
        here=name[visits.place[last]],
        went=name[truth],
        probability=probability,
        rank=float((scores > probability).sum() + 1) if len(own) else None,
        said=name[int(labels[scores.argmax()])],
        said_probability=float(scores.max()),
        first_visit=bool(first_visits(rows)[index]),
    )


def draw_map(rows: VisitRows, found: Sequence[int], file: Path) -> None:
    """An HTML page: the user's places as circles, each miss as a line from where he was to where he went."""
    try:
        import folium
    except ImportError:
        raise BadInput("the map needs folium: pip install linnet[map]") from None
    visits, samples = rows.visits, rows.samples
    if visits.lonlat is None:
        raise BadInput("these visits have no coordinates to draw; give lon and lat columns")
    if file.exists():
        raise BadInput(f"{file} exists; choose another file for the map")
    here = visits.place[samples.last[np.array(found, int)]] if found else np.empty(0, np.int64)
    went = visits.place[samples.target[np.array(found, int)]] if found else np.empty(0, np.int64)
    shown = np.unique(np.concatenate([here, went]))
    places = visits.lonlat[shown]
    page = folium.Map(location=np.nanmean(places[:, ::-1], 0).tolist() if len(shown) else [0, 0], zoom_start=11)
    for place, (lon, lat) in zip(shown.tolist(), places.tolist(), strict=True):
        if np.isfinite(lon):
            folium.CircleMarker([lat, lon], radius=5, tooltip=str(visits.places[place])).add_to(page)
    for index, source, goal in zip(found, here.tolist(), went.tolist(), strict=True):
        line = visits.lonlat[[source, goal]][:, ::-1]
        if np.isfinite(line).all():
            user = visits.users[visits.user[samples.target[index]]]
            folium.PolyLine(line.tolist(), tooltip=f"user {user}", color="crimson").add_to(page)
    page.save(str(file))
