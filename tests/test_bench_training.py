"""What `linnet bench train` compares: the same losses from the same weights, ratios by turns, and who is absent.

Nothing here looks at a clock: the systems are small, and how long they took is not asserted.
"""

from __future__ import annotations

import pytest
import torch

from bench import training
from bench.training import Shape, agree, bench_train, chosen_llama, field_of, random_batch
from bench.training_systems import Ready, System, at_work, matrix_products, system
from linnet.errors import BadInput, RunFailed
from linnet.model.costs import costs

SMALL = Shape(depth=2, width=16, heads=2, vocabulary=50, batch=2, context=8)


class Standing:
    """A peer that is ready, as `agree` sees it."""

    def __init__(self, loss: float | None, parameters: int) -> None:
        self.ready = Ready(loss, parameters)


def test_all_systems_start_with_the_same_loss_and_learn() -> None:
    pytest.importorskip("transformers")
    run, batch = SMALL.run("float32", "off", 1), random_batch(SMALL)
    losses = {}
    for asked in (
        System("linnet", "linnet"),
        System("plain", "plain"),
        System("llama, sdpa", "llama"),
        System("llama, eager", "llama", attention="eager"),
    ):
        ready, step = system(asked, run, batch)
        losses[asked.name] = ready
        first = float(step())
        assert first == pytest.approx(ready.loss, abs=1e-5)
        for _ in range(5):
            last = float(step())
        assert last < first, asked.name
    agree({name: Standing(ready.loss, ready.parameters) for name, ready in losses.items()})  # type: ignore[arg-type]
    values = [ready.loss for ready in losses.values()]
    assert max(values) - min(values) < 1e-5 and len({ready.parameters for ready in losses.values()}) == 1


def test_systems_that_differ_are_not_timed() -> None:
    ours = Standing(4.0, 100)
    for other, said in ((Standing(4.1, 100), "nothing is timed"), (Standing(4.0, 102), "and peer 102")):
        with pytest.raises(RunFailed, match=said):
            agree({"linnet": ours, "peer": other})  # type: ignore[dict-item]
    with pytest.raises(RunFailed, match="peer nan"):
        agree({"linnet": ours, "peer": Standing(float("nan"), 100)})  # type: ignore[dict-item]
    agree({"linnet": ours, "products": Standing(None, 0)})  # type: ignore[dict-item]


@pytest.mark.parametrize("context", [8, 1024])
def test_the_products_alone_are_those_of_a_step(context: int) -> None:
    """Counted by torch: three times the forward pass; long rows skip blocks that no query sees."""
    from torch.utils.flop_counter import FlopCounterMode

    shape = Shape(depth=1, width=16, heads=2, vocabulary=50, batch=1, context=context)
    config = shape.run("float32", "off", 1).model
    step = matrix_products(config, shape.batch, torch.float32, "cpu")
    with FlopCounterMode(display=False) as counter:
        step()
    counted = counter.get_total_flops() / context
    if context == 8:
        assert counted == 3 * costs(config).flops_per_token
    else:
        assert costs(config).flops_per_token < counted < 3 * costs(config).flops_per_token


def test_two_processes_take_turns_and_say_what_they_needed() -> None:
    run, batch = SMALL.run("float32", "off", 1), random_batch(SMALL)
    with at_work([System("linnet", "linnet"), System("plain", "plain", keeping=False)], run, batch) as peers:
        agree(peers)
        first, seconds = training.time_in_turn(peers, 2)
        assert set(first) == set(seconds) == {"linnet", "plain"}
        assert all(len(taken) == 2 and taken[0].processor > 0 for taken in seconds.values())
        assert "plain" in training.in_processor_time(seconds)
        assert all(peer.peak() > 10 for peer in peers.values())


def test_a_system_that_breaks_is_named() -> None:
    run, batch = SMALL.run("float32", "off", 1), random_batch(SMALL)
    broken = System("a strange one", "llama", attention="no such kernel")
    with pytest.raises(RunFailed, match="a strange one failed"), at_work([broken], run, batch):
        pass


def test_who_cannot_take_part_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    run = SMALL.run("float32", "off", 1)
    monkeypatch.setattr(training, "native_bfloat16", lambda device: False)
    monkeypatch.setattr(training, "installed", lambda library: False)
    field = field_of(run, compiling=False, llama="best")
    assert field.absent == {
        "plain bf16 compiled": "skipped: there are no bfloat16 instructions here",
        "transformers Llama": "not installed: pip install linnet[hf]",
    }
    assert [asked.name for asked in field.systems][:2] == ["linnet", "plain fp32 eager"] and not field.llamas
    monkeypatch.setattr(training, "native_bfloat16", lambda device: True)
    monkeypatch.setattr(training, "installed", lambda library: True)
    monkeypatch.setattr(training, "compiler_at_hand", lambda device: True)
    field = field_of(run, compiling=True, llama="best")
    assert not field.absent and field.systems[0].compiled
    assert {(one.attention, one.compiled, one.precision) for one in field.llamas} == {
        (kernel, way, "bfloat16") for kernel in ("sdpa", "eager") for way in (False, True)
    }
    with pytest.raises(BadInput, match="none of best, none, sdpa and eager"):
        bench_train(SMALL, llama="flash")


def test_one_setting_needs_no_trial() -> None:
    only = System("one", "llama")
    assert chosen_llama([only], SMALL.run("float32", "off", 1), random_batch(SMALL)) == (only, "")


def test_a_shape_is_read() -> None:
    assert Shape.parse("3x48", batch=4).name == "3x48, 4 x 128"
    with pytest.raises(BadInput, match="has the form 6x512"):
        Shape.parse("512")


def test_a_shape_above_the_measured_peak_is_not_given_a_share_of_it() -> None:
    from bench.training import share_in_words

    assert share_in_words(5e9, 1e10, "float32") == "; ours reaches 50% of the float32 peak"
    assert "above the bfloat16 peak, so for this shape that peak is no bound" in share_in_words(
        2e10, 1e10, "bfloat16"
    )
