"""What a GPU does with linnet and with its peers, by one command that ends in time.

    python bench/gpu.py --limit 480 --out gpu.json
    python bench/gpu.py --only train,decode --limit 240
    python bench/gpu.py --device cpu --tiny          # every part in two minutes, without a GPU

Each measurement runs in a process of its own, one after the other, so only one model is on the device at a time.
A line is printed as soon as a number is known, with the seconds since the start. A measurement that fails or takes
too long is named and the next one begins; what has no time left is skipped. `--out` holds all rows as JSON.
It needs torch, numpy, pydantic, rich, typer, tomli-w, safetensors, tokenizers and transformers; no network.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from bench import decoding, decoding_systems, training_systems  # noqa: E402
from bench.processes import Apart, OutOfTime, Working, installed, peak_megabytes  # noqa: E402
from bench.training import Shape, random_batch  # noqa: E402
from linnet import workbench  # noqa: E402
from linnet.errors import RunFailed  # noqa: E402
from linnet.machine import matmul_flops, one_line, synchronize  # noqa: E402
from linnet.model.costs import costs  # noqa: E402

if __name__ == "__mp_main__" and installed("transformers"):
    from transformers import LlamaForCausalLM  # noqa: F401 - loaded while another measurement still runs

SECTIONS = ("machine", "tests", "train", "small", "headlines", "decode")  # in this order
KERNELS = 14  # of a step, that are listed
LEAST = 15.0  # seconds; with less time left nothing is started
CAPS = {"tests": 100.0, "train": 75.0, "decode": 60.0, "small": 60.0, "headlines": 150.0}  # of one measurement
TITLES = 100_000
TINY = Shape(depth=1, width=64, heads=2, vocabulary=512, batch=2, context=64)
TRAINED = {
    "27M": Shape(depth=6, width=512, heads=8, vocabulary=16_000, batch=64, context=512),
    "124M": Shape(depth=12, width=768, heads=12, vocabulary=50_304, batch=32, context=1024),
}
DECODED = {
    "27M": Shape(depth=6, width=512, heads=8, vocabulary=16_000, context=512),
    "97M": Shape(depth=12, width=768, heads=12, vocabulary=16_000, context=512),
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Where it is measured. With `tiny` shapes only our own training is compiled, which shows that it works."""

    device: str
    tiny: bool

    @property
    def precision(self) -> str:
        return "bfloat16" if self.device == "cuda" else "float32"

    @property
    def seconds(self) -> float:
        """How long one speed is measured."""
        return 0.3 if self.tiny else 2.0


# --- measurements: each runs in a process of its own and yields rows ----------------------------------


def machine(plan: Plan) -> Iterator[Row]:
    found = {name: matmul_flops(name, plan.device, plan.seconds) for name in ("bfloat16", "float32")}
    peaks = {f"{name} TFLOP/s": round(flops / 1e12, 2) for name, flops in found.items() if flops}
    yield {"name": one_line(), "python": sys.version.split()[0], **peaks}


def train(plan: Plan, shape: Shape, kind: Any) -> Iterator[Row]:
    """Steps of one system on one batch that stays on the host; the device is waited for once in ten steps."""
    run, batch = shape.run(plan.precision, "on", device=plan.device), random_batch(shape)
    batch = batch.pinned() if plan.device == "cuda" else batch
    system = training_systems.System(kind, kind, plan.precision, kind == "linnet" or not plan.tiny)
    began = time.perf_counter()
    trainer, facts = training_systems.prepared(system, run, batch, torch.device(plan.device))
    if plan.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    norms = {part: round(norm, 5) for part, norm in facts.used.norms.items()}
    yield {"ready s": time.perf_counter() - began, "loss": facts.used.loss, "later": facts.later, "norms": norms}
    taken, count = list[float](), 10
    while sum(taken) * count < plan.seconds or len(taken) < 3:
        synchronize(plan.device)
        began = time.perf_counter()
        for _ in range(count):
            loss = trainer.step(batch)
        synchronize(plan.device)
        taken.append((time.perf_counter() - began) / count)
    tokens = batch["ids"].numel() / statistics.median(taken)
    yield {
        "tokens/s": round(tokens),
        "ms a step": 1e3 * statistics.median(taken),
        "TFLOP/s": 3 * costs(shape.model()).flops_per_token * tokens / 1e12,
        "peak MB": round(peak_megabytes(plan.device)),
        "parameters": facts.parameters,
        "finite": math.isfinite(float(loss)),
        "slowest / fastest": max(taken) / min(taken),
    }
    yield {"kernels, ms a step": kernel_times(lambda: trainer.step(batch), plan.device)}


