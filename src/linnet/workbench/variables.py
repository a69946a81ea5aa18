"""Variables that a run holds: what probes can read, and what interchange shows to be used."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from linnet.domains.contract import Hypothesis
from linnet.domains.registry import imported
from linnet.errors import BadInput, RunFailed, nearest
from linnet.model.model import Model
from linnet.probing import interchange as exchanges
from linnet.probing import lens as lenses
from linnet.probing import probes
from linnet.records import AnalysisRecord, Grid
from linnet.rows import Rows
from linnet.training.learner import fresh_network
from linnet.workbench.open import Opened, load
from linnet.workbench.reading import ROWS, numbers, padded, rows_for

BETWEEN = ("hook_resid_pre", "hook_resid_mid")  # where the residual stream may still be read by something


def labelled(opened: Opened, label: str, rows: Rows) -> probes.Labelled:
    """Rows with a label of the domain, or of a function `module:function` from token names to labels."""
    ids, lengths = padded(rows, opened.model.config.context)
    names = [[opened.codec.tokens[i] for i in row[:size]] for row, size in zip(ids.tolist(), lengths, strict=True)]
    given = labels_by(label, names) if ":" in label else _of_domain(opened, label, ids, lengths)
    found = [[None if one is None else str(one) for one in row] for row in given]
    for row, tokens in zip(found, names, strict=True):
        if len(row) != len(tokens):
            raise BadInput(f"{label} gave {len(row)} labels for {len(tokens)} tokens; one for each is needed")
    counted = Counter(one for row in found for one in row if one is not None)
    classes = tuple(sorted(counted, key=lambda name: (not name.isdigit(), len(name), name)))
    if len(classes) < 2:
        what = f"the only one is {classes[0]!r}" if classes else "there is none"
        raise BadInput(f"a probe needs labels of two classes or more, and in these rows {what}")
    index = {name: number for number, name in enumerate(classes)}
    labels = torch.full(ids.shape, probes.UNLABELLED)
    for number, row in enumerate(found):
        labels[number, : len(row)] = torch.tensor(
            [probes.UNLABELLED if one is None else index[one] for one in row]
        )
    return probes.Labelled(ids, labels, classes, lengths)


def labels_by(name: str, rows: Sequence[Sequence[str]]) -> list[Sequence[Any]]:
    """What a person's function says of each row."""
    function = own_function(name)
    found = [function(tuple(row)) for row in rows]
    for one in found:
        if not isinstance(one, list | tuple):
            raise BadInput(
                f"{name} gave {str(one)[:40]!r}; it has to give a list with a label, or None, for each token"
            )
    return found


def own_function(name: str) -> Callable[..., Any]:
    """The function of a person that `module:function` names; what goes wrong in it is said to be its own."""
    function = imported("function", name)
    if not callable(function):
        raise BadInput(f"{name} is of the type {type(function).__name__}, which cannot be called")

    def called(*values: Any) -> Any:
        try:
            return function(*values)
        except Exception as error:
            raise RunFailed(f"{name} raised {type(error).__name__}: {error}") from error

    return called


def _of_domain(opened: Opened, label: str, ids: Tensor, lengths: Tensor) -> list[Sequence[Any]]:
    domain, rows = opened.run.data, list(zip(ids.tolist(), lengths.tolist(), strict=True))
    known = domain.token_labels(opened.codec, rows[0][0][: rows[0][1]])
    if label not in known:
        hint = nearest(label, known) or "; runs of this kind have none of their own"
        raise BadInput(f'there is no label "{label}"{hint} (module:function gives others)')
    return [domain.token_labels(opened.codec, row[:size])[label] for row, size in rows]


def probe(
    path: Path | str,
    label: str,
    *,
    taps: Sequence[str] = (),
    head: int | None = None,
    data: Sequence[Path] = (),
    rows: int = ROWS,
    seed: int = 0,
    checkpoint: int | None = None,
) -> AnalysisRecord:
    """How well a label can be read, linearly, from the residual stream after each layer or from other taps."""
    opened = load(path, checkpoint=checkpoint)
    labels = labelled(opened, label, rows_for(opened, data, rows, seed))
    taps = tuple(taps) or lenses.residual_taps(opened.model)
    settings = probes.Settings(seed=seed)
    split = probes.Split.of(labels, settings)
    values = probes.values_at(opened.network, labels, taps, head)
    found = [readings(probes.probe(split, tap, values[tap], settings)) for tap in taps]
    base = probes.baselines(split)
    facts: dict[str, float | int | str] = {
        "classes": ", ".join(labels.names),
        "scored": f"{int((~split.train).sum()):,} steps: {1 - settings.share:.0%} of {len(labels.ids):,} rows",
        "majority class": shown(base.majority),
        "token alone": shown(base.token),
        "token and position": shown(base.token_and_position),
    }
    return AnalysisRecord(
        kind="probe",
        title=f"linear probes of {label}" + ("" if head is None else f", head {head}"),
        axes=("tap", "reading"),
        labels={"tap": taps, "reading": tuple(found[0])},
        values=[numbers(torch.tensor(list(one.values()))) for one in found],
        unit="accuracy",
        facts=facts,
        notes=("control: random labels of token types (what a probe memorises); low, high: 95 % over rows",),
    )


def shown(accuracy: probes.Accuracy) -> str:
    return f"{accuracy.value:.4f} ({accuracy.low:.4f} .. {accuracy.high:.4f})"


def readings(result: probes.ProbeResult) -> dict[str, float]:
    linear = {"linear": result.linear.value, "low": result.linear.low, "high": result.linear.high}
    sparse = {f"{k} channels" if k > 1 else "1 channel": one.value for k, one in result.sparse.items()}
    control = {"control": result.control.value, "selectivity": result.selectivity, "chance": result.chance}
    return linear | sparse | control


