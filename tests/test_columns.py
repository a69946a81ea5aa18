"""Rows of several columns: ids and numbers that enter a model, numbers that leave it, and generation."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.data import Packed, Padded
from linnet.decoding import engine, naive, scheduler
from linnet.decoding.choices import tables
from linnet.decoding.requests import Decoding, Request, Sampling
from linnet.decoding.runner import Runner
from linnet.evaluation import nats
from linnet.model.columns import NumberHead
from linnet.model.config import LossConfig, ModelConfig, NumberColumn
from linnet.model.contract import Objective
from linnet.model.inputs import Inputs
from linnet.model.model import Model
from linnet.rows import Rows
from small_models import random_model, small_config

ROOT = Path(__file__).parent.parent
BEAT = {"kind": "ids", "size": 4}
PACE = {"kind": "numbers", "width": 2}


def columns(ids: Sequence[int]) -> Mapping[str, np.ndarray]:
    """A count that goes on, and numbers that depend on everything so far."""
    total = np.cumsum(ids).astype(np.float32)
    return {"beat": np.arange(len(ids)) % 4, "pace": np.stack([np.sin(total), np.cos(total)], 1)}


@settings(max_examples=15, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=5), min_size=1, max_size=4),
    rows=st.integers(1, 3),
    stem=st.lists(st.integers(0, 12), max_size=4),
    mixer=st.sampled_from(["attention", "gru"]),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_generation_beside_further_columns_is_that_of_the_whole_sequence(
    prompts: list[list[int]], rows: int, stem: list[int], mixer: str, temperature: float
) -> None:
    """With what the prompts begin with read once for all of them, and choices scored after it."""
    model = random_model(small_config(mixer=mixer, columns={"beat": BEAT, "pace": PACE}))
    decoding, runner = Decoding(Sampling(temperature), max_tokens=5), Runner(model, columns=columns)
    requests = [Request((*stem, *prompt), sample) for prompt in prompts for sample in range(2)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scheduler, "SHARED_TOKENS", 2)
        patched.setattr(scheduler, "SHARED_ROWS", 2)
        found = list(engine.generate(runner, requests, decoding, rows=rows))
    assert [sample.ids for sample in found] == [
        naive.generate(model, request, decoding, columns).ids for request in requests
    ]
    (_, table), *_ = tables(runner, {request.prompt: [(3,), (5, 6)] for request in requests}, (), rows)
    for choice, logprobs in zip(table.choices, table.tokens, strict=True):
        whole = [*requests[0].prompt, *choice]
        further = {name: torch.from_numpy(values)[None] for name, values in columns(whole).items()}
        with torch.inference_mode():
            scores = model.head(model(Inputs({"ids": torch.tensor([whole]), **further})).hidden)[0].log_softmax(-1)
        first = len(requests[0].prompt) - 1
        expected = [float(scores[first + number, token]) for number, token in enumerate(choice)]
        np.testing.assert_allclose(logprobs, expected, rtol=1e-4, atol=1e-4)


def test_a_model_of_several_columns_does_not_run_without_them() -> None:
    with pytest.raises(ValueError, match="reads further columns: beat"):
        Runner(random_model(small_config(columns={"beat": BEAT})))


def waves(count: int, head: str, seed: int = 0) -> tuple[Rows, ModelConfig]:
    """Rows of one number a step: sines with noise; the first numbers of every other row are absent."""
    random = np.random.default_rng(seed)
    lengths = random.integers(12, 25, count)
    rows = [np.sin(random.uniform(0, 6) + 0.6 * np.arange(n)) + random.normal(0, 0.1, n) for n in lengths]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    scored, present = np.ones(starts[-1], bool), np.ones(starts[-1], bool)
    scored[starts[:-1]] = False
    for start in starts[:-1:2]:
        present[start : start + 3] = False
    values = np.concatenate(rows).astype(np.float32)[:, None]
    column = NumberColumn(head=head, low=-2, high=2)  # type: ignore[arg-type]
    config = ModelConfig(context=24, width=32, depth=2, columns={"value": column})
    return Rows({"value": values}, starts, scored, present={"value": present}), config


@pytest.mark.parametrize("head", ["mean", "quantiles", "bins"])
def test_a_model_of_numbers_alone_learns_to_predict_them(head: str) -> None:
    """Below the loss that it starts with, and its expected number nearer than the last one."""
    rows, config = waves(200, head)
    torch.manual_seed(0)
    model, plan = Model(config), Padded(rows, 32, 0)
    optim, objective = torch.optim.AdamW(model.parameters(), 3e-3), Objective(model)
    before = nats(model, rows).mean
    for step in range(120):
        batch = plan.batch(step)
        loss = objective(dict(batch)) / batch["weights"].sum()
        optim.zero_grad()
        loss.backward()
        optim.step()
    after = nats(model, rows).mean
    assert after < 0.6 * before
    batch = Padded(waves(50, head, seed=1)[0], 50, 0, shuffle=False).batch(0)
    with torch.no_grad():
        expected = model.heads["value"].mean(model(batch).hidden)  # type: ignore[operator]
    counted = batch["weights"].bool() & batch["next.present.value"] & batch["present.value"]
    ours = (expected - batch["next.value"])[counted].square().mean()
    naive_error = (batch["value"] - batch["next.value"])[counted].square().mean()
    assert ours < 0.3 * naive_error


def test_absent_numbers_change_nothing_and_are_no_targets() -> None:
    rows, config = waves(6, "mean")
    model, batch = Model(config), Padded(rows, 6, 0, shuffle=False).batch(0)
    loss = Objective(model)(dict(batch))
    for name in ("value", "next.value"):
        mark = "present.value" if name == "value" else "next.present.value"
        other = torch.where(batch[mark][..., None], batch[name], 99.0)
        assert torch.equal(Objective(model)(dict(batch.replaced(**{name: other}))), loss)


def test_packing_keeps_columns_beside_their_steps() -> None:
    rows, _ = waves(20, "mean")
    batch = Packed(rows, 4, 16, 0).batch(0)
    inside = batch["next.present.value"] & (torch.arange(16) < batch["lengths"][:, None])
    flat = torch.from_numpy(np.asarray(rows.columns["value"])[:, 0])
    after = dict(zip(flat[:-1].tolist(), flat[1:].tolist(), strict=True))
    pairs = zip(batch["value"][..., 0][inside].tolist(), batch["next.value"][..., 0][inside].tolist(), strict=True)
    assert all(after[value] == following for value, following in pairs) and inside.any()


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=6), st.integers(0, 99))
def test_quantiles_rise_and_their_loss_is_that_of_the_definition(numbers: list[float], seed: int) -> None:
    torch.manual_seed(seed)
    head = NumberHead(NumberColumn(head="quantiles", quantiles=(0.1, 0.5, 0.9)), 4)
    hidden, targets = torch.randn(1, len(numbers), 4), torch.tensor(numbers)[None, :, None]
    found = head(hidden)
    assert bool((found.diff(dim=-1) >= 0).all())
    expected = [
        sum(2 * (q * max(y - f, 0) + (1 - q) * max(f - y, 0)) for q, f in zip((0.1, 0.5, 0.9), row, strict=True))
        / 3
        for y, row in zip(numbers, found[0, :, 0].tolist(), strict=True)
    ]
    torch.testing.assert_close(head.losses(hidden, targets)[0], torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_bins_hold_the_numbers_between_their_edges() -> None:
    head = NumberHead(NumberColumn(head="bins", bins=4, low=0, high=4), 3)
    assert head.bin_of(torch.tensor([-1.0, 0.0, 0.99, 1.0, 3.99, 4.0, 9.0])).tolist() == [0, 0, 0, 1, 3, 3, 3]


def test_two_passes_average_the_losses_of_further_columns() -> None:
    """R-Drop without dropout costs a pass and changes nothing, for tokens and for further columns."""
    columns = {"beat": {**BEAT, "predicted": True}, "pace": {**PACE, "head": "mean"}}
    model = random_model(small_config(columns=columns))
    ids = torch.arange(12).view(2, 6)
    batch = {"ids": ids, "beat": ids % 4, "pace": torch.randn(2, 6, 2), "weights": torch.ones(2, 6)}
    batch |= {f"next.{name}": batch[name].roll(-1, 1) for name in ("ids", "beat", "pace")}
    once = Objective(model)(batch)
    model.config = model.config.model_copy(update={"loss": LossConfig(r_drop=3.0)})
    model.passes = 2
    assert math.isclose(float(Objective(model)(batch).detach()), float(once.detach()), rel_tol=1e-5)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A new environment that sees the packages of this one, with the example installed by pip."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (site,) = (folder / "lib").glob("python*/site-packages")
    own = [path for path in sys.path if path.endswith("site-packages")]
    (site / "here.pth").write_text("\n".join([str(ROOT / "src"), *own]) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q"]
    example = str(ROOT / "examples" / "chords")
    quiet = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", example], check=True, env=quiet)
    return folder, quiet


@pytest.mark.slow
def test_a_domain_of_a_package_of_its_own_needs_no_change_here(fresh: Any, tmp_path: Path) -> None:
    """Installed by pip: its recipe trains, is killed and resumed, scores and generates, and its verb is there."""
    folder, environment = fresh

    def linnet(*arguments: str) -> str:
        command = [str(folder / "bin" / "python"), "-m", "linnet", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "chord progressions" in linnet("recipes")
    linnet("train", "chords", "--songs", "150", "--steps", "100", "--out", "whole")
    often = ("--set", "eval_every=25", "--set", "keep=5")
    linnet("train", "chords", "--songs", "150", "--steps", "100", "--out", "cut", *often)
    (tmp_path / "cut" / "record.json").unlink()
    for step in ("000075", "000100"):
        for file in (tmp_path / "cut" / "checkpoints" / step).glob("*"):
            file.unlink()
        (tmp_path / "cut" / "checkpoints" / step).rmdir()
    linnet("resume", "cut")
    whole, cut = (tmp_path / run / "checkpoints" / "000100" / "weights.safetensors" for run in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    scored = linnet("eval", "whole", "--json")
    assert '"in_key"' in scored and '"200 drawn rows (test)"' in scored
    assert linnet("generate", "whole", "C Am F", "--temperature", "0", "--max-tokens", "3").strip()
    assert "C major" in linnet("key", "whole", "C Am F G")
