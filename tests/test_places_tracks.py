"""GPX and GeoJSON: the same positions as in a table, whatever the format; broken files are named."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet import workbench
from linnet.domains.places.cleaning import Reading, ingest
from linnet.domains.places.sources import files_of, read_geojson, read_gpx
from linnet.errors import BadInput

POINT = {"type": "Point", "coordinates": [1, 2]}
Point = tuple[str, int, float, float]  # user, seconds, lon, lat
HEAD = '<?xml version="1.0"?><gpx version="1.1" xmlns="http://www.topografix.com/GPX/1/1">'


def moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def as_csv(folder: Path, points: list[Point]) -> list[Path]:
    lines = [f"{user},{moment(at)},{lon!r},{lat!r}" for user, at, lon, lat in points]
    (folder / "fixes.csv").write_text("\n".join(["user,time,lon,lat", *lines]))
    return [folder / "fixes.csv"]


def as_gpx(folder: Path, points: list[Point]) -> list[Path]:
    """A file for each user, who is named by the file or by its author."""
    found = []
    for number, user in enumerate(dict.fromkeys(point[0] for point in points)):
        inside = "".join(
            f'<trkpt lat="{lat!r}" lon="{lon!r}"><ele>3</ele><time>{moment(at)}</time></trkpt>'
            for who, at, lon, lat in points
            if who == user
        )
        author = f"<metadata><author><name>{escape(user)}</name></author></metadata>" if number % 2 else ""
        path = folder / (f"{number}.gpx.gz" if number % 2 else f"{user}.gpx")
        content = f"{HEAD}{author}<trk><name>a walk</name><trkseg>{inside}</trkseg></trk></gpx>".encode()
        path.write_bytes(gzip.compress(content) if number % 2 else content)
        found.append(path)
    return found


def as_geojson(folder: Path, points: list[Point]) -> list[Path]:
    features = [
        feature({"type": "Point", "coordinates": [lon, lat]}, user=user, time=moment(at))
        for user, at, lon, lat in points
    ]
    return [collection(folder / "points.geojson", features)]


def as_lines(folder: Path, points: list[Point]) -> list[Path]:
    features = []
    for user in dict.fromkeys(point[0] for point in points):
        own = [point for point in points if point[0] == user]
        geometry = {"type": "LineString", "coordinates": [[lon, lat, 12.5] for _, _, lon, lat in own]}
        features.append(feature(geometry, user=user, coordTimes=[moment(at) for _, at, _, _ in own]))
    return [collection(folder / "lines.geojson", features)]


def feature(geometry: dict[str, Any] | None, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def collection(path: Path, features: list[Any], **further: Any) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **further}))
    return path


def points_of(users: int = 3, stays: int = 30) -> list[Point]:
    """Everybody stays at home or at work for six hours, with a fix every ten minutes."""
    return [
        (f"u{user}", 1_700_000_000 + 21_600 * stay + 600 * fix, 10.0 + user + 0.01 * (stay % 2), 50.0)
        for user in range(users)
        for stay in range(stays)
        for fix in range(20)
    ]


@pytest.mark.parametrize("write", [as_gpx, as_geojson, as_lines])
def test_every_format_holds_the_visits_of_the_table(
    tmp_path: Path, write: Callable[[Path, list[Point]], list[Path]]
) -> None:
    points = points_of()
    (table,) = (ingest(as_csv(tmp_path, points), Reading()).visits,)
    other = ingest(write(tmp_path, points), Reading()).visits
    assert len(table) == len(other) > 60
    assert other.users.tolist() == table.users.tolist()
    for name in ("user", "place", "start", "end"):
        assert (getattr(table, name) == getattr(other, name)).all(), name


def test_a_folder_of_tracks_trains(tmp_path: Path) -> None:
    (tmp_path / "tracks").mkdir()
    as_gpx(tmp_path / "tracks", points_of(stays=120))
    assert len(files_of([tmp_path / "tracks"])) == 3
    record = workbench.train("tiny-places", out=tmp_path / "run", data=[tmp_path / "tracks"], steps=2)
    assert record.scores


def test_check_ins_of_points_keep_their_properties(tmp_path: Path) -> None:
    features = [
        feature(POINT, person=who, checkin_time=f"2024-05-{day:02d}T12:00:00Z", venue=f"v{day % 3}", tags=["a"])
        for who in range(2)
        for day in range(1, 20)
    ]
    path = collection(tmp_path / "c.geojson", [*features, feature(None, person=5)])
    visits = ingest([path], Reading()).visits
    assert visits.places.tolist() == ["v0", "v1", "v2"] and visits.users.tolist() == [0, 1]


def test_the_folder_may_be_the_user(tmp_path: Path) -> None:
    paths = []
    for user in ("ann", "bob"):
        for day in range(2):
            (tmp_path / user).mkdir(exist_ok=True)
            (found,) = as_gpx(
                tmp_path / user, [(f"day{day}", 1_700_000_000 + 600 * i, 10.0, 50.0) for i in range(9)]
            )
            paths.append(found)
    assert ingest(paths, Reading(columns={"user": "folder"})).visits.users.tolist() == ["ann", "bob"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEAD, "is no whole GPX file: no element found"),
        ("<kml></kml>", "is no GPX file: its first element is <kml>"),
        (f'{HEAD}<wpt lat="1" lon="2"></wpt></gpx>', "has no point with a time"),
        (
            f'{HEAD}\n<wpt lat="1,5" lon="2"><time>x</time></wpt></gpx>',
            "line 2: a point needs lat and lon in degrees",
        ),
        (f'{HEAD}<wpt lat="1"><time>x</time></wpt></gpx>', "a point needs lat and lon in degrees, not None"),
        ('<!DOCTYPE gpx [<!ENTITY a "aaaa">]><gpx>&a;</gpx>', "declares a document type"),
        ("", "is no whole GPX file"),
    ],
)
def test_broken_gpx_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.gpx"
    path.write_text(content)
    with pytest.raises(BadInput, match=message) as caught:
        read_gpx(path)
    assert str(path) in str(caught.value)


OTHER = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::31467"}}


@pytest.mark.parametrize(
    ("features", "further", "message"),
    [
        ([], {}, "has no points, and no lines with coordTimes"),
        (5, {}, "features is an integer, not a list"),
        ([3], {}, 'feature 1 is no object of the type "Feature"'),
        ([feature({"type": "Point", "coordinates": [1]})], {}, r"a position is \[longitude, latitude\]"),
        ([feature({"type": "Point", "coordinates": [3451223.1, 5512000.0]})], {}, "no longitude and latitude"),
        ([feature({"type": "LineString", "coordinates": [[1, 2]]}, times=["a", "b"])], {}, "1 positions and 2"),
        ([feature([])], {}, "has no points"),
        ([{"type": "Feature", "geometry": 3}], {}, "geometry and properties are objects"),
        ([feature(POINT, time="x")], {"crs": OTHER}, "its coordinates are in urn:ogc:def:crs:EPSG::31467"),
    ],
)  # fmt: skip
def test_broken_geojson_is_named(tmp_path: Path, features: Any, further: dict[str, Any], message: str) -> None:
    path = collection(tmp_path / "a.geojson", features, **further)
    with pytest.raises(BadInput, match=message) as caught:
        read_geojson(path)
    assert str(path) in str(caught.value)


WHOLE = (
    f'{HEAD}<trk><trkseg><trkpt lat="50" lon="10"><time>2024-01-01T00:00:00Z</time></trkpt></trkseg></trk></gpx>'
)


@settings(max_examples=150, deadline=None)
@given(
    at=st.integers(0, len(WHOLE)),
    cut=st.integers(0, 30),
    text=st.text("<>/&;\"'=gpxwtimelaon15.\0é\ud800", max_size=12),
)
def test_mutants_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, cut: int, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutant.gpx"
    path.write_bytes((WHOLE[:at] + text + WHOLE[at + cut :]).encode("utf-8", "surrogatepass"))
    with contextlib.suppress(BadInput):
        ingest([path], Reading())
