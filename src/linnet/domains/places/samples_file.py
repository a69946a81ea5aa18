"""The published sample files, both ways: one JSON object a sample, with its history as parallel lists.

Read, the samples of a file give back the visits that they mention; a visit that no sample mentions is
unknown, so `past_*` of such samples covers less than that of a visit table. Written from a visit table, they are
the published form byte for byte. `legacy` and `h_legacy` are not read but counted again from the train part of
what is there, so samples that are read and written again may have other numbers in these two fields.
"""

from __future__ import annotations

import functools
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from linnet.domains.places import cells as s2
from linnet.domains.places.splits import Samples, train_end
from linnet.domains.places.visits import DAY, MINUTE, NO_PART, PARTS, Visits
from linnet.errors import BadInput
from linnet.untrusted import parse_object

LONGEST = 2879  # minutes; durations are capped in the published files
_PER_VISIT = ("h_place", "h_weekday", "h_start_min", "h_duration", "h_day_diff")
_ANY = 1e15
_WHOLE = {  # field -> the least and the most that it may be
    "start_day": (-_ANY, _ANY), "weekday": (0, 6), "start_min": (0, 1439), "duration": (0, _ANY),
    "h_weekday": (0, 6), "h_start_min": (0, 1439), "h_duration": (0, _ANY), "h_day_diff": (-_ANY, _ANY),
}  # fmt: skip
_NEEDED = ("user", "place", "start_day", "weekday", "start_min", *_PER_VISIT)


def read_samples(paths: Sequence[Path]) -> tuple[Visits, Samples]:
    """The visits that these samples mention, and the samples on them."""
    records = [(where, record) for path in paths for where, record in json_lines(path)]
    if not records:
        raise BadInput(f"{paths[0]} holds no sample")
    levels = levels_of(records[0][1])
    for where, record in records:
        _complete(where, record, levels)
    _one_kind_of_name(records)
    _each_once(records)
    table = _mentioned([record for _, record in records])
    visits, row_of = _visits(table)
    history = [row_of[key] for _, record in records for key in _history_keys(record)]
    lengths = np.array([len(record["h_place"]) for _, record in records])
    target = np.array([row_of[_target_key(record)] for _, record in records], np.int64)
    part = np.array([_part(where, record) for where, record in records], np.int8)
    of_visit = np.full(len(visits), NO_PART, np.int8)
    of_visit[history] = np.repeat(part, lengths)
    of_visit[target] = part
    end = train_end(visits, of_visit)[visits.user[target]]
    begin = visits.bounds[visits.user[target]]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    samples = Samples(
        target, starts, np.array(history, np.int32), begin, np.maximum(np.minimum(end, target), begin), part
    )
    return visits, samples


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, the object) of every line that is not blank."""
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        yield where, parse_object(line, where)


def _lines(path: Path) -> Iterator[str]:
    zipped = path.name.endswith(".gz")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if zipped else path.open(encoding="utf-8") as lines:
            yield from lines
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadInput(f"{path} is no whole gzip file: {error}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is no text in UTF-8: {error.reason}") from None


def _complete(where: str, record: dict[str, Any], levels: Sequence[int]) -> None:
    """Refuse a line that lacks something, or holds something of another kind; the field is named."""
    cells = [name for level in levels for name in (f"s2_l{level}", f"h_s2_l{level}")]
    if missing := [name for name in (*_NEEDED, *cells) if name not in record]:
        beside = f" and, as the first line, {', '.join(cells)}" if cells else ""
        raise BadInput(f"{where} lacks {', '.join(missing)}; a sample has {', '.join(_NEEDED)}{beside}")
    lists = [*_PER_VISIT, *(f"h_s2_l{level}" for level in levels)]
    lists += ["h_visit"] if record.get("h_visit") else []
    for name in lists:
        if not isinstance(record[name], list):
            raise BadInput(f"{where}: {name} is a list, one entry a visit, not {record[name]!r}")
    lengths = {name: len(record[name]) for name in lists}
    if len(set(lengths.values())) != 1:
        raise BadInput(f"{where}: the lists of its history differ in length: {lengths}")
    if lengths["h_place"] == 0:
        raise BadInput(f"{where} has an empty history")
    _right_kinds(where, record, levels)
    if min(record["h_day_diff"]) < 0:
        raise BadInput(f"{where}: h_day_diff {min(record['h_day_diff'])} is a day after the target's day")


def _right_kinds(where: str, record: dict[str, Any], levels: Sequence[int]) -> None:
    for name, (least, most) in _WHOLE.items():
        values = record[name] if name.startswith("h_") else [record.get(name, 0)]
        if set(map(type, values)) == {int} and least <= min(values) and max(values) <= most:
            continue  # as nearly all are; what follows looks for the one to be named
        for value in values:
            whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
            if not whole or not least <= value <= most:
                bounds = f" from {least} to {most:.0f}" if most < _ANY else f" from {least}" if least == 0 else ""
                raise BadInput(f"{where}: {name} is a whole number{bounds}, not {value!r}")
    for name, values in (("user", [record["user"]]), ("place", [record["place"]]), ("h_place", record["h_place"])):
        for value in values:
            if type(value) not in (int, str):
                raise BadInput(f"{where}: {name} is a whole number or a text, not {value!r}")
    for name, values in (("visit", [record.get("visit")]), ("h_visit", record.get("h_visit") or [])):
        for value in values:
            if type(value) not in (int, type(None)):
                raise BadInput(f"{where}: {name} is a whole number, not {value!r}")
    for level in levels:
        _tokens_of(where, level, f"s2_l{level}", [record[f"s2_l{level}"]])
        _tokens_of(where, level, f"h_s2_l{level}", record[f"h_s2_l{level}"])


def _tokens_of(where: str, level: int, name: str, tokens: Sequence[Any]) -> None:
    for token in tokens:
        if not isinstance(token, str) or cell_level(token) != level:
            raise BadInput(f"{where}: {name} is the token of an S2 cell of level {level}, not {token!r}")


@functools.lru_cache(100_000)
def cell_level(token: str) -> int:
    """The level of a cell's token; -1 for a text that is none."""
    found = s2.read_tokens([token])
    return int(s2.levels(found)[0]) if found[0] else -1


