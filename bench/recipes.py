"""Recipes of text under one harness, and one of them with one choice changed at a time.

    python -m bench.recipes headlines-baseline headlines-s4 headlines --data titles.txt.gz --out headline-runs
    python -m bench.recipes headlines --changes --data titles.txt.gz --out thirds --set data.sample=33334 \
        --set width=128 --set heads=2 --set depth=2
    python -m bench.recipes shakespeare --changes --data tinyshakespeare.txt --out plays --set steps=600

The first line is the headline protocol. Runs of one recipe share its data, split and epochs. Every run is a folder
that `linnet resume` goes on with, and calling this again finishes what was interrupted. One line a run:
full-coverage nats per character with its interval, and the protocol's block metric with its coverage.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from linnet import workbench
from linnet.domains.text import REGISTRATION
from linnet.records import RunRecord

Changes = Mapping[str, tuple[str, ...]]  # what stands in the place of a recipe's choice, by its name

REPORT: Changes = {
    "everything": (),
    "block 64": ("model.context=64",),
    "vocabulary 16,000": ("data.tokenizer.vocabulary=16000",),
    "no URL rule": ("data.tokenizer.urls=false",),
    "GELU": ("model.feedforward.kind=gelu",),
    "layer norm": ("model.norm.kind=layer",),
    "betas .9/.999": ("optim.betas=[0.9,0.999]",),
    "cosine": ("optim.schedule=cosine",),
    "one cycle of S4 (.15)": ("optim.schedule.pct_start=0.15",),
    "no average": ("optim.ema=0",),
    "no clipping": ("optim.clip=0",),
    "dropout 0": ("model.dropout=0",),
    "dropout 0.2": ("model.dropout=0.2",),
    "no weight decay": ("optim.weight_decay=0",),
    "lr 6e-3": ("optim.lr=6e-3",),  # the starting point's, for the report's 5e-4
    "lr 1e-3": ("optim.lr=1e-3",),
    "div 25": ("optim.schedule.div=25",),
    "final_div 10,000": ("optim.schedule.final_div=10000",),
    "three evaluations": ("training.evals_per_epoch=3",),  # how fine the choice of the best checkpoint is
}
# Two recommendations have no row. Fused attention (SDPA) computes what plain attention does, so it changes only
# the speed (`linnet bench train`). Weight decay of the matrices alone (grouped decay) is how optimisers here are
# built; decay of norms and biases too is no choice, and "no weight decay" bounds what the grouping could matter.
LEARNING: Changes = {  # what the recipes of our own choose alike
    "everything": (),
    "AdamW": ("optim.kind=adamw",),
    "cosine": ("optim.schedule=cosine",),
    "decay over .1": ("optim.schedule.decay=0.1",),
    "no weight decay": ("optim.weight_decay=0",),
    "lr 1.5e-3": ("optim.lr=1.5e-3",),
    "lr 6e-3": ("optim.lr=6e-3",),
    "Muon at .01": ("optim.muon_lr=0.01",),
    "Muon at .04": ("optim.muon_lr=0.04",),
    "learned positions": ("model.positions=learned",),
    "no qk norm": ("model.attention.qk_norm=false",),
    "GELU": ("model.feedforward.kind=gelu",),
    "layer norm": ("model.norm.kind=layer",),
}
HEADLINES: Changes = {
    **LEARNING,  # its choices, then what it does not use
    "vocabulary 16,000": ("data.tokenizer.vocabulary=16000",),
    "vocabulary 2,000": ("data.tokenizer.vocabulary=2000",),
    "unigram": ("data.tokenizer.kind=unigram",),
    "dropout 0": ("model.dropout=0",),
    "dropout 0.05": ("model.dropout=0.05",),
    "dropout 0.2": ("model.dropout=0.2",),
    "titles see each other": ("training.packing=packed",),
    "batch 16": ("training.batch=16",),
    "batch 64": ("training.batch=64",),
    "no R-Drop": ("r_drop=0",),
    "label smoothing 0.1": ("loss.smoothing=0.1",),
    "z-loss 1e-4": ("loss.z_loss=1e-4",),
    "softcap 15": ("model.head.softcap=15",),
    "average .99": ("optim.ema=0.99",),
    "value embeddings": ("model.attention.value_embeddings=alternate",),
    "token masking .1": ("augment.mask=0.1",),
    "document dropping .1": ("augment.drop=0.1",),
}
SHAKESPEARE: Changes = {
    **LEARNING,
    "dropout 0": ("model.dropout=0",),
    "dropout 0.1": ("model.dropout=0.1",),
    "batch 8": ("training.batch=8",),
    "batch 32": ("training.batch=32",),
}
SIZED: Changes = {
    **LEARNING,  # `text` and `wiki`: whether the dial's batch is the right one, 16 rows up to size 5, then 32
    "batch 8": ("training.batch=8",),
    "batch 16": ("training.batch=16",),
    "batch 32": ("training.batch=32",),
    "batch 64": ("training.batch=64",),
}
TEXT: Changes = {**SIZED, "read once": ("training.epochs=1",), "dropout 0": ("model.dropout=0",)}
CHANGES = {
    "headlines-report": REPORT,
    "headlines": HEADLINES,
    "shakespeare": SHAKESPEARE,
    "text": TEXT,
    "wiki": SIZED,
}


def wanted(args: argparse.Namespace) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Name, recipe and settings of every run."""
    for recipe in args.recipes:
        if not args.changes:
            yield recipe, recipe, ()
            continue
        for change, settings in CHANGES[recipe].items():
            if not args.only or change in args.only:
                yield f"{recipe}, {change}", recipe, settings


def run(folder: Path, recipe: str, settings: tuple[str, ...], args: argparse.Namespace, seed: int) -> RunRecord:
    if (folder / "run.toml").is_file():
        return workbench.resume(folder)
    return workbench.train(recipe, out=folder, data=args.data, settings=[*args.set, *settings], seed=seed)


def line(name: str, seed: int, record: RunRecord) -> str:
    found = {score.name: score for score in record.scores}
    full, block = found["nats_per_char"], found.get("block_nats_per_char")
    protocol = "" if block is None else f"  block {block.value:.4f} ({block.note.split(';')[0]})"
    return (
        f"{name:40} seed {seed}  {full.value:.4f} ({full.low:.4f} .. {full.high:.4f}) nats/char, "
        f"{full.baseline.name} {full.baseline.value:.4f}{protocol}  {record.parameters:,} parameters, "
        f"{record.steps:,} steps, {record.tokens_per_second:,.0f} tokens/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", choices=REGISTRATION.recipes, metavar="recipe")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--changes", action="store_true", help="one choice of the recipe changed at a time")
    parser.add_argument("--only", nargs="*", help="names of changes")
    parser.add_argument("--set", action="append", default=[], help="the same setting in all runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    args = parser.parse_args()
    unlisted = [name for name in args.recipes if args.changes and name not in CHANGES]
    if unlisted:
        parser.error(f"changes are listed for {', '.join(CHANGES)}, not for {unlisted[0]}")
    known = {change for recipe in args.recipes if args.changes for change in CHANGES[recipe]}
    if strange := sorted(set(args.only or ()) - known):
        parser.error(
            f"no change is called {strange[0]!r}; there are {', '.join(sorted(known)) or 'none without --changes'}"
        )
    for name, recipe, settings in wanted(args):
        for seed in args.seeds:
            folder = args.out / f"{re.sub('[^a-z0-9.]+', '-', name.lower())}-seed{seed}"
            print(line(name, seed, run(folder, recipe, settings, args, seed)), flush=True)


if __name__ == "__main__":
    main()
