"""The two published copying networks for the next place, in one module: GRU (620,808) and Transformer (641,772).

Facts and sizes only were taken from the published work; the code is ours. Each reads the visits of the last week
(place, cells of three levels, user) and mixes a copy of the history with a generator through a gate. Copies,
counts and recency are scatter-adds, and cells may filter places; each of these functions has a loop form in
`bench/copying_loops.py`. Everything but attention is computed on the real visits alone, laid end to end: half of
a padded batch is padding, which has weight zero everywhere.
Legend: B = rows, T = visits of the longest row, E = visits of all rows, V = places, W = width, L = cells of a
level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from linnet.domains.places.codec import PlacesCodec
from linnet.domains.places.settings import CopyConfig
from linnet.model.contract import Batch, Groups, Network, embedding_tables, grouped
from linnet.model.dropping import drop
from linnet.model.inputs import Inputs, Output
from linnet.model.layers import Dropout, sinusoids
from linnet.model.taps import Edit, Taps

FILTERS = ("none", "hard", "soft")
FIRST_CELL = 2  # 0 is the cell of padding, 1 that of places in no known cell
NEVER = -1e9  # the logit of a place that a hard filter forbids


def scatter_places(weights: Tensor, ids: Tensor, places: int) -> Tensor:
    """[B, V]: the weights [B, T] of the visits to each place, added up."""
    return weights.new_zeros(len(ids), places).scatter_add(1, ids, weights)


def copy_distribution(attention: Tensor, ids: Tensor, valid: Tensor, places: int) -> Tensor:
    """[B, V]: what the attention over the visits says about places."""
    return scatter_places(attention * valid, ids, places)


def frequency(ids: Tensor, valid: Tensor, places: int) -> Tensor:
    """[B, V]: each place's share of the visits."""
    counts = scatter_places(valid.to(torch.get_default_dtype()), ids, places)
    return counts / counts.sum(1, keepdim=True).clamp(min=1)


def recency(ids: Tensor, valid: Tensor, lengths: Tensor, decay: Tensor, places: int) -> Tensor:
    """[B, V]: shares when each visit counts decay ** (visits since then); differentiable in the decay."""
    since = (lengths[:, None] - 1 - torch.arange(ids.shape[1], device=ids.device)).clamp(min=0)
    weights = decay.clamp(0.01, 0.999) ** since * valid
    total = scatter_places(weights, ids, places)
    return total / total.sum(1, keepdim=True).clamp(min=1e-8)


@dataclass(frozen=True)
class Sums:
    """The three sums of a copying network; oracles and older forms have the same signatures."""

    copy: Callable[[Tensor, Tensor, Tensor, int], Tensor] = copy_distribution
    frequency: Callable[[Tensor, Tensor, int], Tensor] = frequency
    recency: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor] = recency


def hard_filter(logits: Tensor, cells: Tensor, cell_of_place: Tensor) -> Tensor:
    """Only places inside the row's chosen cell [B] keep their logits [B, V]; a cell without places forbids none.

    `cell_of_place` [V] is one index a place, so the filter is one comparison and no table of children is built.
    """
    inside = cell_of_place[None, :] == cells[:, None]
    inside |= ~inside.any(1, keepdim=True)
    return torch.where(inside, logits, torch.full_like(logits, NEVER))


def soft_filter(logits: Tensor, cell_logits: Tensor, cell_of_place: Tensor, alpha: float) -> Tensor:
    """p(place) * p(cell of the place) ** alpha, not normalised; alpha = 0 changes nothing.

    Cells have nothing to say about places that lie in none of them (the class of unseen places above all): those
    get the factor of the most probable cell.
    """
    logp = cell_logits.log_softmax(1)
    inside = cell_of_place[None, :] >= FIRST_CELL
    factor = torch.where(inside, logp[:, cell_of_place], logp.max(1, keepdim=True).values)
    return logits + alpha * factor


def cell_probabilities(probabilities: Tensor, cell_of_place: Tensor, cells: int) -> Tensor:
    """[B, L]: the probability of a cell is the sum over its places, so no cell contradicts its places."""
    index = cell_of_place[None, :].expand(len(probabilities), -1)
    return probabilities.new_zeros(len(probabilities), cells).scatter_add(1, index, probabilities)


