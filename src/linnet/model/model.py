"""THE model: one module, one forward, for training, prefill, one step, a packed tree and inspection.

Legend: B = rows, T = new steps, W = model width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.data import NEXT, PRESENT
from linnet.errors import BadInput, nearest
from linnet.model import masks
from linnet.model.columns import ColumnInput, IdHead, NumberHead, head_of
from linnet.model.config import ModelConfig
from linnet.model.contract import Batch, Groups, Network, embedding_tables, grouped
from linnet.model.heads import Head
from linnet.model.inputs import Inputs, Output
from linnet.model.kernels import attention_form
from linnet.model.layers import Dropout, Embedding, FeedForward, Joined, norm, sinusoids
from linnet.model.mixers import Attention, Frame, Gru, turn
from linnet.model.state import LayerMemory, Memory, State
from linnet.model.taps import Edit, Taps, points
from linnet.rows import IDS


class Block(nn.Module):
    """Pre-norm: x + mixer(norm(x)), then x + feed-forward(norm(x)); both at once from the same x if `parallel`."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.name = f"blocks.{layer}"
        self.ln1, self.ln2 = norm(config), norm(config)
        self.mixer = Attention(config, layer) if config.mixers[layer] == "attention" else Gru(config)
        self.feedforward = FeedForward(config)
        self.dropout = Dropout(config.dropout)
        self.parallel = config.parallel

    def forward(
        self, x: Tensor, memory: LayerMemory | None, frame: Frame, taps: Taps
    ) -> tuple[Tensor, LayerMemory | None]:
        x = taps.at(f"{self.name}.hook_resid_pre", x)
        mixed, memory = self.mix(x, memory, frame, taps)
        return self.finish(x + self.dropout(mixed), x, taps), memory

    def finish(self, x: Tensor, before: Tensor, taps: Taps) -> Tensor:
        """The rest of the layer behind its mixer: x has what the mixer added, `before` has not."""
        if not self.parallel:
            before = x = taps.at(f"{self.name}.hook_resid_mid", x)
        x = x + self.dropout(self.feed(before, taps))
        return taps.at(f"{self.name}.hook_resid_post", x)

    def mix(
        self, x: Tensor, memory: LayerMemory | None, frame: Frame, taps: Taps
    ) -> tuple[Tensor, LayerMemory | None]:
        """What the mixer adds to the residual stream x."""
        normed = taps.at(f"{self.name}.ln1.hook_normalized", self.ln1(x))
        mixed, memory = self.mixer(normed, memory, frame, taps, self.name)
        return taps.at(f"{self.name}.hook_attn_out", mixed), memory

    def feed(self, x: Tensor, taps: Taps) -> Tensor:
        """What the feed-forward adds to the residual stream x."""
        normed = taps.at(f"{self.name}.ln2.hook_normalized", self.ln2(x))
        return taps.at(f"{self.name}.hook_mlp_out", self.feedforward(normed, taps, f"{self.name}.mlp"))