def kernel_times(step: Callable[[], object], device: str, count: int = 3) -> dict[str, float]:
    """The kernels that take longest, and all of them together."""
    activities = [ProfilerActivity.CUDA] if device == "cuda" else [ProfilerActivity.CPU]
    step()
    with profile(activities=activities) as watched:
        for _ in range(count):
            step()
        synchronize(device)
    spent = {
        event.key: (event.self_device_time_total if device == "cuda" else event.self_cpu_time_total) / 1e3 / count
        for event in watched.key_averages()
    }
    first = sorted(spent, key=lambda name: -spent[name])[:KERNELS]
    return {"all": round(sum(spent.values()), 3)} | {name[:60]: round(spent[name], 3) for name in first}


def same_tokens(plan: Plan, shape: Shape) -> Iterator[Row]:
    """Whether ours and transformers write the same tokens in float32, near ties counted."""
    with tempfile.TemporaryDirectory() as folder:
        setting = setting_of(plan, shape, 1, Path(folder))
        yield {"note": decoding.equality(setting, prompts=4, tokens=32).facts}


def setting_of(plan: Plan, shape: Shape, rows: int, folder: Path, compile: bool = True) -> Any:
    scene = decoding_systems.Scene("", rows, 64, 1, 8 if plan.tiny else 128, True)
    compiled = compile and not plan.tiny
    return decoding_systems.Setting(shape, scene, folder, compiled, torch.get_num_threads(), plan.device)


def decode(plan: Plan, shape: Shape, kind: str, rows: int) -> Iterator[Row]:
    """Greedy tokens a second after prompts of 64 tokens, prompts included."""
    name, way = kind.split()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        setting = setting_of(plan, shape, rows, Path(folder), way == "compiled")
        cache = "static" if way == "static" else None
        system = decoding_systems.decoder(
            decoding_systems.System(kind, name, plan.precision, cache=cache),  # type: ignore[arg-type]
            setting,
        )
        prompts, tokens, taken = setting.scene.ids(shape.vocabulary), setting.scene.tokens, list[float]()
        for _ in range(2):  # graphs are compiled in the first and may be recorded in the second
            system.decode(prompts, 1, tokens, True)
        ready = time.perf_counter() - began
        while (sum(taken) < plan.seconds or len(taken) < 2) and len(taken) < 20:
            began = time.perf_counter()
            system.decode(prompts, 1, tokens, True)
            taken.append(time.perf_counter() - began)
    seconds = statistics.median(taken)
    notes = {"notes": system.runner.notes} if isinstance(system, decoding_systems.Ours) else {}
    yield notes | {
        "tokens/s": rows * tokens / seconds,
        "ms a token": 1e3 * seconds / tokens,
        "ready s": ready,
        "peak MB": round(peak_megabytes(plan.device)),
    }


