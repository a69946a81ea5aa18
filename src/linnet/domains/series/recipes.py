"""Where runs on series start from."""

from __future__ import annotations

from linnet.domains.series.data import SeriesData
from linnet.domains.series.settings import ResidualConfig
from linnet.training.run import OptimConfig, Run, TrainingConfig
from linnet.training.schedules import OneCycle


def forecast() -> Run:
    """A residual network; windows in their own units, quantiles of the whole horizon at once."""
    return Run(
        recipe="forecast",
        precision="float32",
        threads=1,
        data=SeriesData(),
        model=ResidualConfig(),
        optim=OptimConfig(
            lr=1e-3,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            schedule=OneCycle(pct_start=0.1, div=25.0, final_div=1e3),
        ),
        training=TrainingConfig(steps=1200, batch=256),
    )


def tiny() -> Run:
    """Seconds on any machine."""
    run = forecast()
    training = run.training.model_copy(update={"steps": 30, "batch": 32, "eval_every": 15})
    model = ResidualConfig(blocks=2, layers=1, width=16)
    return run.model_copy(update={"recipe": "tiny-forecast", "model": model, "training": training})
