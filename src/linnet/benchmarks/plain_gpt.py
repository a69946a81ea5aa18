"""The obvious GPT, as one writes it in an afternoon: the oracle that our training step is measured against.

Same architecture as ours at its defaults (RMS norm, rotary, SwiGLU, tied head), torch's own attention kernel,
separate projections, full logits, plain cross entropy. It has no state, no taps and no choices.
Legend: B = rows, T = tokens, W = width, H = heads, D = head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.model.config import ModelConfig
from linnet.model.model import Model


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        normed = self.norm1(x)
        q, k, v = (
            projection(normed).view(rows, tokens, self.heads, -1).transpose(1, 2)
            for projection in (self.q, self.k, self.v)
        )
        q, k = turned(q, cosines, sines), turned(k, cosines, sines)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(rows, tokens, width))
        normed = self.norm2(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


def turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * cosines + torch.cat((-second, first), dim=-1) * sines).to(x.dtype)


class PlainGpt(nn.Module):
    def __init__(self, vocabulary: int, context: int, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(PlainBlock(width, heads, hidden) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        rates = 10_000.0 ** (-torch.arange(0, width // heads, 2) / (width // heads))
        angles = (torch.arange(context)[:, None] * rates).repeat(1, 2)
        self.cosines, self.sines = nn.Buffer(angles.cos()), nn.Buffer(angles.sin())

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(ids)
        tokens = ids.shape[1]
        for block in self.blocks:
            x = block(x, self.cosines[:tokens], self.sines[:tokens])
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def plain_copy(model: Model) -> PlainGpt:
    """The plain GPT with the weights of one of our models (of the default architecture)."""
    config: ModelConfig = model.config
    heads, hidden = config.attention.heads, config.feedforward_width
    plain = PlainGpt(config.vocabulary, config.context, config.width, config.depth, heads, hidden)
    ours = dict(model.named_parameters())
    renamed: dict[str, Tensor] = {
        "embedding.weight": ours["embedding.weight"],
        "norm.weight": ours["final_norm.weight"],
    }
    for layer in range(config.depth):
        name = f"blocks.{layer}"
        q, k, v = ours[f"{name}.mixer.qkv.weight"].chunk(3)
        gate, up = ours[f"{name}.feedforward.up.weight"].chunk(2)
        renamed |= {
            f"{name}.{part}.weight": weight
            for part, weight in {
                "norm1": ours[f"{name}.ln1.weight"],
                "norm2": ours[f"{name}.ln2.weight"],
                "q": q,
                "k": k,
                "v": v,
                "o": ours[f"{name}.mixer.out.weight"],
                "gate": gate,
                "up": up,
                "down": ours[f"{name}.feedforward.down.weight"],
            }.items()
        }
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(renamed[name])
    return plain
