"""Mutated files and command lines against every reader of linnet: each has to work, or to say what is wrong.

    python -m bench.fuzz [FORMAT ...] --mutants 2000 --seed 1
    python -m bench.fuzz hf --seed 1 --only 123 --keep DIR    # one mutant again, with its files left in DIR

Every mutant runs through the command line with limits of processor time and memory, in a copy of a process that
has loaded everything, so that loading costs once; a copy serves a few mutants, and ends with the first finding.
What ends otherwise than with exit code 0, 1 or 2 and a message that is not "a defect of linnet" is a finding: it
is counted under the error and the function that raised it, with the number of the first mutant.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import gc
import importlib
import json
import multiprocessing
import os
import pkgutil
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.fuzz_files import make_valid_files
from bench.fuzz_formats import FORMATS, Command, prepare

SECONDS = 20  # of processor time for one mutant
TOGETHER = 25  # mutants of one process
HANGS = 300.0  # seconds on the clock without the end of a command
MEMORY = 4 << 30  # bytes on top of what a process takes when it starts
FINE = {"good": 0, "failed": 1, "bad input": 2}  # kinds of outcomes that are no finding, with their exit codes


@dataclass(frozen=True)
class Outcome:
    """What became of one command."""

    verb: str
    kind: str  # good, bad input, failed, defect, crash, slow
    where: str = ""
    message: str = ""


@dataclass
class Mutant:
    """What became of the commands on one mutant."""

    number: int
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The worst of its commands: a finding, else a failed run, else bad input."""
        kinds = {outcome.kind for outcome in self.outcomes}
        return next(
            iter(kinds - FINE.keys()), next((kind for kind in ("failed", "bad input") if kind in kinds), "good")
        )

    @property
    def findings(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.kind not in FINE]


# --- one mutant ------------------------------------------------------------------------------------


@functools.cache
def command_line() -> Any:
    from linnet.cli.app import build

    return build()


