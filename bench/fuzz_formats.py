"""What `bench.fuzz` mutates: the files of each format with the commands that read them, and argument lists."""

from __future__ import annotations

import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from bench.mutations import TOML, mutate, rehash, rehash_store

MOST_COMMANDS = 3  # that a mutant meets, of those of its format; drawn anew each time


@dataclass(frozen=True)
class Format:
    """Patterns of the files of which one or two are mutated, and the commands that read them."""

    mutants: str
    commands: tuple[
        str, ...
    ]  # {d} the folder, {m} the mutant, {v} valid files; && if the last succeeded; < gives input
    run: str  # which of the valid runs is called `run`


def reading(mutants: str, *commands: str, run: str = "") -> Format:
    return Format(mutants, commands, run)


RUN = "run/run.toml run/codec.json run/record.json run/metrics.jsonl run/checkpoints/*/*"
EVERY_RUN = ("show {d}/run", "runs {d}", "resume {d}/run", "export {d}/run {d}/copy --to run")
GENERATE = "generate {d}/run |1 2| --max-tokens 2 --seed 1"
PREDICT = "predict {d}/run --file {m}"
EVAL = "eval {d}/run --data {m}"
CHECK_PLACES = "data check places {m}"
TRAIN_PLACES = "train tiny-places --data {m} --out {d}/new --steps 1"
FEW_TOKENS = "--set data.tokenizer.vocabulary=300 --out {d}/new --steps 1"
SENSOR = "--set |data.columns='id=subject+recording,group=subject'|"
SMALL = "--set model.width=16 --set model.depth=1"
FORMATS = {
    "hf": reading("hf/*", f"import {{d}}/hf --out {{d}}/run && {GENERATE}"),
    "gguf": reading("m.gguf", f"import {{d}}/m.gguf --out {{d}}/run && {GENERATE}"),
    "tokenizer": reading(
        "t/*",
        "tokenizer check {d}/t --data {d}/few.txt",
        "train tiny-text --data {d}/few.txt --tokenizer {d}/t/tokenizer.json --out {d}/new --steps 1 " + SMALL,
    ),
    "run-text": reading(
        RUN,
        *EVERY_RUN,
        GENERATE,
        "export {d}/run {d}/new",
        "eval {d}/run --data {d}/few.txt",
        "inspect attention {d}/run |1 2|",
        run="words",
    ),
    "run-arithmetic": reading(
        RUN,
        *EVERY_RUN,
        "generate {d}/run 1+2= --max-tokens 2",
        "eval {d}/run --set n=4",
        "inspect heads {d}/run --rows 2",
        "inspect ablate {d}/run -n 2",
        run="sums",
    ),
    "run-unfinished": reading(
        "run/checkpoints/000004/*", "resume {d}/run && resume {d}/run --steps 7", run="unfinished"
    ),
    "run-places": reading(
        RUN,
        *EVERY_RUN,
        "predict {d}/run --file {d}/histories.jsonl",
        "eval {d}/run --data {d}/v.csv",
        "forget {d}/run --user u00001",
        run="places",
    ),
    "run-forecast": reading(
        RUN,
        *EVERY_RUN,
        "predict {d}/run --file {d}/weekly.csv",
        "eval {d}/run --data {d}/weekly.csv",
        run="forecast",
    ),
    "run-classes": reading(
        RUN, *EVERY_RUN, "predict {d}/run --file {d}/waves.csv", "eval {d}/run --data {d}/waves.csv", run="classes"
    ),
    "run-captions": reading(RUN, *EVERY_RUN, "caption {d}/run --file {d}/long.csv", run="captions"),
    "run-rationale": reading(
        RUN, *EVERY_RUN, "predict {d}/run --file {d}/sensor.csv --set draws=2", run="rationale"
    ),
    "visits": reading("v.csv v.parquet v.csv.gz", CHECK_PLACES, TRAIN_PLACES, PREDICT, run="places"),
    "tracks": reading("a.gpx a.geojson a.gpx.gz", CHECK_PLACES, TRAIN_PLACES),
    "samples": reading("s.jsonl s.jsonl.gz", CHECK_PLACES, TRAIN_PLACES, PREDICT, EVAL, run="places"),
    "histories": reading("histories.jsonl", PREDICT, run="places"),
    "series": reading(
        "weekly.csv weekly.csv.gz long.csv long.parquet",
        "data check series {m}",
        "train tiny-forecast --data {m} --out {d}/new --steps 1",
        PREDICT,
        EVAL,
        run="forecast",
    ),
    "labelled": reading(
        "waves.csv waves.ts",
        "data check series {m}",
        "train tiny-classify --data {m} --set model.proportions=84 --out {d}/new --steps 1",
        PREDICT,
        EVAL,
        run="classes",
    ),
    "sensor": reading(
        "sensor.csv",
        f"train tiny-rationale --data {{m}} {SENSOR} --out {{d}}/new --dry-run",
        "predict {d}/run --file {m} --set draws=2",
        run="rationale",
    ),
    "values": reading("values.jsonl values.jsonl.gz", PREDICT, "predict {d}/classes --file {m}", run="forecast"),
    "captions": reading(
        "long.csv weekly.csv",
        "caption {d}/run --file {m}",
        "caption {d}/run --file {m} --rules",
        "train tiny-captions --data {m} --set data.series=24 --set data.validation=10 --out {d}/new --dry-run",
        run="captions",
    ),
    "text": reading(
        "few.txt few.jsonl few.parquet few.txt.gz few.jsonl.gz",
        "tokenizer train --data {m} --out {d}/new.json --vocabulary 300",
        f"train tiny-text --data {{m}} {SMALL} {FEW_TOKENS}",
        EVAL,
        run="words",
    ),
    "chats": reading(
        "chats.jsonl completions.jsonl chats.jsonl.gz",
        f"train tiny-text --data {{m}} --set template=chatml {SMALL} {FEW_TOKENS}",
        EVAL,
        run="talks",
    ),
    "store": reading(
        "store/*", f"train tiny-text --data {{v}}/few.txt --set |data.store='{{d}}/store'| {SMALL} {FEW_TOKENS}"
    ),
    "arithmetic": reading("sums.txt sums.jsonl sums.jsonl.gz", "data check arithmetic {m}", EVAL, run="sums"),
    "prompts": reading(
        "prompts.txt prompts.jsonl",
        "generate {d}/run --file {m} --max-tokens 2",
        "generate {d}/run - --max-tokens 2 < {m}",
        "generate {d}/run 1+2= --choices {m}",
        "search {d}/run --file {m} --reward exact --rollouts 4 --max-tokens 2",
        run="sums",
    ),
    "cases": reading(
        "cases.jsonl",
        "inspect patch {d}/run --file {m} --metric log_probability",
        "inspect ablate {d}/run --file {m} --what head",
        "inspect attribute {d}/run --file {m}",
        "inspect subsets {d}/run --file {m} --part heads",
        run="sums",
    ),
    "tree": reading("tree/*", "search --resume {d}/tree --rollouts 4"),
    "settings": reading("run/run.toml", "train {d}/run/run.toml --out {d}/new --steps 1", run="sums"),
    "set": reading(""),
    "arguments": reading(""),
}
ARGUMENTS = """import {d}/hf --out {d}/new
export {d}/words {d}/new --to hf --type f16
export {d}/words {d}/x.gguf --type q8_0 --force
export {d}/places {d}/new --to run --set rare=drop --set fewer_than=3
generate {d}/words |The fox| -n 2 --max-tokens 2 --temperature 1 --top-k 3 --top-p 0.9 --min-p 0.1 --seed 1
generate {d}/words |The fox| --max-tokens 2 --stop a --stop-id 3 --repetition-penalty 1.1 --precision int8
generate {d}/sums 1+2= --choice 3 --choice 7 --checkpoint 4
generate {d}/sums 1+2= --pattern |[0-9]+| --max-tokens 3 --device cpu
generate {d}/words - --max-tokens 2 --session < few.txt
chat {d}/words --template chatml --system hello --max-tokens 2 --temperature 0 < few.txt
train tiny-text --data {d}/few.txt --out {d}/new --steps 1 --seed 2 --sample 3 --device cpu
train tiny-arithmetic --out {d}/new --epochs 0.01 --precision bfloat16 --seeds 2 --set data.instances=40
train tiny-text --from {d}/words --data {d}/few.txt --out {d}/new --steps 1 --dry-run
train tiny-forecast --data {d}/weekly.csv --columns id=id --frequency weekly --out {d}/new --steps 1
tokenizer train --data {d}/few.txt --out {d}/t.json --vocabulary 300 --counts {d}/counts.tsv --sample 4
tokenizer check {d}/t --data {d}/few.txt --counts {d}/counts.tsv
eval {d}/words --data {d}/few.txt --split test --checkpoint 4 --precision float32
data check places {d}/v.csv --columns user=user,time=start --tz UTC --local Europe/Paris
data check series {d}/long.csv --columns id=id,time=time,value=value --where id=S1 --frequency daily
data check arithmetic {d}/sums.txt --task add
data make arithmetic --out {d}/new --task add --instances 50 --digits 1 2 --seed 3
data make places --out {d}/new.csv --users 3 --visits 12 --seed 1
data make visits --data {d}/v.csv --out {d}/new.csv --tz UTC --set recipe.by=time
inspect attention {d}/words |The fox| --layer 0 --head 1 --out {d}/a.npz
inspect attribute {d}/sums 1+2= --answer 3 --wrong 4
inspect patch {d}/sums 1+2= 1+5= --what residual --by-position --metric logit_difference
inspect patch {d}/sums 1+2= 1+5= --into v.0.0 --direct
inspect ablate {d}/sums -n 4 --what neuron --layer 0 --by resample
inspect edges {d}/sums 1+2= 1+5= --method eap --method acdc --no-curves
inspect subsets {d}/sums 1+2= 1+5= --part heads --share 0.9 --orders 3
inspect heads {d}/sums --half 4 --rows 2 --seed 1
inspect lens {d}/sums 1+2= --top 2 --rows 4
inspect probe {d}/sums digit --tap embed --rows 20 --head 0
inspect interchange {d}/sums carry.1 --dims 1 --rows 20 --step 3 --at 2
inspect embeddings {d}/sums --token 3 --components 2
inspect step {d}/sums 1+2= --max-tokens 2 --top 2 --layer 0
inspect development {d}/sums heads --layer 0 --head 0 --rows 2
inspect misses {d}/places --data {d}/v.csv -n 2 --split test
search {d}/sums 1+2= --reward exact --method maxent --rollouts 4 --set lam=4 --max-tokens 2 --samples 1
search {d}/sums 1+2= --reward exact --compare maxent,greedy --tokens 40 --preset quick --temperature 0.5
search {d}/sums 1+2= --reward exact --reward-calls 3 --out {d}/saved --width 0.1 --seconds 1 --adaptive
search --resume {d}/tree --rollouts 2
predict {d}/places --file {d}/histories.jsonl -k 3 --checkpoint 2
predict {d}/forecast --file {d}/weekly.csv --set horizon=3 --set paths=2 --out {d}/new.svg
caption {d}/captions --file {d}/long.csv --rules
forget {d}/places --user u00001
show {d}/words --out {d}/new.json
runs {d}
recipes tiny-text
resume {d}/words --steps 5""".splitlines()
ODD_WORDS = ["", "..", ".", "-1", "0", "1e9", "nan", "99999999999999999999", "²", "\0", "a=b", "--", "-", "\udc80"]
ODD_WORDS += ["/dev/null", "x" * 300, "/proc/self/mem", "{d}/few.txt", "{d}", "{d}/words", "--force", "--json"]
ODD_WORDS += ["--out", "--set", "4294967296", "1", "0.5", "inf", "a,b", "[", "(", "model.depth=2", "{d}/tree"]


