"""What a GPU does with every kind of run: it trains, resumes, scores and generates as the processor does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from linnet import workbench
from linnet.model import kernels
from linnet.model.kernels import Mask
from text_corpora import corpus
from tiny_runs import TINY, Killed, Watching, agree, bits, logged

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sums": ("tiny-arithmetic", (*TINY, "ema=0.9", "dropout=0.1")),
    "sums, muon": ("tiny-arithmetic", (*TINY, "optim.kind=muon")),
    "sums, recurrent": ("tiny-arithmetic", (*TINY, "mixer=gru")),
    "text": ("tiny-text", ("eval_every=5", "dropout=0.1")),
    "text, rows apart": ("tiny-text", ("eval_every=5", "packing=apart", "accumulation=2")),
    "characters": ("tiny-characters", ("eval_every=5",)),
    "places": ("tiny-places", ("eval_every=5", "ema=0.9")),
}


def options(kind: str, folder: Path, *further: str, **asked: Any) -> dict[str, Any]:
    """What trains a tiny run of this kind."""
    recipe, settings = KINDS[kind]
    if recipe == "tiny-places":
        for name in ("polars", "s2cell"):
            if importlib.util.find_spec(name) is None:
                pytest.skip(f"places need {name}")
        from linnet.domains.places.generated import Process, generate, write_check_ins

        data = [folder / "check-ins.csv"]
        write_check_ins(data[0], generate(Process(users=8, visits=40, own=6, venues=100)))
    else:
        data = [] if recipe == "tiny-arithmetic" else [corpus(folder / "corpus.txt", 60)]
    return {"name": recipe, "data": data, "settings": [*settings, *further], "steps": 12} | asked


def losses(path: Path) -> list[float]:
    return [step["loss"] for step in logged(path)]


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_as_the_processor_does_and_scores_alike(kind: str, tmp_path: Path) -> None:
    for device in ("cuda", "cpu"):
        given = options(kind, tmp_path, "dropout=0", device=device, precision="float32")
        name = given.pop("name")
        workbench.train(name, out=tmp_path / device, **given)
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=2e-3)
    assert not [note for note in logged(tmp_path / "cuda", "note") if "not recorded" in note["text"]]
    data = given["data"]
    scored = [
        workbench.evaluate(tmp_path / "cuda", data=data, device=device, precision="float32", **_few(kind))
        for device in ("cuda", "cpu")
    ]
    values = [{score.name: score.value for score in record.scores} for record in scored]
    assert values[0] == pytest.approx(values[1], abs=1e-4)


def _few(kind: str) -> dict[str, Any]:
    return {"settings": ["n=50"]} if kind.startswith("sums") else {}


@pytest.mark.parametrize("compiled", ["graphs", "off"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_with_the_bits_of_the_undisturbed_one(kind: str, compiled: str, tmp_path: Path) -> None:
    given = options(kind, tmp_path, f"compile={compiled}", device="cuda")
    name = given.pop("name")
    workbench.train(name, out=tmp_path / "whole", **given)
    with pytest.raises(Killed):
        workbench.train(name, out=tmp_path / "run", progress=Watching(7), **given)
    workbench.resume(tmp_path / "run")
    agree(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("kind", ["sums", "sums, muon", "text"])
def test_steps_that_are_launched_at_once_move_as_single_launches_do(kind: str, tmp_path: Path) -> None:
    """Dropout, averaged weights and rates included."""
    for compiled in ("graphs", "off"):
        given = options(kind, tmp_path, f"compile={compiled}", device="cuda", precision="float32")
        name = given.pop("name")
        workbench.train(name, out=tmp_path / compiled, **given)
    assert losses(tmp_path / "graphs") == pytest.approx(losses(tmp_path / "off"), rel=1e-3)
    rates = [[step["lr"] for step in logged(tmp_path / name)] for name in ("graphs", "off")]
    assert rates[0] == rates[1] and bits(tmp_path / "graphs").keys() == bits(tmp_path / "off").keys()


@pytest.mark.parametrize("kind", ["sums", "text", "characters"])
def test_it_generates_what_the_processor_generates(kind: str, tmp_path: Path) -> None:
    given = options(kind, tmp_path, device="cuda", precision="float32")
    name = given.pop("name")
    workbench.train(name, out=tmp_path / "run", **given)
    texts = [
        [record.text for record in workbench.generate(tmp_path / "run", device=device, n=6, max_tokens=20, seed=3)]
        for device in ("cuda", "cpu")
    ]
    assert sum(one == two for one, two in zip(*texts, strict=True)) >= 5, "one near tie may fall otherwise"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(8, 8, 64), (6, 2, 48), (3, 1, 20)])
@pytest.mark.parametrize("keys", [1, 63, 64, 300])
def test_attention_from_one_query_is_that_of_the_reference(
    heads: int, kv_heads: int, width: int, keys: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator("cuda").manual_seed(keys)
    arena = torch.randn(2, 5, kv_heads, keys + 7, width, generator=generator, device="cuda").to(dtype)
    q = torch.randn(5, 1, heads, width, generator=generator, device="cuda").to(dtype).transpose(1, 2)
    lengths = torch.randint(1, keys + 1, (5, 1, 1, 1), generator=generator, device="cuda")
    allowed = torch.arange(keys, device="cuda") < lengths
    k, v = arena[0][:, :, :keys], arena[1][:, :, :keys]
    for mask in (Mask(allowed, False), Mask(None, False)):
        expected = kernels.explicit(q.double(), k.double(), v.double(), mask, 0.0)
        with torch.inference_mode():
            found = kernels.one_query(q, k, v, mask, 0.0)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [5, 37, 4096, 16_000, 50_304])
def test_nats_and_the_gradient_of_logits_are_those_of_the_reference(vocabulary: int, dtype: torch.dtype) -> None:
    generator = torch.Generator("cuda").manual_seed(vocabulary)
    scores = (4 * torch.randn(33, vocabulary, generator=generator, device="cuda")).to(dtype)
    targets = torch.randint(0, vocabulary, (33,), generator=generator, device="cuda")
    weights = torch.rand(33, generator=generator, device="cuda")
    found = kernels.nats_and_gradient(scores, targets, weights)
    expected = kernels.nats_and_gradient(scores.cpu(), targets.cpu(), weights.cpu())
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), reference, rtol=1e-4, atol=1e-5 if dtype == torch.float32 else 4e-3)
