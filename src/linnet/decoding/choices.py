"""A sample that is one of a finite set: the exact distribution of a model over its choices, and draws from it.

Every choice is scored whole, its end included where the model has an end token, so a sample is drawn in
proportion to what the model says of each choice after the prompt: no choice is favoured because it begins well.
A prompt is computed once for all of its choices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from linnet.decoding.requests import Request, Sample, Sampling
from linnet.decoding.runner import Ids, Runner
from linnet.decoding.sampling import choose, cut, near_ties
from linnet.errors import RunFailed
from linnet.model.contract import evaluating

Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """The choices after one prompt: their ids, the log-probability of each id, and of ending after the last."""

    choices: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[float, ...], ...]
    ends: tuple[float, ...]

    @property
    def logprobs(self) -> list[float]:
        """Of each choice as a whole, under the model."""
        return [math.fsum((*tokens, end)) for tokens, end in zip(self.tokens, self.ends, strict=True)]

    def probabilities(self, sampling: Sampling) -> list[float]:
        """How often each choice is drawn."""
        scores = torch.tensor([self.logprobs], dtype=torch.float64)
        if sampling.greedy:
            return [float(index == int(scores.argmax())) for index in range(len(self.choices))]
        shares = cut(((scores - scores.amax()) / sampling.temperature).exp(), sampling)
        kept: list[float] = (shares / shares.sum())[0].tolist()
        return kept

    def draw(self, request: Request, sampling: Sampling, seed: int) -> Sample:
        """One sample: the likeliest choice at temperature 0, else a draw of its own."""
        scores = torch.tensor([self.logprobs], dtype=torch.float64)
        uniform = torch.from_numpy(request.noise(seed).random(1))
        chosen = int(choose(scores, sampling, uniform))
        ties = int(near_ties(scores))
        return Sample(self.choices[chosen], self.logprobs[chosen], "end", ties, self.tokens[chosen])


def tables(
    runner: Runner, choices: Mapping[Prompt, Ids], ends: Sequence[int], rows: int
) -> Iterator[tuple[Prompt, Table]]:
    """The choices of each prompt, scored; at most `rows` of them are computed together."""
    together: list[Prompt] = []
    for prompt in choices:
        if together and sum(len(choices[one]) for one in (*together, prompt)) > rows:
            yield from _scored(runner, {one: choices[one] for one in together}, ends, rows)
            together = []
        together.append(prompt)
    if together:
        yield from _scored(runner, {one: choices[one] for one in together}, ends, rows)


def _scored(
    runner: Runner, choices: Mapping[Prompt, Ids], ends: Sequence[int], rows: int
) -> list[tuple[Prompt, Table]]:
    """All prompts in one pass; then their choices, so many rows at a time."""
    pairs = [(source, tuple(ids)) for source, given in enumerate(choices.values()) for ids in given]
    tokens: list[tuple[float, ...]] = []
    ending: list[float] = []
    with evaluating(runner.network):
        prompts = list(choices)
        logits, state = runner.share(prompts[0]) if len(prompts) == 1 else runner.prefill(prompts)
        for first in range(0, len(pairs), rows):
            part = pairs[first : first + rows]
            sources = torch.tensor([source for source, _ in part], device=logits.device)
            before = [prompts[source] for source, _ in part]
            found = runner.score(logits[sources], state.select(sources), [ids for _, ids in part], ends, before)
            tokens += found[0]
            ending += found[1]
    if any(math.isnan(math.fsum(row)) for row in (*tokens, ending)):
        raise RunFailed(f"the probabilities of the choices are not numbers (NaN): {runner.fault()}")
    scored, start = [], 0
    for prompt, given in choices.items():
        end = start + len(given)
        ids = tuple(ids for _, ids in pairs[start:end])
        scored.append((prompt, Table(ids, tuple(tokens[start:end]), tuple(ending[start:end]))))
        start = end
    return scored
