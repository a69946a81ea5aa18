"""What is options of a run and what comes back: stops, choices, patterns, pieces, and what cannot be done."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from linnet import workbench
from linnet.cli.app import build
from linnet.cli.face import Face
from linnet.cli.generate import Page, unescaped
from linnet.errors import BadInput
from linnet.records import GenerationRecord, PieceRecord
from linnet.training.checkpoint import weights_of
from text_corpora import corpus


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text run that has learned a little."""
    folder = tmp_path_factory.mktemp("writer")
    data = corpus(folder / "c.txt", 300)
    settings = ["training.steps=40", "training.eval_every=40", "threads=1", "data.block=[4,16]"]
    workbench.train("tiny-text", data=[data], out=folder / "run", settings=settings)
    return folder / "run"


def generate(run: Path, *prompts: str, **options: Any) -> list[GenerationRecord]:
    return list(workbench.generate(run, prompts, **options))


def test_a_sample_ends_before_its_stop_string(writer: Path) -> None:
    free = generate(writer, "the cat ", n=20, max_tokens=12, seed=1)
    stopped = generate(writer, "the cat ", n=20, max_tokens=12, seed=1, stops=["s", "the "])
    ended = 0
    for sample, cut in zip(free, stopped, strict=True):
        # The same tokens as far as they go, and the same text up to the first of the strings.
        assert sample.ids[: len(cut.ids)] == cut.ids
        places = [sample.text.find(stop) for stop in ("s", "the ") if stop in sample.text]
        assert cut.text == sample.text[: min(places, default=len(sample.text))]
        assert (cut.stop == "stop") == bool(places)
        ended += bool(places)
    assert 0 < ended < 20


def test_a_sample_ends_before_its_stop_ids(writer: Path) -> None:
    free = generate(writer, "the cat ", n=8, max_tokens=12, seed=1)
    wanted = next(sample.ids[3] for sample in free if len(sample.ids) > 3)
    for sample, cut in zip(
        free, generate(writer, "the cat ", n=8, max_tokens=12, seed=1, stop_ids=[wanted]), strict=True
    ):
        assert cut.ids == sample.ids[: sample.ids.index(wanted) if wanted in sample.ids else None]
        assert (cut.stop == "stop") == (wanted in sample.ids)


def test_stop_strings_are_found_in_a_persons_form(adder: Path) -> None:
    """Digits are written least significant first: the text so far is what counts."""
    for sample in generate(adder, "12+34=", n=30, seed=2, stops=["5"], temperature=2.0):
        assert "5" not in sample.text


def test_a_penalty_makes_what_was_there_rarer(writer: Path) -> None:
    options = {"n": 8, "max_tokens": 14, "seed": 3}
    free, fresh = (generate(writer, "the cat ", repetition_penalty=by, **options) for by in (1.0, 50.0))
    assert repeats(fresh) < repeats(free)


def repeats(samples: list[GenerationRecord]) -> int:
    return sum(len(sample.ids) - len(set(sample.ids)) for sample in samples)


@pytest.mark.parametrize("choices", [["the sea", "a song", "the market", "the"], ["日本", "naïve!"]])
def test_samples_are_choices(writer: Path, choices: list[str]) -> None:
    samples = generate(writer, "the cat sees ", "a dog likes", n=12, choices=choices, seed=1, temperature=20.0)
    assert {sample.text for sample in samples} <= set(choices)
    assert {sample.stop for sample in samples} == {"end"}
    assert len({sample.text for sample in samples}) > 1
    for number, sample in enumerate(samples):  # the table is that of the first sample of each prompt
        assert (sample.choices is not None) == (number % 12 == 0)
    table = samples[0].choices
    assert table is not None and {choice.text for choice in table} == set(choices)
    assert [choice.logprob for choice in table] == sorted((choice.logprob for choice in table), reverse=True)
    assert math.fsum(choice.probability for choice in table) == pytest.approx(1.0)
    (best,) = generate(writer, "the cat sees ", choices=choices, temperature=0)
    assert (best.text, best.logprob) == (table[0].text, pytest.approx(table[0].logprob))


