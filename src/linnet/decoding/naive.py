"""The obvious way to generate: no cache, one row, the whole sequence again for every token. The oracle."""

from __future__ import annotations

import torch

from linnet.decoding.asking import Ask, Decoding, Sample, check, limit
from linnet.decoding.drawing import Row, draw
from linnet.model.model import Model, evaluating


def generate(model: Model, ask: Ask, decoding: Decoding) -> Sample:
    """One sample for one ask: the same as `linnet.decoding.engine.generate`, only slower."""
    check(model, [ask], decoding)
    row = Row.of(0, ask, limit(model, ask, decoding), decoding.seed)
    with evaluating(model):
        while row.stop is None:
            hidden = model(torch.tensor([[*ask.prompt, *row.drawn]], device=model.device)).hidden
            draw(model.head(hidden[:, -1]), [row], decoding)
    return row.sample
