"""What a person asks of a run wrongly, or would not know: named with its place, never passed over in silence."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from linnet import workbench
from linnet.cli.app import build
from linnet.cli.face import Face
from linnet.cli.generate import Page, readable
from linnet.decoding.engine import generate
from linnet.decoding.requests import Decoding, Request
from linnet.decoding.runner import Runner
from linnet.decoding.sampling import NEAR, near_ties
from linnet.errors import BadInput
from linnet.records import GenerationRecord, PieceRecord
from linnet.training.checkpoint import RunFolder
from small_models import random_model, small_config
from text_corpora import corpus
from tiny_runs import train_tiny


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of words, which has no token for most of them."""
    folder = tmp_path_factory.mktemp("asked")
    data = corpus(folder / "c.txt", 100)
    settings = ["data.tokenizer.kind=words", "data.tokenizer.vocabulary=20", "threads=1"]
    workbench.train("tiny-text", data=[data], out=folder / "run", settings=settings, steps=2)
    return folder / "run"


def linnet(*arguments: object) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


SLIPS: Mapping[str, tuple[Any, dict[str, Any], str]] = {
    "name": (["1+1="], {"max_token": 3}, 'nothing is called "max_token" here; did you mean "max_tokens"?'),
    "one prompt": ("1+1=", {}, r"prompts is the single text '1\+1='; it has to be a list, such as \['1\+1='\]"),
    "a prompt": (["1+1=", 7], {}, "prompts has 7 at position 2; each of them has to be text"),
    "one stop": (["1+1="], {"stops": "wo"}, "stops is the single text 'wo'; it has to be a list"),
    "one choice": (["1+1="], {"choices": "46"}, "choices is the single text '46'"),
    "one setting": (["1+1="], {"settings": "batch=3"}, "settings is the single text 'batch=3'"),
    "half": (["1+1="], {"n": 1.5}, "n is 1.5; it has to be a whole number"),
    "true": (["1+1="], {"max_tokens": True}, "max_tokens is True; it has to be a whole number"),
    "none": (["1+1="], {"n": None}, "n is None; it has to be a whole number"),
    "warm": (["1+1="], {"temperature": "1"}, "temperature is '1'; it has to be a number"),
    "stop id": (
        ["1+1="],
        {"stop_ids": [1, "2"]},
        "stop_ids has '2' at position 2; each of them has to be a whole",
    ),
    "stop ids": (["1+1="], {"stop_ids": 3}, "stop_ids is 3; it has to be a list"),
    "pattern": (["1+1="], {"pattern": 3}, "pattern is 3; it has to be text"),
    "pace": (["1+1="], {"pace": 3}, "pace is 3; it has to be a function"),
    "logprobs": (["1+1="], {"logprobs": 1}, "logprobs is 1; it has to be true or false"),
    "iterator": (iter(["1+1="]), {}, "prompts is a list_iterator; it has to be a list"),
}


@pytest.mark.parametrize("name", SLIPS)
def test_slips_from_python_are_named(adder: Path, name: str) -> None:
    prompts, asked, message = SLIPS[name]
    for function in (workbench.generate, workbench.stream):
        with pytest.raises(BadInput, match=message):
            function(adder, prompts, **asked)


