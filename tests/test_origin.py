"""Runs that begin with the weights of another run, and runs that go on beyond their end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from faults import tree
from foreign_models import folder_of, llama_config, trained
from linnet import workbench
from linnet.cli.app import build
from linnet.domains.places.generated import Process, generate, write_check_ins
from linnet.domains.text.data import TextData
from linnet.errors import BadInput
from linnet.training.checkpoint import RunFolder
from linnet.training.run import Run
from linnet.workbench.open import load, read_run
from linnet.workbench.origin import beginning
from linnet.workbench.prepare import RATE, prepare
from text_corpora import corpus
from tiny_runs import TINY, Killed, Watching, agree, bits, logged, train_tiny


@pytest.fixture(scope="module")
def adder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with averaged weights, whose best checkpoint is not its last."""
    path = tmp_path_factory.mktemp("origin") / "adder"
    train_tiny(path, "ema=0.5", steps=12)
    return path


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("origin")
    workbench.train("tiny-text", out=folder / "text", data=[corpus(folder / "a.txt")], steps=6)
    return folder / "text"


def notes(path: Path) -> str:
    return "\n".join(record["text"] for record in logged(path, "note"))


def test_a_run_begins_with_the_weights_that_the_other_is_used_with(adder: Path) -> None:
    run = prepare("tiny-arithmetic", settings=["data.instances=50"], start=adder)
    material = run.data.load(5)
    first = beginning(run, material)
    assert first is not None and first.loop.step == 0 and not first.optim
    opened = load(adder)
    for name, parameter in opened.network.named_parameters():
        assert torch.equal(first.weights[name], parameter)
    own = prepare("tiny-arithmetic").optim
    assert run.optim.lr == pytest.approx(RATE * own.lr) and run.model == read_run(RunFolder(adder)).model


def test_the_other_run_stays_as_it_is_and_its_loss_is_where_training_begins(adder: Path, tmp_path: Path) -> None:
    before = tree(adder)
    workbench.train("tiny-arithmetic", out=tmp_path / "run", start=adder, steps=4, settings=["eval_every=4"])
    assert tree(adder) == before
    run = read_run(RunFolder(tmp_path / "run"))
    opened = load(adder)
    held = run.data.load(run.seed).validation
    loss = run.data.judge(opened.network, held, batch=256, region=opened.region)
    assert f"the weights to begin with have the validation loss {loss:.4f}" in notes(tmp_path / "run")


@pytest.mark.parametrize("step", [1, 5])
def test_one_that_is_killed_ends_with_the_bits_of_one_that_is_not(adder: Path, tmp_path: Path, step: int) -> None:
    options = {"start": adder, "steps": 8, "settings": ["eval_every=4", "data.instances=60", "batch=8"]}
    workbench.train("tiny-arithmetic", out=tmp_path / "whole", **options)
    with pytest.raises(Killed):
        workbench.train("tiny-arithmetic", out=tmp_path / "run", progress=Watching(step), **options)
    workbench.resume(tmp_path / "run")
    agree(tmp_path / "run", tmp_path / "whole")
    again = workbench.train(str(tmp_path / "whole" / "run.toml"), out=tmp_path / "sister")
    assert again.steps == 8 and bits(tmp_path / "sister") == bits(tmp_path / "whole")


def test_text_is_read_with_the_tokenizer_that_belongs_to_the_weights(speaker: Path, tmp_path: Path) -> None:
    data = corpus(tmp_path / "b.txt", 200, seed=9)
    record = workbench.train("text", out=tmp_path / "run", data=[data], start=speaker, steps=3)
    assert (tmp_path / "run" / "codec.json").read_bytes() == (speaker / "codec.json").read_bytes()
    assert "tokenizer" not in (tmp_path / "run" / "run.toml").read_text(), "the run learns none"
    assert record.scores and record.parameters == workbench.show(speaker).parameters
    with pytest.raises(BadInput, match=r"does not use data.tokenizer.vocabulary: the tokenizer is that of"):
        prepare("text", data=[data], start=speaker, settings=["data.tokenizer.vocabulary=300"])


