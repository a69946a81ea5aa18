"""Files to one table: CSV, TSV, Parquet (GeoParquet points too), JSON lines, GPX and GeoJSON, plain or `.gz`.

Every row keeps the file and the line it came from, so that a problem can be shown where it stands.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.parsers import expat

import numpy as np

from linnet.domains.places.visits import DAY
from linnet.errors import BadInput, library
from linnet.untrusted import CONVERT, kind_of, lines_of, opened, parse_object, read_bytes, read_object, refusing

if TYPE_CHECKING:
    import polars as pl

Row = dict[str, Any]
GPX = (".gpx", ".gpx.gz")
GEOJSON = (".geojson", ".geojson.gz")
POINTS = ("trkpt", "wpt", "rtept")
TIMES = ("coordTimes", "times")  # of the positions of a line; some programs keep them in coordinateProperties
LONGITUDE_LATITUDE = ("CRS84", "EPSG::4326", "EPSG:4326")
TEXT = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
PARQUET = (".parquet", ".geoparquet", ".pq")
JSON = (".jsonl", ".jsonl.gz")
MARKED = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
TABLES = TEXT + PARQUET + JSON + GPX + GEOJSON
LATEST = 200_000_000_000  # seconds; later moments are in no calendar
FILE, LINE, VISIT, RECORD = "__file__", "__line__", "__visit__", "__record__"  # where a row stands
LONGER = "__longer__"  # the line has more fields than the table has columns
MARKS = (LINE, FILE, VISIT, RECORD, LONGER)
NAMES: dict[str, tuple[str, ...]] = {  # of columns by role; s2_lNN is the role of cells of level NN
    "user": ("user", "user_id", "userid", "uid", "user_name", "username", "person", "agent", "agent_id"),
    "time": (
        "time", "timestamp", "datetime", "ts", "tracked_at", "checkin_time", "check_in_time",
        "utc_time", "utctimestamp", "utc_timestamp", "date_time", "created_at", "checked_in_at",
    ),
    "start": ("started_at", "start_time", "start", "t_start", "arrival", "arrived_at", "begin"),
    "end": ("finished_at", "end_time", "end", "t_end", "departure", "departed_at", "finish", "ended_at"),
    "duration": ("duration_min", "duration", "duration_minutes", "minutes", "stay_min"),
    "start_day": ("start_day", "day"),
    "start_min": ("start_min", "start_minute", "minute"),
    "end_day": ("end_day",),
    "end_min": ("end_min", "end_minute"),
    "weekday": ("weekday", "day_of_week", "dow"),
    "place": (
        "place", "place_id", "location_id", "location", "loc", "loc_id", "poi", "poi_id", "poiid", "venue",
        "venue_id", "venueid", "business_id", "spot", "cluster",
    ),
    "lon": ("lon", "lng", "longitude", "long", "x"),
    "lat": ("lat", "latitude", "y"),
    "offset": ("timezoneoffset", "timezone_offset", "tz_offset", "utc_offset", "offset_min"),
    "split": ("split", "part", "fold"),
    "target": ("valid_target", "is_target"),
    "id": ("visit_id", "id", "checkin_id", "stay_id", "sp_id"),
    "legacy": ("legacy_id",),
}  # fmt: skip


def files_of(paths: Iterable[Path]) -> list[Path]:
    """The files themselves, and the readable ones of a folder in the order of their names."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise BadInput(f"{path} does not exist")
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(TABLES))
            if not inside:
                raise BadInput(f"folder {path} holds no file named {', '.join(TABLES)}")
            found += inside
        else:
            found.append(path)
    if not found:
        raise BadInput("places need --data: a table of visits, check-ins or fixes")
    return found


