"""A tree search over tokens as it is written first: no cache, one sequence at a time, the whole text each time.

It is what `bench/search.py` compares ours with. Select a leaf of the tree by the soft values of its children, add
the likeliest next tokens below it, roll one of them out to the end, score the text, and pass the score upwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from linnet.decoding.runner import Columns
from linnet.model.inputs import Inputs

Logits = Callable[[Sequence[int]], Tensor]  # of the token after these ids, [V]
Score = Callable[[Sequence[int]], float]


@dataclass
class Node:
    """A prefix of the answer."""

    ids: tuple[int, ...]
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    value: float = 0.0
    visits: int = 0


@dataclass
class Counts:
    """What a search cost."""

    tokens: int = 0  # that were drawn
    forward_tokens: int = 0  # that the model read for them


@dataclass(frozen=True)
class Naive:
    """The settings of the search, and the function that it asks for every token."""

    logits: Logits
    end: int | None
    rollouts: int
    max_tokens: int
    expand: int = 3
    lam: float = 1.0
    early_stop: bool = True  # a rollout ends at the end token
    most_drawn: float = math.inf  # stop after so many tokens: a measurement that is extrapolated

    def search(self, prompt: Sequence[int], score: Score, rng: np.random.Generator) -> tuple[Node, Counts]:
        root, counts = Node(()), Counts()
        for _ in range(self.rollouts):
            if counts.tokens >= self.most_drawn:
                break
            node = self._select(root, rng)
            if len(node.ids) < self.max_tokens and self.end not in node.ids:
                node = self._expand(node, prompt, counts, rng)
            answer = self._roll_out(prompt, node.ids, counts, rng)
            self._back_up(node, score(answer))
        return root, counts

    def _select(self, node: Node, rng: np.random.Generator) -> Node:
        while node.children:
            weights = np.exp(self.lam * np.array([child.value for child in node.children]))
            node = node.children[rng.choice(len(weights), p=weights / weights.sum())]
        return node

    def _expand(self, node: Node, prompt: Sequence[int], counts: Counts, rng: np.random.Generator) -> Node:
        logits = self._ask((*prompt, *node.ids), counts)
        node.children = [Node((*node.ids, token), node) for token in logits.topk(self.expand).indices.tolist()]
        counts.tokens += 1
        return node.children[rng.integers(self.expand)]

    def _roll_out(
        self, prompt: Sequence[int], ids: tuple[int, ...], counts: Counts, rng: np.random.Generator
    ) -> tuple[int, ...]:
        answer = list(ids)
        while len(answer) < self.max_tokens and counts.tokens < self.most_drawn:
            if self.early_stop and self.end in answer:
                break
            shares = self._ask((*prompt, *answer), counts).float().softmax(-1).cumsum(-1)
            answer.append(min(int((shares < rng.random()).sum()), len(shares) - 1))
            counts.tokens += 1
        return tuple(answer)

    def _back_up(self, node: Node | None, value: float) -> None:
        while node is not None:
            node.visits += 1
            if node.children:
                values = np.array([child.value for child in node.children if child.visits])
                node.value = float(np.log(np.exp(self.lam * values).mean()) / self.lam)
            else:
                node.value = value
            node = node.parent

    def _ask(self, ids: Sequence[int], counts: Counts) -> Tensor:
        counts.forward_tokens += len(ids)
        return self.logits(ids)


def logits_of(
    network: torch.nn.Module, head: Callable[[Tensor], Tensor], columns: Columns | None = None, rows: int = 1
) -> Logits:
    """The network without its cache; as many equal rows as are wanted."""

    def ask(ids: Sequence[int]) -> Tensor:
        further = {} if columns is None else columns(ids)
        inputs = {"ids": torch.tensor([ids]), **{name: torch.from_numpy(v)[None] for name, v in further.items()}}
        with torch.inference_mode():
            read = Inputs({name: one.expand(rows, *one.shape[1:]) for name, one in inputs.items()})
            return head(network(read).hidden[:, -1])[0]

    return ask


def naive_tokens(prompt: int, tokens: int) -> int:
    """Tokens that the model reads for one rollout of so many tokens, where nothing is remembered."""
    return tokens * prompt + tokens * (tokens - 1) // 2
