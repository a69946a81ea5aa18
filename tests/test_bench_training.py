"""What `linnet bench train` compares before it measures, who takes part, and how the limit of time is kept.

Nothing here looks at how fast a system is: the systems are small, and their seconds are not asserted.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import processes, training
from bench.processes import Apart, Limit, OutOfTime, Working, take_turns
from bench.training import Shape, bench_train, check, random_batch, systems_of
from bench.training_systems import Facts, Gradient, Ours, System, Took, build, gradient, matrix_products
from linnet.cli import bench as verbs
from linnet.errors import BadInput, RunFailed
from linnet.model.costs import costs

SMALL = Shape(depth=2, width=16, heads=2, vocabulary=50, batch=4, context=8)
NORMS = {"norms": 0.1, "embedding": 1.0, "attention": 0.5, "feedforward": 0.2}
AGREEING = Facts(100, Gradient(4.0, NORMS), Gradient(4.0, NORMS), 3.5)


def other(*, attention: float = 0.5, **changes: object) -> Facts:
    """Facts that agree with ours but for these changes."""
    return replace(AGREEING, **{"exact": Gradient(4.0, {**NORMS, "attention": attention}), **changes})  # type: ignore[arg-type]


def test_all_systems_compute_the_same() -> None:
    pytest.importorskip("transformers")
    run, batch = SMALL.run("float32", "off", 1, "cpu"), random_batch(SMALL)
    found = {}
    for system in (
        System("linnet", "linnet"),
        System("plain", "plain"),
        System("llama, sdpa", "llama"),
        System("llama, eager", "llama", attention="eager"),
    ):
        working = build(system, run, batch)
        found[system.name] = working.facts
        assert isinstance(working.turn(), Took)
    check(found)
    ours = found["linnet"]
    assert ours.later < ours.used.loss
    for facts in found.values():
        assert facts.parameters == ours.parameters and facts.later == pytest.approx(ours.later, abs=1e-4)
        for one, two in ((facts.exact, ours.exact), (facts.used, ours.used)):
            assert one.loss == pytest.approx(two.loss, abs=1e-5)
            assert one.norms == pytest.approx(two.norms, rel=1e-4) and min(one.norms.values()) > 0


def test_the_norms_of_all_parts_are_the_norm_of_the_gradient() -> None:
    ours = Ours(SMALL.run("float32", "off", 1, "cpu"))
    batch = random_batch(SMALL)
    found = gradient(ours, batch)
    moved = ours.learner.step(batch, 0, 1)
    assert math.hypot(*found.norms.values()) == pytest.approx(float(moved.grad_norm), rel=1e-5)
    assert found.loss == pytest.approx(float(moved.loss))


@pytest.mark.parametrize(
    "facts, words",
    [
        (other(attention=0.505), "the norm of the gradient of attention in float32 is 0.5 and 0.505"),
        (other(attention=math.nan), "the norm of the gradient of attention in float32 is 0.5 and nan"),
        (other(exact=Gradient(4.1, NORMS)), "the loss in float32 is 4.00000 and 4.10000 nats"),
        (other(used=Gradient(math.nan, NORMS)), "the loss as it is timed is 4.00000 and nan nats"),
        (other(used=Gradient(4.0, {**NORMS, "norms": 0.2})), "of norms as it is timed is 0.1 and 0.2"),
        (other(later=math.nan), "the loss after 5 steps is 3.5000 and nan"),
        (other(later=3.0), "the loss after 5 steps is 3.5000 and 3.0000"),
        (other(parameters=102), "ours has 100 parameters and peer 102"),
    ],
)
def test_systems_that_differ_are_not_timed(facts: Facts, words: str) -> None:
    with pytest.raises(RunFailed) as raised:
        check({"linnet": AGREEING, "peer": facts})
    assert words in str(raised.value) and "nothing is timed" in str(raised.value)


def test_small_differences_and_systems_that_compute_no_loss_pass() -> None:
    check({"linnet": AGREEING, "peer": other(attention=0.5005), "products": None})
    rounded = other(used=Gradient(4.01, {part: 1.02 * norm for part, norm in NORMS.items()}))
    check({"linnet": AGREEING, "peer": rounded})


def test_our_own_gradient_that_is_no_number_is_found_without_a_peer() -> None:
    """As compiled bfloat16 gave it on some processors, where the first loss was right."""
    broken = other(used=Gradient(4.0, {**NORMS, "attention": math.nan}))
    with pytest.raises(RunFailed, match="of attention as it is timed is nan"):
        check({"linnet": broken})


@pytest.mark.parametrize("context", [8, 1024])
def test_the_products_alone_are_those_of_a_step(context: int) -> None:
    """Counted by torch: three times the forward pass; long rows skip blocks that no query sees."""
    from torch.utils.flop_counter import FlopCounterMode

    shape = Shape(depth=1, width=16, heads=2, vocabulary=50, batch=1, context=context)
    config = shape.run("float32", "off", 1, "cpu").model
    step = matrix_products(config, shape.batch, torch.float32, "cpu")
    with FlopCounterMode(display=False) as counter:
        step()
    counted = counter.get_total_flops() / context
    if context == 8:
        assert counted == 3 * costs(config).flops_per_token
    else:
        assert costs(config).flops_per_token < counted < 3 * costs(config).flops_per_token


def test_a_benchmark_in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, a peer, one that breaks and one that is not there."""
    systems = [
        System("linnet", "linnet"),
        System("plain", "plain", keep_memory=False),
        System("a strange one", "llama", attention="no such kernel"),
    ]
    monkeypatch.setattr(training, "systems_of", lambda *_, **__: (systems, {"absent": "not installed"}))
    speed, memory = bench_train(SMALL, precision="float32", device="cpu", repeats=2, threads=1)
    assert speed.n == 2 and speed.ours > 0 and set(speed.peers) == {"plain", "absent", "a strange one"}
    assert speed.peers["plain"] and speed.peers["a strange one"] is None and speed.ratios["absent"] is None
    assert "a strange one ValueError: " in speed.note and "no such kernel" in speed.note
    assert "losses after 5 steps: linnet 3." in speed.note and "matmul peaks" in speed.note
    assert memory.unit == "MB" and memory.ours > 10


