"""`linnet bench stages`: what each change of a report on faster search brings, on prompts of a trained run.

The report's two tasks were captions of M4 series and activities with a rationale; here these are runs of the
recipes `captions` and `activity-rationale`, which are trained for a moment where no run is given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from bench.search import Work, grown, step_of
from bench.search_stages import TOKENS, Subject, bench_stages
from linnet.decoding.runner import Runner
from linnet.errors import BadInput
from linnet.model.model import Model
from linnet.records import BenchRecord
from linnet.training.settings import parse_setting
from linnet.workbench.open import Opened, load, options_of
from linnet.workbench.train import train

OWN = {"prompts": 3, "steps": 300, "threads": 1}
NEEDS = "the stages of a search are measured on series: give --data, and a run that reads series"
DRAWN = 64  # texts of each prompt that tell how long texts are


def bench_run(what: str, data: Sequence[Path], settings: Sequence[str]) -> Iterator[BenchRecord]:
    """The table of a run, or of a recipe that is trained first, with the settings that are not those of OWN."""
    mine = [one for one in settings if parse_setting(one)[0] in OWN]
    chosen, path = options_of(mine, **OWN), Path(what)
    training = [one for one in settings if parse_setting(one)[0] not in ("prompts", "threads")]
    if not data:
        raise BadInput(NEEDS)
    if path.is_dir() and training:
        raise BadInput(f"{path} is trained, so {training[0]} changes nothing")
    with ExitStack() as stack:
        if not path.is_dir():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            out = Path(folder) / "run"
            train(
                what,
                data=data,
                out=out,
                steps=chosen["steps"],
                settings=[one for one in settings if one not in mine],
            )
            path = out
        opened = load(path, precision="float32")
        yield from bench_stages(opened.run.recipe, subjects(opened, data, chosen["prompts"]), chosen["threads"])


def subjects(opened: Opened, files: Sequence[Path], count: int) -> list[Subject]:
    """Prompts at equal distances in the files."""
    named = [opened.run.data.prompts(file) for file in files]
    texts = [text for found in named if found is not None for text in found.values()]
    if not texts:
        raise BadInput(NEEDS)
    chosen = np.linspace(0, len(texts) - 1, min(count, len(texts))).astype(int)
    model = roomy(opened.model, max(len(opened.prompt(texts[index])) for index in chosen))
    return [subject_of(opened, model, texts[index]) for index in chosen]


def roomy(model: Model, prompt: int) -> Model:
    """The same model with a context for the longest text; rotary positions go on."""
    config = model.config.model_copy(update={"context": max(model.config.context, prompt + TOKENS + 1)})
    wider = Model(config)
    wider.load_state_dict(model.state_dict())
    return wider.eval()


def subject_of(opened: Opened, model: Model, text: str) -> Subject:
    """One prompt, and how long the texts are that the model draws after it."""
    codec = opened.codec
    assert codec.end is not None
    prompt, columns = opened.prompt(text), opened.run.data.columns_after(codec, text)
    step = step_of(Runner(model, columns=columns), TOKENS, [codec.end])
    tree = grown(step, prompt, Work(len(prompt), DRAWN, TOKENS), method="best_of_n")
    lengths = tree.nodes["depth"][tree.draws["leaf"]]
    reached = (lengths[:, None] > np.arange(TOKENS)).mean(0)
    return Subject(model, prompt, [codec.end], reached, columns)
