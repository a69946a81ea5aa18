"""The headline recipes under one harness, and two of them with one choice changed at a time.

    python bench/headlines.py --data titles.txt.gz --out headline-runs                      # the recipes
    python bench/headlines.py --data titles.txt.gz --out headline-runs --ablations headlines-report --titles 33334
    python bench/headlines.py --data titles.txt.gz --out small-runs --titles 6000 --width 128 --depth 4

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
REPORT = {  # what the report recommended -> what stands in its place
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
OURS = {  # what our recipe chooses -> what stands in its place; then what it does not use
    "everything": (),
    "AdamW": ("optim.kind=adamw",),
    "cosine": ("optim.schedule=cosine",),
    "vocabulary 16,000": ("data.tokenizer.vocabulary=16000",),
    "vocabulary 2,000": ("data.tokenizer.vocabulary=2000",),
    "dropout 0": ("model.dropout=0",),
    "dropout 0.05": ("model.dropout=0.05",),
    "dropout 0.2": ("model.dropout=0.2",),
    "no weight decay": ("optim.weight_decay=0",),
    "titles see each other": ("training.packing=packed",),
    "batch 16": ("training.batch=16",),
    "batch 64": ("training.batch=64",),
    "learned positions": ("model.positions=learned",),
    "no qk norm": ("model.attention.qk_norm=false",),
    "GELU": ("model.feedforward.kind=gelu",),
    "layer norm": ("model.norm.kind=layer",),
    "half as deep": ("model.depth=6",),
    "R-Drop 2": ("loss.r_drop=2",),
    "label smoothing 0.1": ("loss.smoothing=0.1",),
    "z-loss 1e-4": ("loss.z_loss=1e-4",),
    "softcap 15": ("model.head.softcap=15",),
    "average .99": ("optim.ema=0.99",),
    "value embeddings": ("model.attention.value_embeddings=alternate",),
    "unigram": ("data.tokenizer.kind=unigram",),
    "Muon at .01": ("optim.muon_lr=0.01",),
    "Muon at .04": ("optim.muon_lr=0.04",),
    "token masking .1": ("augment.mask=0.1",),
    "document dropping .1": ("augment.drop=0.1",),
}
ITEMS = {"headlines-report": REPORT, "headlines": OURS}


def wanted(args: argparse.Namespace) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Name, recipe and settings of every run."""
    if args.ablations:
        for name, settings in ITEMS[args.ablations].items():
            yield name, args.ablations, settings
    else:
        for recipe in RECIPES:
            yield recipe, recipe, ()


def smaller(settings: tuple[str, ...], args: argparse.Namespace) -> list[str]:
    """The same choices in a model of another width and depth, equal for all recipes."""
    asked: dict[str, str] = {}
    if args.width is not None:
        asked = {"model.width": str(args.width), "model.attention.heads": str(max(1, args.width // 64))}
    if args.depth is not None:
        asked["model.depth"] = str(args.depth)
    asked |= dict(setting.split("=", 1) for setting in settings)
    if args.depth is not None and "model.depth=6" in settings:
        asked["model.depth"] = str(max(1, args.depth // 2))
    return [f"{key}={value}" for key, value in asked.items()]


def run(folder: Path, recipe: str, settings: tuple[str, ...], args: argparse.Namespace, seed: int) -> RunRecord:
    if (folder / "run.toml").is_file():
        return workbench.resume(folder)
    sizes = () if args.titles is None else (f"data.sample={args.titles}",)
    steps = None if args.steps is None else args.steps
    return workbench.train(
        recipe,
        out=folder,
        data=args.data,
        settings=[*sizes, *smaller(settings, args), *args.set],
        seed=seed,
        steps=steps,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ablations", choices=tuple(ITEMS), help="one choice of this recipe changed at a time")
    parser.add_argument("--width", type=int, help="of all models; the protocol's is 512")
    parser.add_argument("--depth", type=int, help="of all models")
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
