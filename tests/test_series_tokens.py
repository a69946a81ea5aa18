"""Series as tokens: numbers come back within half a bin, and a run writes on after a prompt of numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet import workbench
from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.patches import growth, patched, quantiles, sized
from linnet.domains.series.recipes import forecast_patches
from linnet.domains.series.tables import Series, SeriesTable
from linnet.domains.series.token_data import last_windows, rows_of, windows
from linnet.domains.series.tokens import FIRST, TokenCodec
from linnet.domains.series.windows import training_windows
from linnet.errors import BadInput
from linnet.model.config import ModelConfig
from linnet.model.model import Model

VALUES = st.lists(
    st.one_of(st.none(), st.floats(-1e9, 1e9).filter(lambda x: abs(x) > 1e-6)), min_size=1, max_size=20
)
UNIFORM = TokenCodec.uniform(128, 15.0)


@settings(max_examples=100, deadline=None)
@given(values=VALUES, level=st.sampled_from([0.0, 1e6]))
def test_numbers_come_back_within_half_a_bin(values: list[float | None], level: float) -> None:
    numbers = np.array([np.nan if value is None else value + level for value in values], float)
    text = " ".join("NA" if np.isnan(value) else repr(float(value)) for value in numbers)
    ids = UNIFORM.encode(text).ids
    found = UNIFORM.values(ids)
    scale, _ = UNIFORM.scale_of(numbers)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(numbers))
    inside = np.abs(numbers) <= 15 * scale
    half = 15 / 128 * scale
    assert (np.abs(found - numbers)[inside] <= half * (1 + 1e-9)).all()
    assert UNIFORM.encode(UNIFORM.decode(ids)).ids[:1].tolist() in ([ids[0]], [ids[0] - 1], [ids[0] + 1])
    mean = np.nanmean(np.abs(numbers)) if np.isfinite(numbers).any() else 1
    assert mean * (1 - 1e-9) <= scale <= mean * (1 + 2 / 64) or mean == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), bins=st.integers(2, 50))
def test_quantile_bins_hold_equal_shares(seed: int, bins: int) -> None:
    values = np.random.default_rng(seed).standard_cauchy(2000)
    codec = TokenCodec.quantile(values, bins)
    counts = np.bincount(codec.bin_ids(values, 1.0) - codec.first_bin, minlength=codec.bins)
    assert counts.max() - counts.min() <= 2 + 0.01 * len(values)
    assert TokenCodec.from_json(codec.to_json()) == codec


def test_what_has_no_scale_has_no_values() -> None:
    assert len(UNIFORM.values([UNIFORM.first_bin + 3])) == 0
    assert UNIFORM.decode(UNIFORM.encode("0 0 0").ids) == "0.117188 0.117188 0.117188"
    with pytest.raises(BadInput, match="value 2 of '1 much'"):
        UNIFORM.encode("1 much")
    with pytest.raises(BadInput, match="beyond what tokens can say"):
        UNIFORM.encode("1e30")


def test_held_values_are_scored_and_never_learned() -> None:
    table = SeriesTable.of([Series("a", np.arange(1.0, 41)[:, None], "row 1")], ("value",))
    learned = windows(table, 16, 4)
    assert max(piece.max() for piece in learned) == 36 and all(len(piece) > 8 for piece in learned)
    rows = rows_of(UNIFORM, last_windows(table, 16), 4, last=True)
    assert rows.targets == 5  # four values and the end
    scale, head = UNIFORM.scale_of(np.arange(25.0, 37))
    assert rows.row(0)[1:3].tolist() == head and head[0] >= FIRST
    np.testing.assert_allclose(UNIFORM.values(rows.row(0)), np.arange(25, 41), atol=15 / 128 * scale + 1e-9)


def test_a_run_writes_on_after_numbers(tmp_path: Path) -> None:
    lines = ["id,value"] + [f"{n},{10 + n + 3 * np.sin(t / 2):.3f}" for n in range(3) for t in range(60)]
    (tmp_path / "waves.csv").write_text("\n".join(lines))
    settings = ["data.length=24"]
    record = workbench.train("tiny-tokens", data=[tmp_path / "waves.csv"], out=tmp_path / "run", settings=settings)
    assert {score.name for score in record.scores} >= {"nats_per_token"}
    (sample,) = workbench.generate(tmp_path / "run", ["10 11 12 11"], max_tokens=4, temperature=1.0)
    for word in sample.text.split():
        assert word == "NA" or np.isfinite(float(word))


def test_patches_hold_the_window_and_the_last_one_alone_predicts() -> None:
    codec = SeriesCodec("forecast", ("value",), horizon=4, histories=(14,))
    values = np.random.default_rng(0).normal(size=60).cumsum()
    train, _ = training_windows(SeriesTable.of([Series("a", values[:, None], "row 1")], ("v",)), codec, 0, 20)
    config = forecast_patches().model
    assert isinstance(config, ModelConfig)
    config = sized(config.model_copy(update={"width": 16, "depth": 1}), codec)
    assert config.context == 3 and config.columns["ahead"].width == 4  # type: ignore[union-attr]
    plain = train.batch(np.arange(5))
    batch = patched(config, plain)
    flat = batch["patch"].flatten(1)
    np.testing.assert_array_equal(flat[:, 4:], plain["values"])
    assert (
        (flat[:, :4] == 0).all() and (batch["weights"][:, :-1] == 0).all() and (batch["weights"][:, -1] > 0).all()
    )
    np.testing.assert_allclose(batch["next.ahead"][:, -1] * growth(4), plain["next.values"], rtol=1e-6)
    model = Model(config).eval()
    found = quantiles(model, dict(plain)).detach()
    assert found.shape == (5, 4, 13) and (found.diff(dim=-1) >= 0).all()
    model.train()
    model.loss(model(batch), batch).backward()
