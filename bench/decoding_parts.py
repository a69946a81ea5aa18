"""What a decoding step is made of: products by kernel and rows, forms of attention, and steps compiled and not.

    python -m bench.decoding_parts [--rows 1 4 16 64] [--threads 2] [--steps 30] [--compile]

Medians in milliseconds for the shape of `linnet bench decode`: 6 x 512, vocabulary 16,000. Stop other work first.
"""

from __future__ import annotations

import argparse
import copy
import functools

import torch
from torch import Tensor

from bench.decoding_systems import random_model
from bench.processes import median
from bench.training import Shape
from linnet.decoding.compiling import Compiling
from linnet.decoding.products import PackedLinear, Streamed, Weights, packed
from linnet.decoding.runner import Runner
from linnet.machine import one_line
from linnet.model import kernels
from linnet.model.contract import evaluating
from linnet.model.kernels import Mask
from linnet.model.model import Model

FORMATS: tuple[Weights, ...] = ("float32", "float16", "int8", "int4")
CONTEXT = 512


def products(model: Model, rows: int) -> float:
    """All matrix products of a step, the head included."""
    layers = [m for m in model.modules() if isinstance(m, PackedLinear | torch.nn.Linear)]
    inputs = [torch.randn(rows, m.inputs if isinstance(m, PackedLinear) else m.in_features) for m in layers]
    hidden = torch.randn(rows, model.config.width)
    plain_head = not any(isinstance(m, PackedLinear) for m in model.head.modules())

    def run() -> None:
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)
        if plain_head:
            model.head(hidden)

    return median(run)


def attentions(rows: int, keys: int) -> dict[str, float]:
    """One query a row over `keys` slots of a larger arena, 8 heads of 64."""
    arena = torch.randn(2, rows, 8, keys + 64, 64)
    k, v = arena[0, :, :, :keys], arena[1, :, :, :keys]
    q, mask = torch.randn(rows, 8, 1, 64), Mask(torch.ones(rows, 1, 1, keys, dtype=torch.bool), False)
    forms: tuple[kernels.Form, ...] = ("explicit", "fused", "multiply_sum")
    return {name: median(functools.partial(kernels.FORMS[name], q, k, v, mask, 0.0)) for name in forms}


def shared(rows: int, prompt: int = 256, own: int = 64) -> dict[str, float]:
    """The same over a prompt that all rows share, read once or once a row."""
    kept = (torch.randn(8, prompt, 64), torch.randn(8, prompt, 64))
    k, v, q = torch.randn(rows, 8, own, 64), torch.randn(rows, 8, own, 64), torch.randn(rows, 8, 1, 64)
    mask = Mask(torch.ones(rows, 1, 1, own, dtype=torch.bool), False)
    whole = kernels.unshared(k, v, kept, mask)
    return {
        "shared": median(lambda: kernels.with_shared(q, k, v, kept, mask)),
        "explicit": median(lambda: kernels.explicit(q, *whole, 0.0)),
        "fused": median(lambda: kernels.fused(q, *whole, 0.0)),
    }


def step(base: Model, weights: Weights, rows: int, steps: int, *, compiled: bool) -> float:
    """A step after 64 tokens."""
    compiling = Compiling.of(base.config, weights, "cpu", rows, rows) if compiled else None
    return timed_step(Runner(packed(base, weights, single=compiled and rows == 1), compiling), rows, steps)


def timed_step(runner: Runner, rows: int, steps: int) -> float:
    prompts = torch.randint(0, runner.vocabulary, (rows, 64)).tolist()
    _, state = runner.extend(runner.empty(rows, 64 + steps + 5), prompts)
    tokens = torch.zeros(rows, dtype=torch.int64)

    def go() -> Tensor:
        nonlocal state
        logits, state = runner.step(state, tokens)
        return logits

    go()  # compiles
    return median(go, steps)


class Nothing(torch.nn.Module):
    """A layer that multiplies nothing."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :1].expand(*x.shape[:-1], self.outputs)


def without_products(base: Model, steps: int) -> float:
    """What python and small kernels leave of a compiled step."""
    model = copy.deepcopy(base)
    for parent in list(model.blocks.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(parent, name, Nothing(child.out_features))
    return timed_step(Runner(model, Compiling.of(model.config, "float32", "cpu", 1, 1)), 1, steps)


def streamed(base: Model) -> dict[str, float]:
    """All products of one row where the compiler multiplies them, the head included."""
    found: dict[str, float] = {}
    for name in FORMATS[:2]:
        model = packed(base, name, single=True)
        layers = [module for module in model.modules() if isinstance(module, Streamed)]
        inputs = [torch.randn(1, layer.inputs) for layer in layers]

        def multiply(layers: list[Streamed] = layers, inputs: list[Tensor] = inputs) -> list[Tensor]:
            return [layer(x) for layer, x in zip(layers, inputs, strict=True)]

        found[name] = median(torch.compile(multiply))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--compile", action="store_true", help="time compiled steps too, a minute each")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = random_model(Shape(context=CONTEXT))
    models = {"F.linear": base} | {name: packed(base, name) for name in FORMATS}
    print(one_line())
    if options.compile:
        with evaluating(base):
            print("one row, products in a compiled graph: " + words(streamed(base)))
            head = without_products(base, options.steps)
            print(f"one row, a compiled step of which only the head multiplies: {head:.2f} ms")
    for rows in options.rows:
        with evaluating(base):
            print(f"{rows} rows")
            print("  products: " + words({name: products(model, rows) for name, model in models.items()}))
            print("  attention over 256 slots: " + words(attentions(rows, 256)))
            print("  attention over a shared 256 and 64: " + words(shared(rows)))
            for name in FORMATS[:3]:
                took = {"eager": step(base, name, rows, options.steps, compiled=False)}
                if options.compile:
                    took["compiled"] = step(base, name, rows, options.steps, compiled=True)
                print(f"  step, {name}: " + words(took))


def words(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in found.items()) + " ms"


if __name__ == "__main__":
    main()
