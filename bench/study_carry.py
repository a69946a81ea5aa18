"""Does a carry need two layers? Five-digit sums, most significant digit first (Quirke and Barez 2023 and later).

Sums are written as tokens `<begin> aaaaa + bbbbb = cccccc <end>`; digits of the answer depend on carries that come
from the right. A cascade of length n is a column that overflows behind n columns that sum to 9. Two further models
need not look ahead: `adder10` writes ten-digit sums least significant digit first, and two layers with a
scratchpad write each carry down before they answer.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.studies import Found, Page, Trial, table
from linnet import workbench
from linnet.data import pad_rows
from linnet.domains.arithmetic.codec import ArithmeticCodec
from linnet.domains.arithmetic.columns import frame_sums
from linnet.domains.arithmetic.rows import frame_texts
from linnet.intervals import wilson
from linnet.model.contract import Network, evaluating
from linnet.model.model import Model
from linnet.probing.cases import Cases, Subject
from linnet.probing.development import curves, onset
from linnet.probing.parts import writers
from linnet.probing.subsets import exact_subsets, shapley
from linnet.records import AnalysisRecord
from linnet.workbench.open import Opened

QUICK = ("steps=40", "data.instances=2560", "eval_every=20", "training.snapshots=4")
CHUNK = 4096  # sums that are read together
CARRY = "carry.3"  # whose parts are looked for: into the hundreds column's left neighbour
LONGEST = 4  # cascade
COLUMNS = range(1, 6)  # into which carries are exchanged


@dataclass(frozen=True)
class Setting:
    """A model of the study: what is trained, and how many sums it is tried on."""

    name: str
    recipe: str
    settings: tuple[str, ...]
    digits: int = 5
    sums: int = 100_000
    taps: tuple[str, ...] = ()  # where the carry is exchanged


LONG = ("steps=15000", "data.instances=960000")
SETTINGS = (
    Setting("2 layers", "carry5", LONG, sums=1_000_000, taps=("blocks.1.hook_resid_mid",)),
    Setting("1 layer", "carry5", ("model.depth=1", *LONG)),
    Setting(
        "adder10", "adder10", ("training.snapshots=log",), digits=10,
        taps=("blocks.0.hook_resid_mid", "blocks.1.hook_resid_mid"),
    ),
    Setting("scratchpad", "carry5", ("data.scratchpad=true",)),
)  # fmt: skip


def drawn(count: int, seed: int, digits: int = 5) -> np.ndarray:
    """Operands [count, 2], each digit drawn evenly."""
    return np.random.default_rng(seed).integers(0, 10**digits, (count, 2))


def cascades(length: int, count: int, seed: int, digits: int = 5) -> np.ndarray:
    """Operands [count, 2] with an overflow behind `length` columns that sum to 9, and none elsewhere."""
    random = np.random.default_rng([seed, length])
    first = random.integers(0, 10, (count, digits))  # the least significant digit first
    second = np.floor(random.random((count, digits)) * (10 - first)).astype(np.int64)  # no overflow
    nines = 9 - first[:, 1 : 1 + length]
    first[:, 0] = np.maximum(first[:, 0], 1)
    second[:, 0] = 10 - first[:, 0] + np.floor(random.random(count) * first[:, 0]).astype(np.int64)
    second[:, 1 : 1 + length] = nines
    rest = second[:, 1 + length :]
    rest[first[:, 1 + length :] + rest == 9] -= 1
    rest[rest < 0] = 0
    columns = first[:, 1 + length :]
    columns[columns + rest == 9] = 8
    powers = 10 ** np.arange(digits)
    return np.stack((first @ powers, second @ powers), 1)


def rows(operands: np.ndarray, codec: ArithmeticCodec) -> tuple[Tensor, Tensor, Tensor]:
    """Ids as the model reads them, the next ids, and which of those it has to write itself, each [count, T]."""
    if codec.scratchpad:
        framed = frame_texts(codec, [(f"{a}+{b}", str(a + b)) for a, b in operands.tolist()], "all")
    else:
        framed = frame_sums(codec, operands, np.full(len(operands), 2), "all")
    batch = pad_rows(framed, np.arange(len(operands)))
    ids = batch["ids"].long()
    behind = (ids == codec.tokens.index("=")).cumsum(1) > 0
    return ids, batch["next.ids"].long(), behind & (batch["weights"] > 0)


def right(model: Model, operands: np.ndarray, codec: ArithmeticCodec) -> int:
    """How many sums are right: all tokens after `=` are likeliest, which is what greedy decoding writes."""
    count = 0
    for first in range(0, len(operands), CHUNK):
        ids, wanted, written = rows(operands[first : first + CHUNK], codec)
        with evaluating(model):
            likeliest = model.head(model(ids).hidden).argmax(-1)
        count += int(((likeliest == wanted) | ~written).all(1).sum())
    return count


def by_cascade(model: Model, codec: ArithmeticCodec, count: int, digits: int) -> list[float]:
    sums = (cascades(length, count, 1, digits) for length in range(LONGEST + 1))
    return [right(model, operands, codec) / count for operands in sums]


def carry_cases(opened: Opened, codec: ArithmeticCodec, count: int, digits: int) -> Cases:
    """Prompts whose read digit depends on a carry, beside the same prompts with the carry gone."""
    step, hypothesis = opened.run.data.hypotheses(codec)[CARRY]
    column = int(CARRY.partition(".")[2])
    clean = cascades(0, 4 * count, 7, digits)
    low = 10**column
    clean = clean // low * low + np.stack(
        (np.full(len(clean), low // 2 + 3), np.full(len(clean), low // 2 + 4)), 1
    )
    corrupt = clean - np.array([[0, low // 2]])
    ids, _, _ = rows(clean, codec)
    others, _, _ = rows(corrupt, codec)
    names = [[codec.tokens[i] for i in row] for row in ids[:, : step + 1].tolist()]
    targets, wrong = [], []
    for row in names:
        _, answer = hypothesis(row)
        targets.append(codec.tokens.index(answer(1)))
        wrong.append(codec.tokens.index(answer(0)))
    cut = slice(0, step + 1)
    kept = slice(0, count)
    return Cases(
        ids[kept, cut], torch.tensor(targets)[kept, None], torch.tensor([step]), torch.tensor(wrong)[kept, None],
        others[kept, cut],
    )  # fmt: skip


def parts_of_carry(opened: Opened, codec: ArithmeticCodec, count: int, digits: int) -> dict[str, float]:
    """The exact Shapley value of every head and feed-forward for the logit difference that a carry makes."""
    parts = [part for part in writers(opened.model.config) if part.kind != "embed"]
    subject = Subject(opened.model, carry_cases(opened, codec, count, digits))
    effects = exact_subsets(subject, parts, "resample")
    values = shapley(effects.mean(1).double().numpy())
    total = float(effects[-1].mean() - effects[0].mean())
    return {part.name: float(value) / total for part, value in zip(parts, values, strict=True)}


def subtasks(count: int, digits: int) -> dict[str, np.ndarray]:
    """Sums that need one sub-task more each time."""
    random = np.random.default_rng(3)
    first = random.integers(0, 9, (count, digits))
    second = np.floor(random.random((count, digits)) * (9 - first)).astype(np.int64)
    plain = np.stack((first, second), 1) @ 10 ** np.arange(digits)
    return {"no carry": plain} | {
        f"cascade {length}": cascades(length, count, 5, digits) for length in range(LONGEST + 1)
    }


def development(
    opened: Opened, codec: ArithmeticCodec, count: int, digits: int
) -> tuple[list[int], dict[str, list[float]]]:
    """The share of right sums of each sub-task over the snapshots."""
    sums = subtasks(count, digits)

    def measure(network: Network) -> dict[str, float]:
        assert isinstance(network, Model)
        return {name: right(network, operands, codec) / len(operands) for name, operands in sums.items()}

    return curves(opened.folder, opened.run, codec, measure)


def interchanged(path: Path, tap: str, seed: int) -> list[float]:
    """For each of these columns the share of exchanged carries that are answered as they should be."""
    found = []
    for column in COLUMNS:
        record = workbench.interchange(path, f"carry.{column}", taps=(tap,), dimensions=(1,), rows=1000, seed=seed)
        found.append(float(record.values[0][record.labels["subspace"].index("learned 1")]))
    return found


def opened_run(path: Path) -> tuple[Opened, ArithmeticCodec]:
    opened = workbench.load(path, device="cpu")
    assert isinstance(opened.codec, ArithmeticCodec)
    return opened, opened.codec


@dataclass(frozen=True)
class Sizes:
    """How many sums each measurement takes."""

    all: int | None = None  # those of the setting
    cascade: int = 10_000
    few: int = 500


def measure(setting: Setting, seed: int, sizes: Sizes, path: Path) -> dict[str, Any]:
    """Everything that the page says about a run."""
    opened, codec = opened_run(path)
    model, digits = opened.model, setting.digits
    sums = sizes.all or setting.sums
    steps, grown = development(opened, codec, sizes.few, digits)
    return {
        "sums": sums,
        "right": right(model, drawn(sums, 11, digits), codec),
        "each": sizes.cascade,
        "cascade": by_cascade(model, codec, sizes.cascade, digits),
        "parts": {} if codec.scratchpad else parts_of_carry(opened, codec, sizes.few, digits),
        "steps": steps,
        "development": grown,
        "exchanged": {tap: interchanged(path, tap, seed) for tap in setting.taps},
    }


def trials(seeds: int, quick: bool) -> list[Trial]:
    sizes, further = (Sizes(2_000, 200, 50), QUICK) if quick else (Sizes(), ())
    return [
        Trial(
            setting.name, seed, setting.recipe, (*setting.settings, *further),
            functools.partial(measure, setting, seed, sizes),
        )
        for setting in SETTINGS
        for seed in range(1, seeds + 1)
    ]  # fmt: skip


def page(found: Found) -> Page:
    text = "\n".join(
        [
            __doc__ or "",
            "## Sums",
            _sums(found),
            "## Right sums by the length of the cascade",
            _cascades(found),
            "## Parts that move the carry",
            _parts(found),
            "## Interchange of the carry",
            _exchanged(found),
            "## When each sub-task appears",
            _onsets(found),
        ]
    )
    return Page(text, {"cascade": _picture(found), "development": _grown(found["2 layers", 1])})


def _sums(found: Found) -> str:
    lines = []
    for (name, seed), one in found.items():
        low, high = wilson(one["right"], one["sums"])
        wrong = f"{one['sums'] - one['right']:,} of {one['sums']:,}"
        lines.append((name, seed, f"{one['right'] / one['sums']:.6f}", f"{low:.6f} .. {high:.6f}", wrong))
    return "Each digit drawn evenly.\n\n" + table(("model", "seed", "right", "95 % interval", "wrong"), lines)


def _cascades(found: Found) -> str:
    rows = [(name, seed, *(f"{value:.4f}" for value in one["cascade"])) for (name, seed), one in found.items()]
    headings = ("model", "seed", *(f"n = {n}" for n in range(LONGEST + 1)))
    return f"{next(iter(found.values()))['each']:,} sums each.\n\n" + table(headings, rows)


def _parts(found: Found) -> str:
    names = list(dict.fromkeys(part for one in found.values() for part in one["parts"]))
    rows = [
        (name, seed, *(f"{parts[part]:.2f}" if part in parts else "" for part in names))
        for (name, seed), one in found.items()
        if (parts := one["parts"])
    ]
    words = (
        f"Exact Shapley values ({CARRY}, logit difference of the digit with and without the carry, resampled), as "
        "shares of the total effect: every subset of the parts was computed. With a scratchpad the carry is a "
        "token, and prompts with and without it differ in length: no parts are exchanged there.\n\n"
    )
    return words + table(("model", "seed", *names), rows)


def _exchanged(found: Found) -> str:
    rows = [
        (name, seed, f"`{tap}`", *(f"{value:.3f}" for value in values))
        for (name, seed), one in found.items()
        for tap, values in one["exchanged"].items()
    ]
    headings = ("model", "seed", "tap", *(f"carry.{column}" for column in COLUMNS))
    return "One learned dimension at the step that predicts the digit.\n\n" + table(headings, rows)


def _onsets(found: Found) -> str:
    names = list(next(iter(found.values()))["development"])
    rows = []
    for (name, seed), one in found.items():
        at = [onset(one["development"][task]) for task in names]
        rows.append((name, seed, *("never" if index is None else f"{one['steps'][index]:,}" for index in at)))
    return "The first snapshot from which a sub-task is above its level for good.\n\n" + table(
        ("model", "seed", *names), rows
    )


def _picture(found: Found) -> AnalysisRecord:
    names = tuple(setting.name for setting in SETTINGS)
    values = [
        [mean(one["cascade"][n] for (name, _), one in found.items() if name == wanted) for n in range(LONGEST + 1)]
        for wanted in names
    ]
    labels = {"model": names, "length": tuple(map(str, range(LONGEST + 1)))}
    return AnalysisRecord(
        kind="study", title="right sums by the length of the cascade", axes=("model", "length"), labels=labels,
        values=values, unit="share of right sums, mean over seeds",
    )  # fmt: skip


def _grown(one: Mapping[str, Any]) -> AnalysisRecord:
    labels = {"sub-task": tuple(one["development"]), "step": tuple(map(str, one["steps"]))}
    return AnalysisRecord(
        kind="study", title="two layers, seed 1: right sums over training", axes=("sub-task", "step"),
        labels=labels, values=list(one["development"].values()), unit="share of right sums",
    )  # fmt: skip
