"""Exact resume: a run that is stopped, whenever and however, ends with the bits of the run that was not."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from linnet import workbench
from linnet.domains.places.generated import Process, generate, write_check_ins
from linnet.errors import BadInput
from linnet.machine import compiler_at_hand
from linnet.records import RunRecord
from linnet.training.checkpoint import RunFolder
from linnet.training.guards import Stopped
from linnet.training.log import Diverged
from text_corpora import corpus
from tiny_runs import MUON, TINY, Killed, Watching, agree, bits, logged, train_tiny

STEPS = 18  # two epochs and a half; validations at 4, 8, 12, 16 and 18
RECIPES: dict[str, tuple[str, ...]] = {
    "adamw, cosine": ("schedule=cosine", "ema=0.8"),
    "muon, averaged weights, dropout, accumulation, wsd": MUON,
    "early stopping": ("patience=1", "lr=0.3", "eval_every=3", "schedule=constant", "ema=0.5", "accumulation=2"),
    "recurrent, onecycle, epochs": (
        "mixer=gru",
        "schedule=onecycle",
        "evals_per_epoch=2",
        "eval_every=5",
        "keep=1",
    ),
}

Undisturbed = Callable[[str], Path]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The folder of the run of a recipe that nothing stopped; each is trained once."""
    done: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp("undisturbed") / "run"
            train_tiny(done[name], *RECIPES[name], steps=STEPS)
        return done[name]

    return run


def killed_at(out: Path, name: str, step: int) -> None:
    with pytest.raises(Killed):
        train_tiny(out, *RECIPES[name], steps=STEPS, progress=Watching(step))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    "step",
    [
        pytest.param(1, id="before the first checkpoint"),
        pytest.param(6, id="mid-epoch"),
        pytest.param(8, id="between a validation's step and its checkpoint"),
        pytest.param(15, id="in a later epoch"),
    ],
)
def test_a_killed_run_ends_with_the_bits_of_the_undisturbed_one(
    tmp_path: Path, undisturbed: Undisturbed, name: str, step: int
) -> None:
    out = tmp_path / "run"
    length = len(logged(undisturbed(name)))
    killed_at(out, name, min(step, length))
    workbench.resume(out)
    agree(out, undisturbed(name))


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("tiny-text", ("dropout=0.1", "ema=0.9")),
        ("tiny-text", ("packing=apart", "accumulation=2", "optim.kind=muon", "model.width=16")),
        ("tiny-places", ("ema=0.9",)),
    ],
    ids=["packed text", "packed text, rows apart", "places"],
)
def test_a_killed_run_on_files_ends_with_the_bits_of_the_undisturbed_one(
    tmp_path: Path, recipe: str, settings: tuple[str, ...]
) -> None:
    """Other kinds of batches, and a codec that was made from the data."""
    if recipe == "tiny-places":
        data = tmp_path / "check-ins.csv"
        write_check_ins(data, generate(Process(users=8, visits=40, own=6, venues=100)))
    else:
        data = corpus(tmp_path / "corpus.txt", 60)
    options = {"data": [data], "settings": ["eval_every=5", *settings], "steps": 12}
    workbench.train(recipe, out=tmp_path / "whole", **options)
    out = tmp_path / "run"
    with pytest.raises(Killed):
        workbench.train(recipe, out=out, progress=Watching(3), **options)
    for step in (8, 11):
        with pytest.raises(Killed):
            workbench.resume(out, progress=Watching(step))
    workbench.resume(out)
    agree(out, tmp_path / "whole")


