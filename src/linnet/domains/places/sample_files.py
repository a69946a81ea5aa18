"""Histories and samples in files: the published sample form both ways, and histories to predict from.

A published sample is one JSON object a line with its history as parallel lists; durations and visit ids may be
absent. Read, the samples of a file give back the visits that they mention; a visit that no sample mentions is
unknown, so `past_*` of such samples covers less than that of a visit table. Written from a visit table, they are
the published form byte for byte. `legacy` and `h_legacy` are not read but counted again from the train part of
what is there, so samples that are read and written again may have other numbers in these two fields.

To predict from, there are tables (the history of each user), published samples (each history alone), and lines
such as `{"id", "user", "visits": [{"place", "start" or "time", "end" or "duration", "lon", "lat"}, …]}`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

import numpy as np
from pydantic import ConfigDict, Field, StrictInt, StrictStr
from typing_extensions import TypedDict

from linnet.domains.places import cells as s2
from linnet.domains.places import sources
from linnet.domains.places.cleaning import Reading, clean
from linnet.domains.places.codec import Name, PlacesCodec
from linnet.domains.places.samples import Samples, train_end
from linnet.domains.places.sources import json_lines
from linnet.domains.places.times import MONDAY, day_times
from linnet.domains.places.visits import DAY, LONGEST, MINUTE, NO_PART, PARTS, Visits
from linnet.errors import BadInput
from linnet.files import new_file, write_lines
from linnet.untrusted import checked, shown
from linnet.untrusted import kind_of as json_kind

if TYPE_CHECKING:
    import polars as pl

_WHOLE_TEXT = re.compile(r"[+-]?[0-9]{1,18}(\.0+)?")
_MOST = 10**9
_Id = Annotated[StrictInt, Field(ge=-(1 << 63), lt=1 << 63)] | StrictStr
_Number = Annotated[StrictInt, Field(ge=-(1 << 63), lt=1 << 63)] | None
_Day = Annotated[int, Field(ge=-_MOST, le=_MOST)]
_Minutes = Annotated[int, Field(ge=0, le=_MOST)]
_Weekday = Annotated[int, Field(ge=0, le=6)]
_Minute = Annotated[int, Field(ge=0, le=1439)]
Line = tuple[str, int, dict[str, Any]]  # where it stands, its line, the object


class HistoryLine(TypedDict):
    """What a line to predict from has; further keys are cells and what is not read."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    h_place: list[_Id]
    h_weekday: list[_Weekday]
    h_start_min: list[_Minute]
    h_day_diff: list[_Minutes]  # days before that of the target
    h_duration: NotRequired[list[_Minutes] | None]
    h_visit: NotRequired[list[_Number] | None]


class SampleLine(HistoryLine):
    """A sample, which has a target."""

    user: _Id
    place: _Id
    start_day: _Day
    weekday: _Weekday
    start_min: _Minute
    duration: NotRequired[_Minutes]
    visit: NotRequired[_Number]
    split: NotRequired[Literal["train", "validation", "test"]]


def read_samples(paths: Sequence[Path]) -> tuple[Visits, Samples]:
    """The visits that these samples mention, and the samples on them."""
    lines = [line for path in paths for line in json_lines(path)]
    if not lines:
        raise BadInput(f"{paths[0]} holds no sample")
    levels = levels_of(lines[0][2])
    records = [_complete(SampleLine, where, record, levels) for where, _, record in lines]
    places = [[record["place"], *record["h_place"]] for record in records]
    for what, names in (("user", [[record["user"]] for record in records]), ("place", places)):
        _one_kind(what, [where for where, _, _ in lines], names)
    _each_once([where for where, _, _ in lines], records)
    visits, row_of = _visits(_mentioned(records, levels))
    history = [row_of[key] for record in records for key in _history_keys(record)]
    lengths = np.array([len(record["h_place"]) for record in records])
    target = np.array([row_of[_target_key(record)] for record in records], np.int64)
    part = np.array([PARTS.index(record.get("split", PARTS[0])) for record in records], np.int8)
    of_visit = parts_of(len(visits), target, part, np.array(history), lengths)
    begin, end = visits.bounds[visits.user[target]], train_end(visits, of_visit)[visits.user[target]]
    end = np.maximum(np.minimum(end, target), begin)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return visits, Samples(target, starts, np.array(history, np.int32), begin, end, part)


