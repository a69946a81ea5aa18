"""Looking inside a run."""

from __future__ import annotations

from pathlib import Path

from linnet.errors import BadInput
from linnet.probing.heads import patterns
from linnet.records import AttentionRecord
from linnet.workbench.open import load


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
    layers, values = patterns(opened.network, ids, layer, head)
    labels = {"layer": tuple(map(str, layers))} | ({} if head is None else {"head": (str(head),)})
    names = tuple(opened.codec.tokens[token] for token in ids)
    return AttentionRecord(tokens=names, labels=labels, values=values.tolist())
