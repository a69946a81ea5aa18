"""The headline recipes under one harness, and the report's recipe with each of its items taken out.

    python bench/headlines.py --data titles.txt.gz --out headline-runs                      # the recipes
    python bench/headlines.py --data titles.txt.gz --out headline-runs --ablations --titles 33334

All runs share the titles, the split and the seven epochs. Every run is a folder that `linnet resume` goes on with,
and calling this again finishes what was interrupted. One line a run: full-coverage nats per character with its
interval, and the protocol's block metric with its coverage.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from linnet import workbench
from linnet.records import RunRecord

RECIPES = ("headlines-baseline", "headlines-s4", "headlines-report", "headlines")
ITEMS = {  # what the report recommended -> what stands in its place
    "everything": (),
    "block 64": ("model.context=64",),
    "vocabulary 16,000": ("data.tokenizer.vocabulary=16000",),
    "no URL rule": ("data.tokenizer.urls=false",),
    "GELU": ("model.feedforward.kind=gelu", "model.feedforward.width=2048"),
    "layer norm": ("model.norm.kind=layer",),
    "betas .9/.999": ("optim.betas=[0.9,0.999]",),
    "cosine": ("optim.schedule=cosine",),
    "one cycle of S4 (.15)": ("optim.schedule.pct_start=0.15",),
    "no average": ("optim.ema=0",),
    "no clipping": ("optim.clip=0",),
    "dropout 0": ("model.dropout=0",),
    "dropout 0.2": ("model.dropout=0.2",),
    "no weight decay": ("optim.weight_decay=0",),
}


def wanted(args: argparse.Namespace) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Name, recipe and settings of every run."""
    if args.ablations:
        for name, settings in ITEMS.items():
            yield name, "headlines-report", settings
    else:
        for recipe in RECIPES:
            yield recipe, recipe, ()


def run(folder: Path, recipe: str, settings: tuple[str, ...], args: argparse.Namespace, seed: int) -> RunRecord:
    if (folder / "run.toml").is_file():
        return workbench.resume(folder)
    sizes = () if args.titles is None else (f"data.sample={args.titles}",)
    steps = None if args.steps is None else args.steps
    return workbench.train(
        recipe, out=folder, data=args.data, settings=[*sizes, *settings, *args.set], seed=seed, steps=steps
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--titles", type=int)
    parser.add_argument("--steps", type=int, help="shorter runs, for a look at the harness")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="*", help="names of runs")
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    for name, recipe, settings in wanted(args):
        if args.only and name not in args.only:
            continue
        for seed in args.seeds:
            folder = args.out / f"{name.replace(' ', '-').replace('/', '-')}-seed{seed}"
            record = run(folder, recipe, settings, args, seed)
            found = {score.name: score for score in record.scores}
            full, block = found["nats_per_char"], found.get("block_nats_per_char")
            protocol = "" if block is None else f"  block {block.value:.4f} ({block.note.split(';')[0]})"
            print(
                f"{name:24} seed {seed}  {full.value:.4f} ({full.low:.4f} .. {full.high:.4f}) nats/char, "
                f"{full.baseline.name} {full.baseline.value:.4f}{protocol}  {record.parameters:,} parameters, "
                f"{record.steps:,} steps, {record.tokens_per_second:,.0f} tokens/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
