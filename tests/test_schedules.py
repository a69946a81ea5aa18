"""Learning-rate schedules: torch's own, step by step, where torch has them; properties where it has not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from linnet.training.schedules import Constant, Cosine, Linear, OneCycle, Schedule, WarmupStableDecay

BRIEF = settings(max_examples=25)  # torch's schedulers are slow
STEPS = st.integers(1, 150)
SHARES = st.floats(0, 1)
WARMUPS = st.one_of(st.floats(0, 0.99), st.integers(1, 50).map(float))
SCHEDULES = st.one_of(
    st.builds(Constant, warmup=WARMUPS),
    st.builds(Cosine, warmup=WARMUPS, floor=SHARES),
    st.builds(Linear, warmup=WARMUPS, floor=SHARES),
    st.builds(
        WarmupStableDecay, warmup=WARMUPS, decay=SHARES, shape=st.sampled_from(["linear", "sqrt"]), floor=SHARES
    ),
    st.builds(OneCycle, pct_start=st.floats(0.01, 0.99), div=st.floats(1, 100), final_div=st.floats(1, 1e6)),
)


def rates(schedule: Schedule, steps: int) -> list[float]:
    return [schedule.factor(step, steps) for step in range(steps)]


def torch_rates(make: type[lr_scheduler.LRScheduler], steps: int, **settings: float | bool) -> list[float]:
    """The learning rates that a scheduler of torch gives to `steps` steps, from a peak of 1."""
    optim = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optim, **settings)
    seen = []
    for step in range(steps):
        seen.append(optim.param_groups[0]["lr"])
        optim.step()
        if step < steps - 1:
            scheduler.step()
    return seen


@BRIEF
@given(STEPS, st.floats(0.01, 0.99), st.floats(1, 100), st.floats(1, 1e6))
def test_onecycle_is_that_of_torch(steps: int, pct_start: float, div: float, final_div: float) -> None:
    assume(abs(pct_start * steps - 1) > 1e-6 and abs(pct_start * steps - steps) > 1e-6)  # torch divides by zero
    schedule = OneCycle(pct_start=pct_start, div=div, final_div=final_div)
    expected = torch_rates(
        lr_scheduler.OneCycleLR,
        steps,
        max_lr=1.0,
        total_steps=steps,
        pct_start=pct_start,
        div_factor=div,
        final_div_factor=final_div,
        cycle_momentum=False,
    )
    assert rates(schedule, steps) == pytest.approx(expected, abs=1e-9)


def test_onecycle_may_begin_at_its_peak() -> None:
    """Where the rising arm has no length, torch divides by zero."""
    assert OneCycle(pct_start=0.1).factor(0, 10) == 1.0


@BRIEF
@given(st.integers(2, 150), SHARES)
def test_cosine_is_that_of_torch(steps: int, floor: float) -> None:
    """The last step is at the floor, so the arc is one shorter than the steps."""
    expected = torch_rates(lr_scheduler.CosineAnnealingLR, steps, T_max=steps - 1, eta_min=floor)
    assert rates(Cosine(warmup=0, floor=floor), steps) == pytest.approx(expected, abs=1e-9)


@BRIEF
@given(STEPS, SHARES)
def test_linear_is_that_of_torch(steps: int, floor: float) -> None:
    expected = torch_rates(lr_scheduler.LinearLR, steps, start_factor=1.0, end_factor=floor, total_iters=steps)
    assert rates(Linear(warmup=0, floor=floor), steps) == pytest.approx(expected, abs=1e-9)


@BRIEF
@given(st.integers(1, 40))
def test_warm_up_is_linear_as_in_torch(warmup: int) -> None:
    settings = {"start_factor": 1 / warmup, "end_factor": 1.0, "total_iters": max(1, warmup - 1)}
    expected = torch_rates(lr_scheduler.LinearLR, warmup + 1, **settings)
    assert rates(Constant(warmup=warmup), warmup + 1) == pytest.approx(expected, abs=1e-12)


def sequence_rates(
    warmup: int, after: type[lr_scheduler.LRScheduler], steps: int, **settings: float
) -> list[float]:
    """torch's warm-up followed by another of its schedulers."""
    optim = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    parts = [
        lr_scheduler.LinearLR(optim, start_factor=1 / warmup, end_factor=1.0, total_iters=warmup),
        after(optim, **settings),
    ]
    scheduler = lr_scheduler.SequentialLR(optim, parts, milestones=[warmup])
    seen = []
    for _ in range(steps):
        seen.append(optim.param_groups[0]["lr"])
        optim.step()
        scheduler.step()
    return seen


def test_a_schedule_begins_when_its_warm_up_ends() -> None:
    """Behind the warm-up lies what torch does behind its own; torch's own rises one step later."""
    cosine = rates(Cosine(warmup=5, floor=0.1), 30)
    linear = rates(Linear(warmup=5, floor=0.2), 30)
    assert cosine[5:] == pytest.approx(
        sequence_rates(5, lr_scheduler.CosineAnnealingLR, 30, T_max=24, eta_min=0.1)[5:], abs=1e-9
    )
    assert linear[5:] == pytest.approx(
        sequence_rates(5, lr_scheduler.LinearLR, 30, start_factor=1.0, end_factor=0.2, total_iters=25)[5:],
        abs=1e-9,
    )
    assert cosine[:5] == linear[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@given(SCHEDULES, STEPS)
def test_every_schedule_stays_between_nothing_and_its_peak(schedule: Schedule, steps: int) -> None:
    seen = rates(schedule, steps)
    assert all(0 <= factor <= 1 + 1e-12 and math.isfinite(factor) for factor in seen)


@pytest.mark.parametrize("make", [Constant, Cosine, Linear, WarmupStableDecay])
def test_a_warm_up_is_a_number_of_steps_or_a_share_of_them(make: type[Constant]) -> None:
    by_number, by_share = make(warmup=20), make(warmup=0.2)
    assert rates(by_number, 100) == rates(by_share, 100)
    assert rates(by_number, 100)[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert make(warmup=500).factor(99, 100) == 1.0, "a warm-up that is longer than the run ends with it"


@given(
    steps=st.integers(10, 300),
    warmup=st.floats(0, 0.3),
    decay=st.floats(0.1, 0.6),
    shape=st.sampled_from(["linear", "sqrt"]),
    floor=st.floats(0, 0.9),
)
def test_wsd_rises_stays_and_falls(steps: int, warmup: float, decay: float, shape: str, floor: float) -> None:
    seen = rates(WarmupStableDecay(warmup=warmup, decay=decay, shape=shape, floor=floor), steps)
    rising, falling = round(warmup * steps), max(1, round(decay * steps))
    flat, down = seen[rising : steps - falling], seen[steps - falling :]
    assert flat == [1.0] * len(flat)
    assert all(later < earlier for earlier, later in zip(down, down[1:], strict=False))
    assert down[0] < 1.0 and down[-1] == pytest.approx(floor)
    done = [(place + 1) / falling for place in range(falling)]
    fall = [math.sqrt(share) if shape == "sqrt" else share for share in done]
    assert down == pytest.approx([1 - (1 - floor) * part for part in fall])


def test_wsd_without_a_decay_stays() -> None:
    assert rates(WarmupStableDecay(warmup=0, decay=0), 50) == [1.0] * 50


def test_constant_stays() -> None:
    assert rates(Constant(), 10) == [1.0] * 10
