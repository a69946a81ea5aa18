"""What a run reads and predicts on its way: attention, scores of heads, lenses, embeddings, single steps.

Each function opens a run, computes one analysis and gives one record.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from linnet.data import pad_rows
from linnet.domains.tokens import rows_of
from linnet.errors import BadInput, refuse_unknown
from linnet.figures import visible
from linnet.probing import embeddings as tables
from linnet.probing import heads as of_heads
from linnet.probing import lens as lenses
from linnet.probing import stepping
from linnet.probing.patterns import recurrent_pattern
from linnet.records import AnalysisRecord, AttentionRecord, Grid
from linnet.rows import Rows
from linnet.workbench.open import Opened, load, located
from linnet.workbench.prompts import read_prompt

ROWS = 500  # of a data set, unless a person says otherwise


def rows_for(opened: Opened, data: Sequence[Path], most: int, seed: int) -> Rows:
    """Rows of these files, or else of the validation part: all, or so many at random."""
    assert opened.model  # a network that reads no tokens is refused with the reason
    if data:
        part = opened.run.data.read(opened.codec, located(data))
    else:
        part = opened.run.data.validation_part(opened.codec, opened.run.seed)
    rows = rows_of(part)
    if not len(rows):
        raise BadInput("there is no row to look at; name files with --data")
    if len(rows) <= most:
        return rows
    chosen = np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(len(rows))[:most]
    return rows.select(np.sort(chosen))


def padded(rows: Rows, context: int) -> tuple[Tensor, Tensor]:
    """Ids [N, T] without the last one of each row, as a model reads them, and lengths [N]."""
    kept = rows.select(np.flatnonzero(np.asarray(rows.lengths) - 1 <= context))
    if not len(kept):
        raise BadInput(f"every row is longer than the context of {context} tokens")
    batch = pad_rows(kept, np.arange(len(kept)))
    return batch["ids"].long(), batch["lengths"]


def heads(
    path: Path | str,
    text: str | None = None,
    *,
    data: Sequence[Path] = (),
    rows: int = 64,
    half: int | None = None,
    seed: int = 0,
    checkpoint: int | None = None,
) -> AnalysisRecord:
    """What each head does: on a text, on rows of files, or else on random tokens that are repeated once."""
    if text is not None and data:
        raise BadInput("a text and --data exclude each other; give one of them")
    if half is not None and (text is not None or data):
        raise BadInput("--half is about random tokens; leave it out where a text or --data is given")
    opened = load(path, checkpoint=checkpoint)
    lengths = None
    if text is not None:
        ids, on = torch.tensor([read_prompt(opened, text, "the text").ids]), "the text"
    elif data:
        ids, lengths = padded(rows_for(opened, data, rows, seed), opened.model.config.context)
        on = f"{len(ids)} rows of {', '.join(map(str, data))}"
    else:
        ids = repeated(opened, rows, half, seed)
        on = f"{rows} rows of {ids.shape[1]} tokens: random ones, and the same again"
    return heads_record(of_heads.head_scores(opened.network, ids, lengths), on)


def repeated(opened: Opened, rows: int, half: int | None, seed: int) -> Tensor:
    context, begin = opened.model.config.context, opened.codec.begin
    most = (context - (begin is not None)) // 2
    if most < 2:
        raise BadInput(f"a context of {context} tokens has no room for repeated tokens; give a text or --data")
    half = min(32, most) if half is None else half
    if not 1 <= half <= most:
        raise BadInput(f"a context of {context} tokens has room for 1 to {most} tokens twice, not {half}")
    return of_heads.repeated_rows(opened.model.config.vocabulary, rows, half, seed, begin)


def heads_record(scores: of_heads.HeadScores, on: str) -> AnalysisRecord:
    facts: dict[str, float | int | str] = {"rows": scores.rows, "on": on}
    for name, values in scores.values.items():
        if not values.isfinite().any():
            continue
        layer, head = divmod(int(values.nan_to_num(-1).argmax()), values.shape[1])
        half = float(scores.margins[name][layer, head])
        facts[f"most {name}"] = (
            f"layer {scores.layers[layer]} head {head}: {float(values[layer, head]):.3f} +- {half:.3f}"
        )
    axes, names = ("score", "layer", "head"), tuple(scores.values)
    labels = {"score": names, "layer": tuple(map(str, scores.layers))}
    margin = Grid(
        name="margins",
        axes=("margin of", "layer", "head"),
        labels={"margin of": names, "layer": labels["layer"]},
        values=[numbers(scores.margins[name]) for name in names],
    )
    return AnalysisRecord(
        kind="heads",
        title="what each head does",
        axes=axes,
        labels=labels,
        values=[numbers(scores.values[name]) for name in names],
        unit="score",
        facts=facts,
        further=(margin,) if scores.rows > 1 else (),
        notes=(
            *(f"{name}: {meaning}" for name, meaning in of_heads.MEANINGS.items()),
            "margin: half of the 95 % interval over rows",
        ),
    )


def numbers(values: Tensor) -> list[Any]:
    """Nested lists, None where there is no number."""
    if values.ndim == 0:
        value = float(values)
        return cast("list[Any]", value if math.isfinite(value) else None)
    return [numbers(inner) for inner in values]


def lens(
    path: Path | str,
    text: str,
    *,
    tuned: bool = False,
    data: Sequence[Path] = (),
    rows: int = ROWS,
    top: int = 1,
    seed: int = 0,
    checkpoint: int | None = None,
) -> AnalysisRecord:
    """What would be predicted after each layer; with `tuned`, through translators trained on half of the rows."""
    if data and not tuned:
        raise BadInput("--data are what a tuned lens learns from; add --tuned, or leave them out")
    opened = load(path, checkpoint=checkpoint)
    prompt = read_prompt(opened, text, "the text")
    model, translators, further = opened.model, lenses.IDENTITY, tuple[Grid, ...]()
    if tuned:
        translators, further = trained_lens(opened, data, rows, seed)
    found = lenses.lens(model, torch.tensor(prompt.ids), translators)
    names = ("before", *(f"layer {layer}" for layer in range(model.config.depth)))
    axes, labels = ("layer", "position"), {"layer": names}
    best = found.logprobs.topk(min(top, found.logprobs.shape[-1])).indices.permute(2, 0, 1).tolist()
    grids = [
        Grid(name="likeliest token" if rank == 1 else f"token of rank {rank}", axes=axes, labels=labels,
             values=[[opened.codec.tokens[i] for i in row] for row in ids])
        for rank, ids in enumerate(best, 1)
    ]  # fmt: skip
    grids.append(
        Grid(name="divergence from the last", axes=axes, labels=labels, values=numbers(found.divergence()))
    )
    return AnalysisRecord(
        kind="lens",
        title=f"{'tuned' if tuned else 'logit'} lens: what would be predicted after each layer, in nats",
        axes=axes,
        labels=labels,
        tokens=tuple(opened.codec.tokens[i] for i in prompt.ids),
        values=numbers(found.entropy()),
        unit="entropy",
        further=(*grids, *further),
        notes=prompt.notes,
    )


def trained_lens(
    opened: Opened, data: Sequence[Path], rows: int, seed: int
) -> tuple[lenses.Translators, tuple[Grid, ...]]:
    """Translators, and how far both lenses are from the last layer on rows that they were not trained on."""
    model = opened.model
    ids, lengths = padded(rows_for(opened, data, rows, seed), model.config.context)
    cut = max(1, len(ids) // 2)
    if cut == len(ids):
        raise BadInput("a tuned lens needs two rows or more: some to learn from, and others to be scored on")
    inside = torch.arange(ids.shape[1])[None] < lengths[:, None]
    learning = lenses.residuals(model, ids[:cut], inside[:cut])
    translators = lenses.tuned(model, learning, lenses.Training(seed=seed))
    scored = lenses.residuals(model, ids[cut:], inside[cut:])
    values = [lenses.divergences(model, scored), lenses.divergences(model, scored, translators)]
    labels = {"lens": ("logit lens", "tuned lens"), "layer": ("before", *map(str, range(model.config.depth)))}
    return translators, (
        Grid(name="divergence on other rows", axes=("lens", "layer"), labels=labels, values=values),
    )


def embeddings(
    path: Path | str, tokens: Sequence[str] = (), *, count: int = 8, checkpoint: int | None = None
) -> AnalysisRecord:
    """Main directions of the token vectors, neighbours of tokens, and frequencies of numbers."""
    opened = load(path, checkpoint=checkpoint)
    table, names = opened.model.embedding.weight.detach().float().cpu(), opened.codec.tokens
    found = tables.components(table, count)
    facts: dict[str, float | int | str] = {"tokens": len(names), "width": table.shape[1]}
    for token in tokens:
        refuse_unknown(token, names, "there is no token")
        near = tables.neighbours(table, list(names).index(token))
        facts[f"near {visible(token)}"] = ", ".join(f"{visible(names[i])} {cosine:.2f}" for i, cosine in near)
    labels = {"component": tuple(map(str, range(1, len(found.shares) + 1)))}
    further = [Grid(name="coordinates", axes=("token", "component"), labels=labels | {"token": tuple(names)},
                    values=numbers(found.coordinates))]  # fmt: skip
    numbered = tables.number_tokens(names)
    if len(numbered) >= tables.LEAST_NUMBERS:
        power = tables.fourier_power(table[numbered])
        frequencies = tuple(map(str, range(1, len(power) + 1)))
        further.append(Grid(name="power of numbers", axes=("frequency",), labels={"frequency": frequencies},
                            values=numbers(power)))  # fmt: skip
        if len(power) > tables.STRONGEST:
            facts["power in six frequencies"] = tables.strongest(power)
    return AnalysisRecord(
        kind="embeddings",
        title="vectors of tokens",
        axes=("component",),
        labels=labels,
        values=numbers(found.shares),
        unit="share of the variance",
        facts=facts,
        further=tuple(further),
    )


def step(
    path: Path | str,
    text: str,
    *,
    max_tokens: int = 16,
    top: int = 5,
    layer: int | None = None,
    checkpoint: int | None = None,
) -> AnalysisRecord:
    """Go on from a text greedily, with the likeliest tokens of each step and where its heads looked."""
    opened = load(path, checkpoint=checkpoint)
    prompt = read_prompt(opened, text, "the text")
    steps = list(stepping.stepping(opened.model, prompt.ids, max_tokens, opened.codec.end))
    if not steps:
        raise BadInput(f"the text fills the context of {opened.model.config.context} tokens: no step is left")
    names, facts = [visible(name) for name in opened.codec.tokens], dict[str, float | int | str]()
    for number, one in enumerate(steps, 1):
        likely = ", ".join(f"{names[i]} {math.exp(value):.3f}" for i, value in one.alternatives(top))
        facts[f"step {number}"] = f"{names[one.token]}  (entropy {one.entropy:.3f}): {likely}"
    chosen = tuple(names[one.token] for one in steps)
    labels = {"step": tuple(f"{number} {name}" for number, name in enumerate(chosen, 1))}
    values = [[value for _, value in one.alternatives(top)] for one in steps]
    ranks = tuple(map(str, range(1, len(values[0]) + 1)))
    return AnalysisRecord(
        kind="step",
        title=f"{visible(prompt.text)} -> "
        f"{visible(opened.codec.continuation(prompt.ids, [one.token for one in steps]))}",
        axes=("token written", "alternative"),
        labels={"token written": labels["step"], "alternative": ranks},
        tokens=tuple(opened.codec.tokens[i] for i in (*prompt.ids, *(one.token for one in steps[:-1]))),
        values=values,
        unit="log-probability",
        facts=facts,
        further=_looks(steps, labels["step"], layer),
        notes=prompt.notes,
    )


def _looks(steps: Sequence[stepping.Step], written: tuple[str, ...], layer: int | None) -> tuple[Grid, ...]:
    """Attention [layer, head, token written, key]; zero at keys that were not there yet."""
    layers = steps[0].layers
    if not layers:
        return ()
    if layer is not None:
        of_heads.refuse_layer(layer, layers)
    chosen = [index for index, one in enumerate(layers) if layer in (None, one)]
    most = steps[-1].attention.shape[-1]
    rows = [torch.nn.functional.pad(one.attention[chosen], (0, most - one.attention.shape[-1])) for one in steps]
    labels = {"layer": tuple(str(layers[i]) for i in chosen), "token written": written}
    values = numbers(torch.stack(rows, 2))
    return (Grid(name="attention", axes=("layer", "head", "token written", "key"), labels=labels, values=values),)


def attention(
    path: Path | str,
    text: str,
    *,
    layer: int | None = None,
    head: int | None = None,
    checkpoint: int | None = None,
) -> AttentionRecord:
    """Where each head (or those of one layer, or one of them) looks while the model reads a text."""
    opened = load(path, checkpoint=checkpoint)
    ids = opened.prompt(text)
    if len(ids) > opened.model.config.context:
        raise BadInput(f"the text has {len(ids)} tokens, and the context is {opened.model.config.context}")
    names = tuple(opened.codec.tokens[token] for token in ids)
    mixers = opened.model.config.mixers
    recurrent = [n for n, mixer in enumerate(mixers) if mixer == "gru" and layer in (None, n)]
    if recurrent and (layer is not None or "attention" not in mixers):
        return recurrences(opened, ids, recurrent, head)
    layers, values = of_heads.patterns(opened.network, ids, layer, head)
    labels = {"layer": tuple(map(str, layers))} | ({} if head is None else {"head": (str(head),)})
    return AttentionRecord(tokens=names, labels=labels, values=values.tolist())


def recurrences(opened: Opened, ids: Sequence[int], layers: Sequence[int], head: int | None) -> AttentionRecord:
    """How much of what each earlier position wrote is left in the state of recurrent layers."""
    if head is not None:
        raise BadInput("a recurrent layer has no heads; leave out --head")
    read = torch.tensor([list(ids)], device=opened.network.device)
    return AttentionRecord(
        title="share of each earlier candidate in the state of a recurrent layer",
        tokens=tuple(opened.codec.tokens[token] for token in ids),
        labels={"layer": tuple(map(str, layers)), "head": ("mean of the channels",)},
        values=[[recurrent_pattern(opened.model, read, layer)[0].tolist()] for layer in layers],
    )
