"""Files become visits: the three shapes, times and zones, and every kind of bad input named and ruled on."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from linnet.domains.places.cleaning import Ingested, Reading, ingest
from linnet.domains.places.columns import parse_mapping
from linnet.domains.places.data import check
from linnet.domains.places.visits import ClusterRule, StayRule
from linnet.errors import BadInput

pl = pytest.importorskip("polars", reason="polars is not installed (linnet-sequences[places])")

HOUR = 3600


def write(folder: Path, text: str, name: str = "visits.csv") -> Path:
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def read(folder: Path, text: str, **reading: object) -> Ingested:
    return ingest([write(folder, text)], Reading.model_validate(reading))


def problems(found: Ingested) -> str:
    return "\n".join(map(str, found.problems))


CHECK_INS = """uid,venue_id,ts
b,cafe,2024-03-01 08:00:00
a,gym,2024-03-01 09:30:00
a,cafe,2024-03-01 10:00:00
b,gym,2024-03-02 08:00:00
"""


@pytest.mark.parametrize("name", ["v.csv", "v.csv.gz", "v.tsv"])
def test_check_ins_with_guessed_columns(tmp_path: Path, name: str) -> None:
    text = CHECK_INS.replace(",", "\t") if name.endswith("tsv") else CHECK_INS
    found = ingest([write(tmp_path, text, name)])
    visits = found.visits
    assert found.columns.shape == "check-ins"
    assert found.notes()[:2] == (
        "columns (check-ins): user=uid, time=ts, place=venue_id",
        "guessed: place, time, user",
    )
    assert visits.users.tolist() == ["a", "b"] and visits.places.tolist() == ["cafe", "gym"]
    assert visits.user.tolist() == [0, 0, 1, 1] and visits.place.tolist() == [1, 0, 0, 1]
    assert visits.minute().tolist() == [570, 600, 480, 480]
    assert visits.weekday().tolist() == [4, 4, 4, 5]  # 1 March 2024 was a Friday
    assert (visits.end == visits.start).all() and visits.cells == {} and visits.lonlat is None


def test_parquet_is_the_same_table(tmp_path: Path) -> None:
    text = write(tmp_path, CHECK_INS)
    pl.read_csv(text, try_parse_dates=True).write_parquet(tmp_path / "v.parquet")
    assert ingest([tmp_path / "v.parquet"]).visits.fingerprint() == ingest([text]).visits.fingerprint()


def test_several_files_and_folders_are_one_table(tmp_path: Path) -> None:
    lines = CHECK_INS.splitlines(keepends=True)
    write(tmp_path, "".join(lines[:3]), "a.csv")
    write(tmp_path, lines[0] + "".join(lines[3:]), "b.csv.gz")
    together = ingest([tmp_path]).visits.fingerprint()
    assert together == read(tmp_path.parent, CHECK_INS).visits.fingerprint()


def test_columns_named_on_the_command_line(tmp_path: Path) -> None:
    text = "who,seen,spot_no,place\n1,2024-03-01 08:00,7,x\n1,2024-03-01 09:00,8,x\n"
    found = read(tmp_path, text, columns=parse_mapping("user=who,time=seen,place=spot_no"))
    assert found.visits.places.tolist() == [7, 8]
    assert not found.columns.guessed


def test_files_without_a_line_of_names(tmp_path: Path) -> None:
    text = "9\tcafe\t39.9\t116.3\t2024-03-01T08:00:00Z\n9\tgym\t39.9\t116.4\t2024-03-01T09:00:00Z\n"
    mapping = parse_mapping("user=1,place=2,lat=3,lon=4,time=5")
    found = ingest([write(tmp_path, text, "v.txt")], Reading(columns=mapping))
    assert found.visits.places.tolist() == ["cafe", "gym"] and list(found.visits.cells) == [11, 13, 14]


@pytest.mark.parametrize(
    ("times", "reading", "clock"),
    [
        (["2024-07-01 10:00:00", "2024-07-01 11:00:00"], {}, [600, 660]),
        (["2024-07-01 10:00:00", "2024-07-01 11:00:00"], {"tz": "UTC", "local": "Asia/Shanghai"}, [1080, 1140]),
        (["2024-07-01 10:00:00", "2024-07-01 11:00:00"], {"tz": "Europe/Berlin", "local": "UTC"}, [480, 540]),
        (["2024-07-01T10:00:00+08:00", "2024-07-01T11:00:00+08:00"], {}, [600, 660]),
        (["2024-07-01T10:00:00Z", "2024-07-01T11:00:00Z"], {"local": "+05:30"}, [930, 990]),
        (["1719828000", "1719831600"], {}, [600, 660]),
        (["1719828000000", "1719831600000"], {"local": "UTC-4"}, [360, 420]),
        (["Mon Jul 01 10:00:00 +0000 2024", "Tue Jul 02 11:00:00 +0000 2024"], {}, [600, 660]),
        (["2024/07/01 10:00", "2024/07/01 11:00"], {}, [600, 660]),
        (["2024-03-31 01:30", "2024-03-31 03:30"], {"tz": "Europe/Berlin", "local": "UTC"}, [30, 90]),
    ],
)
def test_times_and_zones(tmp_path: Path, times: list[str], reading: dict[str, str], clock: list[int]) -> None:
    text = "user,time,place\n" + "".join(f"1,{time},{row}\n" for row, time in enumerate(times))
    assert read(tmp_path, text, **reading).visits.minute().tolist() == clock


DAYS = """user_id,place_id,start_day,start_min,end_day,end_min,weekday
1,5,0,1200,1,30,2
1,6,1,60,1,90,3
2,5,0,0,0,60,6
"""


def test_day_numbers_keep_their_weekday_and_become_local(tmp_path: Path) -> None:
    visits = read(tmp_path, DAYS).visits
    assert visits.weekday().tolist() == [2, 3, 6] and visits.minute().tolist() == [1200, 60, 0]
    assert visits.duration.tolist() == [270, 30, 60]
    beijing = read(tmp_path, DAYS, local="+08:00").visits
    assert beijing.weekday().tolist() == [3, 3, 6] and beijing.minute().tolist() == [240, 540, 480]
    assert beijing.weekday(local=False).tolist() == [2, 3, 6]
    with pytest.raises(BadInput, match='offset such as "\\+08:00"'):
        read(tmp_path, DAYS, local="Asia/Shanghai")


def test_offsets_of_a_column_are_minutes(tmp_path: Path) -> None:
    text = "user,time,place,timezoneOffset\n1,2024-07-01 10:00,a,540\n1,2024-07-01 11:00,b,-240\n"
    assert read(tmp_path, text).visits.minute().tolist() == [1140, 420]


def fixes_table() -> str:
    """Two days between a home and an office, one fix every five minutes."""
    rows = ["uid,tracked_at,latitude,longitude"]
    for step in range(2 * 288):
        hour = step * 5 / 60 % 24
        away = 9 <= hour < 17
        lat, lon = (39.95, 116.40) if away else (39.90, 116.30)
        rows.append(f"7,{1_700_000_000 + step * 300},{lat + 1e-6 * (step % 7)},{lon}")
    return "\n".join(rows) + "\n"


def test_fixes_become_stays_and_places(tmp_path: Path) -> None:
    found = read(tmp_path, fixes_table())
    visits = found.visits
    assert found.columns.shape == "fixes"
    assert len(visits.places) == 2 and visits.place.tolist() == [0, 1, 0, 1, 0]
    np.testing.assert_allclose(visits.lonlat[visits.place[:2]], [[116.30, 39.90], [116.40, 39.95]], atol=1e-4)
    assert sorted(visits.cells) == [11, 13, 14] and visits.duration[1] == 480


def test_a_stay_of_fixes_has_the_part_of_its_first_fix(tmp_path: Path) -> None:
    head, *rows = fixes_table().splitlines()
    split = [f"{row},{'train' if number < len(rows) // 2 else 'test'}" for number, row in enumerate(rows)]
    visits = read(tmp_path, "\n".join([f"{head},split", *split]) + "\n").visits
    bare = read(tmp_path, fixes_table()).visits
    assert visits.start.tolist() == bare.start.tolist() and visits.id.tolist() == [0, 1, 2, 3, 4]
    assert visits.part is not None and bare.part is None
    cut = 1_700_000_000 + len(rows) // 2 * 300
    assert visits.part.tolist() == [0 if start < cut else 2 for start in bare.start.tolist()]


def test_stays_without_places_are_clustered(tmp_path: Path) -> None:
    text = "user_id,started_at,finished_at,lon,lat\n" + "".join(
        f"1,2024-03-0{day} 08:00,2024-03-0{day} 09:00,{lon},39.9\n"
        for day, lon in zip(range(1, 6), (116.3, 116.4, 116.30001, 116.40001, 110.0), strict=True)
    )
    found = read(tmp_path, text)
    assert found.visits.place.tolist() == [0, 1, 0, 1]
    assert "stays in no cluster: 1 (visits.csv line 6)" in problems(found)


def test_geoparquet_points(tmp_path: Path) -> None:
    def point(lon: float, lat: float) -> bytes:
        return b"\x01\x01\x00\x00\x00" + np.array([lon, lat]).tobytes()

    frame = pl.DataFrame({"user": [1, 1], "time": [0, HOUR], "place": ["a", "b"],
                          "geometry": [point(116.3, 39.9), point(116.4, 39.8)]})  # fmt: skip
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB"}}}
    frame.write_parquet(tmp_path / "v.parquet", metadata={"geo": json.dumps(geo)})
    np.testing.assert_allclose(ingest([tmp_path / "v.parquet"]).visits.lonlat, [[116.3, 39.9], [116.4, 39.8]])
    geo["columns"]["geometry"]["crs"] = {"id": {"authority": "EPSG", "code": 3857}}  # type: ignore[index]
    frame.write_parquet(tmp_path / "w.parquet", metadata={"geo": json.dumps(geo)})
    with pytest.raises(BadInput, match="EPSG:4326"):
        ingest([tmp_path / "w.parquet"])


# --- bad input: (table, what is said, what remains) ---
STAYS = "user,start,end,place,lon,lat\n"
GOOD = [
    "1,2024-03-01 08:00,2024-03-01 09:00,a,116.3,39.9",
    "1,2024-03-01 10:00,2024-03-01 11:00,b,116.4,39.8",
    "1,2024-03-01 12:00,2024-03-01 13:00,a,116.3,39.9",
]


@pytest.mark.parametrize(
    ("extra", "said", "kept"),
    [
        ("1,2024-03-02 08:00,2024-03-02 09:00,b,116.4,95.0", "impossible coordinates: 1 (visits.csv line 5)", 3),
        ("1,2024-03-02 08:00,2024-03-02 09:00,b,0,0", "coordinates 0, 0: 1 (visits.csv line 5)", 3),
        ("1,2024-03-02 08:00,2024-03-02 07:00,b,116.4,39.8", "stays that end before they begin: 1 (visits.csv", 3),
        (GOOD[1], "duplicate rows: 1 (visits.csv line 5); the first one kept", 3),
        ("1,2024-03-01 12:30,2024-03-01 14:00,b,116.4,39.8", "overlapping stays: 1 (visits.csv line 4)", 4),
        (
            "1,2024-02-01 08:00,2024-02-01 09:00,b,116.4,39.8",
            "rows out of the order of time: 1 (visits.csv line 5)",
            4,
        ),
        ("2,2024-03-02 08:00,2024-03-02 09:00,b,116.4,39.8", "users with one visit: 1 (visits.csv line 5)", 4),
        (",2024-03-02 08:00,2024-03-02 09:00,b,116.4,39.8", "rows without user: 1 (visits.csv line 5)", 3),
        ("1,2024-03-02 08:00,2024-03-02 09:00,,116.4,39.8", "rows without place: 1 (visits.csv line 5)", 3),
        ("1,,2024-03-02 09:00,b,116.4,39.8", "rows without a time: 1 (visits.csv line 5)", 3),
        ("1,2024-03-02 08:00,,b,116.4,39.8", "rows without an end: 1 (visits.csv line 5)", 4),
        ("NULL,2024-03-02 08:00,,b,116.4,39.8", "user ids written as NULL, nan, None or N/A: 1 (visits.csv", 3),
        ("1,2024-03-02 08:00,,nan,116.4,39.8", "place ids written as NULL, nan, None or N/A: 1 (visits.csv", 3),
        (
            "1,2024-03-02 08:00,2024-03-02 09:00,b,116.4,north",
            "coordinates that are no numbers: 1 (visits.csv line 5); row kept without its position",
            4,
        ),
        (
            "1,2024-03-02 08:00,2024-03-02 09:00,b,39.85,116.35",
            "longitude and latitude look swapped: 1 (visits.csv line 5); row dropped (rows of 1",
            3,
        ),
        ("1,2024-03-02 08:00,2024-03-02 09:00,b,12.0,95.0", "impossible coordinates: 1 (visits.csv line 5)", 3),
        (
            "1,2024-03-02 08:00,2024-03-02 09:00,Bar, upstairs,116.4,39.8",
            "lines with more fields than columns: 1 (visits.csv line 5); row dropped",
            3,
        ),
        ("1,2024-03-02 08:00,2024-03-02 09:00,12.0,116.4,39.8", "place ids written as 12.0: 1 (visits.csv", 4),
        (GOOD[1] + ",", "", 3),
    ],
)
def test_what_is_repaired(tmp_path: Path, extra: str, said: str, kept: int) -> None:
    found = read(tmp_path, STAYS + "\n".join([*GOOD, extra]) + "\n")
    assert said in problems(found)
    assert len(found.visits) == kept
    visits = found.visits
    assert (np.diff(visits.start)[np.diff(visits.user) == 0] >= 0).all()
    assert ((visits.end[:-1] <= visits.start[1:]) | (np.diff(visits.user) != 0)).all()
    assert "116." not in problems(found), "coordinates never appear in a message"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (STAYS + "1,2024-03-01 08:00,2024-03-01 09:00,a,39.9,116.3\n", "lon=lat,lat=lon"),
        (STAYS + "1,next Tuesday,2024-03-01 09:00,a,1,2\n", "times that cannot be read: 1"),
        ("user,time,place\n1,2024-03-01T08:00:00Z,a\n1,2024-03-01T09:00:00,b\n", "mixed time zones"),
        ("user,time,place\n1,2024-03-01 08:00,1.5\n1,2024-03-01 09:00,2.0\n", "place ids with a fraction: 1"),
        ("user,time\n1,2024-03-01 08:00\n", "lacks place"),
        ("when,place\n2024-03-01 08:00,a\n", "lacks user, time"),
        ("user,time,place\n", "no rows"),
        ("", "is empty"),
        ("user,time,place,split\n1,2024-03-01 08:00,a,trian\n", 'unknown part "trian"'),
        ("user,start_day,start_min,place\n1,0,1500,a\n", "minutes of the day outside 0..1439: 1"),
        (
            "user,time,place,s2_l11\n1,2024-03-01 08:00,a,beijing\n",
            "s2_l11: not the token of an S2 cell: 1 (visits.csv line 2)",
        ),
        (
            "user,time,place,s2_l11\n1,2024-03-01 08:00,a,35f05134\n",
            "s2_l11: cells of level 13, not 11: 1 (visits.csv line 2)",
        ),
        (
            "user,time,place\n1,1709280000,a\n1,1709290000,b\n1,1709300000000,a\n",
            "times that are epochs in another unit than most: 1 (visits.csv line 4)",
        ),
        (
            STAYS + "1,2024-03-01T08:00:00+08:00,2024-03-01 09:00:00,a,1,2\n",
            "mixed time zones: end times without a zone among times that name one: 1 (visits.csv line 2)",
        ),
        (STAYS + "1,,2024-03-01 09:00:00,a,1,2\n", "rows without a time: 1 (visits.csv line 2); refused: 1 of 1"),
        (STAYS.replace(",", ";") + "1;2024-03-01 08:00;;a;1.163,2;2\n", "most coordinates are no numbers: 1"),
        (
            "user,time,place\n" + "".join(f"1,{day // 3},a\n" for day in range(9)),
            "times that look like day numbers: 9",
        ),
        ('user,time,place\n1,"2024-03-01 08:00,a\n1,2024-03-01 09:00,b\n', "line 2 has a quotation mark"),
    ],
)
def test_what_is_refused(tmp_path: Path, table: str, said: str) -> None:
    path = write(tmp_path, table)
    with pytest.raises(BadInput) as refusal:
        ingest([path])
    assert said in str(refusal.value)
    assert said in check([path]).problems[0]


def test_each_row_of_mixed_zones_keeps_its_own_hour(tmp_path: Path) -> None:
    times = ("2024-03-01T08:00:00+08:00", "2024-03-01T08:30:00+08:00", "2024-03-01T09:00:00+01:00")
    text = "user,time,place\n" + "".join(f"1,{time},a\n" for time in times)
    found = read(tmp_path, text)
    assert "mixed time zones: 1 (visits.csv line 4); each time" in problems(found)
    assert found.visits.minute().tolist() == [480, 510, 540]


def test_whole_numbers_written_as_floats_are_ids(tmp_path: Path) -> None:
    found = read(tmp_path, "user,time,place\n1,2024-03-01 08:00,12.0\n1,2024-03-01 09:00,3.0\n")
    assert found.visits.places.tolist() == [3, 12] and "place ids written as 12.0: 2" in problems(found)


def test_a_refusal_names_all_that_was_found(tmp_path: Path) -> None:
    extra = ["1,2024-03-01 13:00,2024-03-01 14:00,a,39.9,116.3"] * 4 + [GOOD[0], "1,2024-03-02 08:00,,,116.4,39.8"]
    with pytest.raises(BadInput) as refusal:
        read(tmp_path, STAYS + "\n".join([*GOOD, *extra]) + "\n")
    said = str(refusal.value)
    refused, also = said.split("also found in them:")
    assert "longitude and latitude look swapped: 4 (visits.csv line 5" in refused
    assert "duplicate rows: 1 (visits.csv line 9)" in also and "rows without place: 1 (visits.csv line 10)" in said
    assert check([tmp_path / "visits.csv"]).refused


def test_zones_of_starts_and_ends(tmp_path: Path) -> None:
    rows = ["1,2024-03-01T08:00:00+08:00,2024-03-01T09:00:00+08:00,a,1,2"] * 1
    rows += ["1,2024-03-01T10:00:00+08:00,2024-03-01T03:00:00Z,b,1,2"]
    found = read(tmp_path, STAYS + "\n".join(rows) + "\n")
    assert "ends in another zone than their start: 1 (visits.csv line 3); each read" in problems(found)
    assert found.visits.duration.tolist() == [60, 60]
    times = ("2024-03-01T08:00:00+08:00", "2024-03-01T08:30:00+08:00", "2024-03-01T09:00:00+01:00")
    text = "user,time,place\n" + "".join(f"1,{time},a\n" for time in times)
    assert "hours are those of Asia/Shanghai" in problems(read(tmp_path, text, local="Asia/Shanghai"))


def test_a_parquet_file_with_a_zone_in_one_column_only_is_refused(tmp_path: Path) -> None:
    text = write(tmp_path, STAYS + "\n".join(GOOD) + "\n")
    frame = pl.read_csv(text, try_parse_dates=True)
    frame.with_columns(pl.col("start").dt.replace_time_zone("Asia/Shanghai")).write_parquet(tmp_path / "v.parquet")
    with pytest.raises(BadInput, match=r"end times without a zone among times that name one: 3 \(v.parquet row 0"):
        ingest([tmp_path / "v.parquet"])


def test_two_latitudes_are_no_duplicate(tmp_path: Path) -> None:
    rows = "user,time,lon,lat,place\n1,2024-03-01 08:00,116.3,39.9,a\n1,2024-03-01 08:00,116.3,39.4,a\n"
    found = read(tmp_path, rows)
    assert len(found.visits) == 2 and "duplicate" not in problems(found)


def test_a_text_column_reads_12_and_12_0_as_one_place(tmp_path: Path) -> None:
    text = "user,time,place\n1,2024-03-01 08:00,12\n1,2024-03-01 09:00,12.0\n1,2024-03-01 10:00,gym\n"
    assert read(tmp_path, text).visits.places.tolist() == ["12", "gym"]


@pytest.mark.parametrize("name", ["v.parquet", "v.csv.gz", "v.jsonl.gz"])
def test_a_file_that_is_not_what_its_name_says_is_bad_input(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no such file at all")
    record = check([tmp_path / name])
    assert record.refused and name in record.problems[0]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("tiem=ts", 'no role "tiem" for a column; did you mean "time"'),
        ("time=tss", 'has no column "tss" (for time); did you mean "ts"'),
        ("time", 'cannot read "time" as a column'),
    ],
)
def test_wrong_mappings_are_explained(tmp_path: Path, columns: str, said: str) -> None:
    with pytest.raises(BadInput) as refusal:
        read(tmp_path, CHECK_INS, columns=parse_mapping(columns))
    assert said in str(refusal.value)


@pytest.mark.parametrize(("zone", "said"), [("Mars/Olympus", "no time zone"), ("+15:00", "more than 14 hours")])
def test_unknown_zones_are_refused(tmp_path: Path, zone: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read(tmp_path, CHECK_INS, tz=zone)


def test_settings_that_a_table_leaves_without_effect_are_named(tmp_path: Path) -> None:
    table = tmp_path / "visits.csv"
    table.write_text("user,start,end,place,s2_l13\n1,2024-05-31 08:00,2024-05-31 09:00,7,35f04c4c\n")
    chosen = Reading(levels=(12,), stays=StayRule(minutes=5), clusters=ClusterRule(metres=90))
    assert [note.partition(" ")[0] for note in ingest([table], chosen).unused] == [
        "data.levels", "data.stays", "data.clusters",
    ]  # fmt: skip
    assert ingest([table], Reading()).unused == ()
    fixes = ((day, minute, minute // 50) for day in (1, 2) for minute in (0, 20, 50))  # away after twenty minutes
    rows = (f"1,2024-05-{day:02}T08:{minute:02}:00,{8.5 + away},47.3\n" for day, minute, away in fixes)
    table.write_text("user,time,lon,lat\n" + "".join(rows))
    assert ingest([table], chosen).unused == ()


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "visits.csv"
    table.write_text("user,time,user,place\n1,2024-05-31 08:00,2,3\n")
    with pytest.raises(BadInput, match='two columns are named "user"'):
        ingest([table])


def test_a_missing_or_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.csv does not exist"):
        ingest([tmp_path / "nowhere.csv"])
    with pytest.raises(BadInput, match="no table that can be read"):
        ingest([write(tmp_path, "x", "v.docx")])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_with_a_mark_and_all_ends_of_lines_are_the_same_table(
    tmp_path: Path, encoding: str, end: str
) -> None:
    text = CHECK_INS.replace("cafe", "café")
    (tmp_path / "v.csv").write_bytes(text.replace("\n", end).encode(encoding))
    visits, wanted = ingest([tmp_path / "v.csv"]).visits, read(tmp_path, text).visits
    assert visits.places.tolist() == wanted.places.tolist() == ["café", "gym"]
    assert (visits.start == wanted.start).all() and (visits.place == wanted.place).all()


def test_other_encodings_are_refused_with_the_line_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_bytes(CHECK_INS.replace("a,cafe", "a,café").encode("cp1252"))
    with pytest.raises(BadInput, match=r"v.csv, line 4: byte 0xe9 is no UTF-8; .* iconv -f WINDOWS-1252"):
        ingest([tmp_path / "v.csv"])


def test_a_refusal_says_how_times_are_written(tmp_path: Path) -> None:
    text = CHECK_INS.replace("2024-03-", "March ")
    with pytest.raises(BadInput, match=r"4 of 4 rows would be lost \(write 2024-05-31 18:05:00, 31.05.2024 18:05"):
        read(tmp_path, text)
