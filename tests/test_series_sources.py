"""Tables of series: the same series from wide, long and Parquet files, and what is wrong with a file in words."""

from __future__ import annotations

import contextlib
import gzip
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from linnet.domains.series.checking import check
from linnet.domains.series.folders import chosen_files
from linnet.domains.series.seasons import RHYTHMS, cycle_of, detected, timing
from linnet.domains.series.sources import Reading, parse_roles, parse_where, read_table
from linnet.domains.series.tables import Series, SeriesTable, as_numbers
from linnet.domains.series.times import even_steps, moments_of, seconds_of
from linnet.errors import BadInput

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False, width=32)
SERIES = st.lists(st.lists(NUMBERS, min_size=1, max_size=8), min_size=1, max_size=5)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def read(path: Path, columns: str = "", where: str = "", *, labelled: bool = False) -> SeriesTable:
    return read_table([path], Reading(parse_roles(columns), parse_where(where), labelled))


@settings(max_examples=30, deadline=None)
@given(series=SERIES)
def test_wide_and_long_tables_hold_the_same_series(tmp_path_factory: pytest.TempPathFactory, series) -> None:
    folder = tmp_path_factory.mktemp("tables")
    width = max(map(len, series))
    wide = [",".join(["V1", *(f"V{i + 2}" for i in range(width))])]
    wide += [",".join([f"S{n}", *map(repr, one), *[""] * (width - len(one))]) for n, one in enumerate(series)]
    long = ["id,time,value"] + [f"S{n},{t},{v!r}" for n, one in enumerate(series) for t, v in enumerate(one)]
    first = read(written(folder / "wide.csv", "\n".join(wide)))
    (folder / "long.csv.gz").write_bytes(gzip.compress("\n".join(long).encode()))
    second = read(folder / "long.csv.gz")
    assert first.names == second.names == tuple(f"S{n}" for n in range(len(series)))
    np.testing.assert_array_equal(first.starts, second.starts)
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.values[:, 0], [value for one in series for value in one])


def test_parquet_is_read_as_the_same_table(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"id": ["a", "a", "b"], "value": [1.0, None, 3.0]})
    frame.write_parquet(tmp_path / "one.parquet")
    frame.write_csv(tmp_path / "one.csv")
    first, second = read(tmp_path / "one.parquet"), read(tmp_path / "one.csv")
    np.testing.assert_array_equal(first.values, second.values)
    assert first.names == second.names == ("a", "b")


@pytest.mark.parametrize("cell", [[1.0, 2.0], [], {"a": 1}, b"x", [[1]]])
def test_parquet_cells_that_are_no_numbers_are_refused(tmp_path: Path, cell: object) -> None:
    polars = pytest.importorskip("polars")
    polars.DataFrame({"id": ["a", "a"], "value": [cell, cell]}).write_parquet(tmp_path / "odd.parquet")
    with pytest.raises(BadInput, match="column value: .* is no number"):
        read(tmp_path / "odd.parquet")


def test_integers_beyond_all_floats_are_no_numbers() -> None:
    for cells in ([10**400, 1], ["1", 10**400]):
        with pytest.raises(BadInput, match="here: .* is no number"):
            as_numbers(cells, lambda index: "here")


ODD_TEXTS = st.sampled_from(["", "²", "1", "2024-01-01", "NaN"]) | st.text(
    '²٣0123456789-/:+TZ. ano,"', max_size=12
)
ODD_CELLS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=4),
    st.binary(max_size=3), st.lists(st.integers(0, 9), max_size=2), st.just({"a": 1}),
    st.decimals(-9, 9, places=2), st.dates(), st.times(), st.datetimes(), st.timedeltas(),
    st.datetimes(timezones=st.just(UTC)),
)  # fmt: skip
OUTSIDE = ("Date", "Datetime(ms)", "Datetime(us)", "Duration(ms)")  # physical values that Python has no dates for


@settings(max_examples=150, deadline=None)
@given(
    role=st.sampled_from(["id", "time", "value", "label", "group", "channel", "x"]),
    cells=ODD_CELLS.flatmap(lambda cell: st.lists(st.just(cell) | st.none(), min_size=1, max_size=5)),
    kind=st.sampled_from(["", "", "", *OUTSIDE]),
    physical=st.integers(-(2**62), 2**62),
    labelled=st.booleans(),
)
def test_parquet_columns_of_any_kind_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, role: str, cells: list[Any], kind: str, physical: int, labelled: bool
) -> None:
    polars = pytest.importorskip("polars")
    column = polars.Series(role, cells)
    if kind == "Date":
        column = polars.Series(role, [physical % 2**31] * len(cells), polars.Int32).cast(polars.Date)
    elif kind:
        whole, unit = kind.rstrip(")").split("(")
        column = polars.Series(role, [physical] * len(cells)).cast(getattr(polars, whole)(unit))
    frame = polars.DataFrame({"id": ["a"] * len(cells), "value": [1.5] * len(cells), "time": range(len(cells))})
    path = tmp_path_factory.mktemp("odd") / "odd.parquet"
    frame.with_columns(column).write_parquet(path)
    with contextlib.suppress(BadInput):
        assert len(read(path, labelled=labelled).names) >= 1