def parts_of(
    visits: int, target: np.ndarray, part: np.ndarray, history: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """int8 [N]: the part of each visit: that of its target, or else the first of those that know it as history."""
    found = np.full(visits, len(PARTS), np.int8)
    np.minimum.at(found, history, np.repeat(part, lengths))
    found[target] = part
    return np.where(found == len(PARTS), NO_PART, found)


def _complete(kind: Any, where: str, record: dict[str, Any], levels: Sequence[int]) -> dict[str, Any]:
    """The record with its types, or the field that is wrong."""
    found: dict[str, Any] = checked(kind, record, where)
    for level in levels:
        for name in (f"h_s2_l{level}", *([f"s2_l{level}"] if kind is SampleLine else [])):
            tokens = found.get(name)
            if not isinstance(tokens, list if name[0] == "h" else str):
                raise BadInput(f"{where} lacks {name}, which the first line has")
            for token in tokens if isinstance(tokens, list) else [tokens]:
                if not isinstance(token, str) or cell_level(token) != level:
                    raise BadInput(
                        f"{where}: {name} is the token of an S2 cell of level {level}, not {shown(token)}"
                    )
    lengths = {
        name: len(values) for name, values in found.items() if name[:2] == "h_" and isinstance(values, list)
    }
    if len(set(lengths.values())) != 1:
        raise BadInput(f"{where}: the lists of its history differ in length: {lengths}")
    if not found["h_place"]:
        raise BadInput(f"{where} has an empty history")
    return found


@functools.lru_cache(100_000)
def cell_level(token: str) -> int:
    """The level of a cell's token; -1 for a text that is none."""
    found = s2.read_tokens([token])
    return int(s2.levels(found)[0]) if found[0] else -1


def _one_kind(what: str, places: Sequence[str], names: Iterable[Sequence[int | str]]) -> None:
    """Numbers and texts side by side would be sorted, and compared, as texts."""
    first: dict[bool, str] = {}
    for where, some in zip(places, names, strict=True):
        for name in some:
            first.setdefault(isinstance(name, str), where)
    if len(first) > 1:
        raise BadInput(f"{what} is a text ({first[True]}) and a number ({first[False]}); use one of them")


def _each_once(lines: Sequence[str], records: Sequence[dict[str, Any]]) -> None:
    """Refuse a sample that is there twice, as those of a file that was given twice are."""
    seen: dict[_Key, str] = {}
    again = []
    for where, record in zip(lines, records, strict=True):
        key = (record.get("split"), _target_key(record), tuple(_history_keys(record)))
        if (first := seen.setdefault(key, where)) is not where:
            again.append((where, first))
    if again:
        where, first = again[0]
        raise BadInput(
            f"{len(again)} of {len(records)} samples are there twice and would count twice; the first is {where}, "
            f"which is {first} again (was a file given twice?)"
        )


_Key = tuple[Any, ...]  # (user, day, minute, place, visit id or None)


def _history_keys(record: dict[str, Any]) -> list[_Key]:
    ids, user = record.get("h_visit") or [None] * len(record["h_place"]), record["user"]
    days = [record["start_day"] - apart for apart in record["h_day_diff"]]
    return [(user, *rest) for rest in zip(days, record["h_start_min"], record["h_place"], ids, strict=True)]


def _target_key(record: dict[str, Any]) -> _Key:
    return (record["user"], record["start_day"], record["start_min"], record["place"], record.get("visit"))


_Mentioned = dict[_Key, tuple[int, int, tuple[str, ...]]]  # (weekday, duration, cell tokens) of each visit


def _mentioned(records: Sequence[dict[str, Any]], levels: Sequence[int]) -> _Mentioned:
    found: _Mentioned = {}
    for record in records:
        count = len(record["h_place"])
        cells = zip(*(record[f"h_s2_l{level}"] for level in levels), strict=True) if levels else [()] * count
        known = zip(record["h_weekday"], record.get("h_duration") or [0] * count, cells, strict=True)
        found |= zip(_history_keys(record), known, strict=True)
        own = tuple(record[f"s2_l{level}"] for level in levels)
        found.setdefault(_target_key(record), (record["weekday"], record.get("duration", 0), own))
    return found


def levels_of(record: dict[str, Any]) -> list[int]:
    return sorted(int(name[6:]) for name in record if name.startswith("h_s2_l"))


def _visits(table: _Mentioned) -> tuple[Visits, dict[_Key, int]]:
    keys = sorted(table, key=lambda key: (key[0], key[1], key[2], -1 if key[4] is None else key[4]))
    users, user = np.unique(np.array([key[0] for key in keys]), return_inverse=True)
    places, place = np.unique(np.array([key[3] for key in keys]), return_inverse=True)
    day, minute = (np.array([key[at] for key in keys], np.int64) for at in (1, 2))
    weekday = np.array([table[key][0] for key in keys])
    minutes = np.array([table[key][1] for key in keys], np.int64)
    start, offset = day_times(user, day, minute, weekday, "UTC")
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
        offset.astype(np.int32), identifier, users, places, by_level, dated=False,
    )  # fmt: skip
    return visits, {key: row for row, key in enumerate(keys)}


