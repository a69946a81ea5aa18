"""Looking inside a run."""

from __future__ import annotations

from pathlib import Path

from linnet.errors import BadInput
from linnet.probing.attention import patterns
from linnet.records import AttentionRecord
from linnet.workbench.open import load


def attention(path: Path | str, text: str, *, checkpoint: int | None = None) -> AttentionRecord:
    """Where each head looks while the model reads a text."""
    opened = load(path, checkpoint=checkpoint)
    ids = opened.prompt(text)
    if len(ids) > opened.model.config.context:
        raise BadInput(f"the text has {len(ids)} tokens, and the context is {opened.model.config.context}")
    values = patterns(opened.network, ids)
    names = tuple(opened.codec.tokens[token] for token in ids)
    return AttentionRecord(tokens=names, values=values.tolist())
