"""The command line, end to end: what people type, what they get, and what they are told when it is wrong."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from linnet import workbench
from linnet.cli.app import build
from linnet.cli.face import speaking
from linnet.cli.pages import page, verbs
from linnet.domains.registry import registry
from linnet.errors import BadInput
from linnet.records import RunRecord, ScoresRecord, ShowRecord
from linnet.training.settings import changed, to_toml
from linnet.workbench.train import made

TINY = ["--set", "training.steps=20", "--set", "data.instances=400", "--set", "training.eval_every=10"]
ROOT = Path(__file__).parents[1]


def linnet(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


def records(result: Result) -> list[dict[str, object]]:
    """What --json printed: nothing but JSON lines, each with a kind."""
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert all("kind" in line for line in lines)
    return lines


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "adder"
    result = linnet("train", "tiny-arithmetic", "--out", path, "--seed", "3", *TINY, "--json")
    (record,) = records(result)
    assert RunRecord.model_validate(record).steps == 20
    assert "20/20 100%" in result.stderr, "the progress line goes to standard error"
    return path


def test_help_names_what_works() -> None:
    result = linnet("--help")
    named = {line.split()[0] for line in result.stdout.partition("Commands:")[2].splitlines() if line.strip()}
    assert named == {name.split()[1] for name, _ in verbs(build(), "linnet")}
    assert {"train", "resume", "eval", "generate", "runs", "show", "data", "inspect", "doctor"} <= named


@pytest.mark.parametrize("name", [name for name, _ in verbs(build(), "linnet")])
def test_every_verb_has_help_and_speaks_json(name: str) -> None:
    result = linnet(*name.split()[1:], "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout and "--debug" in result.stdout


def test_the_help_page_is_in_step_with_the_command_line() -> None:
    assert (ROOT / "docs" / "help.md").read_text() == page(build()), "write it anew with: make docs"


def test_version() -> None:
    assert linnet("--version").stdout.startswith("linnet 0.")


def test_a_finished_run_is_shown_by_resume(run: Path) -> None:
    (record,) = records(linnet("resume", run, "--json"))
    assert record["kind"] == "run" and record["path"] == str(run)


def test_show_and_runs(run: Path) -> None:
    (record,) = records(linnet("show", run, "--json"))
    shown = ShowRecord.model_validate(record)
    assert shown.state == "finished" and shown.settings["training"]["steps"] == 20
    (listed,) = records(linnet("runs", run.parent, "--json"))
    assert listed["rank"] == 1 and listed["path"] == str(run)
    assert "training.steps" in linnet("show", run).stdout
    assert str(run) in linnet("runs", run.parent).stdout


def test_generations_come_in_the_order_of_the_prompts(run: Path, tmp_path: Path) -> None:
    asked = tmp_path / "prompts.txt.gz"
    with gzip.open(asked, "wt") as file:
        file.write('5+6=\n\n{"prompt": "7+8="}\n')
    lines = records(linnet("generate", run, "1+2=", "--file", asked, "-n", "2", "--seed", "1", "--json"))
    assert [line["prompt"] for line in lines] == ["1+2="] * 2 + ["5+6="] * 2 + ["7+8="] * 2
    assert {line["stop"] for line in lines} <= {"end", "length", "stop"}
    again = records(linnet("generate", run, "1+2=", "--file", asked, "-n", "2", "--seed", "1", "--json"))
    assert lines == again, "the same seed gives the same samples"


def test_greedy_is_greedy(run: Path) -> None:
    lines = records(
        linnet("generate", run, "1+2=", "-n", "3", "--temperature", "0", "--max-tokens", "2", "--json")
    )
    assert len({str(line["ids"]) for line in lines}) == 1 and len(lines[0]["ids"]) <= 2


def test_eval_scores_a_whole_file(run: Path, tmp_path: Path) -> None:
    sums = tmp_path / "sums.txt"
    sums.write_text("1+2=3\n10+20=30\n99+1=100\n")
    (record,) = records(linnet("eval", run, "--data", sums, "--set", "batch=2", "--json"))
    scores = {score.name: score for score in ScoresRecord.model_validate(record).scores}
    assert scores["exact"].n == 3 and 0 <= scores["exact"].low <= scores["exact"].high <= 1


def test_attention_is_drawn_and_written(run: Path, tmp_path: Path) -> None:
    (record,) = records(linnet("inspect", "attention", run, "1+2=3", "--json"))
    tokens = len(record["tokens"])
    assert np.array(record["values"]).shape[2:] == (tokens, tokens)
    assert "layer 1  head 0" in linnet("inspect", "attention", run, "1+2=3").stdout
    out = tmp_path / "attention.npz"
    assert linnet("inspect", "attention", run, "1+2=3", "--out", out).exit_code == 0
    with np.load(out) as arrays:
        np.testing.assert_allclose(arrays["values"], record["values"], rtol=1e-6)
        assert list(arrays["axes"]) == ["layer", "head", "query", "key"]
    assert linnet("inspect", "attention", run, "1+2=3", "--out", out).exit_code == 2
    assert linnet("inspect", "attention", run, "1+2=3", "--out", out, "--force").exit_code == 0


def test_data_is_made_checked_and_trained_on(tmp_path: Path) -> None:
    made = linnet(
        "data", "make", "arithmetic", "--out", tmp_path / "d", "--instances", "300", "--with-steps", "--json"
    )
    assert records(made)[0]["rows"] == {"train.jsonl": 240, "dev.jsonl": 30, "test.jsonl": 30}
    (checked,) = records(linnet("data", "check", "arithmetic", tmp_path / "d", "--json"))
    assert not checked["problems"] and "lengths" in checked["counts"]
    assert "lengths" in linnet("data", "check", "arithmetic", tmp_path / "d").stdout
    again = linnet("data", "make", "arithmetic", "--out", tmp_path / "d", "--instances", "300")
    assert again.exit_code == 2 and "--force" in again.stderr
    trained = linnet(
        *("train", "tiny-arithmetic", "--data", tmp_path / "d" / "train.jsonl", "--out", tmp_path / "run"),
        *("--set", "training.steps=5", "--set", "data.digits=3", "--json"),
    )
    assert records(trained)[0]["steps"] == 5


def test_doctor_measures_the_machine() -> None:
    (record,) = records(linnet("doctor", "--json"))
    assert record["matmul_gflops"]["cpu.float32"] > 0 and record["remarks"]


def wrong(tmp: Path) -> dict[str, tuple[list[str | Path], str]]:
    """What people get wrong, and the words that have to be in the answer."""
    (tmp / "taken").mkdir()
    (tmp / "taken" / "thesis.txt").write_text("years of work")
    (tmp / "file").write_text("")
    (tmp / "file.toml").write_text("seed = 2")
    (tmp / "newer").mkdir()
    (tmp / "newer" / "run.toml").write_text('format = 99\nrecipe = "arithmetic"\n')
    (tmp / "begun").mkdir()
    (tmp / "begun" / "run.toml").write_text(to_toml(made("tiny-arithmetic")))
    (tmp / "broken.toml").write_text("recipe = \n")
    (tmp / "broken.jsonl").write_text('{"prompt": \n')
    (tmp / "nameless.jsonl").write_text('{"text": "1+1="}\n')
    (tmp / "latin.txt").write_bytes("Gr\u00fc\u00dfe".encode("latin-1"))
    (tmp / "cut.txt.gz").write_bytes(gzip.compress(b"1+2=\n" * 1000)[:20])
    train: list[str | Path] = ["train", "tiny-arithmetic", "--out", tmp / "new"]
    return {
        "recipe": (["train", "arithmetik"], 'no recipe "arithmetik"; did you mean "arithmetic"?'),
        "key": ([*train, "--set", "model.dept=3"], 'unknown key "model.dept"; did you mean "model.depth"?'),
        "type": ([*train, "--set", "model.depth=two"], "depth"),
        "setting": ([*train, "--set", "depth"], "key=value"),
        "lengths": ([*train, "--steps", "3", "--epochs", "1"], "exclude each other"),
        "data": ([*train, "--data", tmp / "absent.jsonl"], "absent.jsonl"),
        "empty data": ([*train, "--data", tmp / "file"], "no rows"),
        "toml": (["train", tmp / "absent.toml"], "absent.toml"),
        "broken toml": (["train", tmp / "broken.toml"], "not valid TOML"),
        "existing": (["train", "tiny-arithmetic", "--out", tmp / "taken"], "--force"),
        "not a run": (["train", "tiny-arithmetic", "--out", tmp / "taken", "--force"], "not a run"),
        "folder": (["train", "tiny-arithmetic", "--out", tmp / "file" / "run"], "cannot write"),
        "run": (["eval", tmp / "absent"], "absent"),
        "newer run": (["show", tmp / "newer"], "format 99"),
        "runs": (["runs", tmp / "absent"], "absent"),
        "both": (["generate", tmp / "begun", "1+1=", "--session"], "reads its prompts from standard input"),
        "prompt file": (["generate", tmp / "begun", "--file", tmp / "absent.txt"], "absent.txt"),
        "broken prompt": (["generate", tmp / "begun", "--file", tmp / "broken.jsonl"], "broken.jsonl, line 1"),
        "no prompt": (["generate", tmp / "begun", "--file", tmp / "nameless.jsonl"], '"prompt"'),
        "encoding": (
            ["generate", tmp / "begun", "--file", tmp / "latin.txt"],
            "convert it: iconv -f WINDOWS-1252",
        ),
        "no recipe": (["train", tmp / "file.toml"], "file.toml needs a line such as recipe = "),
        "cut archive": (["generate", tmp / "begun", "--file", tmp / "cut.txt.gz"], "is no whole gzip file"),
        "device": ([*train, "--device", "tpu"], "tpu"),
        "verb": (["trian"], "trian"),
        "option": ([*train, "--stpes", "3"], "--stpes"),
        "instances": (["data", "make", "arithmetic", "--out", tmp / "d", "--instances", "3"], "instances"),
        "range": (["data", "make", "arithmetic", "--out", tmp / "d", "--digits", "3", "1"], "data.digits"),
        "check": (["data", "check", "arithmetic", tmp / "absent"], "absent"),
    }


def names_of_wrong(tmp: Path = Path("unused")) -> list[str]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return list(wrong(Path(folder)))


@pytest.mark.parametrize("name", names_of_wrong())
def test_what_is_wrong_is_said(name: str, tmp_path: Path) -> None:
    arguments, words = wrong(tmp_path)[name]
    result = linnet(*arguments)
    assert result.exit_code == 2, result.stderr
    assert words in result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert not (tmp_path / "new" / "checkpoints" / "000000").exists() and not (tmp_path / "d").exists()
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "years of work"


def test_what_the_alphabet_lacks_is_said(run: Path) -> None:
    result = linnet("generate", run, "one+two=")
    assert result.exit_code == 2 and "one+two" in result.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = linnet("show", tmp_path / "absent", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr and result.stderr.splitlines()[-1].startswith("error: ")


def test_a_defect_says_that_it_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, speaking(json=False, debug=False):
        raise KeyError("depth")
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "error: KeyError: 'depth' (a defect of linnet; --debug shows where)\n"


def test_a_panic_of_a_library_in_rust_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pl = pytest.importorskip("polars")
    with pytest.raises(typer.Exit), speaking(json=False, debug=False):
        raise pl.exceptions.PanicException("called `Option::unwrap()` on a `None` value")
    assert capsys.readouterr().err.splitlines() == [
        "error: PanicException: called `Option::unwrap()` on a `None` value (a defect of linnet; "
        "--debug shows where)"
    ]


def test_what_a_library_prints_does_not_reach_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with speaking(json=True, debug=False) as face:
        print("50% done")
        face.show(ScoresRecord(run="r", data="d", scores=()))
    said = capsys.readouterr()
    assert json.loads(said.out)["kind"] == "scores" and said.err == "50% done\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "R", "--temperature", "hot"], "'--temperature': it is 'hot', not a number"),
        (["generate", "R", "-n", "0"], "'-n': it is '0'; it has to be at least 1"),
        (["generate", "R", "--seed", "1.5"], "'--seed': it is '1.5', not an integer"),
        (["export", "R", "--to", "onnx"], "'--to': 'onnx' is not one of 'hf', 'gguf', 'run'"),
    ],
)
def test_a_wrong_argument_is_named_in_plain_words(arguments: list[str], words: str) -> None:
    refused = linnet(*arguments)
    assert refused.exit_code == 2 and words in refused.stderr


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "linnet", *map(str, arguments)]


def test_a_reader_that_leaves_is_no_error(run: Path) -> None:
    generate = " ".join(command("generate", run, "1+2=", "-n", "2000", "--json"))
    piped = f"{generate} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "141"


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A limit on the size of files stands for a disk without space: both fail in the middle of a write."""
    done = subprocess.run(
        command("train", "tiny-arithmetic", "--out", tmp_path / "run", *TINY),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.slow
def test_interrupting_is_clean_and_resume_goes_on(tmp_path: Path) -> None:
    long = ["--set", "training.steps=2000", "--set", "data.instances=400", "--set", "training.eval_every=2000"]
    started = subprocess.Popen(
        command("train", "tiny-arithmetic", "--out", tmp_path / "run", *long, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (metrics.is_file() and '"step":3,' in metrics.read_text()):
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert started.returncode == 130, err
    assert out == "" and f"linnet resume {tmp_path / 'run'}" in err
    (shown,) = records(linnet("show", tmp_path / "run", "--json"))
    assert shown["state"] == "unfinished" and 3 <= shown["step"] < 2000


@pytest.mark.parametrize("recipe", sorted(registry().recipes))
def test_every_setting_of_a_recipe_has_a_meaning_and_can_be_set(recipe: str) -> None:
    """What `linnet recipes NAME` lists is what `--set` takes; meanings stand at the settings themselves."""
    (described, *settings) = workbench.recipes(recipe)
    assert described.kind == "recipe" and described.summary and described.takes
    run = made(recipe)
    for setting in settings:
        assert setting.kind == "setting" and setting.meaning, setting.key
        chooses = setting.key == "optim.schedule.kind"  # which starts a schedule anew
        if setting.default is not None and not isinstance(setting.default, list | dict) and not chooses:
            assert changed(run, [(setting.key, setting.default)]) == run


def test_a_broken_package_is_named_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name, value = "broken", "nowhere:REGISTRATION"

        def load(self) -> object:
            raise ImportError("No module named 'nowhere'")

    found = list(importlib.metadata.entry_points(group="linnet.domains"))
    monkeypatch.setattr("linnet.domains.registry.entry_points", lambda group: [*found, Point()])
    registry.cache_clear()
    try:
        assert "arithmetic" in registry().domains
        with pytest.raises(BadInput, match="the domain broken could not be loaded .*nowhere"):
            registry().recipe("no-such-recipe")
    finally:
        registry.cache_clear()
