"""Where runs on activities with a rationale start from."""

from __future__ import annotations

from linnet.domains.series.captions.codec import PATCHES
from linnet.domains.series.rationales.data import RationaleData
from linnet.domains.series.settings import LabelConfig
from linnet.model.config import AttentionConfig, ModelConfig, NumberColumn
from linnet.training.run import OptimConfig, Run, TrainingConfig


def activity_rationale() -> Run:
    """Facts about a window of a sensor, then the label, by one decoder."""
    return Run(
        recipe="activity-rationale",
        threads=1,
        data=RationaleData(),
        model=ModelConfig(
            width=96, depth=3, attention=AttentionConfig(heads=4), dropout=0.2, columns={PATCHES: NumberColumn()}
        ),
        optim=OptimConfig(lr=2e-3, weight_decay=0.05),
        training=TrainingConfig(epochs=10, batch=64, eval_batch=64),
    )


def tiny() -> Run:
    """A look at every part in seconds."""
    run = activity_rationale()
    model = ModelConfig(width=32, depth=1, attention=AttentionConfig(heads=2), columns={PATCHES: NumberColumn()})
    data = RationaleData(labels=LabelConfig(length=64, units="training"), overlap=1)
    training = TrainingConfig(steps=30, batch=16, eval_every=15)
    return run.model_copy(update={"recipe": "tiny-rationale", "data": data, "model": model, "training": training})
