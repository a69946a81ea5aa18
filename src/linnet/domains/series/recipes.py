"""Where runs on series start from."""

from __future__ import annotations

from linnet.domains.series.data import SeriesData
from linnet.domains.series.settings import LEVELS, ConvolutionConfig, LabelConfig, ResidualConfig
from linnet.domains.series.token_data import SeriesTokens
from linnet.model.config import AttentionConfig, ModelConfig, NumberColumn
from linnet.training.run import OptimConfig, Run, TrainingConfig
from linnet.training.schedules import OneCycle

SLOW = OneCycle(pct_start=0.1, div=25.0, final_div=1e3)


def forecast() -> Run:
    """Members of four histories just above the longest cycle, averaged; quantiles of the whole horizon at once."""
    return Run(
        recipe="forecast",
        precision="float32",
        threads=1,
        data=SeriesData(),
        model=ResidualConfig(),
        optim=OptimConfig(lr=2e-3, betas=(0.9, 0.999), weight_decay=0.01, schedule=OneCycle(), clip=2.0),
        training=TrainingConfig(steps=600, batch=256),
    )


def forecast_patches() -> Run:
    """The decoder of text over patches of a window; a width of 1 for what is ahead means the whole horizon."""
    columns = {
        "patch": NumberColumn(width=6),
        "observed": NumberColumn(width=6),
        "level": NumberColumn(),
        "ahead": NumberColumn(head="quantiles", quantiles=LEVELS),
    }
    model = ModelConfig(width=128, depth=3, attention=AttentionConfig(heads=4), columns=columns)
    return Run(
        recipe="forecast-patches",
        precision="float32",
        threads=1,
        data=SeriesData(histories=(1.5,)),
        model=model,
        optim=OptimConfig(lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01, schedule=SLOW, clip=4.0),
        training=TrainingConfig(steps=900, batch=128),
    )


def forecast_tokens() -> Run:
    """One token a value: the decoder learns to write on, so that futures can be sampled and searched."""
    return Run(
        recipe="forecast-tokens",
        threads=1,
        data=SeriesTokens(),
        model=ModelConfig(width=128, depth=3, attention=AttentionConfig(heads=4)),
        optim=OptimConfig(lr=1e-3, schedule=SLOW),
        training=TrainingConfig(steps=1000, batch=64),
    )


def tiny_tokens() -> Run:
    """Seconds on any machine."""
    run = forecast_tokens()
    training = run.training.model_copy(update={"steps": 30, "batch": 16, "eval_every": 15})
    model = ModelConfig(width=16, depth=1, attention=AttentionConfig(heads=2))
    data = SeriesTokens(bins=64, reach=4.0)
    return run.model_copy(update={"recipe": "tiny-tokens", "data": data, "model": model, "training": training})


def activity() -> Run:
    """What a sensor says somebody does: windows of 256 steps of all channels, parts cut by person."""
    return Run(
        recipe="activity",
        precision="float32",
        threads=1,
        data=SeriesData(task="classes", labels=LabelConfig(length=256, stride=128, units="triples", turn=15)),
        model=ConvolutionConfig(members=2, proportions=5000, smoothing=0.0),
        optim=OptimConfig(
            lr=3e-3,
            betas=(0.9, 0.99),
            weight_decay=0.05,
            schedule=SLOW,
        ),
        training=TrainingConfig(epochs=18, batch=64, eval_batch=64),
    )


def classify() -> Run:
    """Which class a whole series belongs to; each in units of its own."""
    run = activity()
    training = TrainingConfig(steps=300, batch=32, eval_batch=64)
    data = SeriesData(task="classes")
    model = ConvolutionConfig(members=2, proportions=5000)
    return run.model_copy(update={"recipe": "classify", "data": data, "model": model, "training": training})


def tiny_classify() -> Run:
    """Seconds on any machine."""
    run = classify()
    training = run.training.model_copy(update={"steps": 40, "batch": 16, "eval_every": 20})
    model = ConvolutionConfig(kernels=(5,), fixed=(2, 4), width=8, depth=1, kernel=5)
    return run.model_copy(update={"recipe": "tiny-classify", "model": model, "training": training})


def tiny() -> Run:
    """Seconds on any machine."""
    run = forecast()
    training = run.training.model_copy(update={"steps": 30, "batch": 32, "eval_every": 15})
    model = ResidualConfig(blocks=2, layers=1, width=16)
    return run.model_copy(update={"recipe": "tiny-forecast", "model": model, "training": training})
