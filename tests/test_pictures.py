"""Records as people see them, and the machine as it is described to them."""

from __future__ import annotations

import io

import pytest

from linnet.cli.analyses import cell
from linnet.cli.pictures import draw, number, size
from linnet.figures import visible
from linnet.records import (
    AttentionRecord,
    Baseline,
    BenchRecord,
    ForecastRecord,
    Lead,
    ListedRunRecord,
    Record,
    Score,
    ScoresRecord,
    System,
)


def drawn(*records: Record) -> list[str]:
    out = io.StringIO()
    draw(records, out)
    return out.getvalue().splitlines()


def test_scores_have_their_interval_and_what_they_have_to_beat() -> None:
    baseline = Baseline(name="most common answer [7]", value=0.002)
    exact = Score(name="exact", value=0.9996, n=10_000, low=0.9989, high=1.0, baseline=baseline, note="[all] rows")
    loss = Score(name="nats_per_char", value=3.9e-5, n=7012, low=3.5e-18, high=1234.5, baseline=baseline)
    assert drawn(ScoresRecord(run="runs/a", data="sums.txt", scores=(exact, loss))) == [
        "runs/a on sums.txt",
        "score            value  95 % interval       n  baseline",
        "exact           0.9996  0.9989 .. 1    10,000  0.002 most common answer [7]  [all] rows",
        "nats_per_char  3.9e-05  0 .. 1,234      7,012  0.002 most common answer [7]",
    ]


def test_what_is_not_known_is_a_dash() -> None:
    unknown = float("nan")
    baseline = Baseline(name="naive", value=unknown)
    score = Score(name="mase", value=unknown, n=3, low=unknown, high=unknown, baseline=baseline)
    lead = Lead(measure="mase", value=unknown, low=unknown, high=unknown, p=None)
    record = ScoresRecord(
        run="r", data="d", scores=(score,), systems=(System(name="naive", values={}, lead=lead),)
    )
    assert "nan" not in "".join(drawn(record))
    again = ScoresRecord.model_validate_json(record.line())
    assert drawn(again) == drawn(record), "JSON has null where a number is not known"


@pytest.mark.parametrize("level", [0.0, 273.15, 1e5])
def test_the_band_of_a_forecast_stays_on_its_line(level: float) -> None:
    history = tuple(level + 0.01 * step for step in range(60))
    low, middle, high = (tuple(level + 0.6 + d + 0.01 * step for step in range(9)) for d in (-0.05, 0, 0.05))
    quantiles = {"0.025": low, "0.5": middle, "0.975": high}
    lines = drawn(ForecastRecord(id="a shop in town", mean=middle, quantiles=quantiles, history=history))
    assert len(lines) == 3
    assert f"{level + 0.6:,.3f}, {level + 0.61:,.3f}" in lines[1], "digits follow the width of the band"


def test_attention_is_a_shaded_square_for_each_head() -> None:
    half = [[1.0, 0.0], [0.5, 0.5]]
    picture = drawn(AttentionRecord(tokens=("<begin>", "7"), values=[[half, [[1.0, 0.0], [0.03, 0.97]]]]))
    assert picture == [
        "layer 0  head 0    layer 0  head 1",
        "        < 7                < 7",
        "<begin> ██         <begin> ██",
        "      7 ▓▓▓▓             7   ██",
        "each row is a query, each column a key; shares: ░ from 0.05, ▒ from 0.2, ▓ from 0.4, █ from 0.7",
    ]


def test_listed_runs_share_a_table() -> None:
    rows = [
        ListedRunRecord(
            rank=rank,
            path=f"runs/{rank}",
            recipe="r",
            state="finished",
            step=1000,
            score="exact",
            value=1 / rank,
            settings={"model.depth": depth, "optim.lr": 0.1},
        )
        for rank, depth in ((1, 8), (2, None))
    ]
    assert drawn(*rows) == [
        "rank  run     recipe  state      step  score  value  settings",
        "   1  runs/1  r       finished  1,000  exact      1  model.depth=8",
        "                                                     optim.lr=0.1",
        "   2  runs/2  r       finished  1,000  exact    0.5  optim.lr=0.1",
    ]


def test_a_peer_that_is_missing_is_named() -> None:
    record = BenchRecord(
        name="train",
        ours=2000.0,
        peers={"plain": 1000.0, "other": None},
        ratios={"plain": 2.0, "other": None},
        unit="tokens/s",
        n=5,
        machine="a machine",
    )
    assert drawn(record) == [
        "train, 5 repeats, a machine",
        "            tokens/s  ours / peer",
        "linnet         2,000",
        "plain          1,000         2.00",
        "other   not run here",
    ]


def test_numbers_sizes_and_names() -> None:
    assert [number(x) for x in (0, 1, 0.5, 4e-5, 1234.5, 100.0)] == ["0", "1", "0.5", "4.0e-05", "1,234", "100"]
    assert [size(x) for x in (512, 2048, 5 << 20, 3 << 30)] == ["512 bytes", "2.0 KB", "5.0 MB", "3.0 GB"]
    assert [visible(x) for x in ("a", " b c", "\n", "", " ")] == ["a", "_b c", "\\n", "_", "_"]
    assert [cell(x, 1.0, " .:*#") for x in (0.0, 0.05, 0.2, 0.4, 1.0)] == ["  ", "..", "::", "**", "##"]
