"""Looking inside a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from linnet.errors import BadInput
from linnet.probing.heads import patterns
from linnet.probing.patterns import recurrent_pattern
from linnet.records import AttentionRecord
from linnet.workbench.open import Opened, load


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
    layers, values = patterns(opened.network, ids, layer, head)
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