def read_tables(paths: Sequence[Path], named: Mapping[str, str]) -> pl.DataFrame:
    """All rows of all files, with `__file__` and `__line__`; the files need the same columns in any order."""
    pl = need_polars()
    frames = []
    for index, path in enumerate(paths):
        frame = _plain(_read_table(path, named))
        if LINE not in frame.columns:
            first = 0 if path.name.endswith(PARQUET) else 2 - int(_numbered(named))
            frame = frame.with_columns(pl.int_range(first, first + len(frame), dtype=pl.Int64).alias(LINE))
        frames.append(frame.with_columns(pl.lit(index, dtype=pl.Int32).alias(FILE)))
    wanted = {LONGER, *frames[0].columns}
    for path, frame in zip(paths, frames, strict=True):
        if differing := wanted ^ {LONGER, *frame.columns}:
            names = ", ".join(sorted(differing))
            raise BadInput(f"{path} and {paths[0]} do not have the same columns; they differ in {names}")
    with refusing(
        f"{paths[0]} and the other files have columns of kinds that do not fit", pl.exceptions.PolarsError
    ):
        return pl.concat(frames, how="diagonal_relaxed")


def need_polars() -> Any:
    return library("polars", "reading tables needs polars", "places")


def _read_table(path: Path, named: Mapping[str, str]) -> pl.DataFrame:
    if path.name.endswith(PARQUET):
        return _read_parquet(path)
    if path.name.endswith(JSON):
        return history_frame(json_lines(path))
    if path.name.endswith(GPX + GEOJSON):
        return row_frame(path, read_gpx(path) if path.name.endswith(GPX) else read_geojson(path))
    if not path.name.endswith(TEXT):
        raise BadInput(f"{path} is no table that can be read; use {', '.join(TABLES)}")
    with opened(path) as stream:
        raw = plain_text(stream.read(), path)
    head = raw[: raw.find(b"\n")] if b"\n" in raw else raw
    if not raw.strip():
        raise BadInput(f"{path} is empty")
    separator = max((b"\t", b",", b";"), key=head.count).decode()
    headless = _numbered(named)
    frame = _parse(path, raw, separator, headless=headless)
    if twice := [name for name in frame.columns if f"{name}_duplicated_0" in frame.columns]:
        raise BadInput(f'{path}: two columns are named "{twice[0]}"')
    if headless:
        names = [name for name in frame.columns if name != LONGER]
        frame = frame.rename({name: str(number) for number, name in enumerate(names, 1)})
    return frame


def plain_text(raw: bytes, path: Path) -> bytes:
    """The text in UTF-8 with new lines: spreadsheets save UTF-16 with a mark, and old ones end lines otherwise."""
    named = next((name for mark, name in MARKED if raw.startswith(mark)), "utf-8")
    try:
        raw = raw.decode(named).encode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise BadInput(
            f"{path}, line {line}: byte {raw[error.start]:#04x} is no {named.upper()}; {CONVERT}"
        ) from None
    return raw if b"\n" in raw else raw.replace(b"\r", b"\n")


def _plain(frame: pl.DataFrame) -> pl.DataFrame:
    """Columns of kinds that mean a number or a text as numbers and texts; moments of no calendar are none."""
    pl = need_polars()
    changed = []
    for column in frame:
        kind = column.dtype
        if kind in (pl.Categorical, pl.Enum):
            changed.append(column.cast(pl.String))
        elif kind.is_decimal():
            changed.append(column.cast(pl.Float64))
        elif kind.is_integer() and kind not in (pl.Int8, pl.Int16, pl.Int32, pl.Int64):
            whole = column.cast(pl.Int64, strict=False)
            changed.append(whole if whole.null_count() == column.null_count() else column.cast(pl.String))
        elif kind == pl.Date or isinstance(kind, pl.Datetime):
            stamps = column.to_physical() if kind == pl.Date else column.dt.epoch("s")
            most = LATEST // DAY if kind == pl.Date else LATEST
            changed.append(column.set((stamps.abs() > most).fill_null(False), None))
    return frame.with_columns(changed) if changed else frame


