"""What a GPU does with linnet and with its peers, by one command that ends in time.

    python bench/gpu.py --limit 480 --out gpu.json
    python bench/gpu.py --only train,decode --limit 240
    python bench/gpu.py --device cpu --tiny          # every part in a minute or two, without a GPU

Each measurement runs in a process of its own, one after the other, so only one model is on the device at a time.
A line is printed as soon as a number is known, with the seconds since the start. A measurement that fails or takes
too long is named and the next one begins; what has no time left is skipped. `--out` holds all rows as JSON.
It needs torch, numpy, pydantic, rich, typer, tomli-w, safetensors, tokenizers and transformers; no network.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from bench import decoding, decoding_systems, training_systems  # noqa: E402
from bench.decoding_peers import Ours, Transformers  # noqa: E402
from bench.plain_gpt import NanoGpt  # noqa: E402
from bench.training import Shape, random_batch  # noqa: E402
from linnet import workbench  # noqa: E402
from linnet.decoding.products import packed  # noqa: E402
from linnet.decoding.runner import Runner  # noqa: E402
from linnet.machine import matmul_flops, one_line  # noqa: E402
from linnet.model.config import ModelConfig  # noqa: E402
from linnet.model.costs import costs  # noqa: E402

SECTIONS = ("machine", "tests", "train", "decode", "small", "headlines")
LEAST = 15.0  # seconds; with less time left nothing is started
CAPS = {"tests": 100.0, "train": 75.0, "decode": 60.0, "small": 60.0, "headlines": 150.0}  # of one measurement
TITLES = 100_000
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is measured, and on what."""

    device: str
    tiny: bool
    train: dict[str, Shape] = field(init=False)
    decode: dict[str, Shape] = field(init=False)
    rows: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        small = Shape(depth=1, width=64, heads=2, vocabulary=512, batch=2, context=64)
        train = {
            "27M": Shape(depth=6, width=512, heads=8, vocabulary=16_000, batch=64, context=512),
            "124M": Shape(depth=12, width=768, heads=12, vocabulary=50_304, batch=32, context=1024),
        }
        decode = {
            "27M": Shape(depth=6, width=512, heads=8, vocabulary=16_000, context=512),
            "97M": Shape(depth=12, width=768, heads=12, vocabulary=16_000, context=512),
        }
        object.__setattr__(self, "train", {"tiny": small} if self.tiny else train)
        object.__setattr__(self, "decode", {"tiny": replace(small, context=256)} if self.tiny else decode)
        object.__setattr__(self, "rows", (3,) if self.tiny else (1, 64, 256))

    @property
    def compile(self) -> bool:
        """Compiling takes longer than a trial on a processor may take; one system shows that it works."""
        return not self.tiny

    @property
    def precision(self) -> str:
        return "bfloat16" if self.device == "cuda" else "float32"

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


# --- measurements: each runs in a process of its own and yields rows ----------------------------------


def machine(plan: Plan) -> Iterator[Row]:
    peaks = {name: matmul_flops(name, plan.device, seconds=3.0) for name in ("bfloat16", "float32")}
    found = {f"{name} TFLOP/s": round(flops / 1e12, 2) for name, flops in peaks.items() if flops}
    yield {"name": one_line(), "python": sys.version.split()[0], **found}


def train(plan: Plan, name: str, kind: str) -> Iterator[Row]:
    """Steps of one system on one batch that stays on the host; the device is asked once in ten steps."""
    shape = plan.train[name]
    run, batch = shape.run(plan.precision, "on").model_copy(update={"device": plan.device}), random_batch(shape)
    if kind == "nanoGPT":
        model = NanoGpt(cast(ModelConfig, run.model)).to(plan.device)
        asked = training_systems.System(kind, "plain", plan.precision, plan.compile)
        ready, step = training_systems.of_a_peer(model, asked, batch, torch.device(plan.device))
    else:
        ours = kind == "linnet"
        asked = training_systems.System(kind, "linnet" if ours else "llama", plan.precision, ours or plan.compile)
        ready, step = training_systems.system(asked, run, batch)
    if plan.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    losses, taken, began = [float(ready.loss or math.nan)], list[float](), time.perf_counter()
    losses.append(float(step()))
    first = time.perf_counter() - began
    yield {"name": kind, "first step s": round(first, 1), "loss before": losses[0], "loss in the step": losses[1]}
    for _ in range(5):
        step()
    count, until = (2, 0.5) if plan.tiny else (10, 4.0)
    while sum(taken) * count < until or len(taken) < 3:
        plan.wait()
        began = time.perf_counter()
        for _ in range(count):
            loss = step()
        plan.wait()
        taken.append((time.perf_counter() - began) / count)
    seconds, last = statistics.median(taken), float(loss)
    tokens = batch["ids"].numel() / seconds
    yield {
        "name": kind,
        "tokens/s": round(tokens),
        "ms a step": round(1e3 * seconds, 3),
        "TFLOP/s": round(3 * costs(cast(ModelConfig, run.model)).flops_per_token * tokens / 1e12, 2),
        "peak MB": round(training_systems.peak_megabytes(plan.device)),
        "parameters": ready.parameters,
        "last loss": last,
        "finite": math.isfinite(last),
        "spread": [round(1e3 * min(taken), 3), round(1e3 * max(taken), 3)],
    }


