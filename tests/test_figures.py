"""Records of analyses as files and as text: the same bytes twice, names instead of numbers."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from linnet import figures
from linnet.cli.pictures import draw
from linnet.errors import BadInput
from linnet.records import AnalysisRecord, AttentionRecord, Grid


def text_of(record: AnalysisRecord) -> str:
    out = io.StringIO()
    draw([record], out)
    return out.getvalue()


CURVES = Grid(
    name="curve",
    axes=("method", "share"),
    labels={"method": ("eap", "exact"), "share": ("0.1", "1")},
    values=[[0.5, 1.0], [0.75, 1.0]],
)
BARS = AnalysisRecord(
    kind="ablation",
    title="zero ablation",
    axes=("part",),
    labels={"part": ("head 0.0", "mlp 0")},
    values=[-1.5, 0.25],
    facts={"n": 500},
    further=(CURVES,),
    notes=("a note",),
)
DEEP = AnalysisRecord(
    kind="patching",
    axes=("layer", "head", "position"),
    tokens=("<begin>", "$1", "+"),
    values=np.linspace(-1, 1, 12).reshape(2, 2, 3).tolist(),
)
WIDE = AnalysisRecord(
    kind="lens", axes=("layer", "position"), values=np.linspace(-1, 1, 40).reshape(2, 20).tolist()
)


def test_bars_have_names_facts_and_notes() -> None:
    lines = text_of(BARS).splitlines()
    assert lines[:2] == ["zero ablation", "n  500"]
    assert "head 0.0      -1.5  " + "-" * 30 in lines and "mlp 0         0.25  " + "#" * 5 in lines
    assert any(line.startswith("exact") and "0.75" in line for line in lines) and lines[-1] == "a note"


def test_axes_of_positions_are_tokens_and_wide_grids_are_shaded() -> None:
    shown = text_of(DEEP)
    assert "<begin>" in shown and "layer 1" in shown and "-0.8182" in shown
    assert "- marks negative ones" in text_of(WIDE) and "█-" in text_of(WIDE)


def test_squares_of_one_grid_share_their_shades() -> None:
    values = np.stack([np.ones((2, 20)), np.full((2, 20), 0.01)]).tolist()
    shown = text_of(AnalysisRecord(kind="patching", axes=("layer", "head", "position"), values=values))
    assert shown.count("█") == 2 * 2 * 20 + 1  # all of layer 0 and the legend; nothing of layer 1


def test_many_bars_are_cut_to_the_largest() -> None:
    values = [float(number) for number in range(100)]
    shown = text_of(AnalysisRecord(kind="edges", axes=("edge",), values=values))
    assert "and 76 smaller ones" in shown and "99" in shown


@pytest.mark.parametrize(
    "record", [BARS, DEEP, WIDE, AttentionRecord(tokens=("a", "b"), values=[[[[1, 0], [0, 1]]]])]
)
@pytest.mark.parametrize("suffix", [".npz", ".json", ".svg", ".png"])
def test_every_record_can_be_written_with_the_same_bytes(
    record: AnalysisRecord, suffix: str, tmp_path: Path
) -> None:
    if suffix in (".svg", ".png"):
        pytest.importorskip("matplotlib")
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    figures.save(record, first)
    figures.save(record, second)
    if suffix == ".npz":
        with np.load(first) as found:
            np.testing.assert_allclose(found["values"], record.values, rtol=1e-6)
            assert tuple(found["axes"]) == record.axes and tuple(found["tokens"]) == record.tokens
            for grid in record.further:
                np.testing.assert_allclose(found[grid.name], grid.values)
                assert tuple(found[f"{grid.name}.labels.method"]) == grid.labels["method"]
        return
    assert first.read_bytes() == second.read_bytes()
    if suffix == ".json":
        assert json.loads(first.read_text())["kind"] == record.kind


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has to end in \.npz, \.json, \.svg, \.png"):
        figures.save(BARS, tmp_path / "a.pdf")