def _parse(path: Path, raw: bytes, separator: str, *, headless: bool) -> pl.DataFrame:
    """The table of a text, with a mark at lines that have more fields than the first line.

    A column that changes its kind after the first rows is read as text.
    """
    pl = need_polars()
    problem = ""
    for longer, kinds in ((False, True), (True, True), (True, False)):
        try:
            frame = pl.read_csv(
                io.BytesIO(raw),
                separator=separator,
                has_header=not headless,
                infer_schema_length=10_000 if kinds else 0,
                encoding="utf8-lossy",
                truncate_ragged_lines=longer,
            )
        except pl.exceptions.PolarsError as error:
            problem = str(error).strip().splitlines()[0]
            continue
        marks = _longer_lines(raw, separator, len(frame.columns), headless=headless) if longer else []
        if not any(marks):
            return frame
        if len(marks) != len(frame):
            raise BadInput(f"{path} has lines of more fields than its first line, and they cannot be told apart")
        return frame.with_columns(pl.Series(LONGER, marks, dtype=pl.Boolean))
    quoted = next((at for at, line in enumerate(raw.split(b"\n"), 1) if line.count(b'"') % 2), None)
    hint = f"; line {quoted} has a quotation mark that is not closed" if quoted else ""
    raise BadInput(f"{path} is no table that can be read: {problem}{hint}")


def _longer_lines(raw: bytes, separator: str, width: int, *, headless: bool) -> list[bool]:
    """Which rows have something beyond the last column; empty fields there are only a separator too many."""
    lines = csv.reader(io.StringIO(raw.decode("utf-8", "replace"), newline=""), delimiter=separator)
    marks = [any(field.strip() for field in fields[width:]) for fields in lines]
    return marks if headless else marks[1:]


def _numbered(named: Mapping[str, str]) -> bool:
    """Columns named by numbers (user=1,time=8): then the files have no line of names."""
    return bool(named) and all(name.isdigit() for name in named.values())


def _read_parquet(path: Path) -> pl.DataFrame:
    pl = need_polars()
    with refusing(f"{path} is no Parquet file that can be read", pl.exceptions.PolarsError):
        frame = pl.read_parquet(path)
        stored = pl.read_parquet_metadata(path).get("geo")
    if stored is None:
        return frame
    try:
        geo = parse_object(stored, f'{path}: its "geo" metadata')
        column = geo["primary_column"]
        about = geo["columns"][column]
        crs, encoding = about.get("crs"), about.get("encoding", "WKB")
        known = {"authority": "OGC", "code": "CRS84"} if crs is None else crs["id"]
        system = (known["authority"], str(known["code"]))
    except (KeyError, TypeError, AttributeError):
        raise BadInput(f'{path}: its "geo" metadata are not those of GeoParquet') from None
    if column not in frame.columns:
        raise BadInput(f'{path}: its "geo" metadata name the column "{column}", which it lacks')
    if system not in (("OGC", "CRS84"), ("EPSG", "4326")):
        found = ":".join(map(str, system))
        raise BadInput(f"{path}: the geometry is in {found}; longitude and latitude (EPSG:4326) are needed")
    if encoding != "WKB" or frame[column].dtype != pl.Binary:
        raise BadInput(f"{path}: geometry encoded as {encoding}; only WKB points are read")
    lon, lat = decode_points(frame[column].to_list(), str(path))
    return frame.drop(column).with_columns(pl.Series("lon", lon), pl.Series("lat", lat))