@dataclass(frozen=True)
class Command:
    words: list[str]
    stdin: Path | None = None
    needs_last: bool = False  # runs only if the one before it succeeded


def split(command: str, at: Path, mutant: Path, valid: Path) -> list[Command]:
    """The commands of a line. A word may stand between bars."""
    found: list[Command] = []
    for part in command.split(" && "):
        line, _, stdin = part.partition(" < ")
        words = [quoted or word for quoted, word in re.findall(r"\|([^|]*)\||(\S+)", line)]
        filled = [
            word.replace("{d}", str(at)).replace("{m}", str(mutant)).replace("{v}", str(valid)) for word in words
        ]
        given = mutant if stdin == "{m}" else at / stdin if stdin else None
        found.append(Command(filled, given, bool(found)))
    return found


def prepare(name: str, valid: Path, at: Path, draw: random.Random) -> list[Command]:
    """Lay out the files of one mutant, mutate them, and say which commands read them."""
    shutil.rmtree(at, ignore_errors=True)
    at.mkdir()
    if name == "arguments":
        return [odd_arguments(valid, at, draw)]
    if name == "set":
        return [odd_settings(valid, at, draw)]
    format = FORMATS[name]
    if format.run:
        shutil.copytree(valid / format.run, at / "run")
    names = " ".join(f"{{d}}/{mutant}" for mutant in format.mutants.split())
    copy_named(" ".join([*format.commands, names]), valid, at)
    files = sorted({file for pattern in format.mutants.split() for file in at.glob(pattern) if file.is_file()})
    chosen = draw.sample(files, draw.choice([1, 1, 1, min(2, len(files))]))
    for file in chosen:
        mutate(file, draw)
    if name.startswith("run-"):
        change_checkpoints(at / "run" / "checkpoints", draw)
    if name == "store" and draw.random() < 0.8:
        rehash_store(at / "store")
    numbers = sorted(draw.sample(range(len(format.commands)), min(MOST_COMMANDS, len(format.commands))))
    return [command for number in numbers for command in split(format.commands[number], at, chosen[0], valid)]


