"""Files of series: CSV and Parquet tables, wide (one series a row) and long (one step a row), and folders of them.

Cells that are empty or say NA, NaN, null or ? are missing. Texts where numbers belong, infinite numbers and
those beyond 1e30 are refused with file and row. In a wide row, empty cells at the end are no values. In a long
table the steps of a series keep the order of the file; a time that runs backwards is refused.
"""

from __future__ import annotations

import csv
import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from linnet.domains.series.seasons import frequency_in
from linnet.domains.series.tables import MISSING, Series, SeriesTable, as_numbers
from linnet.domains.series.times import Moments, even_steps, moments_of, seconds_of
from linnet.domains.series.ts_format import read_ts
from linnet.errors import BadInput, counted, nearest
from linnet.untrusted import kind_of, lines_of, refusing

if TYPE_CHECKING:
    import polars as pl

TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz")
PARQUET = (".parquet", ".pq")
ARCHIVE = (".ts", ".ts.gz")
ROLES: Mapping[str, tuple[str, ...]] = {
    "id": (
        "id",
        "series",
        "series_id",
        "item_id",
        "unique_id",
        "case",
        "subject",
        "device",
        "recording",
        "session",
    ),
    "time": ("time", "timestamp", "date", "datetime", "ds", "t", "t_ms", "t_s", "step"),
    "value": ("value", "y", "values"),
    "channel": ("channel", "variable", "dimension", "dim"),
    "label": ("label", "class", "activity", "target_class"),
    "group": ("subject", "user", "person", "patient", "group"),
}
YEARS = (-62_135_596_800, 253_402_300_799)  # seconds since 1970 of the dates that Python has
LONG = ("time", "value", "channel")  # a table with one of these roles has one step a row


@dataclass(frozen=True)
class Cells:
    """A table of texts: one list for each column, with the row of the file of each entry."""

    path: Path
    columns: Mapping[str, list[Any]]
    rows: Sequence[int]  # 1 is the first line of a text file, or the first row of a Parquet file
    headed: bool = True  # else the columns have the numbers 1, 2, ...

    def at(self, index: int) -> str:
        return f"{self.path}, row {self.rows[index]}"


@dataclass(frozen=True)
class Reading:
    """How tables are read: `roles` maps id, time, value, channel, label and group to columns joined by +.

    `where` keeps only rows of a long table with these values: column -> value.
    """

    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    labelled: bool = False  # the first column of a table without headings is the label


def parse_roles(text: str) -> dict[str, tuple[str, ...]]:
    """`id=subject+device,value=ax+ay` as columns of each role."""
    found = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        role, equals, columns = item.partition("=")
        if role not in ROLES or not equals or not columns:
            raise BadInput(f'data.columns: "{item}" is no ROLE=COLUMN of {", ".join(ROLES)}{nearest(role, ROLES)}')
        found[role] = tuple(columns.split("+"))
    return found


def parse_where(text: str) -> dict[str, str]:
    """`device=phone` as column and value."""
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    wrong = next((column for column, equals, value in pairs if not (column and equals)), None)
    if wrong is not None:
        raise BadInput(f'data.where: "{wrong}" is no COLUMN=VALUE')
    return {column: value for column, _, value in pairs}


def read_table(paths: Sequence[Path], reading: Reading) -> SeriesTable:
    """All series of these files, which need the same channels."""
    series: list[Series] = []
    notes: list[str] = []
    problems: list[str] = []
    channels: tuple[str, ...] | None = None
    for path in paths:
        found, names, remarks, wrong = read_file(path, reading)
        if channels is not None and len(names) != len(channels):
            raise BadInput(f"{path} has {counted(len(names), 'channel')}, and {paths[0]} has {len(channels)}")
        channels = channels or names
        series += found
        notes += remarks
        problems += wrong
    if channels is None:
        raise BadInput("no file of series was given")
    frequency = next(filter(None, (frequency_in(path.name) for path in paths)), "")
    return SeriesTable.of(_joined(series, problems), channels, counted_notes(notes), problems, frequency)


def counted_notes(notes: Sequence[str]) -> list[str]:
    """Each note once, with the number of series that it is about."""
    return [note if count == 1 else f"{note} ({count} series)" for note, count in Counter(notes).items()]


def _joined(series: Sequence[Series], problems: list[str]) -> list[Series]:
    """Series of one name become two with different names, and this is remarks once."""
    seen: dict[str, int] = {}
    found = []
    for one in series:
        seen[one.name] = seen.get(one.name, 0) + 1
        again = seen[one.name]
        if again == 2:
            problems.append(f"{one.where}: there is another series {one.name}; this one is named {one.name}#2")
        found.append(one if again == 1 else Series(**{**vars(one), "name": f"{one.name}#{again}"}))
    return found


