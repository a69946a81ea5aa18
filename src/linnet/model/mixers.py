"""What mixes information between positions: attention, or a recurrent layer, under one memory contract.

A mixer gets its own layer's memory (or None, when nothing is to be remembered) and returns what goes on.
Legend: B = rows, T = new tokens, S = slots, H = heads, Hk = key-value heads, D = head width, W = model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.model.config import ModelConfig
from linnet.model.kernels import Mask, attend, turned_heads
from linnet.model.layers import Embedding, Joined, norm, rotate, rotation
from linnet.model.state import KeyValues, LayerMemory, Recurrent
from linnet.model.taps import RECURRENT, Taps


@dataclass(frozen=True)
class Frame:
    """What all layers of one call share: where the new tokens stand and whom they may see."""

    positions: Tensor  # int64 [1 or B, T]: as rotary and learned positions count
    slots: Tensor | None  # int64 [B, T]: where keys and values are written; None without memory
    span: int  # how many slots are read
    lengths: Tensor | None  # int64 [B]: new tokens of each row; None = all T
    mask: Mask
    rotation: tuple[Tensor, Tensor] | None
    ids: Tensor | None = None  # int64 [B, T], where values are looked up by token
    present: Tensor | None = None  # bool [B, T]: which steps have a token; None = all


def turn(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor] | None:
    """The rotary angles of a call, made once and shared by all layers."""
    if config.positions != "rotary" or "attention" not in config.mixers:
        return None
    attention = config.attention
    cosines, sines = rotation(positions, config.rotary_width, attention.rotary_base, attention.rotary_scaling)
    return cosines[:, None], sines[:, None]


HOOKS = ("hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k")  # between the product and attention


class Attention(nn.Module):
    """Grouped-query attention; queries, keys and values come from one product, and values also from a table."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = config.attention.heads, config.kv_heads, config.head_width
        bias = config.attention.bias
        self.widths = [n * self.head_width for n in (self.heads, self.kv_heads, self.kv_heads)]
        self.qkv = Joined(config.width, self.widths, bool(bias))  # decoding may put a packed product in its place
        self.out = nn.Linear(self.heads * self.head_width, config.width, bias=bias is True)
        qk_norm = config.attention.qk_norm
        self.q_norm = norm(config, self.head_width) if qk_norm else None
        self.k_norm = norm(config, self.head_width) if qk_norm else None
        looked_up = layer in config.value_layers
        self.values = Embedding(config.vocabulary, self.kv_heads * self.head_width) if looked_up else None
        # Whether nothing happens to queries and keys but that all of their numbers are turned.
        self.only_turned = not (qk_norm or looked_up) and config.rotary_width == self.head_width
        self.dropout = config.dropout

    def forward(
        self, x: Tensor, memory: LayerMemory | None, frame: Frame, taps: Taps, name: str
    ) -> tuple[Tensor, LayerMemory | None]:
        rows, tokens, _ = x.shape
        q, k, v = self._heads(x, frame, taps, name)
        memory, k, v = self._remember(memory, k.to(v.dtype), v, frame)
        shared = memory.shared if isinstance(memory, KeyValues) else None
        mixed = self._attend(q.to(v.dtype), k, v, shared, frame.mask, taps, name)
        z = taps.at(f"{name}.attn.hook_z", mixed.transpose(1, 2))
        return self.out(z.reshape(rows, tokens, -1)), memory

    def _heads(self, x: Tensor, frame: Frame, taps: Taps, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, D], keys and values [B, Hk, T, D] of x [B, T, W], rotated."""
        watched = taps.includes(*(f"{name}.attn.{hook}" for hook in HOOKS))
        if self.only_turned and frame.rotation is not None and not watched:
            whole = self.qkv(x)
            cosines, sines = (table.to(whole.dtype) for table in frame.rotation)
            return turned_heads(whole, cosines, sines, self.heads, self.kv_heads)
        q, k, v = self.project(x, frame)
        q = taps.at(f"{name}.attn.hook_q", q).transpose(1, 2)
        k = taps.at(f"{name}.attn.hook_k", k).transpose(1, 2)
        v = taps.at(f"{name}.attn.hook_v", v).transpose(1, 2)
        if frame.rotation is not None:
            q, k = rotate(q, *frame.rotation), rotate(k, *frame.rotation)
            q = taps.at(f"{name}.attn.hook_rot_q", q.transpose(1, 2)).transpose(1, 2)
            k = taps.at(f"{name}.attn.hook_rot_k", k.transpose(1, 2)).transpose(1, 2)
        return q, k, v

    def project(self, x: Tensor, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, H, D], keys and values [B, T, Hk, D] of x [B, T, W], before any rotation."""
        parts = self.qkv(x).split(self.widths, dim=-1)
        q, k, v = (part.view(*x.shape[:2], -1, self.head_width) for part in parts)
        return self._finished(q, k, v, frame)

    def project_apart(self, x: Sequence[Tensor], frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """The same where every head reads an input of its own: x is [B, T, H, W], and [B, T, Hk, W] twice."""
        weights = self.qkv.weight.split(self.widths)
        biases = [None] * 3 if self.qkv.bias is None else self.qkv.bias.split(self.widths)
        made: list[Tensor] = []
        for read, weight, bias in zip(x, weights, biases, strict=True):
            one = torch.einsum("bthw,hdw->bthd", read, weight.view(-1, self.head_width, weight.shape[-1]))
            made.append(one if bias is None else one + bias.view(-1, self.head_width))
        q, k, v = made
        return self._finished(q, k, v, frame)

    def project_head(self, kind: str, head: int, x: Tensor, frame: Frame) -> Tensor:
        """The queries ("q"), keys ("k") or values ("v") [B, T, D] of one head, of x [B, T, W]."""
        first = {"q": 0, "k": self.heads, "v": self.heads + self.kv_heads}[kind] + head
        rows = slice(first * self.head_width, (first + 1) * self.head_width)
        made = F.linear(x, self.qkv.weight[rows], None if self.qkv.bias is None else self.qkv.bias[rows])
        normed = {"q": self.q_norm, "k": self.k_norm, "v": None}[kind]
        if normed is not None:
            made = normed(made)
        if kind == "v" and self.values is not None and frame.ids is not None:
            found = self.values(frame.ids)
            if frame.present is not None:
                found = found * frame.present[..., None]
            made = made + found.unflatten(-1, (self.kv_heads, -1))[:, :, head]
        return made

    def mix_heads(self, q: Tensor, k: Tensor, v: Tensor, frame: Frame) -> Tensor:
        """What some heads [B, T, H', D] take from their keys and values [B, T, Hk', D], none of them rotated."""
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if frame.rotation is not None:
            q, k = rotate(q, *frame.rotation), rotate(k, *frame.rotation)
        return attend(q, k, v, frame.mask).transpose(1, 2)

    def _finished(self, q: Tensor, k: Tensor, v: Tensor, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """With the norms of queries and keys, and the values that are looked up by token."""
        if self.q_norm is not None and self.k_norm is not None:
            # In the numbers of its weights: torch has no fused norm for values of another precision.
            dtype = self.q_norm.get_parameter("weight").dtype
            q, k = self.q_norm(q.to(dtype)), self.k_norm(k.to(dtype))
        if self.values is not None and frame.ids is not None:
            found = self.values(frame.ids)
            if frame.present is not None:
                found = found * frame.present[..., None]
            v = v + found.view(v.shape).to(v.dtype)
        return q, k, v

    def _remember(
        self, memory: LayerMemory | None, k: Tensor, v: Tensor, frame: Frame
    ) -> tuple[LayerMemory | None, Tensor, Tensor]:
        """Write the new keys and values into the arena, and return everything that may be read."""
        if memory is None or frame.slots is None:
            return None, k, v
        assert isinstance(memory, KeyValues)
        rows = torch.arange(len(k), device=k.device)[:, None]
        keys, values = _written(memory.keys, rows, frame.slots, k), _written(memory.values, rows, frame.slots, v)
        memory = replace(memory, keys=keys, values=values)
        return memory, memory.keys[:, :, : frame.span].to(k.dtype), memory.values[:, :, : frame.span].to(v.dtype)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        shared: tuple[Tensor, Tensor] | None,
        mask: Mask,
        taps: Taps,
        name: str,
    ) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        observe = None
        if taps.includes(f"{name}.attn.hook_attn_scores", f"{name}.attn.hook_pattern"):
            observe = lambda point, x: taps.at(f"{name}.{point}", x)  # noqa: E731
        return attend(q, k, v, mask, dropout, shared=shared, observe=observe)


def _written(arena: Tensor, rows: Tensor, slots: Tensor, new: Tensor) -> Tensor:
    """The arena [B, Hk, S, D] with new [B, Hk, T, D] at slots [B, T], overwritten unless gradients flow.

    A compiler overwrites only what is not a view: through a transposed arena it would copy all of it twice.
    """
    values = new.transpose(1, 2).to(arena.dtype)
    if torch.is_grad_enabled() and (new.requires_grad or arena.requires_grad):
        return arena.transpose(1, 2).index_put((rows, slots), values).transpose(1, 2)
    arena[rows, :, slots] = values
    return arena


class Gru(nn.Module):
    """A gated recurrent layer: memory of one vector a row, whatever the length."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gru = nn.GRU(config.width, config.width, batch_first=True)

    def forward(
        self, x: Tensor, memory: LayerMemory | None, frame: Frame, taps: Taps, name: str
    ) -> tuple[Tensor, LayerMemory | None]:
        before = None
        if memory is not None:
            assert isinstance(memory, Recurrent)
            before = memory.hidden.to(x.dtype)
        if taps.includes(*(f"{name}.{gate}" for gate in RECURRENT)):
            states = self._explicit(x, before, taps, name)
        else:
            states = self.gru(x, None if before is None else before[None])[0]
        if before is None or memory is None:
            return states, None
        if frame.lengths is None:
            return states, Recurrent(states[:, -1])
        # A row ends where its own tokens end; a row without new tokens keeps what it had.
        last = (frame.lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[2])
        ended = states.gather(1, last)[:, 0]
        return states, Recurrent(torch.where(frame.lengths[:, None] > 0, ended, before.to(ended.dtype)))

    def _explicit(self, x: Tensor, before: Tensor | None, taps: Taps, name: str) -> Tensor:
        """One position after the other, with its gates in the open: the reference for torch's layer.

        An edit by a function sees one position at a time here.
        """
        hidden = x.new_zeros(len(x), x.shape[2]) if before is None else before
        steps, states = [], []
        read = self._product("ih", x)
        for index in range(x.shape[1]):
            step = taps.step(index)
            hidden = self._next(read[:, index], hidden, step, f"{name}.gru")
            steps.append(step)
            states.append(hidden)
        taps.join(steps)
        return torch.stack(states, dim=1)

    def _next(self, read: Tensor, hidden: Tensor, taps: Taps, name: str) -> Tensor:
        """The state after one more position: read [B, 3 W] is what the input adds to each gate."""
        own = self._product("hh", hidden)
        (reset, update, new), (own_reset, own_update, own_new) = read.chunk(3, -1), own.chunk(3, -1)
        reset = taps.at(f"{name}.hook_reset", torch.sigmoid(reset + own_reset)[:, None])[:, 0]
        update = taps.at(f"{name}.hook_update", torch.sigmoid(update + own_update)[:, None])[:, 0]
        candidate = taps.at(f"{name}.hook_candidate", torch.tanh(new + reset * own_new)[:, None])[:, 0]
        state = (1 - update) * candidate + update * hidden
        return taps.at(f"{name}.hook_state", state[:, None])[:, 0]

    def _product(self, name: str, x: Tensor) -> Tensor:
        """All gates at once, from the input (ih) or from the state before (hh)."""
        return F.linear(x, self.gru.get_parameter(f"weight_{name}_l0"), self.gru.get_parameter(f"bias_{name}_l0"))