def recipe(plan: Plan, name: str, titles: str | None = None, **options: Any) -> Iterator[Row]:
    """A recipe from its data to its scores."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out, data = Path(folder) / "run", list[Path]()
        if name in ("headlines", "tiny-text"):
            drawn = Path(folder) / "titles.txt"
            data = [Path(titles) if titles else draw_titles(drawn, 2000 if plan.tiny else TITLES)]
        record = workbench.train(name, out=out, data=data, device=plan.device, **options)
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if line["kind"] == "step"]
    later = steps[len(steps) // 2 :]
    yield {
        "ms a step": statistics.median(step["ms"] for step in later),
        "tokens/s": round(statistics.median(step["tokens_per_second"] for step in later)),
        "steps": record.steps,
        "s": time.perf_counter() - began,
        "scores": {score.name: round(score.value, 4) for score in record.scores[:2]},
    }


def draw_titles(path: Path, count: int) -> Path:
    """Lines of made-up words, frequent and rare as words are: good for speed; their score means nothing."""
    random = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(random.choice(letters, size)) for size in random.integers(2, 10, 20_000)]
    lengths = random.integers(4, 13, count)
    drawn = iter(np.minimum(random.zipf(1.2, int(lengths.sum())), len(words)) - 1)
    lines = (" ".join(words[i] for i in itertools.islice(drawn, int(length))) for length in lengths)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


# --- the parent: processes, time and lines ----------------------------------------------------------


def rows_of(work: Callable[..., Iterator[Row]], *arguments: Any, **options: Any) -> Working:
    """A measurement as a process serves it: one row a turn."""
    rows = work(*arguments, **options)
    return Working(None, lambda: next(rows, None))


class Report:
    """All rows so far, and the time."""

    def __init__(self, limit: float, out: Path | None, match: Sequence[str] = ()) -> None:
        self.began, self.limit, self.out, self.match = time.monotonic(), limit, out, match
        self.rows: list[Row] = []
        self.spare = Apart()  # loads its libraries while the measurement before it runs

    @property
    def left(self) -> float:
        return self.limit - (time.monotonic() - self.began)

    def add(self, section: str, row: Row) -> None:
        spent = self.limit - self.left
        self.rows.append({"section": section, "at": round(spent, 1), **row})
        shown = ", ".join(f"{key} {_text(value)}" for key, value in row.items() if key not in ("name", "lines"))
        print(f"[{spent:6.1f} s] {section} | {row['name']} | {shown}", flush=True)
        for line in row.get("lines", ()):
            print(f"             {line}", flush=True)
        if self.out is not None:
            self.out.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")

    def measure(self, section: str, name: str, work: Any, *arguments: Any, **options: Any) -> None:
        """Run one measurement in a process; what goes wrong becomes a row too."""
        if self.match and not any(words in f"{section} {name}" for words in self.match):
            return
        if self.left < LEAST:
            return self.add(section, {"name": name, "skipped": f"{max(0.0, self.left):.0f} s are left"})
        ends = time.monotonic() + min(CAPS.get(section.split()[0], 60.0), self.left)
        one, self.spare = self.spare, Apart()
        try:
            one.build(name, functools.partial(rows_of, work, *arguments, **options))
            while (row := one.ask("turn", ends - time.monotonic())) is not None:
                self.add(section, {"name": name, **row})
        except OutOfTime:
            self.add(section, {"name": name, "failed": "stopped: it took too long"})
        except RunFailed as error:
            lines = str(error).splitlines()
            self.add(section, {"name": name, "failed": lines[-1][:300], "lines": lines[-14:-1]})
        finally:
            one.close()

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
        with tempfile.TemporaryFile("w+") as output:
            try:
                limit = min(CAPS["tests"], self.left)
                environment = {**os.environ, "PYTHONPATH": paths}
                code: int | str = subprocess.run(
                    command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=limit
                ).returncode
            except subprocess.TimeoutExpired:
                code = "stopped: it took too long"
            output.seek(0)
            lines = output.read().strip().splitlines() or ["no output"]
        row: Row = {"name": "pytest -m gpu", "result": lines[-1]}
        self.add("tests", row | ({"failed": code, "lines": lines[-40:]} if code else {}))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def decode_in_turn(plan: Plan, report: Report) -> None:
    """What users run first: graphs at one row and many; then the same without graphs."""
    shapes = {"tiny": replace(TINY, context=256)} if plan.tiny else DECODED
    for name, shape in shapes.items():
        report.measure(f"decode {name}", "same tokens", same_tokens, plan, shape)
    for ways in (("linnet compiled", "transformers static"), ("linnet eager", "transformers eager")):
        for (name, shape), rows, kind in itertools.product(
            shapes.items(), (3,) if plan.tiny else (1, 64, 256), ways
        ):
            report.measure(f"decode {name}", f"{kind}, {rows} rows", decode, plan, shape, kind, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, for a trial without a GPU")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds for everything (%(default)s)")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by commas (%(default)s)")
    parser.add_argument("--match", action="append", help="measurements with these words only; may be repeated")
    parser.add_argument("--titles", help="a file of titles for the headlines; without it lines are drawn")
    parser.add_argument("--out", type=Path, help="a JSON file for all rows")
    given = parser.parse_args()
    chosen = given.only.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no section is called {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    plan, report = Plan(given.device, given.tiny), Report(given.limit, given.out, given.match or ())
    if "machine" in chosen:
        report.measure("machine", "machine", machine, plan)
    if "tests" in chosen:
        report.tests()
    if "train" in chosen:
        shapes = {"tiny": TINY} if plan.tiny else TRAINED
        for (name, shape), kind in itertools.product(shapes.items(), ("linnet", "nanogpt", "llama")):
            report.measure(f"train {name}", kind, train, plan, shape, kind)
    if "small" in chosen:
        name, steps = ("tiny-arithmetic", 30) if plan.tiny else ("arithmetic", 300)
        for compiled in ("off",) if plan.tiny else ("off", "on", "graphs"):
            settings = (f"compile={compiled}",)
            report.measure("small", f"{name}, {settings[0]}", recipe, plan, name, settings=settings, steps=steps)
    if "headlines" in chosen:
        name = "tiny-text" if plan.tiny else "headlines"
        epochs = 7.0 if given.titles and report.left > 120 else 1.0
        length = {"steps": 20} if plan.tiny else {"epochs": epochs}
        report.measure("headlines", f"{name}, {length}", recipe, plan, name, given.titles, **length)
    if "decode" in chosen:
        decode_in_turn(plan, report)
    report.spare.close()


if __name__ == "__main__":
    main()
