"""GPTs in plain PyTorch: torch's own attention, full logits, plain cross entropy; no state, no taps, no choices.

`PlainGpt` has our default architecture (RMS norm, rotary, SwiGLU, tied head) with separate projections. It is the
oracle that our training step is measured against. `NanoGpt` has the shape of nanoGPT, which many start from.
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


class NanoBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class NanoGpt(nn.Module):
    """A GPT of nanoGPT's shape: layer norm, learned positions, GELU, one table for tokens and head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        heads = config.attention.heads
        self.blocks = nn.Sequential(*(NanoBlock(config.width, heads) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width, bias=False)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        logits = F.linear(self.norm(self.blocks(x)), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