@settings(max_examples=200, deadline=None)
@given(
    cells=st.lists(ODD_TEXTS, min_size=1, max_size=30),
    width=st.integers(1, 4),
)
@example(cells=["²", "1"], width=1)
def test_any_cells_of_text_are_a_table_or_refused(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str], width: int
) -> None:
    rows = [",".join(cells[first : first + width]) for first in range(0, len(cells), width)]
    path = written(tmp_path_factory.mktemp("odd") / "odd.csv", "\n".join(rows))
    for labelled in (False, True):
        with contextlib.suppress(BadInput):
            assert len(read(path, labelled=labelled).names) >= 1
    timed = "\n".join(["time,value", *(f"{cell.replace(',', '')},1" for cell in cells)])
    with contextlib.suppress(BadInput):
        assert len(read(written(path, timed)).values) >= len(cells)


@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)), st.integers(-1439, 1439), st.sampled_from("T "))
def test_times_with_an_offset_are_those_of_utc(moment: datetime, minutes: int, mark: str) -> None:
    known = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    wanted = (known - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    assert seconds_of(known.isoformat(mark)) == pytest.approx(wanted, abs=0.001)
    assert seconds_of(known) == pytest.approx(wanted, abs=0.001)
    assert seconds_of(f"{known.astimezone(UTC).replace(tzinfo=None).isoformat()}Z") == pytest.approx(
        wanted, abs=0.001
    )


@given(st.lists(st.floats(), min_size=1, max_size=30), st.booleans())
def test_steps_have_increasing_numbers_whatever_the_times(times: list[float], in_order: bool) -> None:
    with contextlib.suppress(BadInput):
        found = even_steps(moments_of(sorted(times) if in_order else times, "t", str), str)
        assert len(found.index) == len(times) and found.index[0] == 0 and (np.diff(found.index) > 0).all()
        assert found.index[-1] < 20 * len(times)


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(40) + b"PAR1")
    with pytest.raises(BadInput, match="a.parquet cannot be read as Parquet"):
        read(tmp_path / "a.parquet")


def test_missing_cells_and_gaps_in_the_times_become_missing_values(tmp_path: Path) -> None:
    dates = ["2024-01-01", "2024-01-02", "2024-01-05", *(f"2024-01-{day:02}" for day in range(6, 29))]
    rows = [f"{date},{number if number != 1 else 'NA'}" for number, date in enumerate(dates)]
    table = read(written(tmp_path / "gaps.csv", "\n".join(["date,value", *rows])))
    np.testing.assert_array_equal(table.values[:6, 0], [0, np.nan, np.nan, np.nan, 2, 3])
    assert table.spacing == 86400 and any("gaps" in note for note in table.notes)
    assert timing(table).frequency == "daily"


def test_repeated_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    table = read(written(tmp_path / "bursts.csv", "t_ms,ax,ay\n0,1,2\n0,3,4\n10,5,6\n"))
    np.testing.assert_array_equal(table.values, [[1, 2], [3, 4], [5, 6]])
    assert table.channels == ("ax", "ay") and "times repeat" in table.notes[0]


def test_ids_join_columns_and_rows_can_be_chosen(tmp_path: Path) -> None:
    text = "subject,device,recording,t,x,label\ns1,phone,1,0,1,SIT\ns1,watch,1,0,2,SIT\ns2,phone,1,0,3,WALK\n"
    table = read(written(tmp_path / "har.csv", text), where="device=phone")
    assert table.names == ("s1/1", "s2/1") and table.groups == ("s1", "s2")
    assert table.labels is not None and table.labels.tolist() == ["SIT", "WALK"]