FileContent = tuple[list[Series], tuple[str, ...], list[str], list[str]]  # series, channels, notes, problems


def read_file(path: Path, reading: Reading) -> FileContent:
    if path.name.endswith(ARCHIVE):
        return read_ts(path)
    cells = read_parquet(path) if path.name.endswith(PARQUET) else read_cells(path)
    roles = find_roles(cells, reading)
    refuse_lists(cells, roles)
    if any(role in roles for role in LONG):
        return _read_long(cells, roles, reading)
    return _read_wide(cells, roles)


def read_cells(path: Path) -> Cells:
    """A text table; a first row without any text is a row of values, and then columns have the numbers 1, 2, …"""
    if not path.name.endswith(TABLES):
        raise BadInput(f"{path} is no table of series; use {', '.join((*TABLES, *PARQUET, *ARCHIVE))}")
    lines = lines_of(path)
    first = next(lines, None)
    if first is None or not first.strip():
        raise BadInput(f"{path} is empty")
    mark = max(("\t", ",", ";", " "), key=first.count)
    head = _split(first, mark)
    headed = not all(_is_number(cell) for cell in head)
    names = head if headed else [str(number) for number in range(1, len(head) + 1)]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(f'{path}: two columns are named "{twice}"')
    rows, numbers = ([], []) if headed else ([head], [1])
    for number, line in enumerate(lines, 2):
        cells = _split(line, mark)
        if not line.strip():
            continue
        if len(cells) > len(names):
            raise BadInput(f"{path}, row {number} has {len(cells)} cells, and the first row has {len(names)}")
        rows.append(cells + [""] * (len(names) - len(cells)))
        numbers.append(number)
    if not rows:
        raise BadInput(f"{path} has no rows below its headings")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return Cells(path, columns, numbers, headed)


def _split(line: str, mark: str) -> list[str]:
    if '"' not in line:
        return [cell.strip() for cell in line.split(mark)] if mark != " " else line.split()
    return [cell.strip() for cell in next(csv.reader([line], delimiter=mark), [])]


def _is_number(cell: str) -> bool:
    if cell.lower() in MISSING:
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_parquet(path: Path) -> Cells:
    try:
        import polars
    except ImportError:
        raise BadInput("Parquet needs polars: pip install 'linnet-sequences[series]'") from None
    with refusing(f"{path} cannot be read as Parquet", polars.exceptions.PolarsError, OSError):
        frame = polars.read_parquet(path)
    if not len(frame):
        raise BadInput(f"{path} has no rows")
    columns = {name: _entries(frame[name], f"{path}, column {name}") for name in frame.columns}
    return Cells(path, columns, range(1, len(frame) + 1))


def _entries(column: pl.Series, where: str) -> list[Any]:
    """The entries of a column of Parquet. Some writers store texts as bytes; far dates are refused."""
    seconds = _seconds(column)
    if seconds is not None and (far := ~seconds.is_between(*YEARS)).any():
        row = (far.arg_true()[0] or 0) + 1
        raise BadInput(f"{where}, row {row}: the time lies outside of the years 1 to 9999")
    with refusing(f"{where} cannot be read"):
        return column.cast(str).to_list() if column.dtype == bytes else column.to_list()


def _seconds(column: pl.Series) -> pl.Series | None:
    """Seconds since 1970, or those of a span; None where the column holds no times."""
    import polars as pl

    if isinstance(column.dtype, pl.Datetime | pl.Duration):
        return column.to_physical() // {"ms": 10**3, "us": 10**6, "ns": 10**9}[column.dtype.time_unit]
    return column.to_physical().cast(pl.Int64) * 86400 if column.dtype == pl.Date else None


def find_roles(cells: Cells, reading: Reading) -> dict[str, tuple[str, ...]]:
    """The columns of each role: those that were named, and else those of a usual name."""
    for role, columns in reading.roles.items():
        for column in columns:
            if column not in cells.columns:
                raise BadInput(
                    f'{cells.path} has no column "{column}" for the {role}{nearest(column, cells.columns)}'
                )
    found = dict(reading.roles)
    if not cells.headed:
        if reading.labelled and "label" not in found:
            found["label"] = ("1",)
        return found
    lower = {name.lower(): name for name in cells.columns}
    for role, usual in ROLES.items():
        there = tuple(lower[name] for name in usual if name in lower)
        if role in found or not there:
            continue
        found[role] = there if role == "id" else there[:1]
    return found


