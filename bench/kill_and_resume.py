"""Kill runs at random moments with SIGKILL, resume them, and compare their weights byte by byte.

    python -m bench.kill_and_resume                      # 20 kills over three recipes
    python -m bench.kill_and_resume --kills 6 --steps 60 --seed 2

Each recipe is trained once without a kill. Then, for every kill, a new run of it is started, killed at a moment
drawn evenly from the time between its first and its last file, and resumed in another process. The exit code is 1
unless all of them end with the bytes of the undisturbed run.
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
from pathlib import Path

SMALL = "model.width=16 model.depth=1 model.attention.heads=2 data.instances=400 batch=32 eval_every=10"
RECIPES = {
    "adamw, cosine, dropout": "schedule=cosine dropout=0.1 model.depth=2",
    "muon, ema, dropout, accumulation, wsd": "optim.kind=muon ema=0.95 dropout=0.2 accumulation=4 schedule=wsd",
    "recurrent, onecycle, ema, early stopping": "mixer=gru schedule=onecycle ema=0.9 lr=0.2 patience=4",
}


def linnet(*words: str | Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "linnet", *map(str, words), "--json"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    messages = process.communicate()[1]
    if process.returncode:
        raise SystemExit(f"a run failed with exit code {process.returncode}:\n{messages.decode()}")


def start(recipe: str, out: Path, steps: int) -> subprocess.Popen[bytes]:
    """A run whose first file is there."""
    settings = [word for setting in f"{SMALL} {RECIPES[recipe]}".split() for word in ("--set", setting)]
    process = linnet("train", "tiny-arithmetic", "--out", out, "--steps", str(steps), *settings)
    while not (out / "run.toml").is_file() and process.poll() is None:
        time.sleep(0.002)
    return process


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


def killed(recipe: str, seconds: float, out: Path, steps: int) -> str:
    """Kill a run within so many seconds, and say where; one that ended before is drawn again."""
    while True:
        process = start(recipe, out, steps)
        time.sleep(random.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            break
        shutil.rmtree(out)
    logged, saved = steps_of(out), checkpoints_of(out)
    half = ", while saving" if any((out / "checkpoints").glob(".*")) else ""
    return (
        f"after step {logged[-1] if logged else 0}{half}, goes on from {saved[-1].name if saved else 'the start'}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    random.seed(given.seed)
    same = 0
    with tempfile.TemporaryDirectory() as folder:
        whole: dict[str, tuple[float, dict[str, bytes]]] = {}
        for recipe in RECIPES:
            out = Path(folder) / f"undisturbed{len(whole)}"
            process, began = start(recipe, out, given.steps), time.monotonic()
            finish(process)
            whole[recipe] = time.monotonic() - began, outcome(out)
        for number in range(given.kills):
            recipe, out = list(RECIPES)[number % len(RECIPES)], Path(folder) / "killed"
            seconds, expected = whole[recipe]
            where = killed(recipe, seconds, out, given.steps)
            finish(linnet("resume", out))
            equal = outcome(out) == expected
            same += equal
            print(f"{number + 1}: {recipe}: {where}: {'identical' if equal else 'DIFFERENT'}", flush=True)
            shutil.rmtree(out)
    print(f"{same} of {given.kills} killed and resumed runs ended with the bytes of the undisturbed run")
    return 0 if same == given.kills else 1


if __name__ == "__main__":
    sys.exit(main())