def _one_kind_of_name(records: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Numbers and texts side by side would be sorted, and compared, as texts."""
    for names in (("user",), ("place", "h_place")):
        first: dict[bool, str] = {}
        for where, record in records:
            for name in names:
                values = record[name] if name.startswith("h_") else [record[name]]
                for kind in set(map(type, values)):
                    first.setdefault(kind is str, where)
        if len(first) > 1:
            raise BadInput(f"{names[0]} is a text ({first[True]}) and a number ({first[False]}); use one of them")


def _each_once(records: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Refuse a sample that is there twice, as those of a file that was given twice are."""
    seen: dict[_Key, str] = {}
    again = []
    for where, record in records:
        key = (record.get("split"), _target_key(record), tuple(_history_keys(record)))
        first = seen.setdefault(key, where)
        if first is not where:
            again.append((where, first))
    if again:
        where, first = again[0]
        raise BadInput(
            f"{len(again)} of {len(records)} samples are there twice and would count twice; the first is {where}, "
            f"which is {first} again (was a file given twice?)"
        )


def _part(where: str, record: dict[str, Any]) -> int:
    split = record.get("split", "train")
    if split not in PARTS:
        raise BadInput(f'{where}: split "{split}" is none of {", ".join(PARTS)}')
    return PARTS.index(split)


_Key = tuple[Any, ...]  # (user, day, minute, place, visit id or None)


def _history_keys(record: dict[str, Any]) -> list[_Key]:
    ids = record.get("h_visit") or [None] * len(record["h_place"])
    days = [record["start_day"] - apart for apart in record["h_day_diff"]]
    user = record["user"]
    return [
        (user, *rest) for rest in zip(days, record["h_start_min"], record["h_place"], ids, strict=True)
    ]  # fmt: skip


def _target_key(record: dict[str, Any]) -> _Key:
    return (record["user"], record["start_day"], record["start_min"], record["place"], record.get("visit"))


def _mentioned(records: Sequence[dict[str, Any]]) -> dict[_Key, tuple[int, int, tuple[str, ...]]]:
    """Each visit once: (weekday, duration, cell tokens)."""
    found: dict[_Key, tuple[int, int, tuple[str, ...]]] = {}
    levels = levels_of(records[0])
    for record in records:
        cells = list(zip(*[record[f"h_s2_l{level}"] for level in levels], strict=True)) or [()] * len(
            record["h_place"]
        )
        for key, weekday, minutes, cell in zip(
            _history_keys(record), record["h_weekday"], record["h_duration"], cells, strict=True
        ):
            found[key] = (weekday, minutes, cell)
        own = tuple(record[f"s2_l{level}"] for level in levels)
        found.setdefault(_target_key(record), (record["weekday"], record.get("duration", 0), own))
    return found


def levels_of(record: dict[str, Any]) -> list[int]:
    return sorted(int(name[6:]) for name in record if name.startswith("h_s2_l"))


def _visits(table: dict[_Key, tuple[int, int, tuple[str, ...]]]) -> tuple[Visits, dict[_Key, int]]:
    keys = sorted(table, key=lambda key: (key[0], key[1], key[2], -1 if key[4] is None else key[4]))
    users, user = np.unique(np.array([key[0] for key in keys]), return_inverse=True)
    places, place = np.unique(np.array([key[3] for key in keys]), return_inverse=True)
    day, minute = (np.array([key[at] for key in keys], np.int64) for at in (1, 2))
    weekday = np.array([table[key][0] for key in keys])
    minutes = np.array([table[key][1] for key in keys], np.int64)
    lead = np.searchsorted(user, np.arange(len(users)))
    shift = ((weekday - day) % 7)[lead][user] + 4  # as `clock.day_times`: the weekday is right, the date invented
    start = (day + shift) * DAY + minute * MINUTE
    identifier = np.array([row if key[4] is None else key[4] for row, key in enumerate(keys)], np.int64)
    count = len(next(iter(table.values()))[2])
    by_level = {}
    for at in range(count):
        ids = s2.from_tokens([table[key][2][at] for key in keys])
        of_place = np.zeros(len(places), np.uint64)
        of_place[place] = ids
        by_level[int(s2.levels(ids[:1])[0])] = of_place
    visits = Visits(
        user.astype(np.int32), place.astype(np.int32), start, start + minutes * MINUTE,
        np.zeros(len(keys), np.int32), identifier, users, places, by_level,
    )  # fmt: skip
    return visits, {key: row for row, key in enumerate(keys)}


def write_samples(
    path: Path, visits: Visits, samples: Samples, legacy: np.ndarray, *, local: bool = False
) -> None:
    """One JSON object a line, train first; `legacy` is [P]. Times are those of the clock that was asked for."""
    with gzip.open(path, "wt", compresslevel=6) if path.name.endswith(".gz") else path.open("w") as out:
        out.writelines(sample_lines(visits, samples, legacy, local=local))


def sample_lines(visits: Visits, samples: Samples, legacy: np.ndarray, *, local: bool = False) -> Iterator[str]:
    """The lines of the file."""
    day = visits.day(local=local)
    since = day - day[visits.bounds[:-1]][visits.user]
    columns = {
        "visit": visits.id, "place": visits.places[visits.place], "legacy": legacy[visits.place],
        "weekday": visits.weekday(local=local), "start_min": visits.minute(local=local),
        "duration": np.minimum(visits.duration, LONGEST),
    }  # fmt: skip
    lists = {name: column.tolist() for name, column in columns.items()}
    tokens = {level: s2.tokens(ids) for level, ids in sorted(visits.cells.items())}
    users, of_place, of_day = visits.users.tolist(), visits.place.tolist(), since.tolist()
    number = [0, 0, 0]
    for index in np.argsort(samples.part, kind="stable").tolist():
        part, target = int(samples.part[index]), int(samples.target[index])
        rows = samples.rows[samples.starts[index] : samples.starts[index + 1]].tolist()
        record: dict[str, Any] = {
            "sample_id": f"{PARTS[part]}-{number[part]:04d}", "split": PARTS[part],
            "user": users[int(visits.user[target])],
        }  # fmt: skip
        number[part] += 1
        record |= {f"h_{name}": [values[row] for row in rows] for name, values in lists.items()}
        record["h_day_diff"] = [of_day[target] - of_day[row] for row in rows]
        record |= {f"h_s2_l{level}": [names[of_place[row]] for row in rows] for level, names in tokens.items()}
        record |= {name: lists[name][target] for name in ("visit", "place", "legacy")}
        record |= {"start_day": of_day[target]}
        record |= {name: lists[name][target] for name in ("weekday", "start_min", "duration")}
        record |= {f"s2_l{level}": names[of_place[target]] for level, names in tokens.items()}
        yield json.dumps(record, separators=(",", ":")) + "\n"