def sleeping(ready: float, turn: float) -> Working:
    time.sleep(ready)
    return Working(ready, functools.partial(time.sleep, turn))


@pytest.mark.parametrize("device", ["cpu", "one by one"])
def test_a_limit_of_time_is_kept(device: str) -> None:
    """Fewer turns, and no peer that is not ready in time; with all turns it would not end."""
    makes = {name: functools.partial(sleeping, 0.0, 0.1) for name in ("linnet", "peer")}
    makes["late"] = functools.partial(sleeping, 600.0, 0.0)
    began = time.monotonic()
    with Apart().build("one", functools.partial(sleeping, 0.0, 0.0)) as one:
        one.ask("facts")
    limit = 5 + 4 * (time.monotonic() - began)  # a busy machine starts processes slowly
    began = time.monotonic()
    outcome = take_turns(makes, device, turns=10**6, warm_up=1, limit=Limit(limit))
    assert time.monotonic() - began < 2 * limit
    assert set(outcome.turns) == {"linnet", "peer"} and min(map(len, outcome.turns.values())) >= 1
    assert outcome.absent["late"].startswith("did not answer within the")


def test_ours_must_be_ready_in_time() -> None:
    with pytest.raises(OutOfTime, match="linnet did not answer"):
        take_turns({"linnet": functools.partial(sleeping, 60, 0)}, "cpu", turns=1, warm_up=0, limit=Limit(0.5))


def test_processes_end_by_themselves() -> None:
    with Apart().build("one", functools.partial(sleeping, 0.0, 0.0)) as one:
        assert one.ask("facts") == 0.0
    assert one.process.exitcode == 0, "killed, it would be -9, and leave semaphores to be complained about"
    assert processes.peak_megabytes() > 10


def test_who_cannot_take_part_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    run = SMALL.run("float32", "off", 1, "cpu")
    monkeypatch.setattr(training, "native_bfloat16", lambda device: False)
    monkeypatch.setattr(training, "installed", lambda library: False)
    systems, absent = systems_of(run, compiling=False, llama="best")
    assert absent == {
        "plain bf16 compiled": "skipped: there are no bfloat16 instructions here",
        "transformers Llama": "not installed: pip install 'linnet-sequences[hf]'",
    }
    assert [system.name for system in systems][:2] == ["linnet", "plain fp32 eager"]
    monkeypatch.setattr(training, "native_bfloat16", lambda device: True)
    monkeypatch.setattr(training, "installed", lambda library: True)
    monkeypatch.setattr(training, "compiler_at_hand", lambda device: True)
    systems, absent = systems_of(run, compiling=True, llama="best")
    assert not absent and systems[0].compiled
    llamas = {(system.attention, system.compiled) for system in systems if system.kind == "llama"}
    assert llamas == {("sdpa", True), ("eager", True)}
    on_gpu = run.model_copy(update={"device": "cuda"})
    kinds = [system.kind for system in systems_of(on_gpu, compiling=True, llama="best")[0]]
    assert kinds == ["linnet", "plain", "products", "plain", "llama"]
    with pytest.raises(BadInput, match="none of best, none, sdpa and eager"):
        bench_train(SMALL, llama="flash")


def test_a_shape_is_read() -> None:
    assert Shape.parse("3x48", batch=4).name == "3x48, 4 x 128"
    with pytest.raises(BadInput, match="has the form 6x512"):
        Shape.parse("512")


def test_a_shape_above_the_measured_peak_is_not_given_a_share_of_it() -> None:
    assert training.share_note(5e9, 1e10, "float32") == "; ours reaches 50% of the float32 peak"
    above = training.share_note(2e10, 1e10, "bfloat16")
    assert "above the bfloat16 peak, so for this shape that peak is no bound" in above


def test_without_a_checkout_the_source_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As after `pip install`: the package lies in a folder that has no bench/ beside it."""
    assert verbs.benchmark("training") is training
    package = tmp_path / "site" / "packages" / "linnet"
    monkeypatch.setattr(verbs.linnet, "__file__", str(package / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="folder bench/ of linnet's source"):
        verbs.benchmark("training")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "training.py").write_text("")
    with pytest.raises(BadInput, match="not part of the installed package"):
        verbs.benchmark("training")  # somebody else's folder of this name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_training_is_measured_on_a_gpu() -> None:
    speed, memory = bench_train(SMALL, device="cuda", repeats=1, llama="none")
    assert speed.ours > 0 and speed.peers["plain fp32 eager"] and 0 < memory.ours < 4096
