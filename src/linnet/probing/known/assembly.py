"""From a small program to a `Model` with set weights, and to the exact list of the parts that it uses.

The residual stream is cut into named variables; a head or a neuron reads some and writes others. Norms change
nothing, since their eps dwarfs the stream. Heads that a program does not use are decoys: they attend to tokens and
write into channels that no part of the program reads, and so do some neurons.
Edges join a writer (`embed`, `head.0.1`, `mlp.0`) to a reader (`q.1.0`, `k.1.0`, `v.1.0`, `mlp.1`, `logits`),
named as in `linnet.probing.parts`.
Legend: V = vocabulary, T = positions, W = width, D = head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from linnet.model.config import AttentionConfig, FeedForwardConfig, HeadConfig, ModelConfig, NormConfig
from linnet.model.model import Model

EPS = 1e10  # of norms whose weight is its root: they give back what they get, to rounding
GAIN = 10.0  # logits of a value that is written with strength 1
SCRATCH = 4  # channels that decoys write to
DECOYS = 3  # neurons of each feed-forward that the program does not use


@dataclass(frozen=True)
class Variable:
    """Neighbouring channels of the residual stream. A fixed one has the same values in every prompt."""

    name: str
    first: int
    size: int
    fixed: bool = False

    @property
    def channels(self) -> slice:
        return slice(self.first, self.first + self.size)


@dataclass(frozen=True)
class Match:
    """A term of attention scores: `scores[i, j]` where the query holds value i and the key value j."""

    query: Variable
    key: Variable
    scores: Tensor


@dataclass(frozen=True)
class HeadProgram:
    layer: int
    head: int
    matches: tuple[Match, ...]
    reads: Variable
    writes: Variable
    values: Tensor  # [size of reads, size of writes]


@dataclass(frozen=True)
class Neuron:
    """relu(sum of weights x variables + bias) squared, times what is written."""

    layer: int
    reads: tuple[tuple[Variable, Tensor], ...]
    bias: float
    writes: Variable
    values: Tensor  # [size of writes]


@dataclass(frozen=True)
class Circuit:
    """The parts of a model that its program uses; everything else changes no logit."""

    heads: frozenset[tuple[int, int]]
    feedforwards: frozenset[int]
    neurons: frozenset[tuple[int, int]]
    edges: frozenset[tuple[str, str]]  # those whose content differs between prompts, writer and reader


@dataclass
class Assembly:
    """Collects what heads and neurons do. `token` and `position` hold which token and position a step has."""

    tokens: tuple[str, ...]
    length: int
    layers: int = 1
    heads: int = 4
    programs: list[HeadProgram] = field(default_factory=list)
    neurons: list[Neuron] = field(default_factory=list)
    constants: dict[tuple[int, str], tuple[Variable, Tensor]] = field(default_factory=dict)
    width: int = 0

    def __post_init__(self) -> None:
        self.token = self.variable("token", len(self.tokens))
        self.position = self.variable("position", self.length, fixed=True)
        self.out = self.variable("out", len(self.tokens))
        self.scratch = self.variable("scratch", SCRATCH)

    def variable(self, name: str, size: int, *, fixed: bool = False) -> Variable:
        made = Variable(name, self.width, size, fixed)
        self.width += size
        return made

    def id_of(self, token: str) -> int:
        return self.tokens.index(token)

    def one(self, token: str) -> Tensor:
        """What stands for this token in `token` and in `out`."""
        return torch.eye(len(self.tokens))[self.id_of(token)]

    def attend(
        self,
        at: tuple[int, int],
        matches: Sequence[Match],
        reads: Variable,
        writes: Variable,
        values: Tensor | None = None,
    ) -> None:
        """Let a head (layer, head) move `reads` of where it attends into `writes`, through a matrix of values."""
        mapping = torch.eye(reads.size, writes.size) if values is None else values
        self.programs.append(HeadProgram(*at, tuple(matches), reads, writes, mapping))

    def constant(self, layer: int, writes: Variable, values: Tensor) -> None:
        """Let a feed-forward add the same values everywhere."""
        self.constants[layer, writes.name] = (writes, values)

    def step(
        self,
        layer: int,
        reads: Mapping[str, tuple[Variable, Tensor]],
        between: tuple[float, float],
        writes: tuple[Variable, Tensor],
    ) -> None:
        """Add values where the weighted sum of `reads` has passed from one grid point to the next.

        Three squared ReLUs make a smooth step; it rises in the middle half of the gap.
        """
        low, high = between
        start, half = low + (high - low) / 4, (high - low) / 4
        for part, factor in enumerate((1.0, -2.0, 1.0)):
            values = writes[1] * factor / (2 * half**2)
            bias = -(start + part * half)
            self.neurons.append(Neuron(layer, tuple(reads.values()), bias, writes[0], values))

    def staircase(
        self, layer: int, reads: Mapping[str, tuple[Variable, Tensor]], grid: Sequence[float], names: Sequence[str]
    ) -> None:
        """Write `names[i]` into `out` where the weighted sum of `reads` is at `grid[i]`; the grid rises."""
        self.constant(layer, self.out, self.one(names[0]))
        for low, high, before, after in zip(grid, grid[1:], names, names[1:], strict=False):
            self.step(layer, reads, (low, high), (self.out, self.one(after) - self.one(before)))

    def circuit(self) -> Circuit:
        layers = {neuron.layer for neuron in self.neurons}
        numbered = {(layer, index) for layer in layers for index in range(self._count(layer))}
        heads = frozenset((p.layer, p.head) for p in self.programs)
        return Circuit(heads, frozenset(layers), frozenset(numbered), self._edges())

    def _count(self, layer: int) -> int:
        return sum(neuron.layer == layer for neuron in self.neurons)

    def _edges(self) -> frozenset[tuple[str, str]]:
        writers: list[tuple[float, str, Variable]] = [(-1.0, "embed", self.token)]
        readers: list[tuple[float, str, Variable]] = [(math.inf, "logits", self.out)]
        for program in self.programs:
            name, when = f"{program.layer}.{program.head}", float(program.layer)
            writers.append((when, f"head.{name}", program.writes))
            readers.append((when, f"v.{name}", program.reads))
            for match in program.matches:
                readers += [(when, f"q.{name}", match.query), (when, f"k.{name}", match.key)]
        for neuron in self.neurons:
            name, when = f"mlp.{neuron.layer}", neuron.layer + 0.5
            writers.append((when, name, neuron.writes))
            readers += [(when, name, variable) for variable, _ in neuron.reads]
        return frozenset(
            (writer, reader)
            for written, writer, variable in writers
            for read, reader, wanted in readers
            if written < read and variable == wanted and not variable.fixed
        )

    def model(self, seed: int = 0) -> Model:
        """The model in evaluation mode; the seed draws the decoys."""
        random = torch.Generator().manual_seed(seed)
        model = Model(self._config())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            self._set_ends(model)
            self._set_decoys(model, random)
            for program in self.programs:
                self._set_head(model, program)
            for layer in range(self.layers):
                self._set_neurons(model, layer)
        return model.eval()

    def _config(self) -> ModelConfig:
        sizes = [sum(match.key.size for match in program.matches) for program in self.programs]
        sizes += [program.reads.size for program in self.programs]
        neurons = max(self._count(layer) for layer in range(self.layers)) + DECOYS
        return ModelConfig(
            vocabulary=len(self.tokens), context=self.length, width=self.width, depth=self.layers,
            positions="learned", norm=NormConfig(eps=EPS), head=HeadConfig(tied=False),
            attention=AttentionConfig(heads=self.heads, head_width=max([*sizes, len(self.tokens)])),
            feedforward=FeedForwardConfig(kind="relu2", width=neurons, bias=True),
        )  # fmt: skip

    def _set_ends(self, model: Model) -> None:
        for name, parameter in model.named_parameters():
            if name.endswith(("ln1.weight", "ln2.weight", "final_norm.weight")):
                parameter.fill_(math.sqrt(EPS))
        model.embedding.weight[:, self.token.channels] = torch.eye(len(self.tokens))
        model.get_parameter("position_embedding.weight")[:, self.position.channels] = torch.eye(self.length)
        model.head.weight[:, self.out.channels] = GAIN * torch.eye(len(self.tokens))

    def _set_decoys(self, model: Model, random: torch.Generator) -> None:
        """Heads and the last neurons read tokens and scratch and write scratch, until a program claims them."""
        for layer in range(self.layers):
            qkv = model.get_parameter(f"blocks.{layer}.mixer.qkv.weight")
            out = model.get_parameter(f"blocks.{layer}.mixer.out.weight")
            up = model.get_parameter(f"blocks.{layer}.feedforward.up.weight")
            down = model.get_parameter(f"blocks.{layer}.feedforward.down.weight")
            for channels in (self.token.channels, self.scratch.channels):
                for rows, columns in ((qkv, slice(None)), (up, slice(-DECOYS, None))):
                    shape = rows[columns, channels].shape
                    rows[columns, channels] = 0.5 * torch.randn(shape, generator=random)
            out[self.scratch.channels] = 0.2 * torch.randn(SCRATCH, out.shape[1], generator=random)
            down[self.scratch.channels, -DECOYS:] = 0.2 * torch.randn(SCRATCH, DECOYS, generator=random)

    def _set_head(self, model: Model, program: HeadProgram) -> None:
        width, heads, h = model.config.head_width, self.heads, program.head
        qkv = model.get_parameter(f"blocks.{program.layer}.mixer.qkv.weight").view(3, heads, width, -1)[:, h]
        out = model.get_parameter(f"blocks.{program.layer}.mixer.out.weight").view(-1, heads, width)[:, h]
        qkv.zero_()
        out.zero_()
        first = 0
        for match in program.matches:
            rows = slice(first, first + match.key.size)
            qkv[0, rows, match.query.channels] += match.scores.T * math.sqrt(width)
            qkv[1, rows, match.key.channels] += torch.eye(match.key.size)
            first += match.key.size
        size = program.reads.size
        qkv[2, :size, program.reads.channels] = torch.eye(size)
        out[program.writes.channels, :size] = program.values.T

    def _set_neurons(self, model: Model, layer: int) -> None:
        name = f"blocks.{layer}.feedforward"
        up, down = model.get_parameter(f"{name}.up.weight"), model.get_parameter(f"{name}.down.weight")
        bias = model.get_parameter(f"{name}.up.bias")
        for index, neuron in enumerate(neuron for neuron in self.neurons if neuron.layer == layer):
            for variable, weights in neuron.reads:
                up[index, variable.channels] = weights
            bias[index] = neuron.bias
            down[neuron.writes.channels, index] = neuron.values
        for (constant_layer, _), (variable, values) in self.constants.items():
            if constant_layer == layer:
                model.get_parameter(f"{name}.down.bias")[variable.channels] = values