def refuse_lists(cells: Cells, roles: Mapping[str, tuple[str, ...]]) -> None:
    """Parquet may hold lists and tables in a cell; those among values are refused where values are read."""
    for role, columns in roles.items():
        for column, entries in ((column, cells.columns[column]) for column in columns if role != "value"):
            wrong = next((i for i, cell in enumerate(entries) if isinstance(cell, list | dict)), None)
            if wrong is not None:
                given = f"{cells.at(wrong)}, column {column} is {kind_of(entries[wrong])}"
                raise BadInput(f"{given}; a {role} is a text or a number")


def numbers_of(cells: Cells, column: str) -> np.ndarray:
    """float64: the numbers of a column, NaN where missing; a text or an infinite number is refused."""
    return as_numbers(cells.columns[column], lambda index: f"{cells.at(index)}, column {column}")


def _read_wide(cells: Cells, roles: Mapping[str, tuple[str, ...]]) -> FileContent:
    """One series a row. Without an id column the first column is one where it holds texts, or else rows count."""
    names = list(cells.columns)
    taken = {column for columns in roles.values() for column in columns}
    keys = roles.get("id", ())
    if not keys and names[0] not in taken and not all(_is_number(str(cell)) for cell in cells.columns[names[0]]):
        keys = (names[0],)
        _refuse_dates(cells, names[0])
    values = [name for name in names if name not in taken and name not in keys]
    if not values:
        raise BadInput(f"{cells.path} has no columns of values beside {', '.join(names)}")
    rows = list(zip(*(cells.columns[name] for name in values), strict=True))
    series = []
    for index, row in enumerate(rows):
        found = as_numbers(row, functools.partial(_cell_of, cells, index, values))
        known = np.flatnonzero(np.isfinite(found))
        found = found[: known[-1] + 1] if len(known) else found[:0]
        name = "/".join(str(cells.columns[key][index]) for key in keys) if keys else f"row {cells.rows[index]}"
        label = _texts(cells, roles, "label", slice(index, index + 1))
        group = _texts(cells, roles, "group", slice(index, index + 1))
        series.append(Series(name, found[:, None], cells.at(index), label, "" if group is None else str(group[0])))
    return series, ("value",), _doubtful_headings(cells, values), []


def _refuse_dates(cells: Cells, column: str) -> None:
    if all(seconds_of(cell) is not None for cell in cells.columns[column]):
        right = f"--columns time={column} where a row is a step, or id={column} where it is a whole series"
        raise BadInput(f'{cells.path}: the column "{column}" holds dates; name it: {right}')


def _doubtful_headings(cells: Cells, values: Sequence[str]) -> list[str]:
    """A note where headings may be values, so that no series is lost unseen: numbers that do not rise."""
    if not (cells.headed and all(map(_is_number, values))):
        return []
    numbers = [float(name) for name in values if name.lower() not in MISSING]
    if all(one < other for one, other in itertools.pairwise(numbers)):
        return []
    return [f"{cells.path}: row 1 is read as headings; if it is a series, write headings above it"]


def _row_of(cells: Cells, rows: np.ndarray, index: int) -> str:
    return cells.at(int(rows[index]))


def _cell_of(cells: Cells, index: int, values: Sequence[str], column: int) -> str:
    return f"{cells.at(index)}, column {values[column]}"


def _texts(cells: Cells, roles: Mapping[str, tuple[str, ...]], role: str, chosen: slice) -> np.ndarray | None:
    """Texts of a role's column; an empty label is refused."""
    if role not in roles:
        return None
    column = roles[role][0]
    found = [str(cell) for cell in cells.columns[column][chosen]]
    if role == "label":
        for index, text in enumerate(found):
            if text.strip().lower() in MISSING:
                where = cells.at((chosen.start or 0) + index)
                raise BadInput(f"{where}, column {column}: the label is missing; label the row, or leave it out")
    return np.array(found, dtype=object)