def test_a_killed_run_in_bfloat16_ends_with_the_bits_of_the_undisturbed_one(tmp_path: Path) -> None:
    options = {"steps": 8, "precision": "bfloat16"}
    train_tiny(tmp_path / "whole", "accumulation=2", **options)
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train_tiny(out, "accumulation=2", progress=Watching(6), **options)
    workbench.resume(out)
    agree(out, tmp_path / "whole")
    train_tiny(tmp_path / "float32", "accumulation=2", steps=8, precision="float32")
    rough, exact = ([step["loss"] for step in logged(tmp_path / name)] for name in ("whole", "float32"))
    assert rough != exact and rough == pytest.approx(exact, rel=0.02)
    assert any("precision bfloat16" in note["text"] for note in logged(out, "note"))
    weights = RunFolder(out).tensors(8, "weights.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}, "only products are rough"


def test_a_run_may_be_killed_again_and_again(tmp_path: Path, undisturbed: Undisturbed) -> None:
    name = "muon, averaged weights, dropout, accumulation, wsd"
    out = tmp_path / "run"
    killed_at(out, name, 2)
    for step in (3, 5, 5, 10, 17):
        with pytest.raises(Killed):
            workbench.resume(out, progress=Watching(step))
    workbench.resume(out)
    agree(out, undisturbed(name))


def test_early_stopping_stops_early(undisturbed: Undisturbed) -> None:
    """What the resumed run has to repeat is there: it ends before its last step, after a worse validation."""
    path = undisturbed("early stopping")
    losses = [record["ema_loss"] for record in logged(path, "validation")]
    assert len(logged(path)) == 3 * len(losses) < STEPS
    assert losses[-1] > min(losses) and min(losses[:-1]) == losses[-2]
    assert "stopped early: 1 validations without a better loss" in logged(path, "note")[-1]["text"]


def test_a_run_that_stopped_early_does_not_go_on(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """Killed after its last checkpoint, before its record."""
    out = tmp_path / "run"
    shutil.copytree(undisturbed("early stopping"), out)
    (out / "record.json").unlink()
    record = workbench.resume(out)
    assert record.steps < STEPS
    agree(out, undisturbed("early stopping"))


def test_a_run_that_was_killed_while_it_was_scored_is_scored(tmp_path: Path, undisturbed: Undisturbed) -> None:
    name = "adamw, cosine"
    out = tmp_path / "run"
    shutil.copytree(undisturbed(name), out)
    for done in ("record.json", "report.md"):
        (out / done).unlink()
    watching = Watching()
    workbench.resume(out, progress=watching)
    assert not [record for record in watching.records if record.kind == "step"]
    agree(out, undisturbed(name))
    assert (out / "report.md").is_file()


def test_an_interrupt_ends_the_run_at_a_checkpoint(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """SIGINT between two validations: the step is finished and saved, and nothing has to be repeated."""
    name = "muon, averaged weights, dropout, accumulation, wsd"
    out = tmp_path / "run"
    before = signal.getsignal(signal.SIGINT)

    class Interrupting(Watching):
        def write(self, record: object) -> None:
            super().write(record)
            if record.kind == "step" and record.step == 6:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match=f"stopped at step 6 of {STEPS}; go on with: linnet resume {out}") as stopped:
        train_tiny(out, *RECIPES[name], steps=STEPS, progress=Interrupting())
    assert stopped.value.exit_code == 130
    assert RunFolder(out).steps() == [4, 6]
    assert signal.getsignal(signal.SIGINT) is before, "signals act as before"
    watching = Watching()
    workbench.resume(out, progress=watching)
    assert [record.step for record in watching.records if record.kind == "step"][0] == 7
    agree(out, undisturbed(name))


def test_signals_that_interrupt_each_other_make_one_request() -> None:
    """The second arrives at every point of the handler of the first, in a process that may not wait for itself."""
    program = """
import signal, sys
from linnet.training.guards import stop_signals

def interrupt(frame, event, _):
    if frame.f_code.co_name == "request" and event == "line":
        sys.settrace(None)
        frame.f_trace = None
        signal.raise_signal(signal.SIGTERM)
    return interrupt

with stop_signals() as stop:
    sys.settrace(interrupt)
    signal.raise_signal(signal.SIGINT)
    sys.settrace(None)
    assert stop.made and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=100).returncode == 0


def test_resuming_replays_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch that a resumed run asks for is the one of its next step."""
    from linnet.data import Padded

    out = tmp_path / "run"
    killed_at(out, "adamw, cosine", 14)
    read: list[tuple[int, int]] = []
    batch = Padded.batch
    monkeypatch.setattr(
        Padded, "batch", lambda plan, step: (read.append((len(plan.source), step)), batch(plan, step))[1]
    )
    workbench.resume(out)
    assert [step for rows, step in read if rows == 100] == list(range(12, STEPS))


@pytest.mark.parametrize("file", ["weights.safetensors", "loop.safetensors", "ema.safetensors", "loop.json"])
@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, undisturbed: Undisturbed, file: str, damage: str
) -> None:
    name = "adamw, cosine"
    out = tmp_path / "run"
    killed_at(out, name, 14)
    assert RunFolder(out).steps() == [8, 12]
    path = out / "checkpoints" / "000012" / file
    content = path.read_bytes()
    path.write_bytes(content[:-40] if damage == "cut" else content[:-40] + b"0" * 40)
    watching = Watching()
    workbench.resume(out, progress=watching)
    notes = [record.text for record in watching.records if record.kind == "note"]
    assert any(f"{path.parent} is broken" in text and "left aside" in text for text in notes)
    assert [record.step for record in watching.records if record.kind == "step"][0] == 9
    assert any("000012 is broken" in note["text"] for note in logged(out, "note"))
    agree(out, undisturbed(name))


def test_with_every_checkpoint_broken_the_run_begins_anew(tmp_path: Path, undisturbed: Undisturbed) -> None:
    out = tmp_path / "run"
    killed_at(out, "adamw, cosine", 10)
    for step in RunFolder(out).steps():
        (RunFolder(out).at(step) / "weights.safetensors").write_bytes(b"")
    workbench.resume(out)
    agree(out, undisturbed("adamw, cosine"))
    assert len([n for n in logged(out, "note") if "is broken" in n["text"]]) == 2


@pytest.mark.parametrize("cut", [0, 7])
def test_metrics_that_lost_their_end_stay_readable(tmp_path: Path, cut: int) -> None:
    """A machine that crashed may have lost what was written last; half a line does not become a line."""
    out = tmp_path / "run"
    killed_at(out, "adamw, cosine", 10)
    metrics = out / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    fourth = [index for index, line in enumerate(lines) if line.startswith(b'{"kind":"step"')][3]
    metrics.write_bytes(b"".join(lines[:fourth]) + lines[fourth][:cut])
    workbench.resume(out)
    assert [record["step"] for record in logged(out)] == [1, 2, 3, *range(9, STEPS + 1)]


def test_same_seed_same_bits(tmp_path: Path, undisturbed: Undisturbed) -> None:
    name = "muon, averaged weights, dropout, accumulation, wsd"
    train_tiny(tmp_path / "again", *RECIPES[name], steps=STEPS)
    train_tiny(tmp_path / "other", *RECIPES[name], steps=STEPS, seed=2)
    agree(tmp_path / "again", undisturbed(name))
    assert bits(tmp_path / "other")["weights.safetensors"] != bits(undisturbed(name))["weights.safetensors"]


def test_a_finished_run_is_only_shown(tmp_path: Path, undisturbed: Undisturbed) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed("adamw, cosine"), out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    record = workbench.resume(out)
    stored = RunRecord.model_validate_json((out / "record.json").read_text())
    assert record == stored.model_copy(update={"path": str(out)}), "the folder was copied"
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_data_that_changed_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "sums.txt"
    lines = [f"{a}+{b}={a + b}" for a in range(12) for b in range(12)]
    data.write_text("\n".join(lines))
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train_tiny(out, progress=Watching(10), data=[data])
    data.write_text("\n".join(lines[2:]))
    with pytest.raises(BadInput, match="the training data of .* changed since the run started"):
        workbench.resume(out)
    data.write_text("\n".join(lines))
    workbench.resume(out)


def test_a_broken_best_checkpoint_is_named_and_the_next_is_scored(
    tmp_path: Path, undisturbed: Undisturbed
) -> None:
    """Resuming must end, although what was best can no longer be read."""
    out = tmp_path / "run"
    shutil.copytree(undisturbed("early stopping"), out)
    for done in ("record.json", "report.md"):
        (out / done).unlink()
    folder = RunFolder(out)
    best = folder.best()
    assert best is not None and best < folder.steps()[-1]
    (folder.at(best) / "ema.safetensors").write_bytes(b"")
    record = workbench.resume(out)
    assert record.scores
    assert (
        f"{best:06d} is broken (ema.safetensors is not what was written) and is not scored"
        in (out / "report.md").read_text()
    )


# A loss that is not a number.


def raise_the_rate(out: Path, rate: str) -> None:
    settings = out / "run.toml"
    settings.write_text(re.sub(r"(?m)^lr = .*$", f"lr = {rate}", settings.read_text(), count=1))


def test_a_run_that_diverges_at_once_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        Diverged, match=r"at step 2 is .*; there is no checkpoint yet; .*lower optim.lr"
    ) as diverged:
        train_tiny(tmp_path / "run", "lr=1e30", "schedule=constant")
    assert diverged.value.exit_code == 1
    assert RunFolder(tmp_path / "run").steps() == []
    assert [record["step"] for record in logged(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize("log_every", [1, 3, 50])
def test_a_run_that_diverges_names_the_step_and_the_last_good_checkpoint(tmp_path: Path, log_every: int) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train_tiny(out, "schedule=constant", progress=Watching(5))
    raise_the_rate(out, "1e30")
    settings = out / "run.toml"
    settings.write_text(settings.read_text().replace("log_every = 1", f"log_every = {log_every}"))
    good = bits(out)
    with pytest.raises(Diverged) as diverged:
        workbench.resume(out)
    assert "the loss at step 6 is " in str(diverged.value)
    assert f"the last good checkpoint is {RunFolder(out).at(4)}" in str(diverged.value)
    assert bits(out) == good


@pytest.mark.parametrize("mixer", ["attention", "gru"])
def test_weights_that_overflowed_are_not_saved(tmp_path: Path, mixer: str) -> None:
    """The step was in order, the loss behind the last norm is finite, and yet no step can follow."""
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train_tiny(out, "schedule=constant", f"mixer={mixer}", progress=Watching(6))
    toml = out / "run.toml"
    toml.write_text(toml.read_text().replace("eval_every = 4", "eval_every = 1"))
    raise_the_rate(out, "1e30")
    good = bits(out)
    with pytest.raises(Diverged, match=r"weights after step 5 have the norm inf; the last good .*000004"):
        workbench.resume(out)
    assert bits(out) == good


def test_a_validation_that_is_not_a_number_is_not_saved(tmp_path: Path) -> None:
    """Weights that can be squared, and not multiplied with each other."""
    out = tmp_path / "run"
    with pytest.raises(
        Diverged, match=r"the validation loss after step 1 is (nan|inf); there is no checkpoint yet"
    ):
        train_tiny(
            out,
            "lr=1e14",
            "schedule=constant",
            "eval_every=1",
            "head.tied=false",
            "feedforward.kind=relu2",
            "model.depth=2",
            "norm.kind=layer",
        )
    assert RunFolder(out).steps() == []


# Real processes.


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "linnet", *map(str, words)]


def started(out: Path, *settings: str) -> subprocess.Popen[str]:
    words = command("train", "tiny-arithmetic", "--out", out, "--steps", "150", "--json")
    for setting in (*TINY, "eval_every=10", *settings):
        words += ["--set", setting]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_steps(out: Path, process: subprocess.Popen[str], steps: int) -> None:
    """Until so many steps are logged; a run that ends before fails the test."""
    metrics = out / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_bytes().count(b'"kind":"step"') < steps:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


@pytest.mark.slow
def test_the_command_line_ends_at_a_checkpoint_when_interrupted_and_survives_sigkill(tmp_path: Path) -> None:
    """SIGINT once, SIGKILL once at a random moment, and the bits of the run that nobody touched."""
    out = tmp_path / "run"
    settings = ("dropout=0.2", "ema=0.9", "accumulation=2")
    process = started(out, *settings)
    wait_for_steps(out, process, 15)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate()
    assert process.returncode == 130
    assert printed == ""
    assert re.search(rf"stopped at step \d+ of 150; go on with: linnet resume {out}", errors)
    assert "Traceback" not in errors
    stopped_at = RunFolder(out).steps()[-1]
    assert len(logged(out)) == stopped_at

    process = subprocess.Popen(command("resume", out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_steps(out, process, stopped_at + 5 + random.randrange(40))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (out / "record.json").exists()

    done = subprocess.run(command("resume", out, "--json"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["kind"], record["steps"]) == ("run", 150)
    again = subprocess.run(command("resume", out, "--json"), capture_output=True, text=True)
    assert json.loads(again.stdout) == record, "resuming a finished run prints its record"

    threads = torch.get_num_threads()
    train_tiny(tmp_path / "whole", "eval_every=10", *settings, f"threads={threads}", steps=150)
    torch.set_num_threads(threads)
    agree(out, tmp_path / "whole")


@pytest.mark.slow
def test_a_compiled_run_resumes_exactly(tmp_path: Path) -> None:
    if not compiler_at_hand("cpu"):
        pytest.skip("there is no C++ compiler here")
    settings = ("compile=on", "dropout=0.2", "ema=0.9", "accumulation=2", "data.instances=96")
    train_tiny(tmp_path / "whole", *settings, steps=10)
    for step in (2, 6):
        out = tmp_path / f"run{step}"
        with pytest.raises(Killed):
            train_tiny(out, *settings, steps=10, progress=Watching(step))
        torch.compiler.reset()  # a new process has nothing compiled
        workbench.resume(out)
        agree(out, tmp_path / "whole")


def test_a_newer_format_is_refused(tmp_path: Path, undisturbed: Undisturbed) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed("adamw, cosine"), out)
    settings = out / "run.toml"
    settings.write_text(settings.read_text().replace("format = 2", "format = 3", 1) + "\n[future]\nwonder = 1\n")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    uses: list[Callable[[], object]] = [
        lambda: workbench.resume(out),
        lambda: workbench.load(out),
        lambda: workbench.show(out),
        lambda: workbench.runs([tmp_path]),
        lambda: workbench.evaluate(out),
        lambda: list(workbench.generate(out, ["1+1="])),
    ]
    for use in uses:
        with pytest.raises(
            BadInput, match=r"run.toml has run format 3, and this linnet reads up to 2: update linnet"
        ):
            use()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