def same_tokens(plan: Plan, name: str) -> Iterator[Row]:
    """Whether ours and transformers write the same tokens in float32, near ties counted."""
    shape = plan.decode[name]
    model = decoding_systems.random_model(shape)
    with tempfile.TemporaryDirectory() as folder:
        given = decoding_systems.portable(model)
        theirs = Transformers(given, Path(folder), torch.float32, "sdpa", plan.device)
        mine = Ours(Runner(packed(model.to(plan.device), "float32")))
        yield {"name": "same tokens", "note": decoding.check_equal(mine, theirs, shape.vocabulary, 4, 32)}


def decode(plan: Plan, name: str, kind: str, rows: int) -> Iterator[Row]:
    """Greedy tokens a second after prompts of 64 tokens, prompts included."""
    shape, tokens = plan.decode[name], 8 if plan.tiny else 128
    scene = decoding_systems.Scene("", rows, 64, 1, tokens, True)
    model, numbers = decoding_systems.random_model(shape), plan.precision
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if kind.startswith("linnet"):
            compiled = kind != "linnet eager" and plan.compile
            system: Any = decoding_systems.ours(model.to(plan.device), numbers, scene, compile=compiled)  # type: ignore[arg-type]
        else:
            given = decoding_systems.portable(model)
            system = Transformers(given, Path(folder), getattr(torch, numbers), "sdpa", plan.device)
            if kind == "transformers static":
                system.model.generation_config.cache_implementation = "static"
        prompts, taken = scene.ids(shape.vocabulary), list[float]()
        for _ in range(2):  # graphs are compiled in the first and may be recorded in the second
            system.decode(prompts, 1, tokens, True)
        plan.wait()
        warm = time.perf_counter() - began
        while (sum(taken) < (0.2 if plan.tiny else 3.0) or len(taken) < 2) and len(taken) < 20:
            began = time.perf_counter()
            system.decode(prompts, 1, tokens, True)
            plan.wait()
            taken.append(time.perf_counter() - began)
    seconds = statistics.median(taken)
    yield {
        "name": kind,
        "rows": rows,
        "tokens/s": round(rows * tokens / seconds, 1),
        "ms a token": round(1e3 * seconds / tokens, 3),
        "warm-up s": round(warm, 1),
        "peak MB": round(training_systems.peak_megabytes(plan.device)),
    }