def run(command: Command) -> Outcome:
    """One command, in this process, as `linnet` would run it."""
    from typer.testing import CliRunner

    words = command.words
    given = command.stdin.read_bytes() if command.stdin and command.stdin.is_file() else None
    result = CliRunner().invoke(
        command_line(), [*words, "--debug"] if words[0] != "--help" else words, input=given
    )
    verb = verb_of(words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return Outcome(verb, "crash", *named("".join(traceback.format_exception(result.exception))))
    if "a defect of linnet" in result.stderr:
        return Outcome(verb, "defect", *named(result.stderr))
    kind = next((kind for kind, code in FINE.items() if code == result.exit_code), f"exit {result.exit_code}")
    return Outcome(verb, kind, "", (result.stderr.strip().splitlines() or [""])[-1][:300])


def verb_of(words: Sequence[str]) -> str:
    """Such as `train tiny-text` or `data check places`."""
    most = {"data": 3, "train": 2, "inspect": 2, "tokenizer": 2}.get(words[0], 1)
    return " ".join(word if word.isascii() and "/" not in word else "..." for word in words[:most])[:40]


def named(trace: str) -> tuple[str, str]:
    """The error with the last function of ours on its way, and the message."""
    ours = re.findall(r'File "[^"]*/linnet/([^"]+)", line \d+,? in (\S+)', trace)
    errors = re.findall(r"^(?:error: )?([\w.]+): (.*?)(?: \(a defect of linnet.*)?$", trace, re.MULTILINE)
    name, message = errors[-1] if errors else ("?", trace[-200:])
    return f"{name} in {' '.join(ours[-1]) if ours else 'no function of linnet'}", message[:200]


def try_mutant(name: str, seed: int, number: int, valid: Path, at: Path) -> Iterator[Outcome]:
    """Every command that reads the mutant, except what needs one before it that was refused."""
    last = "good"
    for command in prepare(name, valid, at, random.Random(f"{seed} {name} {number}")):
        if command.needs_last and last != "good":
            continue
        outcome = run(command)
        last = outcome.kind
        yield outcome


# --- processes of mutants ---------------------------------------------------------------------


def load_everything(valid: Path) -> None:
    """What takes seconds belongs to no mutant: modules, and the first use of libraries that start no threads."""
    import torch

    import linnet

    for module in pkgutil.walk_packages(linnet.__path__, "linnet."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ModuleNotFoundError):  # of an extra, or of a GPU
                importlib.import_module(module.name)
    for name in ("polars", "tokenizers", "gguf", "safetensors.torch", "safetensors.numpy", "torch._dynamo"):
        importlib.import_module(name)
    torch.set_num_threads(1)
    machine: Any = importlib.import_module("linnet.machine")
    machine.matmul_flops = lambda *_: 1e9  # a quarter of a second for the progress line
    testing: Any = importlib.import_module("typer.testing")
    testing._get_command = functools.cache(testing._get_command)  # the command line is built once
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        for line in (["--help"], ["generate", f"{valid}/sums", "1+2="], ["generate", f"{valid}/words", "The"],
                     ["train", f"{valid}/sums/run.toml", "--out", f"{at}/new"]):  # fmt: skip
            outcome = run(Command(line))
            assert outcome.kind == "good", outcome


def serve(name: str, seed: int, numbers: Sequence[int], valid: Path, pipe: Any) -> None:
    """Fork a process for each few mutants, and send what became of them."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ |= {"POLARS_MAX_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    load_everything(valid)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    gc.collect()
    gc.freeze()  # pages stay shared
    left = list(numbers)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        while left:
            ours, theirs = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(ours)
                limit(used + MEMORY, trace)
                answer(name, seed, left[:TOGETHER], valid, theirs)
            os.close(theirs)
            found = heard(child, ours, trace) or [Mutant(left[0], [Outcome("", "crash", "before its first word")])]
            left = left[len(found) :]
            pipe.send(found)
    pipe.send(None)


def limit(memory: int, trace: Path) -> None:
    """In the process of mutants: what is over the limit ends it, and leaves where it was."""
    file = trace.open("w")
    faulthandler.enable(file)
    faulthandler.register(signal.SIGXCPU, file, chain=True)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(trace.parent)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Rust writes there when it panics


def answer(name: str, seed: int, numbers: Sequence[int], valid: Path, pipe: int) -> None:
    """Write what becomes of each mutant as lines of JSON, and end this process, after a finding at once."""

    def write(value: object) -> None:
        os.write(pipe, json.dumps(value).encode() + b"\n")

    for number in numbers:
        write(number)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + SECONDS + 1, resource.RLIM_INFINITY))
        fine = True
        try:
            for outcome in try_mutant(name, seed, number, valid, Path(f"mutant-{number}").absolute()):
                write(asdict(outcome))
                fine &= outcome.kind in FINE
        except BaseException as error:  # even what only ends a process belongs into the report
            write(asdict(Outcome("", "crash", *named("".join(traceback.format_exception(error))))))
            fine = False
        shutil.rmtree(f"mutant-{number}", ignore_errors=True)
        if not fine:
            break
    os._exit(0)


def heard(child: int, pipe: int, trace: Path) -> list[Mutant]:
    """What a process says until it ends, and how it ended."""
    text, hangs = b"", False
    while not hangs:
        ready, _, _ = select.select([pipe], [], [], HANGS)
        more = os.read(pipe, 1 << 16) if ready else b""
        text, hangs = text + more, not ready
        if ready and not more:
            break
    os.close(pipe)
    if hangs:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    found: list[Mutant] = []
    for value in map(json.loads, text.splitlines()):
        if isinstance(value, int):
            found.append(Mutant(value))
        else:
            found[-1].outcomes.append(Outcome(**value))
    if found and (hangs or status):
        code = os.waitstatus_to_exitcode(status)
        kind = "slow" if hangs or code == -signal.SIGXCPU else "crash"
        ours = re.findall(r'File "[^"]*/linnet/([^"]+)", line \d+ in (\S+)', trace.read_text())
        where = " ".join(ours[0]) if ours else "no function of linnet"
        found[-1].outcomes.append(Outcome("", kind, f"{'hangs' if hangs else f'exit code {code}'} in {where}"))
    return found


def mutants(name: str, seed: int, numbers: list[int], valid: Path) -> Iterator[Mutant]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(name, seed, numbers, valid, theirs))
    server.start()
    theirs.close()
    while found := ours.recv():  # EOFError where the server died: no result is better than half of one
        yield from found
    server.join()


# --- the report ------------------------------------------------------------------------------------


def report(name: str, seed: int, found: list[Mutant], seconds: float) -> bool:
    """Print counts and findings; whether there were any."""
    print(name, dict(Counter(mutant.kind for mutant in found)), f"seed {seed}, {seconds:.0f} s", flush=True)
    verbs: dict[str, Counter[str]] = {}
    for outcome in (outcome for mutant in found for outcome in mutant.outcomes):
        verbs.setdefault(outcome.verb, Counter())[outcome.kind] += 1
    for verb, counts in sorted(verbs.items()) if name not in ("arguments", "set") else ():
        print(f"    {verb or '?'}: " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common()))
    classes: dict[tuple[str, str], list[tuple[int, Outcome]]] = {}
    for mutant in found:
        for outcome in mutant.findings:
            classes.setdefault((outcome.kind, outcome.where), []).append((mutant.number, outcome))
    for (kind, where), those in sorted(classes.items(), key=lambda entry: -len(entry[1])):
        number, first = those[0]
        print(f"  {len(those)} {kind}: {where}: {first.message} ({first.verb}, --only {number})", flush=True)
    return bool(classes)


def keep(name: str, seed: int, number: int, valid: Path, at: Path) -> None:
    """Leave the files of one mutant, and print its commands."""
    shutil.rmtree(at, ignore_errors=True)
    for command in prepare(name, valid, at, random.Random(f"{seed} {name} {number}")):
        print("linnet", *(repr(word) for word in command.words), f"< {command.stdin}" if command.stdin else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=f"of {', '.join(FORMATS)}; all unless named")
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--messages", type=int, default=0, help="how many mutants to show with their messages")
    parser.add_argument("--only", type=int, help="the number of one mutant")
    parser.add_argument("--keep", type=Path, help="leave the files of that mutant there, and run nothing")
    given = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        valid = Path(folder) / "valid"
        valid.mkdir()
        make_valid_files(valid)
        for name in given.formats or FORMATS:
            if given.keep:
                keep(name, given.seed, given.only, valid, given.keep)
                continue
            numbers = [given.only] if given.only is not None else list(range(given.mutants))
            began = time.perf_counter()
            found = list(mutants(name, given.seed, numbers, valid))
            failed |= report(name, given.seed, found, time.perf_counter() - began)
            for mutant in random.Random(0).sample(found, min(given.messages, len(found))):
                for outcome in mutant.outcomes:
                    print(f"    {mutant.number} {outcome.verb}: {outcome.kind}: {outcome.message}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
