"""The forms of training attention by the clock: forward and backward of one layer, with dropout and without.

    python -m bench.attention_forms [--rows 16] [--heads 8] [--tokens 128] [--width 64] [--dropout 0.2]

Medians in milliseconds. `fused` is torch's own form, which has no kernel for dropout on processors; the last line
is what masks of that size cost when torch draws them, and when `linnet.model.kernels` does. Stop other work first.
"""

from __future__ import annotations

import argparse
import functools

import torch
import torch.nn.functional as F

from bench.processes import median
from linnet.machine import one_line
from linnet.model.kernels import FORMS, Form, Mask, drop

TRAINING: tuple[Form, ...] = ("explicit", "blocked", "fused")


def forms(options: argparse.Namespace, share: float) -> dict[str, float]:
    shape = (options.rows, options.heads, options.tokens, options.width)
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))

    def learn(form: Form) -> None:
        mixed = FORMS[form](q, k, v, Mask(None, True), share)
        torch.autograd.grad(mixed.sum(), (q, k, v))

    return {name: median(functools.partial(learn, name)) for name in TRAINING}


def masks(options: argparse.Namespace) -> dict[str, float]:
    pattern = torch.rand(options.rows, options.heads, options.tokens, options.tokens)
    return {
        "torch": median(lambda: F.dropout(pattern, options.dropout)),
        "linnet": median(lambda: drop(pattern, options.dropout)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(one_line())
    for share in (0.0, options.dropout):
        print(f"dropout {share:g}: " + words(forms(options, share)))
    print("masks alone: " + words(masks(options)))


def words(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in found.items()) + " ms"


if __name__ == "__main__":
    main()
