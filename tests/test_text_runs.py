"""Text runs end to end: what a person types, and the numbers that come back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from linnet import workbench
from linnet.cli.app import build
from linnet.domains.text import REGISTRATION
from linnet.domains.text import recipes as text
from linnet.domains.text.data import MOST_ROUNDS, TOKENS_PER_PARAMETER, TextData
from linnet.errors import BadInput
from linnet.model.costs import costs
from linnet.tokenization import TokenizerCodec
from linnet.training.resolve import complete, settle
from linnet.training.settings import parse, to_toml
from linnet.workbench.train import made, prepare
from text_corpora import corpus, sentences

FEW = ["--set", "training.steps=12", "--set", "training.eval_every=6", "--set", "threads=1"]


def linnet(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


def record(result: Result) -> dict:  # type: ignore[type-arg]
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    return dict(json.loads(line))


def scores(result: Result) -> dict[str, dict]:  # type: ignore[type-arg]
    return {score["name"]: score for score in record(result)["scores"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("text") / "c.txt", 400)


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    out = data.parent / "run"
    result = linnet(
        "train", "tiny-text", "--data", data, "--out", out, "--set", "data.block=[4,16]", *FEW, "--json"
    )
    made = record(result)
    assert made["steps"] == 12
    assert "40 of 400 documents are held out" in result.stderr
    return out


def test_training_ends_with_scores_and_what_they_have_to_beat(run: Path, data: Path) -> None:
    found = {score["name"]: score for score in json.loads((run / "record.json").read_text())["scores"]}
    held = TextData(paths=(data,), tokenizer=text.tiny_text().data.tokenizer).load(1).validation.rows  # type: ignore[union-attr]
    assert found["nats_per_char"]["n"] == held.characters
    assert found["bits_per_byte"]["n"] == held.utf8_bytes
    assert found["nats_per_token"]["n"] == held.targets
    assert found["nats_per_char"]["baseline"]["name"] == "5-gram"
    assert "unigram" in found["nats_per_char"]["note"]
    for score in found.values():
        assert score["low"] < score["value"] < score["high"] and "interval over 40 documents" in score["note"]
    block = found["block_nats_per_char"]
    assert block["n"] == held.characters + 5 * len(held)
    assert "the headline protocol at 4 x 16" in block["note"] and "% of the tokens" in block["note"]


def test_scores_do_not_depend_on_the_batch(run: Path, data: Path) -> None:
    some, other = (
        scores(linnet("eval", run, "--data", data, "--json", "--set", f"batch={batch}")) for batch in (1, 64)
    )
    assert some["nats_per_char"]["n"] == len("".join(sentences(400)))
    for name, score in some.items():
        assert score["value"] == pytest.approx(other[name]["value"], rel=1e-5)


def test_a_run_writes_text(run: Path) -> None:
    result = linnet("generate", run, "the cat ", "--max-tokens", "8", "-n", "2", "--json")
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    codec = workbench.load(run).codec
    assert len(lines) == 2
    for line in lines:
        assert line["prompt"] == "the cat " and len(line["ids"]) <= 8
        assert isinstance(codec, TokenizerCodec)
        assert codec.continuation(codec.encode("the cat ").ids.tolist(), line["ids"]) == line["text"]


def test_a_stopped_run_ends_where_an_unbroken_one_does(run: Path, data: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    from linnet.training.checkpoint import RunFolder

    out = tmp_path / "again"
    linnet("train", "tiny-text", "--data", data, "--out", out, "--set", "data.block=[4,16]", *FEW)
    folder = RunFolder(out)
    last, middle = folder.at(12), folder.at(6)
    wanted = load_file(last / "weights.safetensors")
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    folder.record.unlink()
    assert middle.is_dir()
    assert record(linnet("resume", out, "--json"))["steps"] == 12
    for name, value in load_file(last / "weights.safetensors").items():
        assert (value == wanted[name]).all(), name


def test_a_store_and_memory_train_the_same(run: Path, data: Path, tmp_path: Path) -> None:
    settings = ["--set", "data.block=[4,16]", "--set", f"data.store={tmp_path / 'store'}"]
    for _ in range(2):
        found = scores(
            linnet(
                "train", "tiny-text", "--data", data, "--out", tmp_path / "r", "--force", *settings, *FEW, "--json"
            )
        )
        before = json.loads((run / "record.json").read_text())["scores"]
        assert {name: score["value"] for name, score in found.items()} == {s["name"]: s["value"] for s in before}


@pytest.mark.parametrize("packing", ["padded", "apart"])
def test_other_plans_train_too(data: Path, tmp_path: Path, packing: str) -> None:
    packed = ["--set", f"packing={packing}", "--set", "context=8", "--set", "mask=0.15", "--set", "drop=0.1"]
    result = linnet("train", "tiny-text", "--data", data, "--out", tmp_path / "r", *packed, *FEW, "--json")
    assert record(result)["steps"] == 12
    for note in (
        "rows are longer than the context of 8 tokens and are read in pieces",
        "augmentation of the training data: token masking, 15%",
        "augmentation of the training data: document dropping, 10%",
    ):
        assert note in result.stderr


def test_plain_gradient_descent_trains_too(data: Path, tmp_path: Path) -> None:
    settings = ["--set", "optim.kind=sgd", "--set", "optim.lr=0.1"]
    result = linnet("train", "tiny-text", "--data", data, "--out", tmp_path / "r", *settings, *FEW, "--json")
    assert scores(result)["nats_per_token"]["value"] < 6


def test_characters_of_a_book(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("\n".join(sentences(200)))
    result = linnet("train", "tiny-characters", "--data", book, "--out", tmp_path / "r", *FEW, "--json")
    size = len(book.read_text())
    found = scores(result)["nats_per_char"]
    assert found["n"] == size - int(size * 0.9) and "blocks of 1 document" in found["note"]


def test_short_options_stand_for_settings(data: Path, tmp_path: Path) -> None:
    file, bad = tmp_path / "t.json", tmp_path / "bad.txt"
    bad.write_bytes(data.read_bytes() + b"\xff\n")
    refused = linnet("train", "tiny-text", "--data", bad, "--out", tmp_path / "r", *FEW)
    assert refused.exit_code == 2 and "(0xff) is not UTF-8" in refused.stderr
    assert not (tmp_path / "r").exists()
    options = ["--errors", "replace", "--sample", "100", "--tokenizer", file]
    trained = linnet("train", "tiny-text", "--data", bad, "--out", tmp_path / "r", *options, *FEW, "--json")
    record(trained)
    assert "100 of 401 documents are used" in trained.stderr and file.is_file()
    assert re.search(r"\d+ steps read the [\d,]+ tokens of the training part [\d.]+ times", trained.stderr)


def test_the_dial_derives_the_rest() -> None:
    runs = [made("text", size) for size in (1, 2, 4, 8, 12)]
    widths = [run.model.width for run in runs]
    assert widths == [64, 128, 256, 512, 768]
    assert [run.optim.lr for run in runs] == sorted((run.optim.lr for run in runs), reverse=True)
    tokens = [run.training.batch * run.model.context for run in runs]
    assert tokens == sorted(tokens)
    assert prepare("text", settings=["size=2", "data.sample=7"]).model.depth == 2
    with pytest.raises(BadInput, match="size=99 is no size"):
        made("text", 99)
    with pytest.raises(BadInput, match='recipe "headlines" has no size; text, wiki have one'):
        prepare("headlines", settings=["size=2"])


def test_short_text_is_read_again_and_long_text_once(data: Path) -> None:
    run = made("text", 1).model_copy(update={"data": TextData(paths=(str(data),))})
    size = costs(run.model).parameters
    assert run.data.rounds(size, 1) == MOST_ROUNDS
    assert run.data.rounds(size, 5 * size) == TOKENS_PER_PARAMETER / 5
    assert run.data.rounds(size, 1000 * size) == 1
    material = run.data.load(1)
    steps = complete(settle(run), material).training.steps
    assert steps == round(MOST_ROUNDS * run.data.plan(material.train.rows, run).steps_per_epoch)


@pytest.mark.parametrize("name", sorted(REGISTRATION.recipes))
def test_recipes_survive_their_file(name: str) -> None:
    import tomllib

    run = made(name)
    assert parse(tomllib.loads(to_toml(run)), name) == run


def test_headline_models_have_the_sizes_of_the_reports() -> None:
    def parameters(name: str, vocabulary: int) -> int:
        model = made(name).model
        return costs(model.model_copy(update={"vocabulary": vocabulary})).parameters

    assert parameters("headlines-s4", 16_000) == 27_140_096
    assert parameters("headlines-baseline", 16_000) == 27_172_864
    assert parameters("headlines", 16_000) <= 50_000_000
    wide = prepare("headlines-report").model
    narrow = prepare("headlines-report", settings=["width=128", "model.attention.heads=2"]).model
    assert (wide.feedforward_width, narrow.feedforward_width) == (1365, 341), "int(8/3 x width)"
    assert 700_000 < parameters("shakespeare", 68) < 900_000


def test_tokenizers_are_made_and_checked(data: Path, tmp_path: Path) -> None:
    file, counts = tmp_path / "tokenizer.json", tmp_path / "counts.tsv"
    arguments = [
        "--data",
        data,
        "--out",
        file,
        "--vocabulary",
        "300",
        "--counts",
        counts,
        "--set",
        "urls=true",
        "--json",
    ]
    made = record(linnet("tokenizer", "train", *arguments))
    assert (made["kind"], made["action"], made["lossless"]) == ("tokenizer", "trained", True)
    assert made["vocabulary"] == 300 and made["documents"] == 400
    assert made["characters_per_token"] == made["characters"] / made["tokens"] > 1.5
    lines = [line.split("\t") for line in counts.read_text().splitlines()]
    assert sum(int(count) for count, _ in lines) == made["tokens"]
    refused = linnet("tokenizer", "train", *arguments)
    assert refused.exit_code == 2 and "exists; choose another name, or replace it with --force" in refused.stderr
    content = counts.read_text()
    for verb in (["train", *arguments, "--out", tmp_path / "new.json"], ["check", file, *arguments[:2]]):
        refused = linnet("tokenizer", *verb, "--counts", counts)
        assert refused.exit_code == 2 and "exists; choose another name" in refused.stderr
        assert not (tmp_path / "new.json").exists() and counts.read_text() == content
    counts.write_text("")
    forced = linnet("tokenizer", "check", file, *arguments[:2], "--counts", counts, "--force", "--json")
    assert record(forced)["action"] == "checked" and counts.read_text() == content
    other = tmp_path / "other.txt"
    other.write_text("ünbekannte wörter\n")
    checked = record(linnet("tokenizer", "check", file, "--data", other, "--json"))
    assert checked["lossless"] and checked["unused"] > 200 and checked["unknown"] == 0
    words = record(
        linnet("tokenizer", "train", "--kind", "words", "--data", data, "--out", tmp_path / "w.json", "--json")
    )
    assert "instead of 16,000" in words["notes"][0]
    lossy = linnet("tokenizer", "check", tmp_path / "w.json", "--data", other)
    assert "LOSSY: 1 of 1 documents differ ('ünbekannte wörter' becomes '<unk> <unk>')" in lossy.stdout
    assert record(linnet("tokenizer", "check", tmp_path / "w.json", "--data", other, "--json"))["unknown"] == 2


def test_tokenizers_are_measured_beside_the_library(data: Path) -> None:
    result = linnet(
        "bench", "tokenizer", "--data", data, "--set", "repeats=1", "--set", "vocabulary=290", "--json"
    )
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["name"] for line in lines] == ["tokenizer train, bpe 290", "tokenizer encode, bpe 290"]
    for line in lines:
        assert line["unit"] == "MB/s" and line["ratios"]["tokenizers"] > 0 and line["ours"] > 0


@pytest.mark.parametrize("kind", ["unigram", "words", "characters"])
def test_other_kinds_are_measured_beside_the_library_too(data: Path, kind: str) -> None:
    settings = ["--set", "repeats=1", "--set", "vocabulary=290", "--set", f"kind={kind}"]
    result = linnet("bench", "tokenizer", "--data", data, *settings, "--json")
    assert result.exit_code == 0, result.stderr
    names = [json.loads(line)["name"] for line in result.stdout.splitlines()]
    trained = [] if kind == "characters" else [f"tokenizer train, {kind} 290"]
    assert names == [*trained, f"tokenizer encode, {kind} 290"]
    refused = linnet("bench", "tokenizer", "--data", data, "--set", "kind=bytes")
    assert refused.exit_code == 2 and "kind is one of bpe, unigram, words, characters" in refused.stderr


def test_the_tokenizer_of_a_run_can_be_checked(run: Path, data: Path) -> None:
    assert record(linnet("tokenizer", "check", run, "--data", data, "--json"))["lossless"]
    assert record(linnet("tokenizer", "check", run, "--data", data, "--sample", "7", "--json"))["documents"] == 7
    refused = linnet("tokenizer", "check", run, "--data", data, "--set", "feld=x")
    assert refused.exit_code == 2 and 'did you mean "field"' in refused.stderr
