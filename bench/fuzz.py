"""Mutated files and command lines against every reader of linnet: each has to work, or to say what is wrong.

    python -m bench.fuzz [FORMAT ...] --mutants 2000 --seed 1
    python -m bench.fuzz hf --seed 1 --only 123 --keep DIR    # one mutant again, with its files left in DIR

Every mutant runs through the command line in a worker process with limits of time and memory. What ends otherwise
than with exit code 0, 1 or 2 and a message that is not "a defect of linnet" is a finding: it is counted under the
error and the function that raised it, with the number of the first mutant.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import importlib
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.mutations import TOML, mutate, rehash

SECONDS = 20.0  # of processor time for one mutant
HANGS = 300.0  # seconds without a word from a worker
LOADED = ("linnet.workbench.train", "linnet.workbench.generate", "linnet.workbench.export",
          "linnet.domains.places.use", "linnet.domains.text.tokenizer_verbs")  # fmt: skip
MEMORY = 4 << 30  # bytes on top of what a worker takes when it starts


# --- formats: valid files, and the commands that read them ----------------------------------------


@dataclass(frozen=True)
class Format:
    """Patterns of the files of which one or two are mutated, and the commands that read them, up to a refusal."""

    mutants: str
    commands: str  # one a line; {d} is the folder, {m} the mutant; a word in | | is one argument


RUN = "run/run.toml run/codec.json run/record.json run/metrics.jsonl run/checkpoints/*/*"
GENERATE = "generate {d}/run |1 2| --max-tokens 2 --seed 1"
RESUME = "resume {d}/run\nexport {d}/run {d}/copy --to run"
TRAIN_PLACES = "train tiny-places --data {m} --out {d}/new --steps 1\ndata check places {m}"
TRAIN_TEXT = "train tiny-text --data {d}/few.txt --tokenizer {d}/t/tokenizer.json --out {d}/new --steps 1"
PREDICT = "predict {d}/run --file {d}/histories.jsonl"
FORMATS = {
    "hf": Format("hf/*", f"import {{d}}/hf --out {{d}}/run\n{GENERATE}"),
    "gguf": Format("m.gguf", f"import {{d}}/m.gguf --out {{d}}/run\n{GENERATE}"),
    "tokenizer": Format("t/*", f"tokenizer check {{d}}/t --data {{d}}/few.txt\n{TRAIN_TEXT}"),
    "run-text": Format(RUN, f"show {{d}}/run\n{GENERATE}\n{RESUME}\nexport {{d}}/run {{d}}/new"),
    "run-arithmetic": Format(
        RUN,
        f"show {{d}}/run\nruns {{d}}\ngenerate {{d}}/run 1+2= --max-tokens 2\n{RESUME}\neval {{d}}/run --set n=4",
    ),
    "run-unfinished": Format("run/checkpoints/000004/*", "resume {d}/run\nresume {d}/run --steps 7"),
    "run-places": Format(RUN, f"show {{d}}/run\n{PREDICT}\n{RESUME}\nforget {{d}}/run --user u00001"),
    "visits": Format("v.csv v.parquet v.csv.gz", TRAIN_PLACES),
    "tracks": Format("a.gpx a.geojson a.gpx.gz", TRAIN_PLACES),
    "samples": Format("s.jsonl s.jsonl.gz", TRAIN_PLACES),
    "histories": Format("histories.jsonl", PREDICT),
    "text": Format(
        "few.txt few.jsonl few.parquet few.txt.gz few.jsonl.gz",
        "tokenizer train --data {m} --out {d}/new.json --vocabulary 300\neval {d}/run --data {m}",
    ),
    "arithmetic": Format("sums.txt sums.jsonl sums.jsonl.gz", "data check arithmetic {m}"),
    "settings": Format("run/run.toml", "train {d}/run/run.toml --out {d}/new --steps 1"),
    "set": Format("", ""),
    "arguments": Format("", ""),
}
ARGUMENTS = """import {d}/hf --out {d}/new
export {d}/run {d}/new --to hf --type f16
export {d}/run {d}/x.gguf --type q8_0 --force
generate {d}/run |The fox| -n 2 --max-tokens 2 --temperature 1 --top-k 3 --seed 1
train tiny-text --data {d}/few.txt --out {d}/new --steps 1 --seed 2 --sample 3 --device cpu
tokenizer train --data {d}/few.txt --out {d}/t.json --vocabulary 300 --counts {d}/counts.tsv --sample 4
tokenizer check {d}/t --data {d}/few.txt --counts {d}/counts.tsv
eval {d}/run --data {d}/few.txt --split test
data check places {d}/v.csv --columns user=user,time=start --tz UTC --local Europe/Paris
data check arithmetic {d}/sums.txt
data make arithmetic --out {d}/new --task add --instances 50 --digits 1,2
inspect attention {d}/run |The fox|
predict {d}/places --file {d}/histories.jsonl -k 3
forget {d}/places --user u00001
show {d}/run
runs {d}
resume {d}/run""".splitlines()
WORDS = [
    "",
    "..",
    ".",
    "-1",
    "0",
    "1e9",
    "nan",
    "99999999999999999999",
    "²",
    "\0",
    "a=b",
    "--",
    "-",
    "\udc80",
    "/dev/null",
]
WORDS += [
    "x" * 300,
    "/proc/self/mem",
    "{d}/few.txt",
    "{d}",
    "{d}/run",
    "--force",
    "--json",
    "--out",
    "--set",
    "4294967296",
]


def make_valid_files(at: Path) -> None:
    """Small runs and files of every format, made by linnet itself."""
    import polars as pl

    from linnet import workbench
    from linnet.domains.places.generated import Process, generate, write_check_ins

    draw = random.Random(0)
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "12",
        "lazy",
        "dogs",
        "naïve",
        "cafés",
        "😀",
        "again",
    ]
    texts = [" ".join(draw.choices(words, k=9)) for _ in range(60)]
    (at / "few.txt").write_text("\n".join(texts) + "\n")
    (at / "few.jsonl").write_text("".join(json.dumps({"text": text, "split": "train"}) + "\n" for text in texts))
    pl.DataFrame({"text": texts, "n": range(60)}).write_parquet(at / "few.parquet")
    sums = [(a, b) for a in range(9) for b in (3, 14)]
    (at / "sums.txt").write_text("".join(f"{a}+{b}={a + b}\n" for a, b in sums))
    (at / "sums.jsonl").write_text(
        "".join(json.dumps({"input": f"{a}+{b}", "gold": a + b}) + "\n" for a, b in sums)
    )
    write_check_ins(at / "v.csv", generate(Process(users=4, visits=20, own=4, venues=20)))
    pl.read_csv(at / "v.csv").write_parquet(at / "v.parquet")
    small = ["model.width=16", "model.depth=1", "model.attention.heads=2"]
    workbench.train(
        "tiny-arithmetic", out=at / "sums", settings=[*small, "data.instances=40", "eval_every=2"], steps=4
    )
    unfinished = [*small, "data.instances=40", "eval_every=2", "ema=0.9", "optim.kind=muon", "batch=8"]
    stopping = Stopping()
    try:
        workbench.train("tiny-arithmetic", out=at / "unfinished", settings=unfinished, steps=6, progress=stopping)
    except KeyboardInterrupt:
        assert not (at / "unfinished" / "record.json").exists()
    write_tracks(at)
    tokens = ["data.tokenizer.vocabulary=300"]
    workbench.train("tiny-text", out=at / "run", data=[at / "few.txt"], settings=[*small, *tokens], steps=4)
    workbench.train("tiny-places", out=at / "places", data=[at / "v.csv"], steps=2)
    for to in ("hf", "gguf"):
        workbench.export_run(at / "run", at / ("hf" if to == "hf" else "m.gguf"), to=to)
    shutil.copytree(at / "hf", at / "t", ignore=shutil.ignore_patterns("*.safetensors", "config.json", "gen*"))
    visits = [
        {"place": place, "start": f"2024-05-{day:02d}T18:05:00", "duration": 50}
        for day, place in enumerate("aba", 1)
    ]
    (at / "histories.jsonl").write_text("".join(json.dumps({"id": i, "visits": visits}) + "\n" for i in range(3)))
    assert run(split("data make samples --data {d}/v.csv --out {d}/s.jsonl", at)).kind == "good"
    for name in ("few.txt", "few.jsonl", "sums.jsonl", "s.jsonl", "v.csv", "a.gpx"):
        (at / f"{name}.gz").write_bytes(gzip.compress((at / name).read_bytes()))


class Stopping:
    """Ends a run after its fourth step, so that it has two checkpoints and no record."""

    def __call__(self, course: Any) -> Stopping:
        return self

    def write(self, record: Any) -> None:
        if record.kind == "step" and record.step == 5:
            raise KeyboardInterrupt

    def close(self) -> None:
        pass


def write_tracks(at: Path) -> None:
    """The same walks, at home and at work in turn, as GPX and as GeoJSON."""
    points = [
        (f"2024-05-{day:02d}T{hour:02d}:{minute:02d}:00Z", 10.0 + 0.01 * (hour % 2), 50.0)
        for day in range(1, 25)
        for hour in (8, 13)
        for minute in range(0, 60, 10)
    ]
    walked = "".join(
        f'<trkpt lat="{lat}" lon="{lon}"><time>{moment}</time></trkpt>\n' for moment, lon, lat in points
    )
    (at / "a.gpx").write_text(f'<?xml version="1.0"?>\n<gpx><trk><trkseg>\n{walked}</trkseg></trk></gpx>\n')
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [lon, lat]},
            "properties": {"time": moment, "user": "a"},
        }
        for moment, lon, lat in points
    ]
    (at / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


# --- one mutant ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    kind: str  # good, bad input, failed, defect, crash, slow
    where: str = ""
    message: str = ""


def run(words: Sequence[str]) -> Outcome:
    """One command, in this process."""
    from typer.testing import CliRunner

    result = CliRunner().invoke(command_line(), [*words, "--debug"] if words[0] != "--help" else list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return Outcome("crash", *told("".join(traceback.format_exception(result.exception))))
    if "a defect of linnet" in result.stderr:
        return Outcome("defect", *told(result.stderr))
    kind = {0: "good", 2: "bad input", 1: "failed"}.get(result.exit_code, f"exit {result.exit_code}")
    return Outcome(kind, words[0], (result.stderr.strip().splitlines() or [""])[-1][:300])


@functools.cache
def command_line() -> Any:
    from linnet.cli.app import build

    return build()


def told(trace: str) -> tuple[str, str]:
    """The error with the last function of ours on its way, and the message."""
    ours = re.findall(r'File "[^"]*/linnet/([^"]+)", line \d+, in (\S+)', trace)
    errors = re.findall(r"^(?:error: )?([\w.]+): (.*?)(?: \(a defect of linnet.*)?$", trace, re.MULTILINE)
    name, message = errors[-1] if errors else ("?", trace[-200:])
    return f"{name} in {' '.join(ours[-1]) if ours else 'no function of linnet'}", message[:200]


def commands_of(name: str, at: Path, draw: random.Random) -> list[list[str]]:
    """Mutate what is in the folder, and say which commands read it."""
    if name == "arguments":
        words = split(draw.choice(ARGUMENTS), at)
        for _ in range(draw.choice([1, 1, 2, 3])):
            i, word = draw.randrange(len(words)), draw.choice(WORDS).replace("{d}", str(at))
            words[i : i + draw.choice([0, 1, 1, 1])] = [word] if draw.random() < 0.8 else []
            words = words or ["--help"]
        return [words]
    if name == "set":
        from linnet.training.settings import flatten
        from linnet.workbench.train import made

        recipe, data = draw.choice([("tiny-arithmetic", None), ("tiny-text", "few.txt"), ("tiny-places", "v.csv")])
        keys = sorted(flatten(made(recipe).model_dump(mode="json")))
        words = [
            "train",
            recipe,
            "--out",
            str(at / "new"),
            "--steps",
            "1",
            *(["--data", str(at / data)] if data else []),
        ]
        for _ in range(draw.choice([1, 1, 1, 2])):
            words += ["--set", f"{draw.choice(keys)}={draw.choice(TOML)}"]
        return [words]
    format = FORMATS[name]
    files = sorted({file for pattern in format.mutants.split() for file in at.glob(pattern) if file.is_file()})
    chosen = draw.sample(files, draw.choice([1, 1, 1, min(2, len(files))]))
    for file in chosen:
        mutate(file, draw)
    if name.startswith("run-"):
        for checkpoint in (at / "run" / "checkpoints").iterdir():
            if draw.random() < 0.8:
                rehash(checkpoint)
            if draw.random() < 0.03:
                checkpoint.rename(
                    checkpoint.with_name(draw.choice(["²", "٣٣٣٣٣٣", "-00001", "9" * 30, "1", "000001 "]))
                )
    return [split(command, at, chosen[0]) for command in format.commands.splitlines()]


def split(command: str, at: Path, mutant: Path | None = None) -> list[str]:
    words = re.findall(r"\|([^|]*)\||(\S+)", command)
    return [(quoted or word).replace("{d}", str(at)).replace("{m}", str(mutant)) for quoted, word in words]


def try_mutant(name: str, seed: int, number: int, valid: Path, at: Path) -> Outcome:
    draw = random.Random(f"{seed} {name} {number}")
    shutil.rmtree(at, ignore_errors=True)
    kinds = {"run-arithmetic": "sums", "run-unfinished": "unfinished", "settings": "sums"}
    kinds |= {"run-places": "places", "histories": "places"}
    run_of = kinds.get(name, "run")
    left_out = set() if name == "arguments" else {"run", "places", "sums", "unfinished"} - {run_of}
    shutil.copytree(valid, at, ignore=lambda folder, names: left_out if Path(folder) == valid else ())
    if name in ("hf", "gguf"):
        shutil.rmtree(at / "run", ignore_errors=True)
    elif run_of != "run":
        (at / run_of).rename(at / "run")
    outcome = Outcome("good")
    for words in commands_of(name, at, draw):
        outcome = run(words)
        if outcome.kind != "good":
            return outcome
    return outcome


# --- workers ---------------------------------------------------------------------------------------


def work(name: str, seed: int, numbers: Sequence[int], valid: Path, pipe: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Rust writes there when it panics
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ |= {"POLARS_MAX_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    import torch

    for module in LOADED:  # what takes seconds to load belongs to no mutant
        importlib.import_module(module)
    torch.set_num_threads(1)
    run(["--help"])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for number in numbers:
            pipe.send(number)
            pipe.send(try_mutant(name, seed, number, valid, Path(folder) / "mutant"))
    pipe.send(None)


def processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def outcomes(name: str, seed: int, numbers: list[int], valid: Path) -> dict[int, Outcome]:
    """All of them, in one worker after another: a new one starts where one died or took too long."""
    found: dict[int, Outcome] = {}
    context = multiprocessing.get_context("spawn")
    while numbers:
        ours, theirs = context.Pipe()
        worker = context.Process(target=work, args=(name, seed, numbers, valid, theirs))
        worker.start()
        current, began, heard = numbers[0], 0.0, time.monotonic()
        while True:
            if ours.poll(0.5):
                message, heard = ours.recv(), time.monotonic()
                if message is None:
                    break
                if isinstance(message, int):
                    current, began = message, processor_seconds(worker.pid or 0)
                else:
                    found[current] = message
                continue
            spent = processor_seconds(worker.pid or 0) - began if worker.is_alive() else 0.0
            if not worker.is_alive():
                found[current] = Outcome("crash", f"exit code {worker.exitcode}")
            elif began and spent > SECONDS or time.monotonic() - heard > HANGS:
                found[current] = Outcome("slow", f"over {SECONDS:.0f} s" if spent > SECONDS else "hangs")
            else:
                continue
            worker.kill()
            break
        worker.join()
        numbers = [number for number in numbers if number not in found]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=f"of {', '.join(FORMATS)}; all unless named")
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--messages", type=int, default=0, help="how many messages of refusals to show")
    parser.add_argument("--only", type=int, help="the number of one mutant")
    parser.add_argument("--keep", type=Path, help="leave the files of that mutant there, and run nothing")
    asked = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        valid = Path(folder) / "valid"
        valid.mkdir()
        make_valid_files(valid)
        for name in asked.formats or FORMATS:
            if asked.keep:
                globals()["run"] = lambda words: print(*words, sep="\n    ") or Outcome("good")
                try_mutant(name, asked.seed, asked.only, valid, asked.keep)
                continue
            numbers = [asked.only] if asked.only is not None else list(range(asked.mutants))
            began = time.perf_counter()
            found = outcomes(name, asked.seed, numbers, valid)
            counts = Counter(outcome.kind for outcome in found.values())
            print(name, dict(counts), f"seed {asked.seed}, {time.perf_counter() - began:.0f} s", flush=True)
            for number in random.Random(0).sample(sorted(found), min(asked.messages, len(found))):
                print(f"    {number} {found[number].kind}: {found[number].where}: {found[number].message}")
            classes: dict[tuple[str, str], list[int]] = {}
            for number, outcome in found.items():
                if outcome.kind not in ("good", "bad input", "failed"):
                    classes.setdefault((outcome.kind, outcome.where), []).append(number)
            for (kind, where), those in sorted(classes.items(), key=lambda entry: -len(entry[1])):
                failed = True
                print(f"  {len(those)} {kind}: {where}: {found[those[0]].message} (--only {those[0]})", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
