"""Where runs on chords start from."""

from __future__ import annotations

from linnet.model.config import AttentionConfig, IdColumn, ModelConfig, NumberColumn
from linnet.training.run import OptimConfig, Run, TrainingConfig
from linnet_chords.data import BEATS, ChordData


def chords() -> Run:
    """A small decoder over three columns."""
    return Run(
        recipe="chords",
        data=ChordData(),
        model=ModelConfig(
            width=32,
            depth=2,
            attention=AttentionConfig(heads=2),
            columns={"beat": IdColumn(size=BEATS), "tonic": NumberColumn(width=2)},
        ),
        optim=OptimConfig(lr=3e-3),
        training=TrainingConfig(steps=150, batch=32, eval_every=50),
    )
