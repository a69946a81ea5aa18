"""The obvious way to generate: no cache, one row, the whole sequence again for every token. The oracle."""

from __future__ import annotations

import torch

from linnet.decoding.requests import Decoding, Request, Sample
from linnet.decoding.runner import Columns
from linnet.decoding.sampling import allowed_ids, draw, first_noise, listed, seen_ids
from linnet.decoding.scheduler import Row
from linnet.model.contract import evaluating
from linnet.model.inputs import Inputs
from linnet.model.model import Model
from linnet.model.taps import Edit


def generate(
    model: Model,
    request: Request,
    decoding: Decoding,
    columns: Columns | None = None,
    edit: tuple[tuple[str, Edit], ...] = (),
) -> Sample:
    """One sample for one request: the same as `linnet.decoding.engine.generate`, only slower."""
    decoding.check(model.config, [request])
    row = Row.of(0, request, decoding.limit(model.config, request.prompt), decoding)
    with evaluating(model):
        while row.stop is None:
            ids = [*request.prompt, *row.drawn]
            further = {} if columns is None else columns(ids)
            read = {"ids": torch.tensor([ids])} | {k: torch.from_numpy(v)[None] for k, v in further.items()}
            inputs = Inputs({name: values.to(model.device) for name, values in read.items()})
            hidden = model(inputs, edit=edit).hidden
            logits = model.head(hidden[:, -1])
            seen = seen_ids([row], logits.shape[1]) if decoding.sampling.repetition_penalty != 1 else None
            allowed = allowed_ids([row], logits.shape[1]) if decoding.constraint is not None else None
            uniform = first_noise([row], decoding.sampling)
            uniform = None if uniform is None else uniform.to(logits.device)
            ((tokens, logprobs, ties),) = listed([draw(logits, decoding, uniform, seen, allowed)])
            row.take(tokens, logprobs, ties, decoding)
    return row.sample