def test_prompts_of_a_file_are_named_by_their_lines(adder: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text(f"1+1=\n\n{'1+' * 300}1=\n")
    result = linnet("generate", adder, "2+2=", "--file", long)
    assert result.exit_code == 2
    assert f"error: {long}, line 3 ('1+1+1+" in result.stderr and "tokens, and the context" in result.stderr
    (tmp_path / "letters.jsonl").write_text('{"prompt": "1+1="}\n{"prompt": "1+x="}\n')
    result = linnet("generate", adder, "--file", tmp_path / "letters.jsonl")
    assert result.exit_code == 2 and "letters.jsonl, line 2: '1+x' is not a question" in result.stderr
    (tmp_path / "none.txt").write_text("\n\n")
    result = linnet("generate", adder, "--file", tmp_path / "none.txt")
    assert result.exit_code == 2 and "none.txt has no line with anything in it" in result.stderr
    result = linnet("generate", adder, "2+2=", "")
    assert result.exit_code == 2 and "prompt 2 is empty" in result.stderr


def test_a_mark_at_the_beginning_of_a_file_is_no_part_of_it(adder: Path, tmp_path: Path) -> None:
    prompts, choices = tmp_path / "p.txt.gz", tmp_path / "c.txt"
    prompts.write_bytes(gzip.compress('\ufeff{"prompt": "12+34="}\n'.encode()))
    choices.write_text("\ufeff46\n", encoding="utf-8")
    result = linnet("generate", adder, "--file", prompts, "--choices", choices, "--json")
    assert result.exit_code == 0, result.stderr
    assert (json.loads(result.stdout)["prompt"], json.loads(result.stdout)["text"]) == ("12+34=", "46")


def test_what_the_tokenizer_loses_is_noted(writer: Path) -> None:
    result = linnet("generate", writer, "the zebra", "the", "-n", 2, "--temperature", 0, "--max-tokens", 2)
    notes = result.stderr.splitlines()
    assert notes[0] == "prompt 1: the tokenizer has no token for 'zebra'; the model reads <unk> there"
    assert notes[1] == "at temperature 0 the 2 samples of a prompt are all the same"
    assert len(notes) == 7 and notes[6].startswith("4 samples")


def test_another_checkpoint_is_used_where_one_is_named(tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", steps=8)
    folder = RunFolder(tmp_path / "run")
    best, (first, *_) = folder.best(), folder.steps()
    assert best != first
    (folder.at(best) / "weights.safetensors").write_bytes(b"nothing")  # type: ignore[arg-type]
    for verb in (["generate", folder.path, "1+1="], ["inspect", "attention", folder.path, "1+1="]):
        result = linnet(*verb)
        assert result.exit_code == 2 and "name another with --checkpoint" in result.stderr
        assert linnet(*verb, "--checkpoint", first).exit_code == 0
        result = linnet(*verb, "--checkpoint", 999)
        assert result.exit_code == 2 and "has no checkpoint of step 999" in result.stderr


def test_a_choice_that_just_fits_is_complete(adder: Path) -> None:
    codec = workbench.load(adder).codec
    tokens = len(codec.encode("12+34=46")) - len(codec.encode("12+34="))
    samples = list(workbench.generate(adder, ["12+34="], choices=["46", "47"], max_tokens=tokens, n=4))
    assert {sample.stop for sample in samples} == {"end"} and {sample.text for sample in samples} <= {"46", "47"}
    assert all(len(sample.ids) == tokens for sample in samples)


def test_near_ties_are_counted_in_greedy_samples(adder: Path) -> None:
    greedy, drawn, rounded = (
        next(workbench.generate(adder, ["12+34="], **asked))  # type: ignore[arg-type]
        for asked in ({"temperature": 0}, {"temperature": 1}, {"temperature": 0, "precision": "float16"})
    )
    assert (greedy.near_ties, drawn.near_ties, rounded.near_ties) == (0, None, None)
    logits = torch.tensor([[1.0, 3.0, 3.0 - NEAR / 2], [1.0, 3.0, 3.0 - 2 * NEAR], [5.0, float("-inf"), -1.0]])
    assert near_ties(logits).tolist() == [True, False, False]
    assert near_ties(torch.zeros(2, 1)).tolist() == [False, False]


class Anything:
    """A constraint of somebody who miscounted."""

    def __init__(self, *ids: int) -> None:
        self.ids = ids

    def after(self, drawn: object) -> tuple[int, ...]:
        return self.ids


def test_ids_that_do_not_exist_cannot_be_allowed() -> None:
    runner = Runner(random_model(small_config()))
    for ids, wrong in (((3, 13), 13), ((-1, 3), -1)):
        with pytest.raises(
            BadInput, match=rf"id {wrong}, which was allowed .* outside the vocabulary \(0\.\.12\)"
        ):
            list(generate(runner, [Request((1, 2))], Decoding(max_tokens=3, constraint=Anything(*ids))))
    with pytest.raises(BadInput, match="rows is 0; at least one row must be computed"):
        list(generate(runner, [Request((1, 2))], Decoding(max_tokens=3), rows=0))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_does_not_obey_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets the text as it is."""
    monkeypatch.setenv("TERM", "dumb")
    assert readable("a\tb\n\x1b[31m\r\x9b\u00a0é") == "a\tb\n\\x1b[31m\\x0d\\x9b\u00a0é"
    sample = GenerationRecord(prompt="p\x1b]0;", text="\x1b[2J", ids=(1,), logprob=-1.0, stop="end", near_ties=2)
    pieces = [PieceRecord(prompt="p\x1b]0;", sample=0, text="\x1b[2J"), sample]
    for out, expected in ((Terminal(), "p\\x1b]0;\\x1b[2J\n"), (io.StringIO(), "p\x1b]0;\x1b[2J\n")):
        for live in (False, True):
            out.seek(0)
            Page(Face(out, json=False)).write(pieces, live=live)
            assert out.getvalue() == expected


def test_the_time_of_compiling_is_told() -> None:
    assert "(10 tokens/s; 3.50 s of that compiled the steps); the first" in str(
        workbench.Pace(1, 2, 50, 4.0, 5.0, 3.5)
    )
    assert "compiled" not in str(workbench.Pace(1, 2, 50, 4.0, 5.0))


def test_options_about_rare_places_need_places(adder: Path, tmp_path: Path) -> None:
    for options, reason in (
        (["--to", "run", "--set", "rare=drop"], 'unknown key "rare"'),
        (["--set", "rare=coarsen"], "--set rare=coarsen: only a copy of a run (--to run) has settings"),
    ):
        result = linnet("export", adder, tmp_path / "out", *options)
        assert result.exit_code == 2 and reason in result.stderr and not (tmp_path / "out").exists()
