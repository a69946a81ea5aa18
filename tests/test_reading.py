"""Embeddings, single steps and development, and the verbs that show them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from linnet import workbench
from linnet.cli.app import build
from linnet.errors import BadInput
from linnet.probing import embeddings
from linnet.probing.development import onset
from linnet.probing.known.programs import known_circuit
from linnet.probing.stepping import stepping
from small_models import random_ids, random_model, small_config
from tiny_runs import train_tiny


def linnet(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


@given(st.integers(5, 40), st.integers(1, 20))
def test_one_frequency_has_all_power(p: int, frequency: int) -> None:
    frequency = min(frequency, (p - 1) // 2)
    angles = 2 * math.pi * frequency * torch.arange(p, dtype=torch.float64) / p
    table = torch.stack((angles.cos(), angles.sin() + 3, 0 * angles), 1)
    power = embeddings.fourier_power(table)
    assert len(power) == p // 2 and float(power[frequency - 1]) == pytest.approx(1, abs=1e-6)


def test_components_and_neighbours() -> None:
    table = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    found = embeddings.components(table, 6)
    assert float(found.shares.sum()) == pytest.approx(1, abs=1e-5) and (found.shares.diff() <= 1e-6).all()
    centred = table - table.mean(0)
    torch.testing.assert_close(found.coordinates.norm(dim=1), centred.norm(dim=1), rtol=0, atol=1e-4)
    near = embeddings.neighbours(torch.cat((table, 2 * table[:1])), 0, 3)
    assert near[0] == (12, pytest.approx(1, abs=1e-5)) and len(near) == 3
    assert embeddings.number_tokens(["+", "1", "0", "3", "2", "x"]) == [2, 1, 4, 3]
    with pytest.raises(BadInput, match="0 to 3 at least"):
        embeddings.fourier_power(table[:3])


@pytest.mark.parametrize("mixer", ["attention", "gru"])
def test_steps_are_those_of_whole_rows(mixer: str) -> None:
    """The plain way: the whole row is read again for each token."""
    model = random_model(small_config(mixer=mixer))
    prompt = random_ids(1, 5)[0].tolist()
    steps = list(stepping(model, prompt, 6))
    row = list(prompt)
    for one in steps:
        taps = tuple(name for name in model.taps() if name.endswith("hook_pattern"))
        with torch.no_grad():
            output = model(torch.tensor([row]), keep=taps)
        torch.testing.assert_close(one.logits, model.head(output.hidden[0, -1]), rtol=0, atol=1e-4)
        assert one.token == int(one.logits.argmax()) == one.alternatives(1)[0][0]
        for layer, tap in enumerate(taps):
            torch.testing.assert_close(one.attention[layer], output.kept[tap][0, :, -1], rtol=0, atol=1e-5)
        row.append(one.token)
    assert len(steps) == 6
    forced = list(stepping(model, prompt, 3, forced=[1, 2]))
    assert [one.token for one in forced][:2] == [1, 2]


def test_steps_end_at_the_end_token_and_at_the_context() -> None:
    known = known_circuit("reverse")
    ids, answers = known.prompts(1)
    steps = list(stepping(known.model, ids[0, :6].tolist(), 10))
    assert [one.token for one in steps][:4] == answers[0, 5:9].tolist() and len(steps) == 5
    assert len(list(stepping(known.model, ids[0, :6].tolist(), 10, end=int(answers[0, 6])))) <= 2
    with pytest.raises(BadInput, match="needs a prompt"):
        list(stepping(known.model, [], 3))
    with pytest.raises(BadInput, match="the context is 10"):
        list(stepping(known.model, [1] * 11, 3))


@given(st.integers(2, 30), st.integers(2, 20), st.floats(0.5, 3), st.integers(0, 100))
def test_a_jump_is_found_where_it_is(before: int, after: int, height: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    noise = random.normal(0, height / 200, before + after)
    curve = np.concatenate([np.zeros(before), np.full(after, height)]) + noise
    assert onset(curve.tolist()) == before
    assert onset([0.5] * before) is None


@pytest.fixture(scope="module")
def developed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("developed") / "run"
    train_tiny(out, "training.snapshots=5", steps=8)
    return out


@pytest.mark.parametrize("what", ["heads", "loss"])
def test_development_has_a_point_at_each_snapshot(developed: Path, what: str) -> None:
    record = workbench.development(developed, what, rows=8)
    assert record.labels["step"] == ("0", "1", "2", "3", "5", "8")
    assert all(len(curve) == 6 for curve in record.values)
    assert {f"onset of {name}" for name in record.labels["curve"]} <= set(record.facts)


def test_development_of_a_probe_and_of_ones_own_measure(developed: Path) -> None:
    record = workbench.development(developed, "probe", label="carry", rows=40)
    assert record.labels["curve"][0] == "blocks.0.hook_resid_pre"
    own = workbench.development(developed, "test_reading:norm")
    first = workbench.load(developed)
    last = float(sum(parameter.detach().square().sum() for parameter in first.network.parameters()))
    assert own.values[0][-1] == pytest.approx(last, rel=1e-4)


def number(network: torch.nn.Module) -> float:
    return 0.5


def test_a_measure_of_ones_own_has_to_give_named_numbers(developed: Path) -> None:
    with pytest.raises(BadInput, match="test_reading:number gave '0.5'; it has to give named numbers"):
        workbench.development(developed, "test_reading:number")


def norm(network: torch.nn.Module) -> dict[str, float]:
    return {"norm": float(sum(parameter.detach().square().sum() for parameter in network.parameters()))}


def test_what_has_no_development_is_refused(developed: Path, adder: Path) -> None:
    with pytest.raises(BadInput, match="kept no snapshots"):
        workbench.development(adder)
    with pytest.raises(BadInput, match='did you mean "heads"'):
        workbench.development(developed, "head")
    with pytest.raises(BadInput, match="needs --label"):
        workbench.development(developed, "probe")
    with pytest.raises(BadInput, match="both --layer and --head"):
        workbench.development(developed, layer=0)
    with pytest.raises(BadInput, match="these 10 have 5; it needs more than 6"):
        workbench.development(developed, "embeddings")


def test_options_that_would_do_nothing_are_refused(developed: Path) -> None:
    with pytest.raises(BadInput, match="--label is about the development of probe, not of heads"):
        workbench.development(developed, label="carry")
    with pytest.raises(BadInput, match="--layer is about the development of heads, not of loss"):
        workbench.development(developed, "loss", layer=0, head=0)
    with pytest.raises(BadInput, match="add --tuned"):
        workbench.lens(developed, "1+2=", data=[Path("sums.txt")])
    with pytest.raises(BadInput, match="a text and --data exclude each other"):
        workbench.heads(developed, "1+2=", data=[Path("sums.txt")])
    with pytest.raises(BadInput, match="--half is about random tokens"):
        workbench.heads(developed, "1+2=", half=2)


def test_likeliest_tokens_of_a_lens_have_their_ranks(developed: Path) -> None:
    opened = workbench.load(developed)
    record = workbench.lens(developed, "1+2=", top=2)
    logits = opened.model.head(opened.model(torch.tensor([opened.prompt("1+2=")])).hidden[0])
    for rank, grid in enumerate(record.further[:2]):
        wanted = logits.topk(2).indices[:, rank].tolist()
        assert grid.values[-1] == [opened.codec.tokens[i] for i in wanted]


@pytest.mark.parametrize(
    "words",
    [
        ("attention", "1+2=", "--layer", "0", "--head", "1"),
        ("heads",),
        ("heads", "1+2="),
        ("lens", "1+2="),
        ("lens", "1+2=", "--tuned", "--rows", "60"),
        ("probe", "carry", "--rows", "60"),
        ("interchange", "carry.1", "--rows", "60", "--dims", "1", "--tap", "blocks.0.hook_resid_post"),
        ("embeddings", "--token", "3"),
        ("step", "1+2=", "--max-tokens", "2"),
        ("development", "loss"),
    ],
)
def test_verbs_show_and_write_their_record(developed: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    verb, *rest = words
    shown = linnet("inspect", verb, developed, *rest)
    assert shown.exit_code == 0, shown.stderr
    out = tmp_path / "out.json"
    assert linnet("inspect", verb, developed, *rest, "--out", out).exit_code == 0
    record = json.loads(out.read_text())
    assert record["kind"] == verb and np.array(record["values"], float).ndim == len(record["axes"])