def sample_lines(visits: Visits, samples: Samples, legacy: np.ndarray, *, local: bool = False) -> Iterator[str]:
    """One JSON object a line, train first; `legacy` is [P]. Times are those of the local or of the UTC clock."""
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
        record["start_day"] = of_day[target]
        record |= {name: lists[name][target] for name in ("weekday", "start_min", "duration")}
        record |= {f"s2_l{level}": names[of_place[target]] for level, names in tokens.items()}
        yield json.dumps(record, separators=(",", ":")) + "\n"


@dataclass(frozen=True)
class Histories:
    """Record i is user i of the table, whose last row is a stand-in for the visit to come."""

    ids: tuple[Any, ...]
    visits: Visits
    samples: Samples
    notes: tuple[str, ...] = ()  # what was repaired, with the first rows where it stood


def read_histories(path: Path, codec: PlacesCodec, reading: Reading) -> Histories:
    """All histories of a file, in its order. Places that the run knows are in the table beside those of the file.

    Every record stands alone: what another line says is not used for it.
    """
    reading = reading.model_copy(update={"levels": codec.levels})
    if not path.name.endswith(sources.JSON):
        frame = sources.read_tables([path], reading.columns)
        named = {role: name for role, name in reading.columns.items() if name in frame.columns}
        found = clean([path], frame, reading.model_copy(update={"columns": named}), alone=True)
        if "place" not in found.columns:
            raise BadInput(f"{path} names no places; predictions need the places of the run")
        names = found.visits.users.tolist()
        return _histories(names, names, found.visits, codec, (*found.notes(), *map(str, found.problems)))
    records = list(json_lines(path))
    if not records:
        raise BadInput(f"{path} holds no history")
    published = "h_place" in records[0][2]
    frame = _published_frame(records) if published else sources.history_frame(records)
    plain = {"columns": {}, **({"tz": "UTC", "local": ""} if published else {})}
    found = clean([path], frame, reading.model_copy(update=plain), alone=True)
    if lost := sorted(set(range(len(records))) - set(found.visits.users.tolist())):
        raise BadInput(f"{records[lost[0]][0]} has no visit left:\n  " + "\n  ".join(map(str, found.problems)))
    kind = kind_of(codec.users)
    given = [(where, record.get("user")) for where, _, record in records]
    users = [None if user is None else read_id(f"{where}, user", user, kind) for where, user in given]
    ids = [_name_of(where, record) for where, _, record in records]
    return _histories(ids, users, found.visits, codec, tuple(map(str, found.problems)))


def kind_of(known: Sequence[Name]) -> type:
    """Whether the run's ids are numbers or texts."""
    return int if any(isinstance(name, int) for name in known) else str


def in_kind(name: int | str, kind: type) -> int | str:
    """The name as the run writes its own: "12" is a number where ids are numbers, a text where they are texts."""
    if isinstance(name, str):
        name = name.strip()
        return int(name.partition(".")[0]) if kind is int and _WHOLE_TEXT.fullmatch(name) else name
    return name if kind is int else str(name)


