"""What a run leaves open is settled once, from the machine and the data, and stored: resuming obeys it."""

from __future__ import annotations

from typing import Any, Literal

import torch

from linnet.domains import Material
from linnet.domains.places.codec import FIRST, PlacesCodec
from linnet.domains.places.data import PlacesData
from linnet.domains.text import TextData
from linnet.errors import BadInput
from linnet.machine import automatic_precision, compiler_at_hand, native_bfloat16
from linnet.model.costs import costs
from linnet.model.places.config import CopyConfig
from linnet.sequences import Sequences
from linnet.training.loop import plan_of
from linnet.training.networks import parameters
from linnet.training.run import Run

# Compiling takes about this long and then saves about this share of every step (measured: dev/LOG.md).
COMPILE_SECONDS = 30.0
COMPILE_GAIN = {"float32": 0.15, "bfloat16": 0.25, "float16": 0.25}
EAGER_FLOPS = {  # what is reached without it, a channel of width and at most; on CUDA a guess, measured nowhere
    ("cpu", "float32"): (0.75e9, 150e9),
    ("cpu", "bfloat16"): (1.2e9, 450e9),
    ("cuda", "float32"): (30e9, 15e12),
    ("cuda", "bfloat16"): (100e9, 50e12),
    ("cuda", "float16"): (100e9, 50e12),
}
TOKENS_PER_PARAMETER = 20  # where a given amount of computing gains most (Hoffmann et al., 2022)
MOST_ROUNDS = 8.0  # of one text; more were not tried (dev/LOG.md)
LOOK_EVERY = 10  # steps that a GPU runs ahead of the log


def settle(run: Run) -> Run:
    """Choose device, precision and threads for `auto`."""
    device = run.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("there is no CUDA device here; use --device cpu or auto")
    precision = run.precision
    if precision == "auto":
        precision = automatic_precision(device, run.model.width)
    if precision == "float16" and device == "cpu":
        raise BadInput("float16 needs a CUDA device; on the processor use bfloat16 or float32")
    threads = run.threads or torch.get_num_threads()
    optim = run.optim
    if optim.kind == "muon" and optim.muon_precision == "auto":
        fast: Literal["float32", "bfloat16"] = "bfloat16" if native_bfloat16(device) else "float32"
        optim = optim.model_copy(update={"muon_precision": fast})
    training = run.training
    if not training.log_every:
        looking = LOOK_EVERY if device == "cuda" else 1
        training = training.model_copy(update={"log_every": looking})
    settled = {"device": device, "precision": precision, "threads": threads, "optim": optim, "training": training}
    return run.model_copy(update=settled)


def complete(run: Run, material: Material) -> Run:
    """Fill in the sizes that follow from the data: vocabulary, context, steps, and whether compiling repays."""
    if material.train.visits is not None:
        return complete_places(run, material)
    rows = material.train.sequences
    if len(rows) == 0:
        raise BadInput("the training part has no rows")
    context = (
        run.model.context or max(part.sequences.longest for part in (material.train, material.validation)) - 1
    )
    model = changed_model(run, vocabulary=len(material.codec.tokens), context=max(1, context))
    run = run.model_copy(update={"model": model})
    steps = run.training.steps
    if steps is None:
        steps = max(1, round(rounds(run, len(rows.ids)) * plan_of(run, rows).steps_per_epoch))
    training = run.training.model_copy(update={"steps": steps, "epochs": None})
    run = run.model_copy(update={"training": training})
    if training.compile == "auto":
        choice = "on" if saved_by_compiling(run, rows) > COMPILE_SECONDS else "off"
        run = run.model_copy(update={"training": training.model_copy(update={"compile": choice})})
    return capped(run)


def rounds(run: Run, tokens: int) -> float:
    """How often the data are read. Where nobody said it: short texts again, while a model of this size learns."""
    if run.training.epochs is not None or not isinstance(run.data, TextData):
        return run.training.epochs or 1.0
    return min(MOST_ROUNDS, max(1.0, TOKENS_PER_PARAMETER * parameters(run) / tokens))


def complete_places(run: Run, material: Material) -> Run:
    """Sizes of tables from the codec where the recipe leaves them open; nothing here is compiled."""
    codec, chosen = material.codec, run.next_place
    assert isinstance(codec, PlacesCodec)
    if chosen is None:
        raise BadInput('a run on places needs a network of places: start from the recipe "places"')
    if isinstance(chosen, CopyConfig):
        chosen = chosen.sized(codec.sizes, len(codec.users) + FIRST)
    steps = run.training.steps
    if steps is None:
        steps = max(1, round((run.training.epochs or 1.0) * plan_of(run, material.train.rows).steps_per_epoch))
    training = run.training.model_copy(update={"steps": steps, "epochs": None, "compile": "off"})
    return capped(run.model_copy(update={"next_place": chosen, "training": training}))


IDLE = {  # what only rows of the whole past use
    "jitter": "moves the times of visits",
    "suggestions": "offers places where the user has never been",
    "cut": "hides visits before the history",
    "every_visit": "adds targets that only a past has",
}


def refuse_idle(run: Run) -> None:
    """Refuse settings that would change nothing: rows of the published form hold a history without times."""
    data = run.data
    if not isinstance(data, PlacesData) or data.reads != "history":
        return
    for name, does in IDLE.items():
        if getattr(data, name) != PlacesData.model_fields[name].default:
            raise BadInput(
                f"data.{name} {does}, and {run.recipe} reads places and cells of the history, without times and "
                f"without the past (data.reads=history): leave data.{name} as it is, or train the recipe places"
            )


def capped(run: Run) -> Run:
    """The run itself, if its network keeps to the number of parameters that it may have."""
    most = run.training.most_parameters
    if most is not None and (count := parameters(run)) > most:
        raise BadInput(f"the network has {count:,} parameters, and most_parameters allows {most:,}")
    return run


def changed_model(run: Run, **sizes: Any) -> Any:
    return type(run.model).model_validate(run.model.model_dump() | sizes)


def saved_by_compiling(run: Run, rows: Sequences) -> float:
    """Seconds of the whole run, by estimate, before those that compiling takes; 0 where nothing is compiled.

    Compiled rows are padded to the context.
    """
    if "gru" in run.model.mixers or not compiler_at_hand(run.device):
        return 0.0
    context = run.model.context
    tokens = run.training.batch * context * (run.training.steps or 0) * run.loss.passes
    channel, most = EAGER_FLOPS[run.device, run.precision]
    seconds = 3 * costs(run.model).flops_per_token * tokens / min(channel * run.model.width, most)
    mean_length = len(rows.ids) / len(rows) if run.training.packing == "padded" else context
    return max(0.0, seconds * (COMPILE_GAIN[run.precision] - (context / mean_length - 1)))


def compiling_in_words(run: Run, rows: Sequences) -> str:
    """Whether this run is compiled, and what speaks for it."""
    choice = f"compile {run.training.compile}"
    if "gru" in run.model.mixers:
        return f"{choice}: recurrent layers gain nothing from it"
    if not compiler_at_hand(run.device):
        return f"{choice}: there is no C++ compiler here"
    saved = saved_by_compiling(run, rows)
    return f"{choice}: by estimate it saves {saved:,.0f} s of the whole run and takes {COMPILE_SECONDS:.0f}"
