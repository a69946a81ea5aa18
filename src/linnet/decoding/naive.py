"""The obvious way to generate: no cache, one row, the whole sequence again for every token. The oracle."""

from __future__ import annotations

import torch

from linnet.decoding.generate import Ask, Sample, check
from linnet.decoding.sampling import Sampling, stream
from linnet.model.model import Model, evaluating


def generate(
    model: Model, ask: Ask, *, sampling: Sampling, end: int | None, max_tokens: int, seed: int = 0
) -> Sample:
    """One sample for one ask: the same as `linnet.decoding.generate.generate`, only slower."""
    check(model, [ask], max_tokens)
    random = stream(seed, ask.prompt, ask.sample)
    ids = list(ask.prompt)
    logprob = 0.0
    with evaluating(model):
        for _ in range(min(max_tokens, model.config.context - len(ask.prompt) + 1)):
            hidden = model(torch.tensor([ids], device=model.device)).hidden
            logits = model.head(hidden[:, -1]).float()
            uniform = torch.tensor([random.random()], dtype=torch.float64, device=model.device)
            token = int(sampling.choose(logits, uniform))
            logprob += float(logits.double().log_softmax(-1)[0, token])
            if token == end:
                return Sample(tuple(ids[len(ask.prompt) :]), logprob, "end")
            ids.append(token)
    return Sample(tuple(ids[len(ask.prompt) :]), logprob, "length")
