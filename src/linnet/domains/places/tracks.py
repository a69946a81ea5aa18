"""Positions in the formats of map programs: tracks and waypoints of GPX, points and lines of GeoJSON.

Both become rows of `lon`, `lat`, `time`, the properties of the file, and the line or the number of the feature.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from linnet.errors import BadInput
from linnet.untrusted import kind_of, read_bytes, read_object

Row = dict[str, Any]
LINE = "__line__"
GPX = (".gpx", ".gpx.gz")
GEOJSON = (".geojson", ".geojson.gz")
POINTS = ("trkpt", "wpt", "rtept")
TIMES = ("coordTimes", "times")  # of the positions of a line; some programs keep them in coordinateProperties
LONGITUDE_LATITUDE = ("CRS84", "EPSG::4326", "EPSG:4326")


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