class Model(Network):
    """A decoder over rows of columns. `model(inputs, state)` gives hidden vectors; `model.head` gives logits.

    `model.heads` has the heads of further predicted columns.
    """

    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if (config.vocabulary < 1 and not config.columns) or config.context < 1:
            sizes = f"vocabulary={config.vocabulary}, context={config.context}"
            raise BadInput(
                f"a model needs a vocabulary and a context, not {sizes}; the run.toml of a run has both"
            )
        self.config = config
        self.passes = config.loss.passes
        self.embedding = Embedding(config.vocabulary, config.width)
        learned = config.positions == "learned"
        self.position_embedding = Embedding(config.context, config.width) if learned else None
        columns = sorted(config.columns.items())
        self.columns = nn.ModuleDict({name: ColumnInput(column, config.width) for name, column in columns})
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.final_norm = norm(config)
        self.head = Head(config, self.embedding)
        predicted = {name: head_of(column, config.width) for name, column in columns if column.predicted}
        self.heads = nn.ModuleDict(predicted)
        self._initialise()

    def _initialise(self) -> None:
        """N(0, init_std) for matrices, less for those that write into the residual stream; biases 0, norms 1.

        The last norm starts lower where the first loss would else be off the log of the vocabulary by 1 %.
        """
        config, std = self.config, self.config.init_std
        writes = std / math.sqrt(2 * config.depth) if config.scaled_residual else std
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                if name.endswith("bias") or "bias_" in name:
                    nn.init.zeros_(parameter)
                continue
            written = name.endswith(("mixer.out.weight", "feedforward.down.weight"))
            nn.init.normal_(parameter, std=writes if written else std)
        # Logits of variance s add s / 2 nats to the first loss: this leaves room for half a percent. A tied head
        # adds more, since it favours the token that was read; only the smallest vocabularies notice.
        loud = std * math.sqrt(config.width) / math.sqrt(math.log(max(2, config.vocabulary)))
        nn.init.constant_(self.final_norm.get_parameter("weight"), min(1.0, 0.095 / loud))

    def empty_state(self, rows: int, slots: int | None = None, dtype: torch.dtype | None = None) -> State:
        """A state without tokens; pass it to the first call whose tokens are to be remembered."""
        dtype = self.embedding.weight.dtype if dtype is None else dtype
        slots = self.config.context if slots is None else slots
        return State.empty(self.config, rows, slots, dtype=dtype, device=self.device)

    def forward(
        self,
        inputs: Inputs | Tensor | Batch,
        state: State | None = None,
        *,
        keep: tuple[str, ...] = (),
        edit: tuple[tuple[str, Edit], ...] = (),
    ) -> Output:
        """Hidden vectors [B, T, W]; the state goes on when one came in. `keep` and `edit` name taps."""
        inputs = Inputs.of(inputs)
        taps = Taps(self.taps, keep, edit)
        tokens = inputs.shape[1]
        self._refuse(inputs, state, tokens)
        memory = None if state is None else state.take().room_for(tokens)
        frame = self._frame(inputs, memory, tokens)
        begin_taps(taps, frame, inputs, memory)
        x = self._embed(inputs, frame, taps)
        layers: list[LayerMemory] = []
        for index, block in enumerate(self.blocks):
            x, layer = block(x, None if memory is None else memory.layers[index], frame, taps)
            if layer is not None:
                layers.append(layer)
        hidden = taps.at("ln_final.hook_normalized", self.final_norm(x))
        if memory is None:
            return Output(hidden, None, taps.kept)
        new = tokens if frame.lengths is None else frame.lengths
        lengths, filled = memory.lengths + new, memory.filled + tokens
        return Output(hidden, State(Memory(tuple(layers), lengths, filled, memory.shared)), taps.kept)

    def forward_from(
        self,
        tap: str,
        residual: Tensor,
        inputs: Inputs | Tensor | Batch,
        *,
        keep: tuple[str, ...] = (),
        edit: tuple[tuple[str, Edit], ...] = (),
    ) -> Output:
        """The rest of a call without a state, from the residual stream [B, T, W] at a tap of it.

        `inputs` are those of the whole call; only the taps from this one on are there.
        """
        inputs = Inputs.of(inputs)
        table = list(self.taps().items())
        streams = [name for name, _ in table if name.startswith("blocks.") and ".hook_resid_" in name]
        if tap not in streams:
            raise BadInput(f'"{tap}" is no tap of the residual stream of this model{nearest(tap, streams)}')
        taps = Taps(lambda: dict(table[[name for name, _ in table].index(tap) :]), keep, edit)
        self._refuse(inputs, None, inputs.shape[1])
        frame = self._frame(inputs, None, inputs.shape[1])
        begin_taps(taps, frame, inputs, None)
        layer = int(tap.split(".")[1])
        if tap.endswith("resid_mid"):
            residual = self.block(layer).finish(residual, residual, taps)
        if tap.endswith("resid_post"):
            residual = taps.at(tap, residual)
        for block in self.blocks[layer if tap.endswith("resid_pre") else layer + 1 :]:
            residual, _ = block(residual, None, frame, taps)
        return Output(taps.at("ln_final.hook_normalized", self.final_norm(residual)), None, taps.kept)

    def block(self, layer: int) -> Block:
        return cast(Block, self.blocks[layer])

    def frame(self, inputs: Inputs | Tensor | Batch) -> Frame:
        """Positions and mask of a call without a state, for those who run single layers."""
        inputs = Inputs.of(inputs)
        return self._frame(inputs, None, inputs.shape[1])

    def _frame(self, inputs: Inputs, memory: Memory | None, tokens: int) -> Frame:
        """Positions and mask of this call, made once for all layers."""
        index = torch.arange(tokens, device=inputs.device)[None]
        lengths, positions = inputs.lengths, index
        ids, present = inputs.columns.get(IDS), inputs.present.get(IDS)
        if inputs.ancestors is not None:
            positions = inputs.ancestors.sum(-1) - 1
        elif inputs.documents is not None:
            positions = within_documents(inputs.documents, index)
        if memory is None:
            mask = masks.without_memory(inputs, tokens, self.config.attention.causal)
            return Frame(positions, None, tokens, lengths, mask, turn(positions, self.config), ids, present)
        positions = memory.lengths[:, None] + positions
        own = memory.lengths - memory.shared
        slots, span = own[:, None] + index, memory.filled - memory.shared + tokens
        mask = masks.with_memory(inputs, slots, own, span, tokens)
        return Frame(positions, slots, span, lengths, mask, turn(positions, self.config), ids, present)

    def _refuse(self, inputs: Inputs, state: State | None, tokens: int) -> None:
        """What has no meaning is named before anything is computed or consumed."""
        config, rows = self.config, inputs.shape[0]
        read = set(self.columns) | ({IDS} if config.vocabulary else set())
        if set(inputs.columns) != read:
            raise ValueError(f"this model reads the columns {sorted(read)}, not {sorted(inputs.columns)}")
        if state is not None and state.rows != rows:
            raise ValueError(f"the state remembers {state.rows} rows, and ids came for {rows}")
        if "gru" in config.mixers and (inputs.documents is not None or inputs.ancestors is not None):
            raise ValueError("a recurrent mixer runs over whole rows; it cannot keep documents or branches apart")
        if state is not None and inputs.documents is not None:
            raise ValueError("documents pack several sequences into a row; a state continues one a row")
        if state is not None and not config.attention.causal:
            raise ValueError("a model that attends both ways has no state to go on from")
        filled = 0 if state is None else state.filled
        if config.positions == "learned" and filled + tokens > config.context:
            raise ValueError(f"learned positions end at {config.context} tokens, and {filled + tokens} are needed")

    def _embed(self, inputs: Inputs, frame: Frame, taps: Taps) -> Tensor:
        x = self._embed_columns(inputs)
        x = taps.at("hook_embed", x)
        if self.position_embedding is not None:
            x = x + taps.at("hook_pos_embed", self.position_embedding(frame.positions).expand_as(x))
        elif self.config.positions == "sinusoidal":
            placed = sinusoids(frame.positions, self.config.width).to(x.dtype)
            x = x + taps.at("hook_pos_embed", placed.expand_as(x))
        return self.dropout(x)

    def _embed_columns(self, inputs: Inputs) -> Tensor:
        """The sum of the vectors of all columns, each where it is present."""
        x: Tensor | None = None
        if IDS in inputs.columns:
            x = self.embedding(inputs.ids)
            if self.config.embedding_scale != 1:
                x = x * self.config.embedding_scale
            if (marks := inputs.present.get(IDS)) is not None:
                x = x * marks[..., None]
        for name, column in self.columns.items():
            vectors = column(inputs.columns[name], inputs.present.get(name))
            x = vectors if x is None else x + vectors
        assert x is not None, "a model has at least one column"
        return x

    def loss(self, output: Output, batch: Batch) -> Tensor:
        """The weighted sum over the tokens and the further predicted columns; never all logits in float32."""
        weights, total = batch["weights"], None
        if IDS in batch:
            marks = batch.get(f"{NEXT}{PRESENT}{IDS}")
            counted = weights if marks is None else weights * marks
            total = self.head.loss(output.hidden, batch[NEXT + IDS], counted, self.config.loss)
        for name, losses in self.column_losses(output.hidden, batch).items():
            part = self.config.columns[name].weight * losses.sum()
            total = part if total is None else total + part
        assert total is not None, "a model predicts at least one column"
        return total

    def column_losses(self, hidden: Tensor, batch: Batch) -> dict[str, Tensor]:
        """[B, T] for each further predicted column: its weighted loss at every target that it has."""
        found = {}
        for name, head in self.heads.items():
            marks = batch.get(f"{NEXT}{PRESENT}{name}")
            counted = batch["weights"] if marks is None else batch["weights"] * marks
            rows = len(counted)
            passes = [
                cast("IdHead | NumberHead", head).losses(part, batch[NEXT + name]) for part in hidden.split(rows)
            ]
            found[name] = torch.stack(passes).mean(0) * counted
        return found

    def remarks(self, *, compiled: bool) -> tuple[str, ...]:
        if "attention" not in self.config.mixers:
            return ()
        tokens, dropout = self.config.context, self.config.dropout
        form = attention_form(self.device, tokens, tokens, dropout=dropout, compiled=compiled)
        return (f"attention at {tokens} tokens: {form}",)

    def taps(self) -> Mapping[str, tuple[str, ...]]:
        return points(self.config)

    def groups(self) -> Groups:
        joined = {module.weight: module.widths for module in self.modules() if isinstance(module, Joined)}
        return grouped(self, (*embedding_tables(self), self.head.weight), joined)


def begin_taps(taps: Taps, frame: Frame, inputs: Inputs, memory: Memory | None) -> None:
    taps.begin(frame.positions, whole=memory is None and inputs.documents is None and inputs.ancestors is None)


def within_documents(documents: Tensor, index: Tensor) -> Tensor:
    """Positions [B, T] that start again at 0 where a document starts."""
    changes = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0))
    return index - torch.where(changes, index, 0).cummax(dim=1).values
