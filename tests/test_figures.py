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


def test_layers_and_heads_of_a_table_are_named() -> None:
    shown = text_of(AnalysisRecord(kind="patching", axes=("layer", "head"), values=[[0.25, 0.5]])).splitlines()
    assert shown[-2:] == ["patching head 0 head 1", "layer 0    0.25    0.5"]


def test_a_wide_grid_over_steps_is_a_curve_with_its_ends() -> None:
    labels = {"curve": ("loss",), "step": tuple(str(10 * step) for step in range(101))}
    values = [[2.0, *[1.0] * 99, None]]
    record = AnalysisRecord(kind="development", axes=("curve", "step"), labels=labels, values=values)
    head, curve = text_of(record).splitlines()[-2:]
    assert head.split("  ")[1:3] == ["step 0", "least"] and head.endswith("0 to 1000")
    assert curve.split()[:5] == ["loss", "2", "1", "2", "?"] and curve.endswith("█" + "▁" * 58)


NAMES = Grid(name="likeliest", axes=("layer", "position"), values=[["\n", " to", "/"]])
LENS = AnalysisRecord(kind="lens", axes=("layer", "position"), tokens=("\t", " ", "a"), values=[[1.0, 0, 2]])


def test_tokens_show_their_spaces_and_stay_on_one_line() -> None:
    shown = text_of(LENS.model_copy(update={"further": (NAMES,)})).splitlines()
    assert shown[-5:] == ["lens    \\t _ a", "layer 0  1 0 2", "", "likeliest \\t   _ a", "layer 0   \\n _to /"]
    wide = NAMES.model_copy(update={"values": [["\n", " to", "/"] * 8]})
    assert (
        text_of(LENS.model_copy(update={"further": (wide,)})).splitlines()[-1]
        == "0  " + "\\n _to / " * 7 + "\\n _to /"
    )


def test_the_largest_of_many_neurons_are_listed() -> None:
    values = np.zeros((2, 100))
    values[1, 98] = -3
    shown = text_of(AnalysisRecord(kind="patching", axes=("layer", "neuron"), values=values.tolist()))
    assert "layer 1, neuron 98        -3  " + "-" * 30 in shown and "and 176 smaller ones" in shown


def test_many_bars_are_cut_to_the_largest() -> None:
    values = [float(number) for number in range(100)]
    shown = text_of(AnalysisRecord(kind="edges", axes=("edge",), values=values))
    assert "and 76 smaller ones" in shown and "99" in shown


@pytest.mark.parametrize(
    "record", [BARS, DEEP, WIDE, LENS, AttentionRecord(tokens=("a", "b"), values=[[[[1, 0], [0, 1]]]])]
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


def test_names_are_names_in_arrays_and_are_not_drawn(tmp_path: Path) -> None:
    record = LENS.model_copy(update={"further": (NAMES,)})
    figures.save(record, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as found:
        assert found["likeliest"].tolist() == NAMES.values
    pytest.importorskip("matplotlib")
    figures.save(record, tmp_path / "a.svg")


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has to end in \.npz, \.json, \.svg, \.png"):
        figures.save(BARS, tmp_path / "a.pdf")
