"""One token at a time: what the model predicts, what else it thought of, and where it looked.

Legend: L = attention layers, H = heads, S = steps read so far, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.model.contract import evaluating
from linnet.model.inputs import Inputs
from linnet.model.model import Model
from linnet.probing.heads import layer_of


@dataclass(frozen=True)
class Step:
    """One token that was chosen, and the state in which it was."""

    token: int
    logits: Tensor  # [V]
    layers: tuple[int, ...]
    attention: Tensor  # [L, H, S], of the last step read; empty where no layer attends

    @property
    def logprobs(self) -> Tensor:
        return self.logits.float().log_softmax(-1)

    @property
    def entropy(self) -> float:
        """Nats of the prediction."""
        return float(torch.special.entr(self.logprobs.exp()).sum())

    def alternatives(self, count: int) -> list[tuple[int, float]]:
        """The likeliest tokens with their log-probabilities."""
        best = self.logprobs.topk(min(count, len(self.logits)))
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def stepping(
    model: Model, prompt: Sequence[int], most: int, end: int | None = None, *, forced: Sequence[int] = ()
) -> Iterator[Step]:
    """Go on from a prompt, greedily or through `forced` tokens first, until the end token or `most` tokens."""
    if not prompt:
        raise BadInput("a step needs a prompt to go on from")
    if len(prompt) > model.config.context:
        raise BadInput(f"the prompt has {len(prompt)} tokens, and the context is {model.config.context}")
    taps = tuple(name for name in model.taps() if name.endswith("attn.hook_pattern"))
    state, new = model.empty_state(rows=1), list(prompt)
    for number in range(min(most, model.config.context - len(prompt) + 1)):
        with evaluating(model):
            output = model(Inputs.of(torch.tensor([new], device=model.device)), state, keep=taps)
            logits = model.head(output.hidden[0, -1]).float().cpu()
        state = output.state
        token = forced[number] if number < len(forced) else int(logits.argmax())
        shares = [output.kept[tap][0, :, -1].float().cpu() for tap in taps]
        yield Step(token, logits, tuple(map(layer_of, taps)), torch.stack(shares) if shares else torch.empty(0))
        if token == end:
            return
        new = [token]
