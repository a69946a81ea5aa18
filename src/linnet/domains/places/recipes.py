"""Places: the scorer, and the two published copying networks at their exact sizes."""

from __future__ import annotations

from typing import Literal

from linnet.domains.places.data import PlacesData
from linnet.domains.places.settings import CopyConfig, ScorerConfig
from linnet.training.run import OptimConfig, Run, TrainingConfig
from linnet.training.schedules import OneCycle

PUBLISHED = CopyConfig(places=1190, cells=(315, 675, 930), users=50)  # more where the data need more
CAP = 700_000


def places() -> Run:
    """The strongest: candidate visits over all that is known, scored with learned kernels."""
    return Run(
        recipe="places",
        precision="float32",  # in bfloat16 the validation loss chose the wrong checkpoint (dev/LOG.md)
        threads=1,  # its operations are small: a second thread costs more than it brings
        data=PlacesData(),
        model=ScorerConfig(profile=24),
        optim=OptimConfig(
            lr=3e-3, betas=(0.9, 0.999), weight_decay=0.05,
            schedule=OneCycle(pct_start=0.15, div=25.0, final_div=1e4),
        ),
        training=TrainingConfig(epochs=8, batch=64, evals_per_epoch=1, most_parameters=CAP),
    )  # fmt: skip


def places_ensemble() -> Run:
    """Five scorers that are trained together and averaged, in a tenth of the parameters that are allowed."""
    run = places()
    return run.model_copy(update={"recipe": "places-ensemble", "model": ScorerConfig(profile=24, members=5)})


def published(recipe: str, encoder: Literal["gru", "transformer"]) -> Run:
    """As published, but for selection, which is unfiltered here."""
    shape = PUBLISHED
    if encoder == "transformer":
        narrower = {"width": 80, "place_width": 40, "cell_widths": (20, 20, 26), "narrow": 40, "depth": 2,
                    "filter_level": 2}  # fmt: skip
        shape = PUBLISHED.model_copy(update={"encoder": encoder, **narrower})
    return Run(
        recipe=recipe,
        precision="float32",
        data=PlacesData(reads="history", select="legacy.acc@1"),
        model=shape,
        optim=OptimConfig(
            lr=2e-3, betas=(0.9, 0.999), weight_decay=5e-3,
            schedule=OneCycle(pct_start=0.25, div=20.0, final_div=1000.0),
        ),
        training=TrainingConfig(epochs=150, batch=64, evals_per_epoch=1, patience=30, most_parameters=CAP),
    )  # fmt: skip


def places_gru() -> Run:
    """The recurrent copying network; on the published data it has its published 620,808 parameters."""
    return published("places-gru", "gru")


def places_transformer() -> Run:
    """The attentive copying network; on the published data it has its published 641,772 parameters."""
    return published("places-transformer", "transformer")


def tiny() -> Run:
    """Seconds on any machine."""
    run = places()
    return run.model_copy(
        update={
            "recipe": "tiny-places",
            "model": ScorerConfig(kernels=8, hidden=16, profile=8),
            "training": run.training.model_copy(update={"epochs": None, "steps": 30, "batch": 32, "eval_every": 15,
                                                        "evals_per_epoch": None}),
        }
    )  # fmt: skip
