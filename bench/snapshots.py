"""What snapshots cost, how long head scores over them take, and whether an onset is found where it was planted.

python -m bench.snapshots cost --out FOLDER        10 million parameters, 50 snapshots
python -m bench.snapshots onset --out FOLDER       20 small runs whose data change at a random step
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from linnet.model.config import AttentionConfig, ModelConfig
from linnet.model.contract import evaluating, parameter_count
from linnet.model.model import Model
from linnet.probing import lens
from linnet.probing.development import onset
from linnet.probing.heads import head_scores, repeated_rows
from linnet.training.checkpoint import load_weights, weights_of
from linnet.training.snapshots import COUNT, Snapshots, snapshot_steps

LARGE = ModelConfig(vocabulary=4096, context=128, width=320, depth=8, attention=AttentionConfig(heads=8))
SMALL = ModelConfig(vocabulary=16, context=16, width=32, depth=1, attention=AttentionConfig(heads=2))
ROWS, STEPS = 32, 600


def cost(out: Path) -> None:
    """Seconds of a training step, of a snapshot, and of head scores over all of them."""
    torch.manual_seed(0)
    model, kept = Model(LARGE), Snapshots(out / "snapshots")
    optim = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(LARGE.vocabulary, (16, 129))

    def step() -> None:
        hidden = model(ids[:, :-1]).hidden
        loss = (
            model.head.loss(hidden, ids[:, 1:], torch.ones_like(ids[:, 1:], dtype=torch.float32))
            / ids[:, 1:].numel()
        )
        loss.backward()
        optim.step()
        optim.zero_grad(set_to_none=True)

    step()
    steps = [timed(step) for _ in range(5)]
    saves = [timed(lambda number=number: kept.save(number, weights_of(model))) for number in range(1, COUNT + 1)]
    median, save = float(np.median(steps)), sum(saves)
    print(f"{parameter_count(model):,} parameters; a step of 16 x 128 tokens {median:.3f} s")
    print(f"{COUNT} snapshots {save:.1f} s")
    print(f"2 % of a training of {save / 0.02 / median:,.0f} steps ({save / 0.02 / 60:.1f} minutes)")
    rows = repeated_rows(LARGE.vocabulary, 16, 32, seed=0)
    began = time.perf_counter()
    for number in kept.steps:
        load_weights(model, kept.read(number), str(kept.file(number)))
        head_scores(model, rows)
    print(f"head scores of {len(kept.steps)} snapshots on 16 x 64 tokens: {time.perf_counter() - began:.1f} s")

    learning = torch.randint(LARGE.vocabulary, (64, 128), generator=torch.Generator().manual_seed(1))
    everything = torch.ones(learning.shape, dtype=torch.bool)
    began = time.perf_counter()
    translators = lens.tuned(model, lens.residuals(model, learning, everything))
    print(f"tuned lens from {learning.numel():,} tokens: {time.perf_counter() - began:.1f} s")
    scored = lens.residuals(model, learning.flip(0, 1), everything)
    for name, found in (
        ("logit", lens.divergences(model, scored)),
        ("tuned", lens.divergences(model, scored, translators)),
    ):
        print(f"{name} lens, nats from the model's own prediction: {', '.join(f'{value:.4f}' for value in found)}")


def timed(work: object) -> float:
    assert callable(work)
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def rows_at(step: int, switch: int, random: torch.Generator) -> Tensor:
    """Random tokens [ROWS, T + 1]; from the switch on each is the one before plus 3."""
    if step < switch:
        return torch.randint(SMALL.vocabulary, (ROWS, SMALL.context + 1), generator=random)
    first = torch.randint(SMALL.vocabulary, (ROWS, 1), generator=random)
    return (first + 3 * torch.arange(SMALL.context + 1)) % SMALL.vocabulary


def planted(folder: Path, seed: int) -> tuple[int, int, int]:
    """The step of the switch, and how many snapshots lie between the found onset and the first one after it."""
    switch = int(np.random.default_rng(seed).integers(50, 450))
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    model, kept, wanted = Model(SMALL), Snapshots(folder / f"seed{seed}"), snapshot_steps(STEPS, "log")
    optim = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(STEPS):
        ids = rows_at(step, switch, random)
        nats = model.head.nll(model(ids[:, :-1]).hidden, ids[:, 1:]).mean()
        nats.backward()
        optim.step()
        optim.zero_grad(set_to_none=True)
        if step + 1 in wanted:
            kept.save(step + 1, weights_of(model))
    test = rows_at(STEPS, switch, torch.Generator().manual_seed(1000))
    curve = []
    for number in kept.steps:
        load_weights(model, kept.read(number), "")
        with evaluating(model):
            curve.append(float(model.head.nll(model(test[:, :-1]).hidden, test[:, 1:]).mean()))
    found = onset(curve)
    first = next(index for index, number in enumerate(kept.steps) if number > switch)
    return switch, kept.steps[first], -1 if found is None else found - first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "onset"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    if args.what == "cost":
        cost(args.out)
        return
    found = [planted(args.out, seed) for seed in range(args.seeds)]
    for switch, first, off in found:
        print(f"switch at {switch}, first snapshot behind it {first}, onset {off:+d} snapshots from it")
    print(f"within one snapshot: {sum(abs(off) <= 1 for *_, off in found)} of {len(found)}")


if __name__ == "__main__":
    main()