def decode_points(blobs: Sequence[bytes | None], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Well-known-binary points to longitudes and latitudes; a missing point is NaN."""
    missing = np.array([blob is None or len(blob) == 0 for blob in blobs])
    wrong = [row for row, blob in enumerate(blobs) if not missing[row] and len(blob or b"") != 21]
    if wrong:
        raise BadInput(f"{where}: row {wrong[0]} of the geometry is no plain point ({len(wrong)} such rows)")
    blank = b"\x01\x01\x00\x00\x00" + np.array([np.nan, np.nan]).tobytes()
    packed = np.frombuffer(
        b"".join(blank if gone else bytes(blob or b"") for blob, gone in zip(blobs, missing, strict=True)),
        np.uint8,
    )
    packed = packed.reshape(-1, 21)
    little = packed[:, 0] == 1
    kinds = np.where(little, packed[:, 1], packed[:, 4])
    if (kinds != 1).any():
        raise BadInput(f"{where}: row {int(np.argmax(kinds != 1))} of the geometry is no point")
    body = np.ascontiguousarray(packed[:, 5:])
    both = np.where(little[:, None], body.view("<f8"), body.view(">f8"))
    return both[:, 0], both[:, 1]


def json_lines(path: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(where it stands, its line, the object) of every line that is not blank."""
    for number, line in enumerate(lines_of(path), 1):
        if line.strip():
            where = f"{path.name} line {number}"
            yield where, number, parse_object(line, where)


# Of a visit in JSON; `time` is another word for start.
FIELDS = ("place", "start", "end", "duration", "lon", "lat")


def history_frame(records: Iterable[tuple[str, int, dict[str, Any]]]) -> pl.DataFrame:
    """Histories `{"user", "visits": [{"place", "start", …}, …]}` as one row a visit, in the order of the file."""
    columns: dict[str, list[Any]] = {name: [] for name in ("user", *FIELDS)}
    marks: list[tuple[int, int, int]] = []
    for index, (where, line, record) in enumerate(records):
        visits = record.get("visits")
        if "h_place" in record:
            raise BadInput(f"{where} is a published sample, and what is beside it is not; give samples alone")
        if not isinstance(visits, list) or not visits:
            raise BadInput(f'{where} needs "visits", a list with at least one visit, or the published sample form')
        user = scalar(f"{where}, user", record.get("user"))
        for number, visit in enumerate(visits, 1):
            at = f"{where}, visit {number}"
            if not isinstance(visit, dict):
                raise BadInput(f"{at}: a visit is an object, not {kind_of(visit)}")
            columns["user"].append(user)
            visit = {"start": visit.get("time"), **{name: v for name, v in visit.items() if v is not None}}
            for name in FIELDS:
                columns[name].append(scalar(f"{at}, {name}", visit.get(name)))
            marks.append((index, line, number))
    used = [name for name, v in columns.items() if name in ("place", "start") or any(x is not None for x in v)]
    return marked_frame({name: columns[name] for name in used}, marks)


def marked_frame(columns: Mapping[str, list[Any]], marks: Sequence[tuple[int, int, int]]) -> pl.DataFrame:
    """The visits of one file of JSON; `marks` are the record, the line and the visit of each."""
    found = {name: one_kind(values) for name, values in columns.items()}
    found |= {name: [mark[at] for mark in marks] for at, name in enumerate((RECORD, LINE, VISIT))}
    return need_polars().DataFrame(found | {FILE: [0] * len(marks)})


def row_frame(path: Path, rows: Sequence[Row]) -> pl.DataFrame:
    """Rows as columns; where none names a user that is the name of the file, and the folder is a column too."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        plain = [int(value) if isinstance(value, bool) else value for value in values]
        columns[name] = one_kind([scalar(f"{path}, {name}", value) for value in plain])
    if not {name.lower() for name in names} & set(NAMES["user"]):
        columns["user"] = [path.name.partition(".")[0]] * len(rows)
    columns.setdefault("folder", [path.absolute().parent.name] * len(rows))
    return need_polars().DataFrame(columns, strict=False)


def scalar(where: str, value: Any) -> int | float | str | None:
    """A value of JSON that may stand in a column."""
    if isinstance(value, bool | list | dict):
        raise BadInput(f"{where}: a text or a number is needed, not {kind_of(value)}")
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise BadInput(f"{where}: a number of {len(str(value))} digits is too large")
    return value


def one_kind(values: list[Any]) -> list[Any]:
    """Numbers stay numbers where all are; among texts they are written as texts."""
    kind = next((kind for kind in (str, float) if any(isinstance(value, kind) for value in values)), int)
    return [None if value is None else kind(value) for value in values]


# --- map programs: tracks and waypoints of GPX, points and lines of GeoJSON -------------------------------


def read_gpx(path: Path) -> list[Row]:
    """The points of tracks, routes and waypoints that have a time; `user` is the author, where one is named."""
    points = _Points(str(path))
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = points.refuse_declarations
    parser.StartElementHandler = lambda name, attributes: points.begin(name, attributes, parser.CurrentLineNumber)
    parser.EndElementHandler = points.end
    parser.CharacterDataHandler = points.add
    try:
        parser.Parse(read_bytes(path), True)
    except expat.ExpatError as error:
        raise BadInput(f"{path} is no whole GPX file: {error}") from None
    if not points.rows:
        raise BadInput(f"{path} has no point with a time: tracks are needed that were recorded, not planned")
    return [row | {"user": points.author} for row in points.rows] if points.author else points.rows


@dataclass
class _Points:
    """What a parser of XML meets, put together."""

    path: str
    rows: list[Row] = field(default_factory=list)
    author: str = ""
    _open: list[str] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)
    _point: Row | None = None

    def refuse_declarations(self, *_: object) -> None:
        raise BadInput(f"{self.path} declares a document type, which a GPX file does not need; it is not read")

    def begin(self, name: str, attributes: dict[str, str], line: int) -> None:
        self._open.append(name.rpartition(":")[2])
        self._text.clear()
        if len(self._open) == 1 and self._open[0] != "gpx":
            raise BadInput(f"{self.path} is no GPX file: its first element is <{name}>")
        if self._open[-1] in POINTS:
            at = f"{self.path}, line {line}"
            self._point = {"lon": _degrees(attributes.get("lon"), at), "lat": _degrees(attributes.get("lat"), at)}
            self._point[LINE] = line

    def add(self, text: str) -> None:
        self._text.append(text)

    def end(self, _: str) -> None:
        name, text = self._open.pop(), "".join(self._text).strip()
        self._text.clear()
        if self._point is not None and name == "time" and self._open[-1] in POINTS:
            self._point["time"] = text
        elif self._point is not None and name in POINTS:
            if "time" in self._point:
                self.rows.append(self._point)
            self._point = None
        elif name == "name" and self._open[-1:] == ["author"]:
            self.author = text


def _degrees(text: str | None, where: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise BadInput(f"{where}: a point needs lat and lon in degrees, not {text!r}") from None


def read_geojson(path: Path) -> list[Row]:
    """Points with their properties, and lines whose positions have times."""
    stored = read_object(path)
    _refuse_other_coordinates(stored, path)
    features = stored.get("features") if stored.get("type") == "FeatureCollection" else [stored]
    if not isinstance(features, list):
        raise BadInput(f"{path}: features is {kind_of(features)}, not a list")
    rows = [row for number, one in enumerate(features, 1) for row in _positions(one, number, path)]
    if not rows:
        raise BadInput(f"{path} has no points, and no lines with coordTimes")
    return rows


def _refuse_other_coordinates(stored: dict[str, Any], path: Path) -> None:
    crs = stored.get("crs")
    properties = crs.get("properties") if isinstance(crs, dict) else None
    name = properties.get("name") if isinstance(properties, dict) else None
    if crs is not None and not str(name).endswith(LONGITUDE_LATITUDE):
        raise BadInput(f"{path}: its coordinates are in {name}; longitude and latitude (EPSG:4326) are needed")


def _positions(feature: Any, number: int, path: Path) -> Iterator[Row]:
    """One row a position, with the properties of its feature."""
    where = f"{path}, feature {number}"
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        raise BadInput(f'{where} is no object of the type "Feature"')
    geometry, properties = feature.get("geometry") or {}, feature.get("properties") or {}
    if not isinstance(geometry, dict) or not isinstance(properties, dict):
        raise BadInput(f"{where}: geometry and properties are objects")
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    times = next((properties[name] for name in TIMES if isinstance(properties.get(name), list)), None)
    beside = properties.get("coordinateProperties")
    if times is None and isinstance(beside, dict):
        times = beside.get("times")
    plain = {name: value for name, value in properties.items() if not isinstance(value, dict | list)}
    if kind == "Point":
        yield plain | _position(coordinates, where) | {LINE: number}
    elif kind in ("LineString", "MultiPoint") and isinstance(times, list) and isinstance(coordinates, list):
        if len(times) != len(coordinates):
            raise BadInput(f"{where} has {len(coordinates)} positions and {len(times)} times")
        for moment, position in zip(times, coordinates, strict=True):
            yield plain | {"time": moment} | _position(position, where) | {LINE: number}


def _position(coordinates: Any, where: str) -> Row:
    numbers = coordinates[:2] if isinstance(coordinates, list) else []
    if len(numbers) < 2 or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers):
        raise BadInput(f"{where}: a position is [longitude, latitude]")
    lon, lat = numbers
    if abs(lon) > 360 or abs(lat) > 90:
        raise BadInput(f"{where}: [{lon}, {lat}] is no longitude and latitude in degrees")
    return {"lon": float(lon), "lat": float(lat)}
