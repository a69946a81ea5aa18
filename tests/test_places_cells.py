"""S2 cells against the `s2cell` package, and the tree they form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linnet.domains.places import cells
from linnet.errors import BadInput

s2cell = pytest.importorskip("s2cell", reason="s2cell is not installed (linnet-sequences[places])")


def sphere(seed: int, points: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Random points: borders of cells, where the last bit of a sine decides, have measure zero."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-180, 180, points), np.degrees(np.arcsin(rng.uniform(-1, 1, points)))


@given(st.integers(0, 10**6), st.integers(0, 30))
def test_ids_are_those_of_s2cell(seed: int, level: int) -> None:
    lon, lat = sphere(seed)
    ids = cells.cell_ids(lon, lat, level)
    assert ids.tolist() == [s2cell.lat_lon_to_cell_id(y, x, level) for x, y in zip(lon, lat, strict=True)]
    assert cells.tokens(ids) == [s2cell.cell_id_to_token(int(cell)) for cell in ids]
    assert (cells.levels(ids) == level).all()


@given(st.integers(0, 10**6))
def test_levels_nest(seed: int) -> None:
    lon, lat = sphere(seed)
    leaf = cells.cell_ids(lon, lat)
    for level in (11, 13, 14):
        assert (cells.parents(leaf, level) == cells.cell_ids(lon, lat, level)).all()
    cells.check_tree({level: cells.parents(leaf, level) for level in (11, 13, 14)})


def test_tokens_come_back() -> None:
    ids = cells.cell_ids(np.array([116.3, -0.1]), np.array([39.9, 51.5]), 13)
    assert (cells.from_tokens(cells.tokens(ids)) == ids).all()


@pytest.mark.parametrize("token", ["beijing", "", "f" * 16, "0"])
def test_a_text_that_is_no_cell_is_refused(token: str) -> None:
    with pytest.raises(BadInput, match="token of an S2 cell"):
        cells.from_tokens([token])


def test_a_cell_outside_its_parent_is_refused() -> None:
    ids = cells.cell_ids(np.array([116.3, -0.1]), np.array([39.9, 51.5]), 13)
    with pytest.raises(BadInput, match="1 places have a level-13 cell outside their level-11 cell"):
        cells.check_tree({11: cells.parents(ids, 11)[[0, 0]], 13: ids})


def test_no_parent_is_finer_than_its_child() -> None:
    with pytest.raises(BadInput, match="has no parent of level 14"):
        cells.parents(cells.cell_ids(np.array([0.0]), np.array([0.0]), 11), 14)
