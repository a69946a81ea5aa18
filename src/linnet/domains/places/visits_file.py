"""Visits as a table of their own: what `linnet data make visits` writes, and every reader of tables reads again.

Places have names, so that training, scores and predictions mean the same ones; cells stand for coordinates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from linnet.domains.places import cells as s2
from linnet.domains.places.tables import need_polars
from linnet.domains.places.visits import MINUTE, NO_PART, PARTS, Visits
from linnet.errors import BadInput

ENDINGS = (".csv", ".csv.gz", ".parquet")


def writable(out: Path, *, force: bool) -> None:
    if not out.name.endswith(ENDINGS):
        raise BadInput(f"visits are written to {', '.join(ENDINGS)}, not to {out.name}")
    if out.exists() and not force:
        raise BadInput(f"{out} exists; choose another --out, or replace it with --force")


def write_visits(out: Path, visits: Visits) -> None:
    """Times in UTC with the minutes to the local clock beside them; text stays text in Parquet alone."""
    pl = need_polars()
    frame = pl.DataFrame(columns_of(visits))
    if out.name.endswith(".parquet"):
        frame.write_parquet(out)
    else:
        frame.write_csv(out, compression="gzip" if out.name.endswith(".gz") else "uncompressed")


def columns_of(visits: Visits) -> dict[str, Any]:
    """Named as the roles are, so that nothing has to be guessed."""
    stays = bool((visits.end > visits.start).any())
    columns: dict[str, Any] = {"id": visits.id, "user": visits.users[visits.user]}
    columns["start" if stays else "time"] = _written(visits.start)
    if stays:
        columns["end"] = _written(visits.end)
    columns |= {"offset_min": visits.offset // MINUTE, "place": visits.places[visits.place]}
    for level, ids in sorted(visits.cells.items()):
        names = np.array(["" if cell == 0 else token for cell, token in zip(ids, s2.tokens(ids), strict=True)])
        columns[f"s2_l{level}"] = names[visits.place]
    if visits.part is not None:
        names = np.array(["", *PARTS])
        columns["split"] = names[np.where(visits.part == NO_PART, 0, visits.part + 1)]
    if visits.target is not None:
        columns["valid_target"] = visits.target.astype(np.int64)
    return columns


def _written(seconds: np.ndarray) -> np.ndarray:
    return np.char.add(np.datetime_as_string(seconds.astype("datetime64[s]")), "Z")
