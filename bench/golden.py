"""Golden values of one short run of each recipe, before and after a change: losses, scores, a hash of the weights.

    python bench/golden.py record golden.json          # with the tree that is trusted
    python bench/golden.py compare golden.json         # with the tree that is checked

Runs go through the command line alone, in float32 on one thread, on data that are made here, so that the same
script reads any version. Bits depend on the machine and on torch: record and compare on one of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TITLES = ("ask", "show", "a fast", "the slow", "new", "old", "why", "how", "small", "large")
NOUNS = ("compiler", "database", "kernel", "model", "parser", "editor", "protocol", "cache", "browser", "shell")
ENDS = ("in Rust", "for Python", "on a Raspberry Pi", "explained", "is down", "considered harmful", "from scratch")
SHORT = ("--set", "threads=1", "--set", "training.compile=off", "--precision", "float32")
TEXT = ("--set", "data.tokenizer.vocabulary=300", "--set", "model.width=64", "--set", "model.depth=2",
        "--set", "model.attention.heads=2", "--set", "training.batch=8")  # fmt: skip
RECIPES: dict[str, tuple[str, ...]] = {
    "arithmetic": ("--steps", "12", "--set", "data.instances=2000"),
    "adder10": ("--steps", "8", "--set", "data.instances=2000"),
    "pilot": ("--steps", "8", "--set", "data.instances=2000"),
    "headlines": ("--data", "titles.txt", "--steps", "8", "--set", "data.sample=800", *TEXT),
    "headlines-report": ("--data", "titles.txt", "--steps", "8", "--set", "data.sample=800", *TEXT),
    "headlines-baseline": ("--data", "titles.txt", "--steps", "8", "--set", "data.sample=800", *TEXT),
    "headlines-s4": ("--data", "titles.txt", "--steps", "8", "--set", "data.sample=800", *TEXT),
    "text": ("--data", "titles.txt", "--steps", "8", *TEXT),
    "wiki": ("--data", "titles.txt", "--steps", "8", *TEXT),
    "wiki-s2": ("--data", "titles.txt", "--steps", "8", *TEXT),
    "shakespeare": ("--data", "titles.txt", "--steps", "8", "--set", "training.batch=8"),
    "places": ("--data", "visits.csv", "--steps", "12"),
    "places-ensemble": ("--data", "visits.csv", "--steps", "6"),
    "places-gru": ("--data", "visits.csv", "--steps", "12"),
    "places-transformer": ("--data", "visits.csv", "--steps", "12"),
}


def make_data(folder: Path) -> None:
    draw = random.Random(5)
    lines = [
        f"{draw.choice(TITLES)} {draw.choice(NOUNS)} {draw.choice(ENDS)} {draw.randint(1, 99)}"
        for _ in range(1200)
    ]
    (folder / "titles.txt").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    rows = ["user,start,end,lat,lon"]
    spots = [(39.9 + draw.gauss(0, 0.05), 116.4 + draw.gauss(0, 0.05)) for _ in range(24)]
    for user in range(6):
        own = draw.sample(range(24), 8)
        clock = 1_600_000_000 + user * 977
        for _ in range(160):
            clock += draw.randint(40, 400) * 60
            lat, lon = spots[draw.choices(own, weights=(9, 7, 4, 3, 2, 1, 1, 1))[0]]
            stay = draw.randint(15, 240) * 60
            rows.append(f"{user},{clock},{clock + stay},{lat:.5f},{lon:.5f}")
            clock += stay
    (folder / "visits.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def run(recipe: str, options: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """What a short run of this recipe ended with."""
    out = folder / recipe
    command = [
        sys.executable,
        "-m",
        "linnet",
        "train",
        recipe,
        "--out",
        str(out),
        "--force",
        "--json",
        *SHORT,
        *options,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LINNET_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{recipe} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    record = json.loads(done.stdout.splitlines()[-1])
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    newest = max((out / "checkpoints").iterdir())
    return {
        "losses": [line["loss"] for line in metrics if line["kind"] == "step"],
        "validation": [line["loss"] for line in metrics if line["kind"] == "validation"],
        "scores": {score["name"]: score["value"] for score in record["scores"]},
        "weights": hash_of_weights(newest / "weights.safetensors"),
    }


def hash_of_weights(path: Path) -> str:
    """A hash of the tensors in the order of their names, whatever the file calls its metadata."""
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for _, tensor in sorted(load_file(path).items()):
        digest.update(tensor.tobytes())
    return digest.hexdigest()[:16]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    found = []
    for key in ("losses", "validation"):
        if old[key] != new[key]:
            widest = max((abs(a - b) for a, b in zip(old[key], new[key], strict=False)), default=0.0)
            found.append(f"{key} differ by up to {widest:.3g} ({len(old[key])} and {len(new[key])} values)")
    for name, value in old["scores"].items():
        if new["scores"].get(name) != value:
            found.append(f"{name} was {value} and is {new['scores'].get(name)}")
    if old["weights"] != new["weights"]:
        found.append("weights differ")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("verb", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("recipes", nargs="*", help="these recipes only")
    options = parser.parse_args()
    chosen = {name: given for name, given in RECIPES.items() if not options.recipes or name in options.recipes}
    stored = json.loads(options.file.read_text(encoding="utf-8")) if options.file.exists() else {}
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_data(folder)
        for name, given in chosen.items():
            found = run(name, given, folder)
            if options.verb == "record":
                stored[name] = found
                options.file.write_text(json.dumps(stored, indent=1), encoding="utf-8")
                print(f"{name}: recorded, last loss {found['losses'][-1]:.6f}", flush=True)
            else:
                wrong = differences(stored[name], found)
                failed |= bool(wrong)
                print(f"{name}: {'; '.join(wrong) or 'the same to the bit'}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
