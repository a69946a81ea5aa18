"""Files to one table: CSV, TSV and Parquet (GeoParquet points too), plain or `.gz`, one or many, or a folder.

Every row keeps the file and line it came from, so that a problem can be shown where it stands.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from linnet.errors import BadInput
from linnet.untrusted import parse_object

if TYPE_CHECKING:
    import polars as pl

TEXT = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
PARQUET = (".parquet", ".geoparquet", ".pq")
SAMPLES = (".jsonl", ".jsonl.gz")
LINE, FILE = "__line__", "__file__"
LONGER = "__longer__"  # the line has more fields than the table has columns


def files_of(paths: Iterable[Path]) -> list[Path]:
    """The files themselves, and the readable ones of a folder in the order of their names."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise BadInput(f"{path} does not exist")
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.is_file() and p.name.endswith(TEXT + PARQUET + SAMPLES)
            )
            if not inside:
                raise BadInput(f"folder {path} holds no file named {', '.join(TEXT + PARQUET)}")
            found += inside
        else:
            found.append(path)
    if not found:
        raise BadInput("no file was given")
    return found


def read_tables(paths: Sequence[Path], named: Mapping[str, str]) -> pl.DataFrame:
    """All rows of all files, with `__file__` and `__line__`; the files need the same columns in any order."""
    pl = need_polars()
    frames = []
    for index, path in enumerate(paths):
        frame = _read_table(path, named)
        first = 0 if path.name.endswith(PARQUET) else 2 - int(_positions(named))
        lines = pl.int_range(first, first + len(frame), dtype=pl.Int64, eager=True).alias(LINE)
        frames.append(frame.with_columns(lines, pl.lit(index, dtype=pl.Int32).alias(FILE)))
    if any(LONGER in frame.columns for frame in frames):
        whole = pl.lit(False).alias(LONGER)
        frames = [frame if LONGER in frame.columns else frame.with_columns(whole) for frame in frames]
    wanted = set(frames[0].columns)
    for path, frame in zip(paths, frames, strict=True):
        if set(frame.columns) != wanted:
            differing = ", ".join(sorted(wanted ^ set(frame.columns)))
            raise BadInput(f"{path} and {paths[0]} do not have the same columns; they differ in {differing}")
    ordered = [frame.select(frames[0].columns) for frame in frames]
    try:
        return pl.concat(ordered, how="vertical_relaxed") if len(frames) > 1 else frames[0]
    except pl.exceptions.PolarsError as error:
        said = str(error).splitlines()[0]
        raise BadInput(f"{paths[0]} and the other files have columns of kinds that do not fit: {said}") from None


def need_polars():  # type: ignore[no-untyped-def]  # noqa: ANN201 - a module
    try:
        import polars
    except ImportError:
        raise BadInput("reading tables needs polars: pip install linnet[places]") from None
    return polars


def _read_table(path: Path, named: Mapping[str, str]) -> pl.DataFrame:
    if path.name.endswith(PARQUET):
        return _read_parquet(path)
    if not path.name.endswith(TEXT):
        raise BadInput(f"{path} is no table that can be read; use {', '.join(TEXT + PARQUET)}")
    raw = _bytes_of(path)
    head = raw[: raw.find(b"\n")] if b"\n" in raw else raw
    if not raw.strip():
        raise BadInput(f"{path} is empty")
    separator = max((b"\t", b",", b";"), key=head.count).decode()
    headless = _positions(named)
    frame = _parse(path, raw, separator, headless=headless)
    if headless:
        names = [name for name in frame.columns if name != LONGER]
        frame = frame.rename({name: str(place + 1) for place, name in enumerate(names)})
    return frame


def _bytes_of(path: Path) -> bytes:
    if not path.name.endswith(".gz"):
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadInput(f"{path} is no whole gzip file: {error}") from None


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


def _positions(named: Mapping[str, str]) -> bool:
    """Columns named by numbers (user=1,time=8): then the files have no line of names."""
    return bool(named) and all(name.isdigit() for name in named.values())


def _read_parquet(path: Path) -> pl.DataFrame:
    pl = need_polars()
    try:
        frame = pl.read_parquet(path)
        stored = pl.read_parquet_metadata(path).get("geo")
    except pl.exceptions.PolarsError as error:
        raise BadInput(f"{path} is no Parquet file that can be read: {str(error).splitlines()[0]}") from None
    if stored is None:
        return frame
    try:
        geo = parse_object(stored, f'{path}: its "geo" metadata')
        column = geo["primary_column"]
        about = geo["columns"][column]
    except (KeyError, TypeError):
        raise BadInput(f'{path}: its "geo" metadata name no geometry column, as GeoParquet has it') from None
    if column not in frame.columns:
        raise BadInput(f'{path}: its "geo" metadata name the column "{column}", which it lacks')
    crs = about.get("crs")
    authority = (
        (crs or {}).get("id", {"authority": "OGC", "code": "CRS84"})
        if isinstance(crs, dict) or crs is None
        else {}
    )
    if (authority.get("authority"), str(authority.get("code"))) not in (("OGC", "CRS84"), ("EPSG", "4326")):
        raise BadInput(
            f"{path}: the geometry is in {authority or crs}; longitude and latitude (EPSG:4326) are needed"
        )
    if about.get("encoding", "WKB") != "WKB":
        raise BadInput(f"{path}: geometry encoded as {about['encoding']}; only WKB points are read")
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
