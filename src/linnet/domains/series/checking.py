"""What files of series hold: counts, rhythm, and everything that training would repair, leave out or refuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from linnet.domains.series.folders import chosen_files
from linnet.domains.series.seasons import timing
from linnet.domains.series.sources import Reading, read_table
from linnet.domains.series.tables import SeriesTable
from linnet.errors import BadInput
from linnet.records import DataRecord

NAMED = 3  # series of one kind that are named


def check(paths: Sequence[Path], reading: Reading, *, frequency: str = "", season: int = 0) -> DataRecord:
    """All findings of a table; a file that cannot be read is refused with its row."""
    named = ", ".join(map(str, paths))
    try:
        files = chosen_files(paths)
        table = read_table(files.train or files.test, reading)
        rhythm = timing(table, frequency, season)
    except BadInput as error:
        return DataRecord(path=named, rows={}, counts={}, problems=(str(error),), refused=True)
    counts = {"class": class_series(table)} if table.labels is not None else {}
    notes = (*files.notes, *table.notes, f"{rhythm.words}; {rhythm.horizon} steps ahead", *remarks(table))
    return DataRecord(path=named, rows=sizes(table), counts=counts, problems=table.problems, notes=notes)


def sizes(table: SeriesTable) -> dict[str, int]:
    found = {
        "series": len(table),
        "steps": len(table.values),
        "channels": len(table.channels),
        "shortest": int(table.lengths.min()),
        "longest": int(table.lengths.max()),
        "missing values": int((~np.isfinite(table.values)).sum()),
    }
    groups = len(set(table.groups))
    return found | ({"groups": groups} if any(table.groups) else {})


def class_series(table: SeriesTable) -> dict[str, int]:
    """Steps of each class where labels change within series, else series."""
    assert table.labels is not None
    firsts = table.labels[table.starts[:-1]]
    whole = np.repeat(firsts, table.lengths)
    labels = firsts if (whole == table.labels).all() else table.labels
    return dict(Counter(labels.tolist()).most_common())


def remarks(table: SeriesTable) -> list[str]:
    """Series that are forecast by rule: those that never move, and those with a single value."""
    single, still = [], []
    for index in range(len(table)):
        known = table.series(index)[np.isfinite(table.series(index)).all(1)]
        if len(known) == 1:
            single.append(f"{table.names[index]} ({table.where[index]})")
        elif len(known) and (known == known[0]).all():
            still.append(f"{table.names[index]} ({table.where[index]})")
    found = []
    for names, what in ((single, "have a single value; their spread is that of a typical step"),
                        (still, "never move; they are forecast as constant")):  # fmt: skip
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            found.append(f"series that {what}: {', '.join(names[:NAMED])}{more}")
    return found