def read_id(where: str, given: Any, kind: type) -> int | str:
    """The name of a place or a user from a program, as the run writes its own."""
    name = given.item() if isinstance(given, np.generic) else given
    if isinstance(name, float) and name.is_integer() and abs(name) < 2**53:
        name = int(name)
    if isinstance(name, bool) or not isinstance(name, int | str) or not str(name).strip():
        raise BadInput(f"{where}: an id is a text or a whole number, not {shown(name)}")
    return in_kind(name, kind)


def _name_of(where: str, record: Mapping[str, Any]) -> int | str | None:
    name = record.get("id", record.get("sample_id"))
    if name is not None and (isinstance(name, bool) or not isinstance(name, int | str)):
        raise BadInput(f"{where}, id: a text or a whole number is needed, not {json_kind(name)}")
    return name


def _published_frame(records: Sequence[Line]) -> pl.DataFrame:
    """The histories of published samples as a table; their days count from the target's day."""
    levels = levels_of(records[0][2])
    columns: dict[str, list[Any]] = {
        name: [] for name in ("place", "start", "duration", *(f"s2_l{n}" for n in levels))
    }
    marks: list[tuple[int, int, int]] = []
    for index, (where, line, record) in enumerate(records):
        record = _complete(HistoryLine, where, record, levels)
        count, apart = len(record["h_place"]), record["h_day_diff"]
        # The last visit's weekday fixes the week; only differences of days matter beside it.
        base = 7 * 1000 + MONDAY + record["h_weekday"][-1] + apart[-1]
        moments = zip(apart, record["h_start_min"], strict=True)
        columns["place"] += record["h_place"]
        columns["start"] += [int((base - days) * DAY + minute * MINUTE) for days, minute in moments]
        columns["duration"] += [min(minutes, LONGEST) for minutes in record.get("h_duration") or [0] * count]
        for level in levels:
            columns[f"s2_l{level}"] += record[f"h_s2_l{level}"]
        marks += [(index, line, number) for number in range(1, count + 1)]
    return sources.marked_frame(columns, marks)


def _histories(
    ids: list[Any], users: list[Any], visits: Visits, codec: PlacesCodec, notes: tuple[str, ...]
) -> Histories:
    """The table with the run's numbers of places, and a stand-in for the next visit at the end of each record.

    Known places keep the numbers that they have in the run, forgotten ones (without a name) among them.
    """
    kind, known = kind_of(codec.places), len(codec.places)
    number = {name: at for at, name in enumerate(codec.places) if name is not None}
    names = [in_kind(name, kind) for name in visits.places.tolist()]
    codes, first = np.unique(visits.place, return_index=True)
    fresh = [code for code in codes[np.argsort(first)].tolist() if names[code] not in number]
    label = np.array([number.get(name, -1) for name in names])
    label[fresh] = known + np.arange(len(fresh))
    places = np.empty(known + len(fresh), object)
    places[:] = [*codec.places, *(names[code] for code in fresh)]
    cells = {}
    for level in codec.levels:
        stored, of_place = codec.cells_of_places(level), np.zeros(len(places), np.uint64)
        if level in visits.cells:
            of_place[label] = visits.cells[level]
        of_place[:known] = np.where(stored > 0, stored, of_place[:known])
        cells[level] = of_place
    lengths, ends = np.diff(visits.bounds), visits.bounds[1:]
    rows = np.insert(np.arange(len(visits)), ends, ends - 1)
    target = np.cumsum(lengths + 1) - 1
    start, end = visits.start[rows], visits.end[rows]
    start[target] = end[target]
    named = np.empty(len(users), object)  # they need not be sorted here
    named[:] = users
    table = Visits(
        visits.user[rows], label[visits.place[rows]].astype(np.int32), start, end, visits.offset[rows],
        np.arange(len(rows)), named, places, cells,
    )  # fmt: skip
    history, begins = np.delete(np.arange(len(rows)), target).astype(np.int32), target - lengths
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    samples = Samples(target, starts, history, begins, begins, np.full(len(lengths), 2, np.int8))
    return Histories(tuple(ids), table, samples, notes)


def write_visits(out: Path, visits: Visits) -> None:
    """Times in UTC with the minutes to the local clock beside them; text stays text in Parquet alone."""
    frame = sources.need_polars().DataFrame(columns_of(visits))
    if not out.name.endswith(".parquet"):
        return write_lines(out, [frame.write_csv()])
    with new_file(out) as hidden:
        frame.write_parquet(hidden)


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
