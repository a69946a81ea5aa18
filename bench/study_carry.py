"""Does a carry need two layers? Five-digit sums, most significant digit first (Quirke and Barez 2023 and later).

Sums are written as tokens `<begin> aaaaa + bbbbb = cccccc <end>`; digits of the answer depend on carries that come
from the right. A cascade of length n is a column that overflows behind n columns that sum to 9.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from bench.studies import Page, Study, table
from linnet import workbench
from linnet.data import pad_rows
from linnet.domains.arithmetic.codec import ArithmeticCodec
from linnet.domains.arithmetic.columns import frame_sums
from linnet.intervals import wilson
from linnet.model.contract import Network, evaluating
from linnet.model.model import Model
from linnet.probing.cases import Cases, Subject
from linnet.probing.development import curves, onset
from linnet.probing.parts import writers
from linnet.probing.subsets import exact_subsets, shapley
from linnet.records import AnalysisRecord
from linnet.workbench.open import Opened

DIGITS = 5
LAYERS = (1, 2)
QUICK = ("steps=40", "data.instances=2560", "eval_every=20", "training.snapshots=4")
CHUNK = 4096  # sums that are read together
CARRY = "carry.3"  # whose parts are looked for: into the hundreds column's left neighbour


def drawn(count: int, seed: int) -> np.ndarray:
    """Operands [count, 2], each digit drawn evenly."""
    return np.random.default_rng(seed).integers(0, 10**DIGITS, (count, 2))


def cascades(length: int, count: int, seed: int) -> np.ndarray:
    """Operands [count, 2] with an overflow behind `length` columns that sum to 9, and none elsewhere."""
    random = np.random.default_rng([seed, length])
    first = random.integers(0, 10, (count, DIGITS))  # the least significant digit first
    second = np.floor(random.random((count, DIGITS)) * (10 - first)).astype(np.int64)  # no overflow
    nines = 9 - first[:, 1 : 1 + length]
    first[:, 0] = np.maximum(first[:, 0], 1)
    second[:, 0] = 10 - first[:, 0] + np.floor(random.random(count) * first[:, 0]).astype(np.int64)
    second[:, 1 : 1 + length] = nines
    rest = second[:, 1 + length :]
    rest[first[:, 1 + length :] + rest == 9] -= 1
    rest[rest < 0] = 0
    columns = first[:, 1 + length :]
    columns[columns + rest == 9] = 8
    powers = 10 ** np.arange(DIGITS)
    return np.stack((first @ powers, second @ powers), 1)


def rows(operands: np.ndarray, codec: ArithmeticCodec) -> tuple[Tensor, Tensor, Tensor]:
    """Ids as the model reads them, the next ids, and which of those are answers, each [count, T]."""
    framed = frame_sums(codec, operands, np.full(len(operands), 2), "answer")
    batch = pad_rows(framed, np.arange(len(operands)))
    return batch["ids"].long(), batch["next.ids"].long(), batch["weights"] > 0


def right(model: Model, operands: np.ndarray, codec: ArithmeticCodec) -> int:
    """How many sums are right: all digits are likeliest, which is what greedy decoding writes."""
    count = 0
    for first in range(0, len(operands), CHUNK):
        ids, wanted, asked = rows(operands[first : first + CHUNK], codec)
        with evaluating(model):
            said = model.head(model(ids).hidden).argmax(-1)
        count += int(((said == wanted) | ~asked).all(1).sum())
    return count


def by_cascade(model: Model, codec: ArithmeticCodec, count: int) -> list[float]:
    return [right(model, cascades(length, count, 1), codec) / count for length in range(DIGITS)]


def carry_cases(opened: Opened, codec: ArithmeticCodec, count: int) -> Cases:
    """Prompts whose read digit depends on a carry, beside the same prompts with the carry gone."""
    step, hypothesis = opened.run.data.hypotheses(codec)[CARRY]
    column = int(CARRY.partition(".")[2])
    clean = cascades(0, 4 * count, 7)
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


def parts_of_carry(opened: Opened, codec: ArithmeticCodec, count: int) -> dict[str, float]:
    """The exact Shapley value of every head and feed-forward for the logit difference that a carry makes."""
    parts = [part for part in writers(opened.model.config) if part.kind != "embed"]
    table_of = exact_subsets(Subject(opened.model, carry_cases(opened, codec, count)), parts, "resample")
    values = shapley(table_of.mean(1).double().numpy())
    total = float(table_of[-1].mean() - table_of[0].mean())
    return {part.name: float(value) / total for part, value in zip(parts, values, strict=True)}


def subtasks(codec: ArithmeticCodec, count: int) -> dict[str, np.ndarray]:
    """Sums that need one sub-task more each time."""
    plain = drawn(20 * count, 3)
    digits = plain[:, :, None] // 10 ** np.arange(DIGITS) % 10
    return {"no carry": plain[(digits.sum(1) < 9).all(1)][:count]} | {
        f"cascade {length}": cascades(length, count, 5) for length in range(DIGITS)
    }


def development(
    path: Path, opened: Opened, codec: ArithmeticCodec, count: int
) -> tuple[list[int], dict[str, list[float]]]:
    """The share of right sums of each sub-task over the snapshots."""
    sums = subtasks(codec, count)

    def measure(network: Network) -> dict[str, float]:
        assert isinstance(network, Model)
        return {name: right(network, operands, codec) / len(operands) for name, operands in sums.items()}

    return curves(opened.folder, opened.run, codec, measure)


def interchanged(path: Path, seed: int) -> list[float]:
    """For each column the share of exchanged carries that are answered as they should be, one dimension."""
    found = []
    for column in range(1, DIGITS + 1):
        record = workbench.interchange(
            path, f"carry.{column}", taps=("blocks.1.hook_resid_mid",), dimensions=(1,), rows=1000, seed=seed
        )
        found.append(float(record.values[0][record.labels["subspace"].index("learned 1")]))
    return found


def opened_run(path: Path) -> tuple[Opened, ArithmeticCodec]:
    opened = workbench.load(path)
    assert isinstance(opened.codec, ArithmeticCodec)
    return opened, opened.codec


def page(study: Study) -> Page:
    many, some, few = (2_000, 200, 50) if study.quick else (1_000_000, 10_000, 500)
    runs = {
        (layers, seed): study.run(f"layers{layers}", "carry5", seed, [f"model.depth={layers}"], QUICK)
        for layers in LAYERS
        for seed in range(1, study.seeds + 1)
    }
    accuracy, cascade, parts, exchanged, grown = {}, {}, {}, {}, {}
    for (layers, seed), path in runs.items():
        opened, codec = opened_run(path)
        accuracy[layers, seed] = right(opened.model, drawn(many, 11), codec)
        cascade[layers, seed] = by_cascade(opened.model, codec, some)
        parts[layers, seed] = parts_of_carry(opened, codec, few)
        grown[layers, seed] = development(path, opened, codec, few)
        if layers == 2:
            exchanged[layers, seed] = interchanged(path, seed)
    text = "\n".join(
        [
            __doc__ or "",
            "## Sums",
            _sums(accuracy, many),
            "## Right sums by the length of the cascade",
            _cascades(cascade, some),
            "## Parts that move the carry",
            _parts(parts),
            "## Interchange of the carry behind the attention of the second layer",
            _exchanged(exchanged),
            "## When each sub-task appears",
            _onsets(grown),
        ]
    )
    return Page(text, {"cascade": _picture(cascade), "development": _grown(grown[2, 1])})


def _sums(accuracy: dict[tuple[int, int], int], count: int) -> str:
    lines = []
    for (layers, seed), found in accuracy.items():
        low, high = wilson(found, count)
        lines.append((layers, seed, f"{found / count:.6f}", f"{low:.6f} .. {high:.6f}", f"{count - found:,}"))
    return table(("layers", "seed", "right", "95 % interval", f"wrong of {count:,}"), lines)


def _cascades(cascade: dict[tuple[int, int], list[float]], count: int) -> str:
    rows = [(layers, seed, *(f"{value:.4f}" for value in values)) for (layers, seed), values in cascade.items()]
    return f"{count:,} sums each.\n\n" + table(("layers", "seed", *(f"n = {n}" for n in range(DIGITS))), rows)


def _parts(parts: dict[tuple[int, int], dict[str, float]]) -> str:
    names = max((list(found) for found in parts.values()), key=len)
    rows = [
        (layers, seed, *(f"{found[name]:.2f}" if name in found else "" for name in names))
        for (layers, seed), found in parts.items()
    ]
    words = (
        f"Exact Shapley values ({CARRY}, logit difference of the digit with and without the carry, resampled), as "
        "shares of the total effect: every subset of the parts was computed.\n\n"
    )
    return words + table(("layers", "seed", *names), rows)


def _exchanged(exchanged: dict[tuple[int, int], list[float]]) -> str:
    rows = [(seed, *(f"{value:.3f}" for value in values)) for (_, seed), values in exchanged.items()]
    headings = ("seed", *(f"carry.{column}" for column in range(1, DIGITS + 1)))
    return "Two layers, one learned dimension at the step that predicts the digit.\n\n" + table(headings, rows)


def _onsets(grown: dict[tuple[int, int], tuple[list[int], dict[str, list[float]]]]) -> str:
    names = list(next(iter(grown.values()))[1])
    rows = []
    for (layers, seed), (steps, found) in grown.items():
        at = [onset(found[name]) for name in names]
        rows.append((layers, seed, *("never" if index is None else f"{steps[index]:,}" for index in at)))
    return "The first snapshot from which a sub-task is above its level for good.\n\n" + table(
        ("layers", "seed", *names), rows
    )


def _picture(cascade: dict[tuple[int, int], list[float]]) -> AnalysisRecord:
    values = [
        [mean(found[n] for (depth, _), found in cascade.items() if depth == layers) for n in range(DIGITS)]
        for layers in LAYERS
    ]
    labels = {"layers": tuple(f"{layers} layers" for layers in LAYERS), "share": tuple(map(str, range(DIGITS)))}
    return AnalysisRecord(
        kind="study", title="right sums by the length of the cascade", axes=("layers", "share"), labels=labels,
        values=values, unit="share of right sums, mean over seeds",
    )  # fmt: skip


def _grown(curve: tuple[list[int], dict[str, list[float]]]) -> AnalysisRecord:
    steps, found = curve
    labels = {"sub-task": tuple(found), "step": tuple(map(str, steps))}
    return AnalysisRecord(
        kind="study", title="two layers, seed 1: right sums over training", axes=("sub-task", "step"),
        labels=labels, values=list(found.values()), unit="share of right sums",
    )  # fmt: skip