def recipe(
    plan: Plan, name: str, settings: tuple[str, ...], titles: str | None = None, **length: Any
) -> Iterator[Row]:
    """A recipe from its files to its scores."""
    with tempfile.TemporaryDirectory() as folder:
        data = []
        if name == "headlines" or name == "tiny-text":
            data = [
                Path(titles)
                if titles
                else drawn_titles(Path(folder) / "titles.txt", 2000 if plan.tiny else TITLES)
            ]
        began = time.perf_counter()
        record = workbench.train(
            name, out=Path(folder) / "run", data=data, settings=settings, device=plan.device, **length
        )
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [line for line in map(json.loads, lines) if line["kind"] == "step"]
        later = steps[len(steps) // 2 :]
    yield {
        "name": " ".join([name, *settings]),
        "ms a step": round(statistics.median(step["ms"] for step in later), 3),
        "tokens/s": round(statistics.median(step["tokens_per_second"] for step in later)),
        "steps": record.steps,
        "s": round(time.perf_counter() - began, 1),
        "scores": {score.name: score.value for score in record.scores[:2]},
        "data": titles or ("drawn" if data else "made"),
    }


def drawn_titles(path: Path, count: int) -> Path:
    """Lines of made-up words, frequent and rare as words are: good for speed; their score means nothing."""
    random = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(random.choice(letters, size)) for size in random.integers(2, 10, 20_000)]
    lengths = random.integers(4, 13, count)
    drawn = np.minimum(random.zipf(1.2, int(lengths.sum())), len(words)) - 1
    ends = np.cumsum(lengths)
    lines = [" ".join(words[i] for i in drawn[end - size : end]) for end, size in zip(ends, lengths, strict=True)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


# --- the parent: processes, time and lines ----------------------------------------------------------


def serve(pipe: Connection) -> None:
    """Wait for one measurement, send its rows; the libraries are loaded while another one still runs."""
    if importlib.util.find_spec("transformers"):
        from transformers import LlamaForCausalLM  # noqa: F401
    work, arguments, options = pipe.recv()
    try:
        for row in work(*arguments, **options):
            pipe.send(row)
        pipe.send(None)
    except BaseException as error:
        last = traceback.format_exc(limit=-4).strip().splitlines()[-14:]
        pipe.send({"failed": f"{type(error).__name__}: {str(error)[:500]}", "traceback": last})


class Worker:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Report:
    """All rows so far, and the time."""

    def __init__(self, limit: float, out: Path | None) -> None:
        self.began, self.limit, self.out = time.monotonic(), limit, out
        self.rows: list[Row] = []
        self.spare: Worker | None = None

    @property
    def spent(self) -> float:
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        return self.limit - self.spent

    def add(self, section: str, row: Row) -> None:
        self.rows.append({"section": section, "at": round(self.spent, 1), **row})
        shown = ", ".join(
            f"{key} {_text(value)}" for key, value in row.items() if key not in ("name", "traceback")
        )
        print(f"[{self.spent:6.1f} s] {section} | {row.get('name', '')} | {shown}", flush=True)
        for line in row.get("traceback", ()):
            print(f"             {line}", flush=True)
        if self.out is not None:
            self.out.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")

    def measure(
        self, section: str, name: str, work: Callable[..., Iterator[Row]], *arguments: Any, **options: Any
    ) -> None:
        """Run one measurement in a process; what goes wrong becomes a row too."""
        if self.left < LEAST:
            self.add(section, {"name": name, "skipped": f"{max(0.0, self.left):.0f} s are left"})
            return
        deadline = time.monotonic() + min(CAPS.get(section.split()[0], 60.0), self.left)
        worker = self.spare or Worker()
        worker.pipe.send((work, arguments, options))
        self.spare = Worker()
        try:
            while worker.pipe.poll(max(0.0, deadline - time.monotonic())):
                row = worker.pipe.recv()
                if row is None:
                    worker.process.join(3.0)
                    return
                self.add(section, {"name": name, **row})
                if "failed" in row:
                    return
            self.add(section, {"name": name, "failed": "stopped: it took too long"})
        except EOFError:
            self.add(section, {"name": name, "failed": "its process ended without a word"})
        finally:
            worker.stop()

    def tests(self) -> None:
        """The tests marked gpu."""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "gpu",
            "--tb=short",
            "-p",
            "no:cacheprovider",
            "tests",
        ]
        paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        try:
            limit = min(CAPS["tests"], self.left)
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": paths},
                capture_output=True,
                text=True,
                timeout=limit,
            )
            lines, code = done.stdout.strip().splitlines(), done.returncode
        except subprocess.TimeoutExpired as error:
            output = error.stdout or b""
            lines, code = (output if isinstance(output, str) else output.decode()).strip().splitlines(), -1
        row: Row = {"name": "pytest -m gpu", "result": lines[-1] if lines else "no output"}
        if code:
            row |= {
                "failed": f"exit code {code}" if code > 0 else "stopped: it took too long",
                "traceback": lines[-40:],
            }
        self.add("tests", row)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a trial without a GPU")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds for everything (%(default)s)")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by commas (%(default)s)")
    parser.add_argument("--titles", help="a file of titles for the headlines; without it lines are drawn")
    parser.add_argument("--out", type=Path, help="a JSON file for all rows")
    given = parser.parse_args()
    chosen = given.only.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no section is called {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    plan, report = Plan(given.device, given.tiny), Report(given.limit, given.out)
    if "machine" in chosen:
        report.measure("machine", "machine", machine, plan)
    if "tests" in chosen:
        report.tests()
    if "train" in chosen:
        for name, kind in itertools.product(plan.train, ("linnet", "nanoGPT", "transformers Llama")):
            report.measure(f"train {name}", kind, train, plan, name, kind)
    if "decode" in chosen:
        kinds = ("linnet", "linnet eager", "transformers static", "transformers eager")
        for name in plan.decode:
            report.measure(f"decode {name}", "same tokens", same_tokens, plan, name)
            for rows, kind in itertools.product(plan.rows, kinds):
                report.measure(f"decode {name}", f"{kind}, {rows} rows", decode, plan, name, kind, rows)
    if "small" in chosen:
        small = ("tiny-arithmetic", 30) if given.tiny else ("arithmetic", 300)
        for compiled in ("off", "on") if plan.compile else ("off",):
            report.measure("small", small[0], recipe, plan, small[0], (f"compile={compiled}",), steps=small[1])
    if "headlines" in chosen:
        epochs = 7.0 if given.titles and report.left > 120 else 1.0
        length = {"steps": 20} if given.tiny else {"epochs": epochs}
        name = "tiny-text" if given.tiny else "headlines"
        report.measure("headlines", name, recipe, plan, name, (), given.titles, **length)
    if report.spare is not None:
        report.spare.stop()


if __name__ == "__main__":
    main()
