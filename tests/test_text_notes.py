"""What a person reads about the text that is scored, the tokenizer that is used, and a store that is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from linnet import workbench
from linnet.cli.app import build
from linnet.domains.text import data as domain
from linnet.domains.text.data import TextData, Tokenizing
from linnet.errors import BadInput
from text_corpora import corpus, sentences

FEW = ["--set", "training.steps=4", "--set", "threads=1", "--set", "compile=off"]


def linnet(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose text is in `c.txt` beside it, read with errors=replace."""
    data = corpus(tmp_path_factory.mktemp("text") / "c.txt", 200)
    settings = ["--set", "ema=0.9", "--set", "data.block=[64,128]", "--errors", "replace"]
    result = linnet("train", "tiny-text", "--data", data, "--out", data.parent / "run", *settings, *FEW)
    assert result.exit_code == 0, result.stderr
    note = "the scores are those of the averaged weights (optim.ema=0.9)"
    missing = " tokens, and one 64 x 128 span needs 8,193"
    assert note in result.stderr and note in " ".join(result.stdout.split())
    assert "no block metric: the validation part has" in result.stderr and missing in result.stderr
    report = (data.parent / "run" / "report.md").read_text()
    assert note in report and missing in report
    return data.parent / "run"


def test_scoring_reads_as_the_run_read_and_says_what_it_met(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.txt"
    path.write_bytes(b"\xef\xbb\xbfnew words\r\n\r\nwith a bad \xff byte " + b"and many more " * 60)
    result = linnet("eval", run, "--data", path, "--json")
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    lines = [line for line in result.stderr.splitlines() if not line.startswith("scoring ")]
    assert lines == json.loads(line)["notes"]
    assert lines[:4] == [
        "left out: 1 empty document",
        "replaced by U+FFFD: 1 invalid UTF-8 character",
        "dropped: the byte-order mark of 1 file",
        "line ends read as LF: 1 file with CRLF",
    ]
    assert "1 of 2 scored rows are longer than the context of 32 tokens" in lines[4] and "begins 'with" in lines[4]
    assert "averaged weights" in lines[6]
    refused = linnet("eval", run, "--data", path, "--errors", "strict")
    assert refused.exit_code == 2 and "or read with --errors replace, which puts" in refused.stderr


def test_scoring_takes_the_fields_and_documents_that_training_takes(run: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"body": "one"}\n{"body": "two"}\n')
    refused = linnet("eval", run, "--data", rows)
    assert (
        refused.exit_code == 2 and "there is body; name the one with the text: --set field=NAME" in refused.stderr
    )
    for key in ("field", "data.field"):
        assert linnet("eval", run, "--data", rows, "--set", f"{key}=body").exit_code == 0
    poem = tmp_path / "poem.txt"
    poem.write_text("one\ntwo\n\nthree\n")
    assert linnet("eval", run, "--data", poem, "--set", "documents=paragraph").exit_code == 0
    refused = linnet("eval", run, "--data", poem, "--set", "documents=page")
    assert refused.exit_code == 2 and "it is one of 'line', 'paragraph' or 'file'" in refused.stderr


def test_the_training_text_is_counted_as_it_was_read_whatever_the_scored_text_is(tmp_path: Path) -> None:
    for name, key in (("own", "body"), ("other", "text")):
        lines = [json.dumps({key: f"{name} words of line {n} and what follows"}) for n in range(80)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    settings = ["field=body", "width=16", "depth=1", "data.tokenizer.vocabulary=300"]
    workbench.train("tiny-text", out=tmp_path / "run", data=[tmp_path / "own.jsonl"], steps=2, settings=settings)
    record = workbench.evaluate(tmp_path / "run", data=tmp_path / "other.jsonl", settings=["field=text"])
    assert {score.baseline.name for score in record.scores} == {"5-gram"}
    assert not any("no baseline" in note for note in record.notes)


def test_text_that_was_trained_on_is_named(run: Path, tmp_path: Path) -> None:
    own = linnet("eval", run, "--data", run.parent / "c.txt")
    assert "stand word for word in the training text: the scores say little about new text" in own.stderr
    mixed = tmp_path / "mixed.txt"
    mixed.write_text("\n".join([*(f"unseen {i}" for i in range(99)), sentences(200)[0]]) + "\n")
    assert "1 of 100 documents (1.0%) stand" in linnet("eval", run, "--data", mixed).stderr
    book = tmp_path / "book.txt"
    book.write_text("\n".join(sentences(100)))
    linnet("train", "tiny-characters", "--data", book, "--out", tmp_path / "r", *FEW)
    assert "book.txt: at least a part was seen in training" in (
        linnet("eval", tmp_path / "r", "--data", book).stderr
    )


def test_baselines_are_of_the_training_text_and_say_when_they_cannot_be(run: Path, tmp_path: Path) -> None:
    moved, other = tmp_path / "run", corpus(tmp_path / "d.txt", 30, seed=9)
    shutil.copytree(run, moved)
    toml = moved / "run.toml"
    toml.write_text(toml.read_text().replace(str(run.parent / "c.txt"), str(tmp_path / "gone.txt")))
    with_text, without = (linnet("eval", folder, "--data", other, "--json") for folder in (run, moved))
    first, second = (json.loads(result.stdout)["scores"][0] for result in (with_text, without))
    assert first["baseline"]["name"] == "5-gram" and first["note"].startswith("unigram ")
    assert second["baseline"]["name"] == "unigram of the scored text"
    assert "no baseline that counts the training text: there is no file or folder" in without.stderr
    assert float(first["note"].split()[1].rstrip(";")) > second["baseline"]["value"], (
        "fitted on other text, it is worse"
    )


def test_a_block_longer_than_the_context_is_read_in_windows(tmp_path: Path) -> None:
    data = corpus(tmp_path / "c.txt", 300)
    arguments = ["--set", "context=8", "--set", "data.block=[2,16]", *FEW, "--json"]
    result = linnet("train", "tiny-text", "--data", data, "--out", tmp_path / "r", *arguments)
    assert result.exit_code == 0, result.stderr
    block = next(s for s in json.loads(result.stdout)["scores"] if s["name"].startswith("block"))
    assert block["note"].endswith("rows read in windows of 8; interval over 30 documents")


def test_a_tokenizer_file_says_what_it_does_not_obey(tmp_path: Path) -> None:
    path, file = corpus(tmp_path / "c.txt"), tmp_path / "t.json"
    data = TextData(paths=(path,), tokenizer=Tokenizing(vocabulary=300, file=str(file)))
    assert f"a tokenizer with 300 tokens was made and kept in {file}" in data.load(1).notes
    assert f"tokenizer {file} with 300 tokens, as it is" in data.load(1).notes
    other = Tokenizing(kind="words", vocabulary=400, lowercase=True, file=str(file))
    assert (
        f"tokenizer {file} with 300 tokens, as it is; not obeyed: data.tokenizer.kind=words (it is bpe), "
        "data.tokenizer.vocabulary=400 (it is 300), data.tokenizer.lowercase=true (it is false)"
    ) in data.model_copy(update={"tokenizer": other}).load(1).notes


def test_the_corpus_is_never_written_over(tmp_path: Path) -> None:
    path = corpus(tmp_path / "c.txt")
    before = path.read_bytes()
    for option in ("--out", "--counts"):
        others = [] if option == "--out" else ["--out", tmp_path / "t.json"]
        refused = linnet("tokenizer", "train", "--data", path, option, path, *others, "--force")
        assert refused.exit_code == 2 and "is a file of the corpus itself; name another one" in refused.stderr
    assert path.read_bytes() == before


def test_a_note_shows_a_short_beginning_of_a_long_row(tmp_path: Path) -> None:
    from linnet.domains.tokens import cut_rows

    path = tmp_path / "c.txt"
    path.write_text("x" * 90_000)
    material = TextData(paths=(path,), tokenizer=Tokenizing(vocabulary=300)).load(1)
    (note,) = cut_rows(material.train, material.codec, 2, "training")
    assert note.endswith(f"begins '{'x' * 80}'")


def stored(tmp_path: Path) -> tuple[TextData, Path]:
    folder = tmp_path / "store"
    data = TextData(paths=(corpus(tmp_path / "c.txt"),), tokenizer=Tokenizing(vocabulary=300), store=folder)
    data.load(1)
    return data, folder


def test_a_stale_store_is_named_once_with_the_settings_that_differ(tmp_path: Path) -> None:
    data, folder = stored(tmp_path)
    other = data.model_copy(update={"tokenizer": Tokenizing(vocabulary=290)})
    wanted = (
        f"the token store {folder} is stale: tokenizer.vocabulary was 300 and is 290; "
        f"delete the folder {folder} or name another one"
    )
    with pytest.raises(BadInput) as caught:
        other.load(1)
    assert str(caught.value) == wanted


def test_a_store_that_lost_its_manifest_or_is_damaged_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = stored(tmp_path)
    shard = folder / "validation-tokens.bin"
    content = bytearray(shard.read_bytes())
    shard.write_bytes(bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:]))
    with pytest.raises(BadInput, match=f"validation-tokens.bin does not hold .*delete the store {folder},"):
        data.load(1)
    monkeypatch.setattr(domain, "VERIFIED", 10)
    assert any("were not read through for damage" in note for note in data.load(1).notes)
    monkeypatch.undo()
    shard.write_bytes(bytes(content))
    data.load(1)
    (folder / "manifest.json").unlink()
    with pytest.raises(BadInput, match=f"{folder} is not empty .*there is no manifest.json; .*delete it"):
        data.load(1)
