"""How something develops over the snapshots of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from linnet.domains.tokens import decoder, rows_of
from linnet.errors import BadInput, nearest
from linnet.model.contract import Network
from linnet.probing import embeddings as tables
from linnet.probing import heads as of_heads
from linnet.probing import lens as lenses
from linnet.probing import probes
from linnet.probing.development import Measure, curves, onset
from linnet.records import AnalysisRecord
from linnet.training.checkpoint import RunFolder
from linnet.workbench.open import Opened, load, read_codec, read_run
from linnet.workbench.reading import padded, repeated, rows_for
from linnet.workbench.variables import labelled, own_function


def development(
    path: Path | str,
    what: str = "heads",
    *,
    label: str | None = None,
    layer: int | None = None,
    head: int | None = None,
    data: Sequence[Path] = (),
    rows: int = 64,
    seed: int = 0,
) -> AnalysisRecord:
    """Curves over the snapshots of a run, and where each of them sets in.

    `what` is heads (scores, the best head of each unless one is named), loss, probe (of a label), embeddings, or a
    function `module:function` from a network to named numbers.
    """
    folder = RunFolder.open(Path(path))
    run = read_run(folder)
    opened = load(path)
    for option, given, owner in (("label", label, "probe"), ("layer", layer, "heads"), ("head", head, "heads")):
        if given is not None and what != owner:
            raise BadInput(f"--{option} is about the development of {owner}, not of {what}; leave it out")
    if (layer is None) != (head is None):
        raise BadInput("a head is named by its layer and its number: give both --layer and --head")
    measures: dict[str, Callable[[], Measure]] = {
        "heads": lambda: _heads(opened, layer, head, data, rows, seed),
        "loss": lambda: _loss(opened, data),
        "probe": lambda: _probe(opened, label, data, rows, seed),
        "embeddings": lambda: _embeddings(opened),
    }
    if ":" not in what and what not in measures:
        raise BadInput(f'"{what}" has no development{nearest(what, measures)} (module:function gives others)')
    measure = _own(what) if ":" in what else measures[what]()
    steps, found = curves(folder, run, read_codec(folder, run), measure)
    facts: dict[str, float | int | str] = {}
    for name, values in found.items():
        index = onset(values)
        known = "" if index is None else f"step {steps[index]} (the snapshot before is of step {steps[index - 1]})"
        facts[f"onset of {name}"] = known or "no clear one"
    return AnalysisRecord(
        kind="development",
        title=f"{what} over {len(steps)} snapshots",
        axes=("curve", "step"),
        labels={"curve": tuple(found), "step": tuple(map(str, steps))},
        values=[[value if value == value else None for value in values] for values in found.values()],
        unit=what,
        facts=facts,
        notes=("step 0 has the weights that training starts from",),
    )


def _own(name: str) -> Measure:
    function = own_function(name)

    def measure(network: Network) -> dict[str, float]:
        found = function(network)
        if not isinstance(found, Mapping) or not all(isinstance(one, int | float) for one in found.values()):
            raise BadInput(
                f"{name} gave {str(found)[:40]!r}; it has to give named numbers, such as {{'loss': 0.5}}"
            )
        return dict(found)

    return measure


def _heads(
    opened: Opened, layer: int | None, head: int | None, data: Sequence[Path], rows: int, seed: int
) -> Measure:
    if data:
        ids, lengths = padded(rows_for(opened, data, rows, seed), opened.model.config.context)
    else:
        ids, lengths = repeated(opened, rows, None, seed), None

    def measure(network: Network) -> dict[str, float]:
        found = of_heads.head_scores(network, ids, lengths)
        if layer is None or head is None:
            return {name: float(values.nan_to_num(0).max()) for name, values in found.values.items()}
        if layer not in found.layers or not 0 <= head < found.values["first"].shape[1]:
            raise BadInput(f"there is no head {head} of layer {layer}")
        return {name: float(values[found.layers.index(layer), head]) for name, values in found.values.items()}

    return measure


def _loss(opened: Opened, data: Sequence[Path]) -> Measure:
    """The loss over all rows."""
    part = opened.run.data.validation_part(opened.codec, opened.run.seed)
    if data:
        part = opened.run.data.read(opened.codec, data)
    batch = opened.run.training.eval_batch

    def measure(network: Network) -> dict[str, float]:
        return {"loss": opened.run.data.judge(network, part, batch=batch, region=opened.region)}

    if not len(rows_of(part)):
        raise BadInput("there is no validation part; name files with --data")
    return measure


def _probe(opened: Opened, label: str | None, data: Sequence[Path], rows: int, seed: int) -> Measure:
    if label is None:
        raise BadInput("the development of a probe needs --label, such as carry or module:function")
    labels = labelled(opened, label, rows_for(opened, data, rows, seed))
    settings = probes.Settings(seed=seed, sparse=())
    split, taps = probes.Split.of(labels, settings), lenses.residual_taps(opened.model)

    def measure(network: Network) -> dict[str, float]:
        values = probes.values_at(network, labels, taps)
        predicted = {
            tap: probes.fitted(values[tap], split.labels, split.train, labels.classes, settings.penalty)
            for tap in taps
        }
        return {tap: split.accuracy(one).value for tap, one in predicted.items()}

    return measure


def _embeddings(opened: Opened) -> Measure:
    numbered = tables.number_tokens(opened.codec.tokens)
    if len(numbered) // 2 <= tables.STRONGEST:
        raise BadInput(
            f"the development of embeddings is about frequencies of numbers, of which these {len(numbered)} "
            f"have {len(numbered) // 2}; it needs more than {tables.STRONGEST}"
        )

    def measure(network: Network) -> dict[str, float]:
        table = decoder(network).embedding.weight.detach().float().cpu()
        power = tables.fourier_power(table[torch.tensor(numbered)])
        return {"power in six frequencies": tables.strongest(power)}

    return measure
