"""Arithmetic: adders that are right, and the expressions that show where small models stop."""

from __future__ import annotations

from linnet.domains.arithmetic.data import ArithmeticData
from linnet.model.config import AttentionConfig, FeedForwardConfig, ModelConfig, NormConfig
from linnet.training.run import OptimConfig, Run, TrainingConfig
from linnet.training.schedules import Linear, WarmupStableDecay


def adder(recipe: str, digits: int, *, instances: int, steps: int) -> Run:
    """A small decoder; numbers are padded and written least significant digit first, so carries flow forward."""
    return Run(
        recipe=recipe,
        data=ArithmeticData(digits=(1, digits), instances=instances),
        model=ModelConfig(width=128, depth=2, attention=AttentionConfig(heads=4)),
        optim=OptimConfig(lr=3e-3, weight_decay=0.01, schedule=WarmupStableDecay(warmup=0.05, decay=0.4)),
        training=TrainingConfig(steps=steps, batch=128),
    )


def arithmetic() -> Run:
    """The three-digit adder."""
    return adder("arithmetic", 3, instances=50_000, steps=900)


def adder10() -> Run:
    """The ten-digit adder."""
    return adder("adder10", 10, instances=150_000, steps=1200)


def carry5() -> Run:
    """Five-digit sums as published studies of the carry write them: most significant digit first, fresh data."""
    return Run(
        recipe="carry5",
        data=ArithmeticData(digits=(1, 5), reverse="none", uncarried=True, instances=64 * 5_000),
        model=ModelConfig(width=96, depth=2, attention=AttentionConfig(heads=3), norm=NormConfig(kind="layer")),
        optim=OptimConfig(
            kind="muon", lr=2e-3, weight_decay=0.1, schedule=WarmupStableDecay(warmup=0.02, decay=0.4)
        ),
        training=TrainingConfig(steps=5_000, batch=64, snapshots="log", eval_every=2_500),
    )


def pilot() -> Run:
    """Expressions with brackets to depth 2, at the shape of the S5 pilot (664 thousand parameters)."""
    return Run(
        recipe="pilot",
        data=ArithmeticData(
            task="expression", digits=(1, 2), operands=(2, 4), depth=(0, 2), reverse="none", padded=False
        ),
        model=ModelConfig(
            width=128,
            depth=4,
            attention=AttentionConfig(heads=4),
            feedforward=FeedForwardConfig(kind="gelu", width=384, bias=True),
            norm=NormConfig(kind="layer", bias=True),
        ),
        optim=OptimConfig(lr=1e-3, schedule=Linear(warmup=0.05)),
        training=TrainingConfig(steps=4000, batch=128),
    )


def tiny() -> Run:
    """Seconds on any machine: one-digit sums, for tests and for a first look."""
    return Run(
        recipe="tiny-arithmetic",
        data=ArithmeticData(digits=(1, 2), instances=2000),
        model=ModelConfig(width=32, depth=2, attention=AttentionConfig(heads=2)),
        optim=OptimConfig(lr=3e-3),
        training=TrainingConfig(steps=60, batch=64, eval_every=20),
    )
