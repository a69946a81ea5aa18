"""Prompts with their answers, and the number that an analysis asks of each of them.

Legend: B = cases, E = edited copies of all cases, T = tokens, A = tokens of an answer, V = vocabulary, W = width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from linnet.errors import BadInput, RunFailed
from linnet.intervals import student
from linnet.model.model import Model
from linnet.model.taps import Edit
from linnet.probing.parts import START

MOST_TOKENS = 1 << 13  # tokens that edited copies read in one call


@dataclass(frozen=True)
class Cases:
    """`ids` are prompts with all but the last token of their answers; `targets` the answers, read at `positions`,
    which are those of all cases, or of each.

    `wrong` is what the answer is compared with; `corrupt` the prompts whose values replace those of `ids`.
    """

    ids: Tensor  # int64 [B, T]
    targets: Tensor  # int64 [B, A]
    positions: Tensor  # int64 [A] or [B, A]
    wrong: Tensor | None = None  # int64 [B, A]
    corrupt: Tensor | None = None  # int64 [B, T]

    def __post_init__(self) -> None:
        tokens = self.ids.shape[1]
        if self.corrupt is not None and self.corrupt.shape != self.ids.shape:
            other = self.corrupt.shape[1]
            raise BadInput(
                f"the clean prompts have {tokens} tokens and the corrupt ones {other}; values can only be "
                "exchanged between prompts of one length"
            )
        outside = [position for position in self.positions.flatten().tolist() if not 0 <= position < tokens]
        if outside:
            raise BadInput(f"position {outside[0]} is outside of the prompt, which has {tokens} tokens")

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of_answers(
        cls,
        prompts: Tensor,
        answers: Tensor,
        *,
        wrong: Tensor | None = None,
        corrupt: Tensor | None = None,
        corrupt_answers: Tensor | None = None,
    ) -> Cases:
        """Prompts [B, P], each followed by its answer [B, A]; corrupt ones are followed by theirs."""
        length = answers.shape[1]
        positions = torch.arange(prompts.shape[1] - 1, prompts.shape[1] - 1 + length, device=prompts.device)
        ids = torch.cat((prompts, answers[:, :-1]), 1)
        if corrupt is not None:
            theirs = answers if corrupt_answers is None else corrupt_answers
            corrupt = torch.cat((corrupt, theirs[:, :-1]), 1)
            wrong = theirs if wrong is None and corrupt_answers is not None else wrong
        return cls(ids, answers, positions, wrong, corrupt)

    def at(self, values: Tensor) -> Tensor:
        """[E * B, A, ...] of values [E * B, T, ...]: those at the positions of the answers."""
        if self.positions.ndim == 1:
            return values[:, self.positions]
        positions = self.positions.repeat(len(values) // len(self), 1)
        return values[torch.arange(len(values), device=values.device)[:, None], positions]

    @property
    def others(self) -> Tensor:
        """Prompts whose values stand in for those of `ids`: the corrupt ones, or each case's neighbour."""
        if self.corrupt is not None:
            return self.corrupt
        if len(self) < 2:
            raise BadInput("one prompt has no other one to take values from; give a corrupt prompt")
        return self.ids.roll(1, 0)

    def of(self, rows: slice) -> Cases:
        """Some of the cases."""
        wrong = None if self.wrong is None else self.wrong[rows]
        corrupt = None if self.corrupt is None else self.corrupt[rows]
        positions = self.positions if self.positions.ndim == 1 else self.positions[rows]
        return Cases(self.ids[rows], self.targets[rows], positions, wrong, corrupt)


Metric = Callable[[Tensor, Cases], Tensor]  # logits [E, B, A, V] -> [E, B]


def logit_difference(logits: Tensor, cases: Cases) -> Tensor:
    """How far the answer's logits are above those of the wrong answer, the mean over its tokens."""
    if cases.wrong is None:
        raise BadInput("a logit difference needs a wrong answer to compare with")
    return (_chosen(logits, cases.targets) - _chosen(logits, cases.wrong)).mean(-1)


def log_probability(logits: Tensor, cases: Cases) -> Tensor:
    """Nats that the answer as a whole has (negative)."""
    return _chosen(logits.log_softmax(-1), cases.targets).sum(-1)


def score(logits: Tensor, cases: Cases) -> Tensor:
    """1 where every token of the answer is the likeliest, which is what greedy decoding writes."""
    return (logits.argmax(-1) == cases.targets).all(-1).to(logits.dtype)


METRICS: Mapping[str, Metric] = {
    "logit_difference": logit_difference,
    "log_probability": log_probability,
    "score": score,
}


def _chosen(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(-1, tokens.expand(*logits.shape[:-1])[..., None])[..., 0]


@dataclass(frozen=True)
class Subject:
    """A model, its cases, and the measure: everything that a causal analysis needs."""

    model: Model
    cases: Cases
    metric: Metric = logit_difference

    def measure(self, hidden: Tensor) -> Tensor:
        """[E, B] of hidden vectors [E * B, T, W]."""
        return self.measure_answers(self.cases.at(hidden))

    def measure_answers(self, hidden: Tensor) -> Tensor:
        """[E, B] of the hidden vectors [E * B, A, W] at the positions of the answers."""
        measured = hidden.unflatten(0, (-1, len(self.cases)))
        return self.metric(self.model.head(measured).float(), self.cases)

    def run(self, ids: Tensor, keep: Sequence[str] = ()) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The measure [B] of these prompts, and the values at these taps."""
        output = self.model(ids, keep=tuple(keep))
        return self.measure(output.hidden)[0], output.kept

    def edited(self, edit: Sequence[tuple[str, Edit]], residual: Tensor | None = None, tap: str = START) -> Tensor:
        """[E, B] under these edits, of copies that go on from `residual` [E * B, T, W] at this tap."""
        edit = tuple(edit)
        if residual is None:
            hidden = self.model(self.cases.ids, edit=edit).hidden
        else:
            ids = self.cases.ids.repeat(len(residual) // len(self.cases), 1)
            hidden = self.model.forward_from(tap, residual, ids, edit=edit).hidden
        return self.known(self.measure(hidden), [name for name, _ in edit])

    def known(self, found: Tensor, taps: Sequence[str]) -> Tensor:
        """The same, where edits of these taps have not led to NaN."""
        if bool(found.isnan().any()):
            names = ", ".join(dict.fromkeys(taps)) or "the residual stream"
            raise RunFailed(f"the edits of {names} lead to NaN in the logits")
        return found

    def of(self, rows: slice) -> Subject:
        """The same of some cases."""
        return Subject(self.model, self.cases.of(rows), self.metric)

    def copies(self) -> int:
        """How many edited copies of all cases one call computes."""
        return max(1, MOST_TOKENS // self.cases.ids.numel())


@contextlib.contextmanager
def differentiating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients of values, not of weights; as before outside."""
    trained, asking = network.training, [p for p in network.parameters() if p.requires_grad]
    network.eval()
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
        network.train(trained)


def mean_and_half(values: Tensor, least: float = 0.0) -> tuple[list[float], list[float]]:
    """The mean over cases [E, B], and half of its 95 % interval, at least so much; one case has none."""
    n = values.shape[1]
    half = (student(n - 1) * values.std(1) / n**0.5).clamp(min=abs(least)).tolist() if n > 1 else []
    return values.mean(1).tolist(), half
