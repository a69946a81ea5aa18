"""Broken files of visits: whatever stands in them, they are read or refused as bad input, and nothing else."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from linnet.domains.places.cleaning import Reading
from linnet.domains.places.codec import PlacesCodec
from linnet.domains.places.data import check
from linnet.domains.places.sample_files import read_histories, sample_lines
from linnet.domains.places.samples import PUBLISHED, divide, make_samples
from linnet.domains.places.visits import legacy_ids
from linnet.errors import BadInput
from places_tables import random_visits

pl = pytest.importorskip("polars", reason="polars is not installed (linnet-sequences[places])")

VISITS = random_visits(1, users=5, visits=80)
PART = divide(VISITS, PUBLISHED)
SAMPLES = make_samples(VISITS, PART, PUBLISHED)
CODEC = PlacesCodec.of(VISITS, PART)
START = np.datetime_as_string(VISITS.start.astype("datetime64[s]")).tolist()
NAMES = ["user", "start", "end", "place", "lon", "lat", "split", "s2_l11", "weekday", "offset_min"]
TABLE = [[100 + user, start, "", place, 116.1, 39.2, "train", "", 3, 480]
         for user, start, place in zip(VISITS.user[:40], START, VISITS.place, strict=False)]  # fmt: skip
TEXTS = ["", "NULL", "nan", "inf", "-1", "1e30", "1e400", "9" * 20, "0", "abc", "2024-13-45", "0001-01-01", "1,5",
         "9999-12-31T23:59:59Z", '"', "12.0", "1.5", "true", "\x00", "+08:00", "35f05134",
         "2024-07-01 10:00:00+99:00"]  # fmt: skip
ROLES = ["time", "x", "s2_l99", "s2_l0", "lat", "valid_target", "id", "duration", "", "start_day", "start_min"]
ZONES = ["UTC", "posixrules", "+08:00", "", "Factory", "UTC+99"]
KINDS: list[Callable[[int], list[object] | pl.Series]] = [
    lambda n: [[1]] * n, lambda n: [{"a": 1}] * n, lambda n: [b"x"] * n, lambda n: [None] * n,
    lambda n: [True] * n,
    lambda n: pl.Series([1] * n).cast(pl.Duration("us")), lambda n: pl.Series([1] * n).cast(pl.Int128),
    lambda n: pl.Series([2**63 + 1] * n, dtype=pl.UInt64), lambda n: pl.Series([1] * n).cast(pl.Time),
    lambda n: pl.Series([2**31 - 1] * n, dtype=pl.Int32).cast(pl.Date), lambda n: [float("nan")] * n,
    lambda n: pl.Series([1] * n).cast(pl.Decimal(10, 2)), lambda n: pl.Series(["a"] * n).cast(pl.Categorical),
    lambda n: pl.Series([2**62] * n).cast(pl.Datetime("ns", "Asia/Shanghai")),
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats() | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
RARELY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path, content: bytes, zone: str = "UTC") -> None:
    path.write_bytes(content)
    check([path], Reading(tz=zone))  # never raises: what is wrong is in the record
    try:
        read_histories(path, CODEC, Reading(local=zone))
    except BadInput as error:
        assert str(error)


@given(st.data(), st.sampled_from(ZONES))
@RARELY
def test_tables(tmp_path: Path, data: st.DataObject, zone: str) -> None:
    names, rows = list(NAMES), [list(map(str, row)) for row in TABLE]
    for column in data.draw(st.lists(st.sampled_from(range(len(NAMES))), max_size=2)):
        names[column] = data.draw(st.sampled_from(ROLES + NAMES))
    for _ in range(data.draw(st.integers(1, 5))):
        row, column = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, len(NAMES) - 1))
        text = data.draw(st.sampled_from(TEXTS))
        for changed in rows if data.draw(st.booleans()) else [rows[row]]:
            changed[column] = text
    content = bytearray("\n".join(",".join(line) for line in [names, *rows]).encode())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[at] = data.draw(st.integers(0, 255))
    read(tmp_path / "m.csv", bytes(content), zone)


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_kinds_of_parquet_columns(tmp_path: Path, kind: int) -> None:
    for name in NAMES:
        frame = pl.DataFrame(TABLE, schema=NAMES, orient="row").with_columns(
            pl.Series(name, KINDS[kind](len(TABLE)))
        )
        stored = io.BytesIO()
        frame.write_parquet(stored)
        read(tmp_path / "m.parquet", stored.getvalue())


@pytest.mark.parametrize(
    "geo",
    ["{", "[]", "[" * 5000, "1" * 6000, '{"primary_column": 1, "columns": {"a": 1}}',
     '{"primary_column": "lon", "columns": []}', '{"primary_column": "lon", "columns": {"lon": {"crs": 5}}}',
     '{"primary_column": "lon", "columns": {"lon": {"crs": {"id": 5}}}}',
     '{"primary_column": "lon", "columns": {"lon": {}}}'],
)  # fmt: skip
def test_metadata_of_geometry(tmp_path: Path, geo: str) -> None:
    stored = io.BytesIO()
    pl.DataFrame(TABLE, schema=NAMES, orient="row").write_parquet(stored, metadata={"geo": geo})
    read(tmp_path / "m.parquet", stored.getvalue())
    assert check([tmp_path / "m.parquet"]).refused


@given(st.data())
@RARELY
def test_lines_of_json(tmp_path: Path, data: st.DataObject) -> None:
    visits = [{"place": int(p), "start": s, "duration": 5} for p, s in zip(VISITS.place[:5], START, strict=False)]
    histories = [{"id": n, "user": 100 + n, "visits": [dict(visit) for visit in visits]} for n in range(3)]
    lines = list(sample_lines(VISITS, SAMPLES, legacy_ids(VISITS, PART)))[:6]
    records = data.draw(st.sampled_from([histories, [json.loads(line) for line in lines]]))
    for _ in range(data.draw(st.integers(1, 3))):
        record = data.draw(st.sampled_from(records))
        inside = record.get("visits")
        if isinstance(inside, list) and data.draw(st.booleans()):
            record = data.draw(st.sampled_from([visit for visit in inside if isinstance(visit, dict)] or [record]))
        key = data.draw(st.sampled_from([*sorted(record), "lon", "end"]))
        if isinstance(record.get(key), list) and record[key] and data.draw(st.booleans()):
            record[key][data.draw(st.integers(0, len(record[key]) - 1))] = data.draw(JSON)
        else:
            record[key] = data.draw(JSON)
    read(tmp_path / "m.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())
