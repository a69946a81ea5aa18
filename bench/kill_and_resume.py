"""Kill runs at random moments with SIGKILL, resume them, and compare their weights byte by byte.

    python -m bench.kill_and_resume                      # 20 kills over three recipes
    python -m bench.kill_and_resume --kills 6 --steps 60 --seed 2

Each recipe is first trained without being disturbed, in a process of its own. Then, for every kill, a new run of
it is started, killed at a moment drawn evenly from the time that a run takes from its first file to its last, and
resumed to its end in another process. A run that ends before its moment comes is drawn again. The last line says
how many of the resumed runs ended with the bytes of the undisturbed one; the exit code is 1 unless all did.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SMALL = (
    "model.width=16",
    "model.depth=1",
    "model.attention.heads=2",
    "data.instances=400",
    "batch=32",
    "eval_every=10",
)
RECIPES: dict[str, tuple[str, ...]] = {
    "adamw, cosine, dropout": ("schedule=cosine", "dropout=0.1", "model.depth=2"),
    "muon, ema, dropout, accumulation, wsd": (
        "optim.kind=muon",
        "ema=0.95",
        "dropout=0.2",
        "accumulation=4",
        "schedule=wsd",
    ),
    "recurrent, onecycle, ema, early stopping": (
        "mixer=gru",
        "schedule=onecycle",
        "ema=0.9",
        "lr=0.2",
        "patience=4",
    ),
}


@dataclass(frozen=True)
class Kill:
    """One killed run: where it stood, where it went on, and whether it ended as it should."""

    recipe: str
    logged: int  # the last step that was written down
    checkpoints: tuple[int, ...]
    half_saved: bool  # killed while a checkpoint was being written
    same: bool


def linnet(*words: str | Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "linnet", *map(str, words), "--json"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    said = process.communicate()[1]
    if process.returncode:
        raise SystemExit(f"a run failed with exit code {process.returncode}:\n{said.decode()}")


def start(recipe: str, out: Path, steps: int) -> subprocess.Popen[bytes]:
    settings = [word for setting in (*SMALL, *RECIPES[recipe]) for word in ("--set", setting)]
    return linnet("train", "tiny-arithmetic", "--out", out, "--steps", str(steps), *settings)


def wait_for_folder(out: Path, process: subprocess.Popen[bytes]) -> None:
    while not (out / "run.toml").is_file() and process.poll() is None:
        time.sleep(0.002)


def steps_of(out: Path) -> list[int]:
    """The steps that the metrics list, in their order; half a line at the end is not one yet."""
    metrics = out / "metrics.jsonl"
    whole = metrics.read_bytes().rpartition(b"\n")[0].splitlines() if metrics.is_file() else []
    return [record["step"] for record in map(json.loads, whole) if record["kind"] == "step"]


def checkpoints_of(out: Path) -> list[Path]:
    return sorted(path for path in (out / "checkpoints").glob("*") if path.name.isdigit())


def outcome(out: Path) -> dict[str, bytes]:
    """What has to be the same: all tensors of the last checkpoint, which steps were logged, and the scores."""
    last = checkpoints_of(out)[-1]
    files = {f"{last.name}/{path.name}": path.read_bytes() for path in last.glob("*.safetensors")}
    scores = json.loads((out / "record.json").read_text())["scores"]
    return files | {"steps": str(steps_of(out)).encode(), "scores": json.dumps(scores).encode()}


def undisturbed(recipe: str, out: Path, steps: int) -> float:
    """Train without a kill; returns the seconds from the first file to the end."""
    process = start(recipe, out, steps)
    wait_for_folder(out, process)
    began = time.monotonic()
    finish(process)
    return time.monotonic() - began


def killed_after(seconds: float, recipe: str, out: Path, steps: int) -> bool:
    """Whether the run was still going when its moment came."""
    process = start(recipe, out, steps)
    wait_for_folder(out, process)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def kill_and_resume(recipe: str, expected: dict[str, bytes], seconds: float, steps: int, place: Path) -> Kill:
    while not killed_after(random.uniform(0, seconds), recipe, place, steps):
        shutil.rmtree(place)
    logged = steps_of(place)
    saved = tuple(int(path.name) for path in checkpoints_of(place))
    half = any((place / "checkpoints").glob(".*"))
    finish(linnet("resume", place))
    kill = Kill(recipe, logged[-1] if logged else 0, saved, half, outcome(place) == expected)
    shutil.rmtree(place)
    return kill


def row(number: int, kill: Kill) -> str:
    stood = f"step {kill.logged}" if kill.logged else "before the first step"
    went_on = f"step {kill.checkpoints[-1]}" if kill.checkpoints else "the beginning"
    cells = [number, kill.recipe, stood, "yes" if kill.half_saved else "", went_on]
    return table_row(*cells, "identical" if kill.same else "DIFFERENT")


def table_row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(given)
    random.seed(asked.seed)
    kills: list[Kill] = []
    with tempfile.TemporaryDirectory() as folder:
        whole: dict[str, tuple[float, dict[str, bytes]]] = {}
        for number, recipe in enumerate(RECIPES):
            out = Path(folder) / f"undisturbed{number}"
            seconds = undisturbed(recipe, out, asked.steps)
            whole[recipe] = seconds, outcome(out)
            print(f"{recipe}: {len(steps_of(out))} steps undisturbed in {seconds:.1f} s", flush=True)
        print(table_row("kill", "recipe", "killed at", "while saving", "resumed from", "final weights"))
        print(table_row(*["---"] * 6))
        for number in range(asked.kills):
            recipe = list(RECIPES)[number % len(RECIPES)]
            seconds, expected = whole[recipe]
            kills.append(kill_and_resume(recipe, expected, seconds, asked.steps, Path(folder) / "killed"))
            print(row(number + 1, kills[-1]), flush=True)
    same = sum(kill.same for kill in kills)
    print(f"{same} of {len(kills)} killed and resumed runs ended with the bytes of the undisturbed run")
    return 0 if same == len(kills) else 1


if __name__ == "__main__":
    sys.exit(main())