def test_stores_of_one_corpus_with_two_tokenizers_are_two(
    speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINNET_CACHE", str(tmp_path / "cache"))
    data = corpus(tmp_path / "b.txt", 200, seed=9)
    settings = ["data.store=auto", "data.validation=0.1"]
    options = {"data": [data], "settings": settings, "steps": 1}
    codec = load(speaker).codec
    for number in range(2):
        workbench.train("tiny-text", out=tmp_path / f"tuned{number}", start=speaker, **options)
        workbench.train("tiny-text", out=tmp_path / f"own{number}", **options)
        assert load(tmp_path / f"tuned{number}").codec.to_json() == codec.to_json()
        assert load(tmp_path / f"own{number}").codec.to_json() != codec.to_json()
    assert len([path for path in (tmp_path / "cache" / "stores").iterdir() if path.is_dir()]) == 2
    run = read_run(RunFolder(tmp_path / "own0"))
    assert isinstance(run.data, TextData)
    assert run.data.load(1, codec).codec.to_json() == codec.to_json()


def test_an_import_is_trained_further_with_its_vocabulary_and_its_ends(tmp_path: Path) -> None:
    codec = trained()
    shape = llama_config(vocabulary=len(codec.tokens) + 7)  # embeddings to spare, as many models have them
    workbench.import_run(folder_of(tmp_path / "model", shape, codec), tmp_path / "import")
    ends = tmp_path / "import" / "generation.json"
    ends.write_text('{"further_ends": [3]}')
    record = workbench.train(
        "tiny-text",
        out=tmp_path / "run",
        data=[corpus(tmp_path / "c.txt", 60)],
        start=tmp_path / "import",
        steps=2,
    )
    assert record.parameters == workbench.show(tmp_path / "import").parameters
    assert (tmp_path / "run" / "generation.json").read_bytes() == ends.read_bytes()
    with pytest.raises(BadInput, match=r"linnet train RECIPE --from .*import trains its weights further"):
        workbench.resume(tmp_path / "import", steps=9)
    workbench.import_run(folder_of(tmp_path / "bare"), tmp_path / "ids")
    with pytest.raises(BadInput, match="came without a tokenizer, so no text can be written in its tokens"):
        workbench.train("tiny-text", data=[tmp_path / "c.txt"], start=tmp_path / "ids", out=tmp_path / "none")


def test_places_keep_their_numbers(tmp_path: Path) -> None:
    visits = generate(Process(users=8, visits=40, own=6, venues=100))
    write_check_ins(tmp_path / "a.csv", visits)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    (tmp_path / "b.csv").write_text("\n".join([lines[0], *lines[1 : 3 * len(lines) // 4]]) + "\n")
    workbench.train("tiny-places", out=tmp_path / "a", data=[tmp_path / "a.csv"], steps=3)
    workbench.train("tiny-places", out=tmp_path / "b", data=[tmp_path / "b.csv"], start=tmp_path / "a", steps=3)
    assert (tmp_path / "b" / "codec.json").read_bytes() == (tmp_path / "a" / "codec.json").read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.depth=3"], "model.depth is 1 in .*, whose weights this run begins with, and cannot become 3"),
        (["model.attention.heads=4"], "model.attention.heads is 2 in"),
        (["digits=4"], "written in another way than .* reads them"),
    ],
)
def test_what_does_not_fit_the_weights_is_refused(
    adder: Path, tmp_path: Path, settings: list[str], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        workbench.train("tiny-arithmetic", out=tmp_path / "run", start=adder, steps=2, settings=settings)
    assert not (tmp_path / "run").exists()


def test_other_domains_sizes_and_folders_are_refused(adder: Path, speaker: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match="is a run on arithmetic, and the recipe text is one of text; recipes that fit"
    ):
        prepare("text", start=adder)
    with pytest.raises(BadInput, match="size=2: the network is that of"):
        prepare("text", start=speaker, settings=["size=2"])
    with pytest.raises(BadInput, match="--from RUN begins with a run"):
        prepare("tiny-arithmetic", settings=[f"start={adder}"])
    with pytest.raises(BadInput, match="there is no folder"):
        prepare("text", start=tmp_path / "nothing")
    with pytest.raises(BadInput, match="which is to be read, lies in it"):
        workbench.train("tiny-arithmetic", out=adder, start=adder, force=True)
    result = CliRunner().invoke(build(), ["train", "text", "--from", str(adder)])
    assert result.exit_code == 2 and "recipes that fit" in result.stderr


# Beyond the end.

LASTING = (*TINY, "schedule=constant")


def long(out: Path, steps: int, *settings: str) -> None:
    workbench.train("tiny-arithmetic", out=out, settings=[*LASTING, *settings], steps=steps)


def test_a_longer_run_has_the_bits_of_one_that_was_planned_so(tmp_path: Path) -> None:
    """Where the schedule is the same at each step, whatever the length."""
    long(tmp_path / "whole", 20, "ema=0.8")
    long(tmp_path / "run", 12, "ema=0.8")
    assert workbench.resume(tmp_path / "run", steps=20).steps == 20
    agree(tmp_path / "run", tmp_path / "whole")
    assert workbench.resume(tmp_path / "run", steps=20) == workbench.resume(tmp_path / "run")


def test_rates_are_those_of_the_schedule_of_the_longer_run(tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", "schedule=cosine", steps=8)
    workbench.resume(tmp_path / "run", steps=16)
    run: Run = read_run(RunFolder(tmp_path / "run"))
    assert run.training.steps == 16
    rates = [record["lr"] for record in logged(tmp_path / "run")]
    wanted = [8] * 8 + [16] * 8
    factor = run.optim.schedule.factor
    assert rates == pytest.approx([run.optim.lr * factor(step, steps) for step, steps in enumerate(wanted)])


def test_one_that_is_killed_beyond_its_end_goes_on(tmp_path: Path) -> None:
    long(tmp_path / "whole", 20)
    long(tmp_path / "run", 12)
    with pytest.raises(Killed):
        workbench.resume(tmp_path / "run", steps=20, progress=Watching(14))
    assert workbench.show(tmp_path / "run").state == "unfinished"
    workbench.resume(tmp_path / "run")
    agree(tmp_path / "run", tmp_path / "whole")


def test_one_that_stopped_early_goes_on_until_it_stops_again(tmp_path: Path) -> None:
    settings = ("patience=1", "lr=0.3", "eval_every=3", "schedule=constant")
    train_tiny(tmp_path / "run", *settings, steps=60)
    first = workbench.show(tmp_path / "run").step
    assert first < 60
    record = workbench.resume(tmp_path / "run", steps=90)
    assert record.steps > first


def test_fewer_steps_than_were_done_are_refused_and_change_nothing(tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", steps=8)
    before = tree(tmp_path / "run")
    result = CliRunner().invoke(build(), ["resume", str(tmp_path / "run"), "--steps", "5"])
    assert result.exit_code == 2 and "has done 8 steps; --steps is the length of the whole run" in result.stderr
    assert tree(tmp_path / "run") == before
    result = CliRunner().invoke(build(), ["resume", str(tmp_path / "run"), "--steps", "10", "--json"])
    assert json.loads(result.stdout)["steps"] == 10


def test_plain_strings_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus(tmp_path / "a.txt", 60)
    workbench.train("tiny-text", data="a.txt", out="run", steps=1)
    record = workbench.train("tiny-text", data=["a.txt"], start="run", out="tuned", steps=1)
    assert record.path == "tuned"
    assert workbench.evaluate("run", data="a.txt").scores == workbench.evaluate("run", data=["a.txt"]).scores
    assert {found.path for found in workbench.runs(["."])} == {"run", "tuned"}