def test_choices_are_in_a_persons_form(adder: Path) -> None:
    """Numbers are reversed inside, and the tokens of an answer may depend on the question."""
    samples = generate(adder, "12+34=", "7+8=", n=10, choices=["46", "15", "107"])
    assert {sample.text for sample in samples} == {"46", "15", "107"}


def test_samples_match_a_pattern(writer: Path) -> None:
    samples = generate(writer, "the cat ", n=12, pattern=r"[a-z]{2,5} (the|a) [a-k]+ \d", seed=1)
    assert {sample.stop for sample in samples} <= {"end", "length"}
    for sample in samples:
        assert sample.stop == "length" or re.fullmatch(r"[a-z]{2,5} (the|a) [a-k]+ \d", sample.text)
    assert any(sample.stop == "end" for sample in samples)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_pieces_are_the_samples_and_samples_come_in_order(writer: Path, batch: int) -> None:
    options: dict[str, Any] = {"n": 3, "max_tokens": 12, "seed": 5, "stops": ["w", "the c"]}
    prompts = ["the cat ", "a dog sees", "my"]
    expected = generate(writer, *prompts, **options)
    pieces: dict[tuple[str, int], str] = {}
    finished = []
    for record in workbench.stream(writer, prompts, settings=[f"batch={batch}"], **options):
        if isinstance(record, PieceRecord):
            pieces[record.prompt, record.sample] = pieces.get((record.prompt, record.sample), "") + record.text
        else:
            finished.append(record)
    assert [(r.prompt, r.text, r.ids, r.stop) for r in finished] == [
        (r.prompt, r.text, r.ids, r.stop) for r in expected
    ]
    samples = [(prompt, sample) for prompt in prompts for sample in range(3)]
    assert [pieces.get(sample, "") for sample in samples] == [record.text for record in expected]


def test_arithmetic_comes_whole(adder: Path) -> None:
    records = list(workbench.stream(adder, ["12+34="], seed=4))
    assert [record.text for record in records] == [records[-1].text] * len(records) and len(records) <= 2


def test_the_pace_is_known_at_the_end(writer: Path) -> None:
    finished: list[workbench.Pace] = []
    samples = generate(writer, "the cat ", "a dog", n=2, max_tokens=5, pace=finished.append)
    (pace,) = finished
    opened = workbench.load(writer)
    assert (pace.samples, pace.tokens) == (4, sum(len(sample.ids) for sample in samples))
    assert pace.prompt_tokens == len(opened.prompt("the cat ")) + len(opened.prompt("a dog"))
    assert 0 < pace.first <= pace.seconds
    assert str(pace).startswith(f"4 samples, {pace.tokens} tokens in ") and "1 sample," in str(
        workbench.Pace(1, 1, 1, 0, 0)
    )


