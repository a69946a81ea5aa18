"""Where runs on captions start from."""

from __future__ import annotations

from linnet.domains.series.captions.codec import PATCHES
from linnet.domains.series.captions.data import CaptionData
from linnet.domains.series.captions.patches import WIDTH
from linnet.model.config import AttentionConfig, ModelConfig, NumberColumn
from linnet.training.run import OptimConfig, Run, TrainingConfig


def captions() -> Run:
    """About a million parameters; they read patches and write words."""
    return Run(
        recipe="captions",
        data=CaptionData(),
        model=ModelConfig(
            width=128,
            depth=4,
            attention=AttentionConfig(heads=4),
            columns={PATCHES: NumberColumn(width=WIDTH)},
        ),
        optim=OptimConfig(lr=2e-3),
        training=TrainingConfig(steps=3000, batch=64, eval_every=500),
    )


def tiny() -> Run:
    """A look at every part in seconds."""
    return Run(
        recipe="tiny-captions",
        data=CaptionData(series=200, validation=20),
        model=ModelConfig(
            width=32, depth=2, attention=AttentionConfig(heads=2), columns={PATCHES: NumberColumn(width=WIDTH)}
        ),
        optim=OptimConfig(lr=3e-3),
        training=TrainingConfig(steps=30, batch=16, eval_every=15),
    )