def interchange(
    path: Path | str,
    variable: str,
    *,
    taps: Sequence[str] = (),
    step: int | None = None,
    at: int | None = None,
    dimensions: Sequence[int] = (1, 2, 4),
    data: Sequence[Path] = (),
    rows: int = 1000,
    seed: int = 0,
    checkpoint: int | None = None,
) -> AnalysisRecord:
    """Whether a variable is held at a step (`at`) and used in the prediction after `step`, as hypothesised."""
    opened = load(path, checkpoint=checkpoint)
    read, hypothesis = chosen_hypothesis(opened, variable, step)
    pairs = pairs_of(opened, rows_for(opened, data, rows, seed), read, hypothesis, seed)
    taps = tuple(taps) or tuple(tap for tap in opened.model.taps() if tap.endswith(BETWEEN))
    settings = exchanges.Settings(dimensions=tuple(dimensions), seed=seed)
    fresh = fresh_network(opened.run, opened.codec).to(opened.model.device).eval()
    assert isinstance(fresh, Model)
    where = read if at is None else at
    found = [exchanges.interchange(opened.model, pairs, tap, where, settings, fresh) for tap in taps]
    names = tuple(f"{one.subspace} {one.dimensions}" if one.subspace != "whole" else "whole" for one in found[0])
    labels, axes = {"tap": taps, "subspace": names}, ("tap", "subspace")
    grids = {name: [[getattr(one, name) for one in row] for row in found] for name in ("low", "high", "changed")}
    scored = len(pairs.base) - round(settings.share * len(pairs.base))
    return AnalysisRecord(
        kind="interchange",
        title=f"interchange of {variable} at step {where}, read after step {read}",
        axes=axes,
        labels=labels,
        values=[[one.value for one in row] for row in found],
        unit="share answered as the hypothesis says",
        facts={"pairs learned from": len(pairs.base) - scored, "pairs scored": scored,
               "pairs whose answer changes": int(pairs.differing.sum())},
        further=tuple(Grid(name=name, axes=axes, labels=labels, values=values) for name, values in grids.items()),
        notes=("changed: the share among pairs whose answer has to change; untrained: fresh weights",),
    )  # fmt: skip


def chosen_hypothesis(opened: Opened, variable: str, step: int | None) -> tuple[int, Hypothesis]:
    """The step that is read and the hypothesis: one of the domain, or `module:function` with a step."""
    if ":" in variable:
        if step is None:
            raise BadInput("a hypothesis of your own needs --step: the step whose prediction it is about")
        return step, own_hypothesis(opened, variable)
    known = opened.run.data.hypotheses(opened.codec)
    if variable not in known:
        hint = nearest(variable, known) or "; runs of this kind have none of their own"
        raise BadInput(f'there is no variable "{variable}"{hint} (module:function gives others)')
    read, hypothesis = known[variable]
    return (read if step is None else step), hypothesis


def own_hypothesis(opened: Opened, name: str) -> Hypothesis:
    """A person's hypothesis, whose value and whose answers are checked."""
    function = own_function(name)

    def hypothesis(tokens: Sequence[str]) -> tuple[Hashable, Callable[[Hashable], str]]:
        match function(tokens):
            case (value, answer) if callable(answer):
                return value, lambda other: answered(answer, other)
            case found:
                raise BadInput(
                    f"{name} gave {str(found)[:40]!r}; it has to give the value of the variable, and a function "
                    "from values to the next token"
                )

    def answered(answer: Callable[[Hashable], Any], value: Hashable) -> str:
        found = answer(value)
        if found not in opened.codec.tokens:
            raise BadInput(f"the answer {str(found)[:40]!r} of {name} is no token of this run")
        return cast(str, found)

    return hypothesis


def pairs_of(opened: Opened, rows: Rows, step: int, hypothesis: Hypothesis, seed: int) -> exchanges.Pairs:
    """Prompts up to the step, each paired with another one; half of the pairs differ in the variable."""
    lengths = np.asarray(rows.lengths)
    kept = np.flatnonzero(lengths > step + 1)
    if step < 0 or len(kept) < 8:
        raise BadInput(f"step {step} is outside of these rows, which have up to {int(lengths.max())} tokens")
    ids = torch.from_numpy(np.stack([np.asarray(rows.row(int(i)))[: step + 1] for i in kept]).astype(np.int64))
    names = [[opened.codec.tokens[i] for i in row] for row in ids.tolist()]
    variables, answers = zip(*(hypothesis(row) for row in names), strict=True)
    random = np.random.Generator(np.random.Philox(key=[seed, 1]))
    sources = [_partner(variables, index, bool(index % 2), random) for index in range(len(ids))]
    tokens = {name: number for number, name in enumerate(opened.codec.tokens)}
    own = torch.tensor([tokens[answer(value)] for answer, value in zip(answers, variables, strict=True)])
    wanted = torch.tensor([tokens[answer(variables[s])] for answer, s in zip(answers, sources, strict=True)])
    return exchanges.Pairs(ids, ids[torch.tensor(sources)], step, own, wanted)


def _partner(variables: Sequence[Any], index: int, different: bool, random: np.random.Generator) -> int:
    """Another row, whose variable differs or does not."""
    for candidate in itertools.islice(iter(lambda: int(random.integers(len(variables))), -1), 10_000):
        if (variables[candidate] != variables[index]) == different:
            return candidate
    raise BadInput("the variable has the same value in (nearly) all rows: there is nothing to exchange")