def test_channels_of_a_channel_column_lie_side_by_side_and_short_ones_are_named(tmp_path: Path) -> None:
    text = "id,channel,value\na,x,1\na,y,10\na,x,2\na,y,20\na,x,3\n"
    table = read(written(tmp_path / "channels.csv", text))
    np.testing.assert_array_equal(table.values, [[1, 10], [2, 20], [3, np.nan]])
    assert "x 3, y 2" in table.problems[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,value\na,1\na,much\n", r'row 3, column value: "much" is no number'),
        ("id,value\na,1\na,inf\n", "row 3, column value: inf is not a finite number"),
        ("V1,V2\nW1,1\nW2,2,3\n", "row 3 has 3 cells, and the first row has 2"),
        ("id,time,value\na,2,1\na,1,1\n", "row 3: the time runs backwards"),
        ("id,time,value\na,soon,1\n", 'row 2, column time: "soon" is no time'),
        ("label,v1\nA,1\n,2\n", "row 3, column label: the label is missing"),
        ("id,value\na,\n", "a has no value and is left out"),
        ("", "is empty"),
        ("when,sold\n2024-01-01,3\n2024-01-02,4\n", "dates; name it: --columns time=when"),
        ("date,shop,sold\n2024-01-01,A,4\n2024-01-01,B,5\n", "no numbers; name it: --columns id=shop"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_row(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read(written(tmp_path / "wrong.csv", text))


def test_a_row_of_values_that_is_read_as_headings_is_named(tmp_path: Path) -> None:
    table = read(written(tmp_path / "wide.csv", "a,5,2,3\nb,2,3,4\n"))
    assert table.names == ("b",) and "row 1 is read as headings" in table.notes[0]
    assert not read(written(tmp_path / "wide.csv", "id,0,1,2\nb,2,3,4\n")).notes


def test_a_folder_keeps_its_test_part_and_other_tables_aside(tmp_path: Path) -> None:
    for name, text in {
        "Weekly-train.csv": "V1,V2,V3\nW1,1,2\n",
        "Weekly-test.csv": "V1,V2\nW1,3\n",
        "scores.csv": "a,b\n1,2\n",
        "README.md": "words",
    }.items():
        written(tmp_path / name, text)
    found = chosen_files([tmp_path])
    assert [file.name for file in (*found.train, *found.test)] == ["Weekly-train.csv", "Weekly-test.csv"]
    assert "scores.csv" in found.notes[0]
    table = read_table(found.train, Reading())
    assert table.frequency == "weekly" and timing(table).cycle == 52
    joined, ends = table.continued(read_table(found.test, Reading()))
    np.testing.assert_array_equal(joined.values[:, 0], [1, 2, 3])
    assert ends.tolist() == [2]


@settings(max_examples=20, deadline=None)
@given(period=st.integers(3, 60), level=st.sampled_from([0.0, 1e6]), seed=st.integers(0, 99))
def test_a_cycle_is_found_whatever_the_level(period: int, level: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = random.normal(size=period)
    values = level + np.tile(shape, 12) + 0.05 * random.normal(size=12 * period)
    assert cycle_of(values) == period
    assert cycle_of(np.full(100, level)) == 1


@pytest.mark.parametrize("count", [1, 3, 20])
def test_noise_has_a_season_in_few_tables(count: int) -> None:
    """One in ten at most, however short and few the series; a clear season is found in such tables."""
    random, found = np.random.default_rng(0), []
    for length in (30, 40, 60, 100):
        for _ in range(25):
            noise = random.normal(size=(count, length))
            season = np.tile(random.normal(size=(count, 7)), 15)[:, :length]
            found.append([detected(table_of(one)) for one in (noise, noise.cumsum(1), season + 0.3 * noise)])
    noise, walks, seasons = np.array(found).T
    assert (noise > 1).mean() <= 0.1 and (walks > 1).mean() <= 0.1
    assert (seasons == 7).mean() > 0.9


def table_of(rows: np.ndarray) -> SeriesTable:
    return SeriesTable.of([Series(f"{n}", row[:, None], "drawn") for n, row in enumerate(rows)], ["value"])


def test_a_frequency_is_given_or_told_or_refused(tmp_path: Path) -> None:
    table = read(written(tmp_path / "any.csv", "id,value\n" + "".join(f"a,{n * n}\n" for n in range(30))))
    assert timing(table, "hourly").season == RHYTHMS["hourly"].season
    assert "given" in timing(table, season=7).words and timing(table, season=7).cycle == 7
    with pytest.raises(BadInput, match='did you mean "weekly"'):
        timing(table, "weekl")


def test_a_check_names_what_training_repairs_and_what_it_refuses(tmp_path: Path) -> None:
    path = written(tmp_path / "some.csv", "id,v1,v2,v3\none,5,,\nstill,4,4,4\ngap,1,NA,3\nnothing,,,\n")
    found = check([path], Reading())
    assert found.rows["series"] == 3 and found.rows["missing values"] == 1 and not found.refused
    assert "row 5: the series nothing has no value" in found.problems[0]
    assert any("one (" in note and "row 2" in note for note in found.notes)
    assert any("still (" in note and "never move" in note for note in found.notes)
    written(path, "id,v1\na,x\n")
    assert check([path], Reading()).refused
