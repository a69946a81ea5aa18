"""What the compiler makes of each kernel equals the eager step, under every instruction set that the machine has.

One process for each of them (`ATEN_CPU_CAPABILITY`), since torch reads it once; all keep their graphs below one
folder. Each case is the objective of a small model: loss and every gradient, with dropout that drops nothing.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from linnet import workbench
from linnet.machine import compiler_at_hand, graph_cache
from linnet.model import dropping, kernels
from linnet.model.config import AttentionConfig, FeedForwardConfig, HeadConfig, LossConfig, ModelConfig, NormConfig
from linnet.model.contract import Objective
from linnet.model.model import Model
from linnet.training.checkpoint import RunFolder
from linnet.training.compiling import difference
from tiny_runs import Killed, Watching, bits, logged, train_tiny

ROWS, TOKENS, WORDS = 3, 40, 50
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02}
LEAST = 1e-3  # of the norm of all gradients; what is smaller is compared with this

EVERYWHERE = "documents, rotary, shared keys, qk norm, two passes with dropout"
CASES: dict[str, dict[str, Any]] = {
    EVERYWHERE: {
        "attention": {"heads": 4, "kv_heads": 2, "qk_norm": True},
        "dropout": 0.25,
        "loss": {"r_drop": 1.0, "smoothing": 0.1, "z_loss": 1e-2},
        "documents": True,
    },
    "causal blocks, learned positions": {"positions": "learned", "block": 24},
    "both ways, lengths, sinusoidal, own head": {
        "positions": "sinusoidal",
        "attention": {"heads": 2, "causal": False, "value_embeddings": "all"},
        "head": {"tied": False, "bias": True, "softcap": 5.0},
        "norm": {"kind": "layer"},
        "feedforward": {"kind": "gelu"},
        "lengths": True,
        "precision": "float32",
    },
}


def config_of(case: dict[str, Any]) -> ModelConfig:
    given = {"attention": {"heads": 2}, **case}
    parts = {
        "attention": AttentionConfig,
        "loss": LossConfig,
        "norm": NormConfig,
        "feedforward": FeedForwardConfig,
        "head": HeadConfig,
    }
    sizes = {"vocabulary": WORDS, "context": TOKENS, "width": 32, "depth": 1}
    own = {name: parts[name](**value) for name, value in given.items() if name in parts}
    rest = {name: given[name] for name in ("positions", "dropout") if name in given}
    return ModelConfig(**sizes, **rest, **own)


def batch_of(case: dict[str, Any]) -> dict[str, Tensor]:
    ids = torch.randint(0, WORDS, (ROWS, TOKENS + 1))
    batch = {"ids": ids[:, :-1], "next.ids": ids[:, 1:], "weights": torch.rand(ROWS, TOKENS)}
    if "documents" in case:
        batch["documents"] = (torch.arange(TOKENS) // 15 + torch.zeros(ROWS, 1, dtype=torch.int64)).contiguous()
    if "lengths" in case:
        batch["lengths"] = torch.tensor([TOKENS, 7, 0])
    return batch


def worst(case: dict[str, Any], precision: str) -> float:
    """The largest relative difference of the loss and of all gradients between compiled and eager."""
    torch.manual_seed(0)
    torch.compiler.reset()
    if "block" in case:
        kernels.BLOCK = case["block"]
    model, batch = Model(config_of(case)).train(), batch_of(case)
    objective, parameters = Objective(model), tuple(model.parameters())

    def learn(function: Any) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"), dropping.nothing_dropped():
            loss = function(batch)
            return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    eager, compiled = learn(objective), learn(torch.compile(objective, dynamic=False))
    least = LEAST * float(torch.nn.utils.get_total_norm(eager[1:]))
    norms = [float(eager[0]), *(max(least, float(grad.norm())) for grad in eager[1:])]
    off = [float((mine - theirs).norm()) for mine, theirs in zip(compiled, eager, strict=True)]
    return max(difference / norm for difference, norm in zip(off, norms, strict=True))


def check_all() -> None:
    """Run in a process of its own; prints a line for each case that is off."""
    print("capability", torch.backends.cpu.get_cpu_capability())
    graph_cache()
    for name, case in CASES.items():
        if name == EVERYWHERE or sys.argv[1] == "widest":
            precision = case.get("precision", "bfloat16")
            off = worst(case, precision)
            print(f"{name}, {precision}: {off:.5f}")
            assert off < TOLERANCE[precision], f"{name} in {precision} is off by {off:.1%}"


def capabilities() -> list[str]:
    best = torch.backends.cpu.get_cpu_capability().lower()
    order = ["default", "avx2", "avx512"]
    return order[: order.index(best) + 1] if best in order else [best]


@pytest.mark.slow
@pytest.mark.skipif(not compiler_at_hand("cpu"), reason="there is no C++ compiler here")
@pytest.mark.parametrize("capability", capabilities())
def test_compiled_steps_equal_eager_ones_under_every_capability(capability: str) -> None:
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    paths = [os.path.dirname(__file__), *sys.path]
    code = "import test_compiled; test_compiled.check_all()"
    done = subprocess.run(
        [sys.executable, "-c", code, "widest" if capability == capabilities()[-1] else "others"],
        env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"capability {capability.upper()}" in done.stdout, done.stdout


@pytest.mark.skipif(not compiler_at_hand("cpu"), reason="there is no C++ compiler here")
def test_a_compiled_graph_drops_values_again_after_a_comparison() -> None:
    """The graph that was compared with nothing dropped is the one that training uses."""
    compiled = torch.compile(lambda x: dropping.drop(x, 0.25), dynamic=False)
    x = torch.ones(64, 64)
    with dropping.nothing_dropped():
        assert torch.equal(compiled(x), x) and torch.equal(dropping.drop(x, 0.25), x)
    shares = [float((compiled(x) == 0).float().mean()), float((dropping.drop(x, 0.25) == 0).float().mean())]
    assert all(0.2 < share < 0.3 for share in shares)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


# The first step of a run.


def compile_by(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """With the front half of the compiler alone, which needs no C++, and nothing compiled before."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, **{"backend": "aot_eager", **options}))


def wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled attention is 20 % too large."""
    right = kernels.attend

    def attend(*arguments: Any, **options: Any) -> Tensor:
        return right(*arguments, **options) * (1.2 if torch.compiler.is_compiling() else 1.0)

    monkeypatch.setattr("linnet.model.mixers.attend", attend)


def broken_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(*_: Any) -> None:
        raise RuntimeError("no such instruction")

    compile_by(monkeypatch, backend=backend)


def losses(path: Path) -> list[float]:
    return [record["loss"] for record in logged(path)]


def test_a_wrong_kernel_and_a_broken_compiler_leave_the_run_eager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, texts = ("compile=on", "dropout=0.2", "threads=1"), []
    for name, plant in (("wrong", wrong_kernel), ("broken", broken_compiler)):
        with monkeypatch.context() as patch:
            compile_by(patch)
            plant(patch)
            with pytest.raises(Killed):
                train_tiny(tmp_path / name, *settings, steps=10, progress=Watching(6))
        with monkeypatch.context() as patch:  # a compiler that is right again is not used
            compile_by(patch)
            workbench.resume(tmp_path / name)
        texts.append([note["text"] for note in logged(tmp_path / name, "note") if "not compiled" in note["text"]])
    assert losses(tmp_path / "wrong") == losses(tmp_path / "broken"), "both went on eagerly"
    assert bits(tmp_path / "wrong") == bits(tmp_path / "broken")
    assert len(texts[0]) == 1 and "gradients of blocks.0.mixer" in texts[0][0]
    assert len(texts[1]) == 1 and "compiling failed: " in texts[1][0] and "no such instruction" in texts[1][0]
    assert RunFolder(tmp_path / "wrong").loop(10)[0].eager in texts[0][0]
    train_tiny(tmp_path / "eager", "compile=off", "threads=1", steps=1)
    train_tiny(tmp_path / "padded", "compile=on", "threads=1", steps=1)
    assert losses(tmp_path / "padded") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)


def test_a_right_compiler_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where it is asked for: graphs are steps as they are, launched at once on a GPU."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any, **_: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    for compiled in ("on", "graphs"):
        graphs.clear()
        with monkeypatch.context() as patch:
            compile_by(patch, backend=backend)
            train_tiny(tmp_path / compiled, f"compile={compiled}", "dropout=0.2", "threads=1", steps=3)
        assert len(graphs) == (compiled == "on"), "made once, for the check and for all steps"
        assert not [note for note in logged(tmp_path / compiled, "note") if "not compiled" in note["text"]]
        assert RunFolder(tmp_path / compiled).loop(3)[0].eager == ""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_differences_are_found_by_part(precision: str) -> None:
    def changed(**values: Tensor) -> str:
        return difference(expected, expected | values, precision, exact=True)

    torch.manual_seed(0)
    expected = {"loss": torch.tensor(3.0), "a.weight": torch.randn(50), "b.weight": 1e-4 * torch.randn(9)}
    nan = torch.tensor(float("nan"))
    assert changed() == ""
    assert "is nan, and 3 eagerly" in changed(loss=nan)
    assert "gradients of a " in changed(**{"a.weight": 1.2 * expected["a.weight"]})
    assert "gradients of b " in changed(**{"b.weight": expected["b.weight"] * nan})
    assert changed(**{"b.weight": 1.2 * expected["b.weight"]}) == "", "too small to matter"
    assert "only one" in difference(expected, {"loss": expected["loss"]}, precision, exact=True)
    other = expected | {"a.weight": torch.randn(50)}
    assert difference(expected, other, precision, exact=False) == "", "other values were dropped"
    assert "gradients of a" in difference(expected, expected | {"a.weight": nan}, precision, exact=False)