def _read_long(cells: Cells, roles: Mapping[str, tuple[str, ...]], reading: Reading) -> FileContent:
    """One step a row; steps with the same id are a series, in the order of the file."""
    chosen = _rows_where(cells, reading.where)
    taken = {column for role, columns in roles.items() if role != "value" for column in columns}
    channels = roles.get("value") or tuple(
        name for name in cells.columns if name not in taken | set(reading.where)
    )
    if not channels:
        raise BadInput(f"{cells.path} has no column of values; name it: data.columns=value=COLUMN")
    for column in channels:
        _refuse_texts(cells, column)
    values = np.stack([numbers_of(cells, column) for column in channels], 1)
    keys = [column for column in roles.get("id", ()) if column not in reading.where]
    names = ["/".join(str(cells.columns[key][i]) for key in keys) for i in chosen] if keys else [""] * len(chosen)
    if "channel" in roles:
        return _read_channels(cells, roles, chosen, names, values[:, 0])
    moments = _moments(cells, roles)
    labels, groups = (_texts(cells, roles, role, slice(None)) for role in ("label", "group"))
    series: list[Series] = []
    notes: list[str] = []
    for name, rows in _by_name(names, chosen).items():
        where = f"{cells.path}, row {cells.rows[rows[0]]}"
        found, index, spacing = values[rows], np.arange(len(rows)), 0.0
        if moments is not None:
            steps = even_steps(moments.take(rows), functools.partial(_row_of, cells, rows))
            index, spacing = steps.index, steps.spacing
            notes += filter(None, [steps.note])
        spread = np.full((int(index[-1]) + 1, len(channels)), np.nan)
        spread[index] = found
        marks = None if labels is None else _filled(labels[rows], index)
        group = "" if groups is None else str(groups[rows[0]])
        series.append(Series(name or cells.path.name, spread, where, marks, group, spacing))
    return series, channels, notes, []


def _refuse_texts(cells: Cells, column: str) -> None:
    if all(isinstance(cell, str) and not _is_number(cell) for cell in cells.columns[column]):
        right = f"--columns id={column} where it tells series apart, or name the values: --columns value=COLUMN"
        raise BadInput(f'{cells.path}: the column "{column}" holds texts and no numbers; name it: {right}')


def _moments(cells: Cells, roles: Mapping[str, tuple[str, ...]]) -> Moments | None:
    if "time" not in roles:
        return None
    column = roles["time"][0]
    return moments_of(cells.columns[column], column, lambda index: f"{cells.at(index)}, column {column}")


def _filled(labels: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Labels of inserted steps are those of the step before them."""
    steps = np.searchsorted(index, np.arange(int(index[-1]) + 1), side="right") - 1
    return np.asarray(labels[steps])


def _rows_where(cells: Cells, wanted: Mapping[str, str]) -> np.ndarray:
    kept = np.ones(len(cells.rows), bool)[: len(next(iter(cells.columns.values())))]
    for column, value in wanted.items():
        if column not in cells.columns:
            raise BadInput(f'{cells.path} has no column "{column}"{nearest(column, cells.columns)}')
        kept &= np.array([str(cell) == value for cell in cells.columns[column]])
    if not kept.any():
        raise BadInput(f"{cells.path} has no row where {', '.join(f'{k} is {v}' for k, v in wanted.items())}")
    return np.flatnonzero(kept)


def _by_name(names: Iterable[str], rows: np.ndarray) -> dict[str, np.ndarray]:
    """The rows of each name, in the order in which the names come."""
    found: dict[str, list[int]] = {}
    for name, row in zip(names, rows.tolist(), strict=True):
        found.setdefault(name, []).append(row)
    return {name: np.array(one) for name, one in found.items()}


def _read_channels(
    cells: Cells,
    roles: Mapping[str, tuple[str, ...]],
    chosen: np.ndarray,
    names: Sequence[str],
    values: np.ndarray,
) -> FileContent:
    """A channel column: the steps of each channel of a series in the order of the file, laid side by side.

    Channels of different lengths are filled up with missing values at the end, and named.
    """
    kinds = [str(kind) for kind in cells.columns[roles["channel"][0]]]
    channels = tuple(dict.fromkeys(kinds[row] for row in chosen))
    series, problems = [], []
    for name, rows in _by_name(names, chosen).items():
        own = [values[[row for row in rows if kinds[row] == channel]] for channel in channels]
        longest = max(map(len, own))
        if any(len(one) != longest for one in own):
            sizes = ", ".join(f"{channel} {len(one)}" for channel, one in zip(channels, own, strict=True))
            problems.append(
                f"{cells.at(rows[0])}: channels of {name} have different lengths ({sizes}); short ones end in "
                f"missing values"
            )
        spread = np.full((longest, len(channels)), np.nan)
        for channel, one in enumerate(own):
            spread[: len(one), channel] = one
        label, group = (_texts(cells, roles, role, slice(rows[0], rows[0] + 1)) for role in ("label", "group"))
        where = cells.at(rows[0])
        series.append(
            Series(name or cells.path.name, spread, where, label, "" if group is None else str(group[0]))
        )
    return series, channels, [], problems