CELL_FIELDS = ("cell0", "cell1", "cell2")  # coarse to fine
LOWEST = 1e-10


@dataclass(frozen=True)
class Named(Output):
    """`cells` has logits [B, L] of each level, coarse to fine; `hidden` log-probabilities of places [B, V]."""

    cells: tuple[Tensor, ...]

    @property
    def places(self) -> Tensor:
        return self.hidden


@dataclass(frozen=True)
class Layout:
    """Where the real visits of a padded batch are."""

    lengths: Tensor  # [B]
    width: int  # T
    valid: Tensor  # bool [B, T]
    real: Tensor  # [E] into B * T
    column: Tensor  # [E] the number of each visit in its row
    ends: Tensor  # [B] the last visit of each row, into E

    @classmethod
    def of(cls, ids: Tensor, lengths: Tensor) -> Layout:
        width = ids.shape[1]
        valid = torch.arange(width, device=ids.device)[None] < lengths[:, None]
        real = valid.view(-1).nonzero().squeeze(1)
        return cls(lengths, width, valid, real, real % width, lengths.cumsum(0) - 1)

    def flat(self, padded: Tensor) -> Tensor:
        """[B, T, …] -> [E, …]"""
        return padded.flatten(0, 1).index_select(0, self.real)

    def padded(self, flat: Tensor) -> Tensor:
        """[E, …] -> [B, T, …], zero where there is no visit."""
        table = flat.new_zeros(self.valid.numel(), *flat.shape[1:])
        return table.index_copy(0, self.real, flat).unflatten(0, (len(self.lengths), self.width))

    def packed(self, flat: Tensor) -> tuple[PackedSequence, Tensor]:
        """For a recurrent layer: visits by their number, longer rows first; and the places they came from [E]."""
        longest_first = self.lengths.argsort(descending=True, stable=True)
        rank = longest_first.argsort()[self.real // self.width]
        order = (self.column * len(self.lengths) + rank).argsort()
        still = torch.bincount(self.column).cpu()  # rows that have a visit of each number
        return PackedSequence(flat.index_select(0, order), still, longest_first, longest_first.argsort()), order


class Encoded(nn.Module):
    """Place and cell embeddings side by side, projected to the width."""

    def __init__(self, config: CopyConfig, spare: int) -> None:
        super().__init__()
        sizes = (*config.cells, config.places)
        widths = (*config.cell_widths, config.place_width)
        self.tables = nn.ModuleList(
            nn.Embedding(size + spare, width, padding_idx=0) for size, width in zip(sizes, widths, strict=True)
        )
        self.project = nn.Linear(sum(widths), config.width)

    def forward(self, batch: Batch, layout: Layout) -> Tensor:
        nowhere = torch.zeros_like(batch["ids"])  # data without coordinates have no cells
        ids = [*(batch.get(name, nowhere) for name in CELL_FIELDS), batch["ids"]]
        parts = [table(layout.flat(column)) for table, column in zip(self.tables, ids, strict=True)]
        return self.project(torch.cat(parts, -1))


def attend(
    layer: nn.MultiheadAttention, layout: Layout, queries: Tensor, keys: Tensor, training: bool
) -> tuple[Tensor, Tensor]:
    """(read [B, Q, W], weights [B, heads, Q, T]) of queries [B, Q, W] over visits keys [E, W] of their rows."""
    width, heads = layer.embed_dim, layer.num_heads
    weight, bias = layer.in_proj_weight, layer.in_proj_bias
    q = F.linear(queries, weight[:width], bias[:width]).unflatten(-1, (heads, -1)).transpose(1, 2)
    stored = F.linear(keys, weight[width:], bias[width:])
    stored = layout.padded(stored).unflatten(-1, (2, heads, -1))
    k, v = stored[:, :, 0].transpose(1, 2), stored[:, :, 1].transpose(1, 2)
    scores = q @ k.transpose(-1, -2) * k.shape[-1] ** -0.5
    scores = scores.masked_fill(~layout.valid[:, None, None], float("-inf"))
    weights = drop(scores.softmax(-1), layer.dropout, training)
    return layer.out_proj((weights @ v).transpose(1, 2).flatten(2)), weights


class GruEncoder(nn.Module):
    """One recurrent layer, narrower than the model, over the real visits only."""

    def __init__(self, config: CopyConfig) -> None:
        super().__init__()
        self.gru = nn.GRU(config.width, config.narrow, config.depth, batch_first=True)
        self.widen = nn.Linear(config.narrow, config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        packed, order = layout.packed(x)
        states = self.gru(packed)[0].data
        return self.norm(self.widen(states.index_select(0, order.argsort())))


class TransformerEncoder(nn.Module):
    """Post-norm layers that see the whole history."""

    def __init__(self, config: CopyConfig) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, config.width, config.dropout, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.depth, enable_nested_tensor=False)
        self.share = config.dropout

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        for layer in self.layers.layers:
            assert isinstance(layer, nn.TransformerEncoderLayer)
            read, _ = attend(layer.self_attn, layout, layout.padded(x), x, self.training)
            x = layer.norm1(x + self._drop(layout.flat(read)))
            x = layer.norm2(x + self._drop(layer.linear2(self._drop(F.relu(layer.linear1(x))))))
        return x

    def _drop(self, x: Tensor) -> Tensor:
        return drop(x, self.share, self.training, entries=True)


TAPS = {
    "hook_copy_attention": ("row", "position"),
    "hook_copy": ("row", "place"),
    "hook_gate": ("row", "width"),
    "hook_generated": ("row", "place"),
}


class CopyModel(Network):
    """Names the next place and its cells; `loss` is a weighted sum over levels, which tables may lack."""

    config: CopyConfig
    idle_parameters = True

    def __init__(self, config: CopyConfig) -> None:
        super().__init__()
        self.config = config
        self.sums = Sums()
        gru, width = config.encoder == "gru", config.width
        self.embed = Encoded(config, spare=1 if gru else 0)
        self.user = nn.Embedding(config.users, config.narrow if gru else width)
        self.encoder: nn.Module = GruEncoder(config) if gru else TransformerEncoder(config)
        self.decay = nn.Parameter(torch.tensor(0.9))
        self.count_in, self.recent_in = nn.Linear(config.places, width), nn.Linear(config.places, width)
        self.counts = nn.Linear(2 * width, width)
        self.attend = nn.MultiheadAttention(width, config.heads, 0.0 if gru else config.dropout, batch_first=True)
        self.dropout, self.read = Dropout(config.dropout), Dropout(config.dropout, entries=True)
        gate = nn.Linear(3 * width, width)
        last: list[nn.Module] = [nn.ReLU(), nn.Linear(width, 1)]
        self.gate = nn.Sequential(gate, *last) if gru else nn.Sequential(gate, nn.ReLU(), self.dropout, last[1])
        self.generate = GruGenerator(config) if gru else TransformerGenerator(config)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        for level in range(3):
            table = torch.zeros(config.places, dtype=torch.int64)
            self.register_buffer(f"cell_of_place{level}", table, persistent=False)

    def adopt(self, codec: PlacesCodec) -> None:
        """Learn the cell of every place from the codec; needed by the tree of levels and by filters."""
        for table, level in zip(self.tree, codec.levels, strict=False):
            known = torch.from_numpy(codec.tree(level))
            table[: len(known)] = known

    @property
    def tree(self) -> tuple[Tensor, Tensor, Tensor]:
        """[V] each: the cell of every place, coarse to fine."""
        return (self.cell_of_place0, self.cell_of_place1, self.cell_of_place2)  # type: ignore[return-value]

    def taps(self) -> Mapping[str, tuple[str, ...]]:
        return TAPS

    def groups(self) -> Groups:
        return grouped(self, embedding_tables(self), {})

    def forward(
        self,
        inputs: Inputs | Tensor | Batch,
        state: Any = None,
        *,
        keep: tuple[str, ...] = (),
        edit: tuple[tuple[str, Edit], ...] = (),
    ) -> Named:
        assert isinstance(inputs, Mapping), "copying networks read batches of visits"
        taps = Taps(self.taps, keep, edit)
        ids, config = inputs["ids"], self.config
        layout = Layout.of(ids, inputs["lengths"])
        valid, lengths = layout.valid, layout.lengths
        x = self.embed(inputs, layout)
        x = x + sinusoids(layout.column, config.width).to(x.dtype)
        states = self.encoder(x if config.encoder == "gru" else self.read(x), layout)
        last = states[layout.ends]
        user = self.user(inputs["user"] % config.users)
        count = self.sums.frequency(ids, valid, config.places)
        recent = self.sums.recency(ids, valid, lengths, self.decay, config.places)
        counted, remembered = self.count_in(count), self.recent_in(recent)
        if config.encoder == "gru":
            counted, remembered = F.relu(counted), F.relu(remembered)
        counts = self.counts(torch.cat([counted, remembered], -1))
        read, attention = attend(self.attend, layout, last[:, None], states, self.training)
        read, attention = read[:, 0], taps.at("hook_copy_attention", attention[:, :, 0].mean(1))
        copied = self.sums.copy(attention, ids, valid, config.places) + 0.3 * count + 0.2 * recent
        copied = taps.at("hook_copy", copied / copied.sum(1, keepdim=True).clamp(min=LOWEST))
        gate = taps.at("hook_gate", torch.sigmoid(self.gate(torch.cat([last, counts, read], -1))))
        places, cells = self.generate(last, counts, read, user)
        mixed = gate * copied + (1 - gate) * taps.at("hook_generated", places.softmax(1))
        if config.levels == "tree":
            cells = tuple(
                (cell_probabilities(mixed, table, size) + LOWEST).log()
                for table, size in zip(self.tree, config.cells, strict=True)
            )
        return Named((mixed + LOWEST).log(), None, taps.kept, cells)

    def loss(self, output: Output, batch: Batch) -> Tensor:
        """Weighted nats over the levels, summed over rows."""
        assert isinstance(output, Named)
        total = torch.zeros_like(output.places[:, 0])
        levels = zip((*CELL_FIELDS, "ids"), (*output.cells, output.places), self.config.level_weights, strict=True)
        for name, logits, share in levels:
            if (target := batch.get(f"next.{name}")) is not None:
                total = total + share * self._nats(logits, target)
        return (total * batch["weights"]).sum()

    def _nats(self, logits: Tensor, target: Tensor) -> Tensor:
        """[B]: smoothed cross-entropy, weighed by how unsure the network is where the loss is focal."""
        smoothing, focal = self.config.smoothing, self.config.focal
        nats = F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
        if not focal:
            return nats
        sure = logits.log_softmax(1).gather(1, target[:, None]).squeeze(1).exp()
        return (1 - sure).clamp(min=0) ** focal * nats


class GruGenerator(nn.Module):
    """A narrow bottleneck, one linear layer a level."""

    def __init__(self, config: CopyConfig) -> None:
        super().__init__()
        self.dropout = Dropout(config.dropout)
        self.narrow = nn.Linear(config.width, config.narrow)
        self.cells = nn.ModuleList(nn.Linear(config.narrow, size) for size in config.cells)
        self.places = nn.Linear(config.narrow, config.places)

    def forward(
        self, last: Tensor, counts: Tensor, read: Tensor, user: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        user = F.pad(user, (0, last.shape[1] - user.shape[1]))
        z = F.relu(self.narrow(self.dropout(last + counts + read + user)))
        return self.places(z), tuple(head(z) for head in self.cells)


class TransformerGenerator(nn.Module):
    """Cells from the last state alone; the place from everything."""

    def __init__(self, config: CopyConfig) -> None:
        super().__init__()
        width = config.width

        def head(inner: int, wide: int, out: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(wide, inner), nn.ReLU(), Dropout(config.dropout), nn.Linear(inner, out))

        self.cells = nn.ModuleList(head(width // 2, width, size) for size in config.cells)
        self.places = head(width, 4 * width, config.places)

    def forward(
        self, last: Tensor, counts: Tensor, read: Tensor, user: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.places(torch.cat([last, user, counts, read], -1)), tuple(head(last) for head in self.cells)
