"""Stay detection and DBSCAN against their plain loops."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from linnet.domains.places.visits import ClusterRule, StayRule, cluster, detect_stays, distance


def stays_by_loop(time, lon, lat, rule):  # type: ignore[no-untyped-def]
    """trackintel's `sliding` method for one user, fix by fix."""
    found, first = [], 0
    for now in range(1, len(time)):
        if distance(lon[first], lat[first], lon[now], lat[now]) >= rule.metres:
            lasted = time[now] - time[first] >= rule.minutes * 60
            if lasted and time[now] - time[now - 1] < rule.gap_minutes * 60:
                found.append((time[first], time[now], lon[first:now].mean(), lat[first:now].mean()))
            first = now
    last = len(time) - 1
    if rule.include_last and last > first and time[last] - time[first] >= rule.minutes * 60:
        found.append((time[first], time[last], lon[first:last].mean(), lat[first:last].mean()))
    return found


@given(st.integers(0, 10_000), st.integers(2, 120), st.booleans(), st.sampled_from([30.0, 200.0, 2000.0]))
def test_stays_are_those_of_the_loop(seed: int, fixes: int, last: bool, metres: float) -> None:
    rng = np.random.default_rng(seed)
    user = np.sort(rng.integers(0, 3, fixes))
    moved = rng.normal(0, 0.002, (2, fixes)) * (rng.random(fixes) < 0.3)
    lon, lat = 116 + np.cumsum(moved[0]), 40 + np.cumsum(moved[1])
    time = np.cumsum(rng.integers(1, 2000, fixes)) + (rng.random(fixes) < 0.03).cumsum() * 100_000
    rule = StayRule(metres=metres, include_last=last)
    ours = detect_stays(user, time, lon, lat, rule)
    theirs = [
        row for person in range(3) for row in stays_by_loop(*(x[user == person] for x in (time, lon, lat)), rule)
    ]
    assert ours.start.tolist() == [row[0] for row in theirs]
    assert ours.end.tolist() == [row[1] for row in theirs]
    np.testing.assert_allclose(ours.lon, [row[2] for row in theirs], atol=1e-9)
    np.testing.assert_allclose(ours.lat, [row[3] for row in theirs], atol=1e-9)


def dbscan_by_loop(lon, lat, metres, least):  # type: ignore[no-untyped-def]
    """The textbook algorithm: expand each new core point in the order of the points."""
    near = [set(np.flatnonzero(distance(lon, lat, lon[i], lat[i]) <= metres)) for i in range(len(lon))]
    label, current = np.full(len(lon), -1), -1
    for point in range(len(lon)):
        if label[point] >= 0 or len(near[point]) < least:
            continue
        current += 1
        todo = [point]
        while todo:
            here = todo.pop()
            if label[here] >= 0:
                continue
            label[here] = current
            if len(near[here]) >= least:
                todo += sorted(near[here])
    return label


@given(st.integers(0, 10_000), st.integers(1, 150), st.integers(1, 5), st.sampled_from([20.0, 300.0]))
def test_clusters_are_those_of_dbscan(seed: int, points: int, least: int, metres: float) -> None:
    rng = np.random.default_rng(seed)
    centre = rng.choice([-1.0, 0.0, 1.0], (points, 2))
    lon = ((180 + centre[:, 0] * 0.001 + rng.normal(0, 3e-4, points)) + 180) % 360 - 180  # across the date line
    lat = 60 + centre[:, 1] * 0.001 + rng.normal(0, 1e-4, points)
    ours = cluster(lon, lat, ClusterRule(metres=metres, least=least), np.zeros(points, int))
    assert ours.tolist() == dbscan_by_loop(lon, lat, metres, least).tolist()


def test_users_share_no_place_when_clustered_by_user() -> None:
    lon, lat = np.full(4, 10.0), np.full(4, 50.0)
    labels = cluster(lon, lat, ClusterRule(by="user"), np.array([0, 0, 1, 1]))
    assert labels.tolist() == [0, 0, 1, 1]


def test_no_point_has_no_cluster() -> None:
    assert len(cluster(np.empty(0), np.empty(0), ClusterRule(), np.empty(0, int))) == 0