def copy_named(text: str, valid: Path, at: Path) -> None:
    """Copy what a text names as `{d}/NAME`."""
    for found in sorted(set(re.findall(r"\{d\}/([\w.*-]+)", text))):
        source, copy = valid / found, at / found
        if source.is_dir() and not copy.exists():
            shutil.copytree(source, copy)
        elif source.is_file():
            shutil.copy(source, copy)


def change_checkpoints(folder: Path, draw: random.Random) -> None:
    """Mostly hashes that fit, so that what was mutated is read; rarely another name."""
    for checkpoint in folder.iterdir():
        if draw.random() < 0.8:
            rehash(checkpoint)
        if draw.random() < 0.03:
            odd = draw.choice(["²", "٣٣٣٣٣٣", "-00001", "9" * 30, "1", "000001 "])
            if not checkpoint.with_name(odd).exists():
                checkpoint.rename(checkpoint.with_name(odd))


def odd_arguments(valid: Path, at: Path, draw: random.Random) -> Command:
    line, _, stdin = draw.choice(ARGUMENTS).partition(" < ")
    words = [quoted or word for quoted, word in re.findall(r"\|([^|]*)\||(\S+)", line)]
    for _ in range(draw.choice([1, 1, 2, 3])):
        i = draw.randrange(len(words))
        words[i : i + draw.choice([0, 1, 1, 1])] = [draw.choice(ODD_WORDS)] if draw.random() < 0.8 else []
        words = words or ["--help"]
    copy_named(" ".join(words) + (f" {{d}}/{stdin}" if stdin else ""), valid, at)
    return Command([word.replace("{d}", str(at)) for word in words], at / stdin if stdin else None)


RECIPES = [
    ("tiny-arithmetic", ""),
    ("tiny-text", "few.txt"),
    ("tiny-places", "v.csv"),
    ("tiny-forecast", "weekly.csv"),
    ("tiny-tokens", "weekly.csv"),
    ("tiny-classify", "waves.csv"),
    ("tiny-captions", "long.csv"),
    ("modular", ""),
]


def odd_settings(valid: Path, at: Path, draw: random.Random) -> Command:
    from linnet.training.settings import flatten
    from linnet.workbench.train import made

    recipe, data = draw.choice(RECIPES)
    copy_named(f"{{d}}/{data}", valid, at)
    keys = sorted(flatten(made(recipe).model_dump(mode="json")))
    words = ["train", recipe, "--out", str(at / "new"), "--steps", "1"]
    words += ["--data", str(at / data)] if data else []
    for _ in range(draw.choice([1, 1, 1, 2])):
        words += ["--set", f"{draw.choice(keys)}={draw.choice(TOML)}"]
    return Command(words)
