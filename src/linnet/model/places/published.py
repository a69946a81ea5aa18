"""The two published copying networks for the next place, in one module: GRU (620,808) and Transformer (641,772).

Facts and sizes only were taken from the published work; the code is ours. Each reads the visits of the last week
(place, cells of three levels, user) and mixes a copy of the history with a generator through a gate.
Legend: B = rows, T = visits of the longest row, V = places, W = width, L = cells of a level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from linnet.domains.places.codec import PlacesCodec
from linnet.model.inputs import Inputs
from linnet.model.layers import sinusoids
from linnet.model.places.config import CopyConfig
from linnet.model.places.copying import Sums, cell_probabilities

CELL_FIELDS = ("cell0", "cell1", "cell2")  # coarse to fine
LOWEST = 1e-10


@dataclass(frozen=True)
class Named:
    """Log-probabilities of places [B, V], and logits of the cells of each level [B, L], coarse to fine."""

    places: Tensor
    cells: tuple[Tensor, ...]


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

    def forward(self, inputs: Inputs) -> Tensor:
        nowhere = torch.zeros_like(inputs.ids)  # data without coordinates have no cells
        ids = [*(inputs.fields.get(name, nowhere) for name in CELL_FIELDS), inputs.ids]
        return self.project(torch.cat([table(column) for table, column in zip(self.tables, ids, strict=True)], -1))


class GruEncoder(nn.Module):
    """One recurrent layer, narrower than the model, over the real visits only."""

    def __init__(self, config: CopyConfig) -> None:
        super().__init__()
        self.gru = nn.GRU(config.width, config.narrow, config.depth, batch_first=True)
        self.widen = nn.Linear(config.narrow, config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.norm(self.widen(out))


class TransformerEncoder(nn.Module):
    """Post-norm layers that see the whole history."""

    def __init__(self, config: CopyConfig) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, config.width, config.dropout, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.depth, enable_nested_tensor=False)

    def forward(self, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        return self.layers(x, src_key_padding_mask=~valid)


class CopyModel(nn.Module):
    """`predict(inputs)` names the next place and its cells; `loss` is the weighted sum over levels."""

    def __init__(self, config: CopyConfig, sums: Sums | None = None) -> None:
        super().__init__()
        self.config = config
        self.sums = sums or Sums()
        gru, width = config.encoder == "gru", config.width
        self.embed = Encoded(config, spare=1 if gru else 0)
        self.user = nn.Embedding(config.users, config.narrow if gru else width)
        self.encoder: nn.Module = GruEncoder(config) if gru else TransformerEncoder(config)
        self.decay = nn.Parameter(torch.tensor(0.9))
        self.count_in, self.recent_in = nn.Linear(config.places, width), nn.Linear(config.places, width)
        self.counts = nn.Linear(2 * width, width)
        self.attend = nn.MultiheadAttention(width, config.heads, 0.0 if gru else config.dropout, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
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

    def predict(self, inputs: Inputs) -> Named:
        ids, config = inputs.ids, self.config
        lengths = torch.full((len(ids),), ids.shape[1]) if inputs.lengths is None else inputs.lengths
        column = torch.arange(ids.shape[1], device=ids.device)[None]
        valid = column < lengths[:, None]
        x = self.embed(inputs)
        x = x + sinusoids(column, config.width).to(x.dtype)
        states = self.encoder(x if config.encoder == "gru" else self.dropout(x), valid, lengths)
        last = states[torch.arange(len(ids), device=ids.device), lengths - 1]
        user = self.user(inputs.fields["user"][:, 0] % config.users)
        count, recent = (
            self.sums.frequency(ids, valid, config.places),
            self.sums.recency(ids, valid, lengths, self.decay, config.places),
        )
        counted, remembered = self.count_in(count), self.recent_in(recent)
        if config.encoder == "gru":
            counted, remembered = F.relu(counted), F.relu(remembered)
        told = self.counts(torch.cat([counted, remembered], -1))
        read, attention = self.attend(last[:, None], states, states, key_padding_mask=~valid)
        read = read[:, 0]
        copied = self.sums.copy(attention[:, 0], ids, valid, config.places) + 0.3 * count + 0.2 * recent
        copied = copied / copied.sum(1, keepdim=True).clamp(min=LOWEST)
        gate = torch.sigmoid(self.gate(torch.cat([last, told, read], -1)))
        places, cells = self.generate(last, told, read, user)
        mixed = gate * copied + (1 - gate) * places.softmax(1)
        if config.levels == "tree":
            cells = tuple(
                (cell_probabilities(mixed, table, size) + LOWEST).log()
                for table, size in zip(self.tree, config.cells, strict=True)
            )
        return Named((mixed + LOWEST).log(), cells)

    def loss(self, inputs: Inputs, targets: Tensor, weights: Tensor) -> Tensor:
        """Weighted nats over the levels, summed over rows; a row's target is at its last visit."""
        named = self.predict(inputs)
        row = torch.arange(len(targets), device=targets.device)
        at = weights.argmax(1)
        total = torch.zeros_like(named.places[:, 0])
        for name, logits, share in zip(
            (*CELL_FIELDS, ""), (*named.cells, named.places), self.config.level_weights, strict=True
        ):
            target = inputs.fields.get(f"next_{name}") if name else targets
            if target is not None:
                smoothing = self.config.smoothing
                nats = F.cross_entropy(logits, target[row, at], reduction="none", label_smoothing=smoothing)
                total = total + share * nats
        return (total * weights[row, at]).sum()


class GruGenerator(nn.Module):
    """A narrow bottleneck, one linear layer a level."""

    def __init__(self, config: CopyConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.narrow = nn.Linear(config.width, config.narrow)
        self.cells = nn.ModuleList(nn.Linear(config.narrow, size) for size in config.cells)
        self.places = nn.Linear(config.narrow, config.places)

    def forward(self, last: Tensor, told: Tensor, read: Tensor, user: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        user = F.pad(user, (0, last.shape[1] - user.shape[1]))
        z = F.relu(self.narrow(self.dropout(last + told + read + user)))
        return self.places(z), tuple(head(z) for head in self.cells)


class TransformerGenerator(nn.Module):
    """Cells from the last state alone; the place from everything."""

    def __init__(self, config: CopyConfig) -> None:
        super().__init__()
        width = config.width

        def head(inner: int, wide: int, out: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(wide, inner), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(inner, out)
            )

        self.cells = nn.ModuleList(head(width // 2, width, size) for size in config.cells)
        self.places = head(width, 4 * width, config.places)

    def forward(self, last: Tensor, told: Tensor, read: Tensor, user: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.places(torch.cat([last, user, told, read], -1)), tuple(head(last) for head in self.cells)