WRONG: Mapping[str, tuple[dict[str, Any], str]] = {
    "no samples": ({"n": 0}, "n is 0"),
    "no tokens": ({"max_tokens": 0}, "max tokens is 0"),
    "no stop": ({"stops": ["a", ""]}, "a stop string is empty"),
    "stop id": ({"stop_ids": [5, 9999]}, r"stop id 9999 is outside the vocabulary \(0\.\."),
    "negative stop id": ({"stop_ids": [-1]}, "stop id -1 is outside"),
    "penalty": ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    "both": ({"choices": ["a"], "pattern": "a"}, "give one of them"),
    "no choices": ({"choices": []}, "no choices to choose from"),
    "empty choice": ({"choices": ["a", ""]}, "a choice is empty"),
    "stopped choice": ({"choices": ["a"], "stops": ["b"]}, "choices are drawn whole"),
    "rarer choice": ({"choices": ["a"], "repetition_penalty": 1.2}, "choices are drawn whole"),
    "long choice": ({"choices": ["a song"], "max_tokens": 1}, "a choice has . tokens, and there is room for 1"),
    "pattern": ({"pattern": "(a"}, "is no regular expression"),
    "setting": ({"settings": ["bach=3"]}, 'unknown key "bach"; did you mean "batch"'),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done_is_said_before_anything_is_done(writer: Path, name: str) -> None:
    options, message = WRONG[name]
    with pytest.raises(BadInput, match=message):
        workbench.generate(writer, ["the cat "], **options)
    with pytest.raises(BadInput, match=message):
        workbench.stream(writer, ["the cat "], **options)


def test_prompts_that_are_empty_or_too_long_are_named(writer: Path) -> None:
    with pytest.raises(BadInput, match="prompt 2 is empty"):
        workbench.generate(writer, ["the cat", ""])
    with pytest.raises(
        BadInput, match=r"prompt 2 \('the cat the cat .*\.\.\.'\) has .* the context of this model is"
    ):
        workbench.generate(writer, ["the cat", "the cat " * 500])


def test_patterns_need_tokens_that_write_in_order(adder: Path) -> None:
    with pytest.raises(BadInput, match="do not write their text in order"):
        workbench.generate(adder, ["1+1="], pattern="[0-9]")


# The command line.


def linnet(*arguments: object) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


def records(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_options_reach_the_samples(writer: Path, tmp_path: Path) -> None:
    verb = ["generate", writer, "the cat "]
    stopped = linnet(*verb, "--stop", "\\n", "--stop", "e", "-n", 5, "--max-tokens", 9, "--json")
    assert all("e" not in line["text"] for line in records(stopped))
    assert re.fullmatch(r"5 samples, .* tokens in .* s \(.* tokens/s\); the first after .*\n", stopped.stderr)
    file = tmp_path / "choices.txt"
    file.write_text("a song\n\nthe sea\n")
    chosen = records(
        linnet(*verb, "--choices", file, "--choice", "nobody", "-n", 40, "--temperature", 9, "--json")
    )
    assert {line["text"] for line in chosen} == {"a song", "the sea", "nobody"}
    matched = records(linnet(*verb, "--pattern", r"\d\d", "--repetition-penalty", "1.1", "--json"))
    assert re.fullmatch(r"\d\d", matched[0]["text"])
    token = matched[0]["ids"][0]
    assert all(token not in line["ids"] for line in records(linnet(*verb, "--stop-id", token, "-n", 9, "--json")))


@pytest.mark.parametrize(
    "options, words",
    [
        (["--stop", ""], "a stop string is empty"),
        (["--stop", "a\\q"], "\\q stands for nothing"),
        (["-n", "0"], "it has to be at least 1"),
        (["--choices", "absent.txt"], "absent.txt"),
        (["--stop-id", "77777"], "stop id 77777"),
    ],
)
def test_what_is_wrong_ends_with_two(writer: Path, options: list[str], words: str) -> None:
    result = linnet("generate", writer, "the cat", *options)
    assert result.exit_code == 2 and words in result.stderr and result.stdout == ""


def test_escapes() -> None:
    assert unescaped(r"a\n\t\r\\n\x41\u00e9") == "a\n\t\r\\n" + "Aé"
    for wrong in ("\\", "a\\", "\\q", "\\x4", "\\u12"):
        with pytest.raises(BadInput, match="stands for nothing"):
            unescaped(wrong)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_sample_as_it_comes(
    writer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    records = list(workbench.stream(writer, ["the cat "], pattern="[a-z ]{15,20}", temperature=3.0))
    shown = []

    def coming() -> Any:
        for record in records:
            shown.append(out.getvalue())
            yield record

    Page(Face(out, json=False)).write(coming(), live=True)
    sample = records[-1]
    assert isinstance(sample, GenerationRecord) and out.getvalue() == f"the cat {sample.text}\n"
    assert capsys.readouterr().err == f"   logprob {sample.logprob:.3f}, {sample.stop}\n"
    texts = [record.text for record in records[:-1]]
    assert len(texts) > 2
    assert shown[1:] == [f"the cat {''.join(texts[:count])}" for count in range(1, len(records))]


def test_a_rule_stands_between_samples_on_a_terminal_only(writer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "7")
    records = list(workbench.stream(writer, ["the cat "], n=3, max_tokens=4))
    texts = [f"the cat {record.text}\n" for record in records if isinstance(record, GenerationRecord)]
    for out, between in ((Terminal(), "\u2500" * 7 + "\n"), (io.StringIO(), "")):
        Page(Face(out, json=False)).write(records, live=False)
        assert out.getvalue() == between.join(texts)


def test_text_goes_to_standard_output_and_all_else_to_standard_error(writer: Path) -> None:
    verb = ["generate", writer, "the cat ", "a dog ", "--seed", 3, "-n", 2, "--max-tokens", 6]
    plain, lines = linnet(*verb, "--logprobs"), records(linnet(*verb, "--logprobs", "--json"))
    assert plain.stdout == "".join(f"{line['prompt']}{line['text']}\n" for line in lines)
    for line in lines:
        assert f"   logprob {line['logprob']:.3f}, {line['stop']}\n" in plain.stderr
        for token, logprob in zip(line["tokens"], line["token_logprobs"], strict=True):
            assert f"{logprob:9.3f}  {token!r}\n" in plain.stderr
    assert plain.stderr.splitlines()[-1].startswith("4 samples, ")


def test_choices_are_shown_with_their_table(writer: Path) -> None:
    verb = ["generate", writer, "the cat ", "--choice", "sat", "--choice", "ran", "--temperature", 0]
    (line,) = records(linnet(*verb, "--json"))
    assert [choice["probability"] for choice in line["choices"]] == [1.0, 0.0]
    assert line["text"] == line["choices"][0]["text"]
    shown = linnet(*verb)
    assert shown.stdout == f"the cat {line['text']}\n"
    for choice in line["choices"]:
        assert f"logprob {choice['logprob']:.3f}  {choice['text']}\n" in shown.stderr


def piped(text: str | bytes, *arguments: object) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments], input=text)


def test_prompts_come_from_standard_input(adder: Path) -> None:
    verb = ["generate", adder, "--seed", 5]
    expected = linnet(*verb, "12+34=", "7+8=").stdout
    for arguments in (["-"], ["--file", "-"]):
        result = piped('12+34=\r\n\n{"prompt": "7+8="}\n', *verb, *arguments)
        assert result.exit_code == 0 and result.stdout == expected
    wrong = piped("12+34=\n1+x=\n", *verb, "-")
    assert wrong.exit_code == 2 and "standard input, line 2: '1+x'" in wrong.stderr and not wrong.stdout
    empty = piped("\n\n", *verb, "-")
    assert empty.exit_code == 2 and "standard input has no line with anything in it" in empty.stderr


def test_a_session_answers_line_by_line(adder: Path) -> None:
    verb = ["generate", adder, "--seed", 5]
    expected = linnet(*verb, "12+34=", "7+8=").stdout
    result = piped("12+34=\n\n1+x=\n7+8=\n", *verb, "--session")
    assert result.exit_code == 2 and result.stdout == expected
    assert "error: the prompt: '1+x' is not a question" in result.stderr
    lines = piped("12+34=\n7+8=\n", *verb, "--session", "--json")
    assert lines.exit_code == 0
    assert [json.loads(line)["prompt"] for line in lines.stdout.splitlines()] == ["12+34=", "7+8="]
    both = linnet(*verb, "7+8=", "--session")
    assert both.exit_code == 2 and "reads its prompts from standard input" in both.stderr


def test_a_sum_without_its_sign_is_completed_and_said(adder: Path) -> None:
    bare, whole = (linnet("generate", adder, prompt, "--temperature", 0) for prompt in ("12+34", "12+34="))
    assert bare.stdout == whole.stdout and bare.stdout.startswith("12+34=")
    assert bare.stderr.startswith("prompt 1 is read as '12+34='\n")
    begun = linnet("generate", adder, "--max-tokens", 3)
    assert begun.exit_code == 0 and "(1 token of prompts)" in begun.stderr


# One opened run, many uses.


def test_generating_leaves_an_opened_run_as_it_was(writer: Path, tmp_path: Path) -> None:
    """Weights, their bytes in a file, and what they learn."""
    fresh, used = workbench.load(writer), workbench.load(writer)
    session = workbench.Session.open(used)
    for precision in ("float32", "int8", "bf16", "float16"):
        assert len(list(session.generate(["the cat "], n=2, max_tokens=4, precision=precision))) == 2
    list(session.generate(["the cat "], choices=["a", "b"]))
    assert [str(module) for module in used.model.modules()] == [str(module) for module in fresh.model.modules()]
    files = []
    for name, opened in (("fresh", fresh), ("used", used)):
        save_file(weights_of(opened.model), tmp_path / name)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    ids = torch.tensor([opened_ids(fresh)])
    losses = []
    for opened in (fresh, used):
        model = opened.model.train()
        optim = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            loss = model.head.loss(model(ids[:, :-1]).hidden, ids[:, 1:], torch.ones(1, ids.shape[1] - 1))
            optim.zero_grad()
            loss.backward()
            optim.step()
        losses.append(loss.item())
    assert losses[0] == losses[1]


def opened_ids(opened: workbench.Opened) -> tuple[int, ...]:
    return opened.prompt("the cat sat on the mat")


def test_a_session_loads_once_and_gives_what_single_calls_give(writer: Path) -> None:
    session = workbench.Session.open(writer)
    for prompt, options in (("the cat ", {"n": 2}), ("a dog", {"temperature": 0}), ("my", {"precision": "int8"})):
        found = list(session.generate([prompt], max_tokens=6, **options))
        assert found == generate(writer, prompt, max_tokens=6, **options)
    assert len(session.runners) == 2
    with pytest.raises(BadInput, match="an opened run has its checkpoint and its device"):
        workbench.Session.open(session.opened, device="cpu")


def test_without_a_prompt_the_model_begins_by_itself(writer: Path, adder: Path) -> None:
    for run in (writer, adder):
        opened = workbench.load(run)
        first, second = workbench.generate(run, n=2, seed=4)
        assert (first.prompt, first.ids != second.ids) == ("", True)
        assert first.text == opened.codec.continuation((), first.ids)


def test_a_prompt_is_completed_as_its_codec_reads_it(adder: Path) -> None:
    notes: list[str] = []
    (bare,) = workbench.generate(adder, ["12+34"], seed=3, remark=notes.append)
    (whole,) = workbench.generate(adder, ["12+34="], seed=3)
    assert bare == whole and bare.prompt == "12+34="
    assert notes == ["prompt 1 is read as '12+34='"]


def test_log_probabilities_of_tokens_come_on_request(writer: Path) -> None:
    (sample,) = generate(writer, "the cat ", logprobs=True, max_tokens=6, seed=2)
    assert sample.tokens is not None and sample.token_logprobs is not None
    assert len(sample.tokens) == len(sample.token_logprobs) == len(sample.ids)
    rest = sample.logprob - math.fsum(sample.token_logprobs)
    assert rest == pytest.approx(0.0, abs=1e-9) if sample.stop == "length" else rest < 0
    (plain,) = generate(writer, "the cat ", max_tokens=6, seed=2)
    assert plain == sample.model_copy(update={"tokens": None, "token_logprobs": None})


# What is loaded.


def loaded(code: str) -> set[str]:
    """The modules of a new process that has run this."""
    code = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_generating_loads_what_it_needs(adder: Path) -> None:
    """No training, no domain but that of the run, and of torch no compiler."""
    found = loaded("from linnet import workbench\nworkbench.generate")
    assert sum(name.partition(".")[0] == "linnet" for name in found) <= 70
    assert not {"linnet.workbench.train", "linnet.training.loop", "linnet.training.optim"} & found
    arguments = ["generate", str(adder), "12+34=", "--json"]
    used = loaded(f"import typer\nfrom linnet.cli.app import build\nbuild()({arguments!r}, standalone_mode=False)")
    assert not {"torch._dynamo", "torch._inductor", "sympy", "rich", "polars", "linnet.domains.places.data"} & used


def test_functions_are_not_hidden_by_modules_of_their_names() -> None:
    code = (
        "import linnet.workbench.generate, linnet.workbench.runs\nfrom linnet import workbench\n"
        "assert callable(workbench.generate) and callable(workbench.runs)\n"
        "assert all(callable(getattr(workbench, name)) for name in workbench.__all__)"
    )
    assert {"linnet.workbench.generate", "linnet.workbench.runs"} <= loaded(code)
    with pytest.raises(AttributeError, match="has no attribute 'generat'"):
        workbench.generat  # noqa: B018
