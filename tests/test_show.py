"""What is seen of a run before and after it trained: a dry run, learning curves, and verbs that answer at once."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from linnet import workbench
from linnet.cli.app import build
from linnet.errors import BadInput
from linnet.records import AnalysisRecord, Grid
from linnet.training.checkpoint import RunFolder
from linnet.workbench.curves import HEIGHT, POINTS, chart, curve_of
from text_corpora import corpus
from tiny_runs import logged, train_tiny


def linnet(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build(), [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("show") / "run"
    train_tiny(path, "eval_every=30", "ema=0.9", steps=130)
    return path


# Dry runs.


def test_a_dry_run_has_the_sizes_of_the_run_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = corpus(tmp_path / "a.txt", 200)
    options = {"data": [data], "settings": ["training.epochs=2", "ema=0.9"]}
    plan = workbench.dry_run("tiny-text", **options)
    assert list(tmp_path.iterdir()) == [data]
    record = workbench.train("tiny-text", **options)
    shown = workbench.show(record.path)
    assert (plan.parameters, plan.steps) == (record.parameters, record.steps) and plan.rounds == pytest.approx(2)
    assert plan.training_bytes == shown.training_bytes
    assert plan.validations == len(logged(Path(record.path), "validation"))
    checkpoint = RunFolder(Path(record.path)).at(record.steps)
    written = sum(file.stat().st_size for file in checkpoint.iterdir())
    assert plan.checkpoint_bytes == pytest.approx(written, rel=0.1)
    assert plan.seconds > plan.steps * plan.seconds_per_step > 0


def test_the_verb_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dry = ("train", "tiny-arithmetic", "--dry-run", "--steps", "7")
    monkeypatch.chdir(tmp_path)
    result = linnet(*dry, "--out", "new", "--json")
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["kind"] == "dry run" and json.loads(line)["steps"] == 7
    picture = linnet(*dry)
    assert "7 steps of" in picture.stdout and "ms a step" in picture.stdout and not list(tmp_path.iterdir())


def test_a_dry_run_refuses_what_the_run_would(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="unknown key"):
        workbench.dry_run("tiny-arithmetic", settings=["bogus=1"])
    with pytest.raises(BadInput, match="written in another way"):
        workbench.dry_run("tiny-arithmetic", settings=["digits=4"], start=run)


# Curves.


def test_a_curve_is_the_mean_of_its_steps_and_every_validation(run: Path) -> None:
    curve = curve_of(RunFolder(run))
    assert curve is not None and len(curve.values) <= POINTS
    steps, losses = [record["step"] for record in logged(run)], [record["loss"] for record in logged(run)]
    ends = [int(step) for step in curve.labels["step"]]
    assert ends[-1] == steps[-1] == 130
    for first, last, value in zip([0, *ends], ends, curve.values, strict=False):
        assert value == pytest.approx(sum(losses[first:last]) / (last - first))
    (validation,) = curve.further
    assert validation.labels["step"] == ("30", "60", "90", "120", "130")
    assert validation.values == [record["ema_loss"] for record in logged(run, "validation")]


@settings(max_examples=100, deadline=None)
@given(
    training=st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=POINTS),
    validation=st.lists(st.floats(-1e6, 1e6), max_size=9),
)
def test_a_chart_shows_the_ends_and_fits_its_lines(training: list[float], validation: list[float]) -> None:
    def labels(values: list[float]) -> dict[str, tuple[str, ...]]:
        return {"step": tuple(str(number) for number in range(1, len(values) + 1))}

    further = (Grid(name="validation", axes=("step",), labels=labels(validation), values=validation),)
    record = AnalysisRecord(
        kind="curve",
        axes=("step",),
        labels=labels(training),
        values=training,
        further=further if validation else (),
    )
    lines = chart(record)
    finite = [value for value in (*training, *validation) if math.isfinite(value)]
    if not finite:
        assert not lines
        return
    assert len(lines) == HEIGHT + 3 and len({line.index("|") for line in lines[:HEIGHT]}) == 1
    assert lines[0].startswith(f"{max(finite):.4g}") or lines[0].lstrip().startswith(f"{max(finite):.4g}")
    assert set("".join(line.partition("|")[2] for line in lines[:HEIGHT])) <= {" ", ".", "o"}
    assert max(map(len, lines)) <= POINTS + 20


def test_show_and_report_have_the_curve(run: Path, tmp_path: Path) -> None:
    lines = chart(workbench.learning_curve(run))
    assert "\n".join(lines) in linnet("show", run).stdout
    assert "\n".join(lines) in (run / "report.md").read_text()
    assert json.loads(linnet("show", run, "--json").stdout)["curve"]["kind"] == "curve"
    result = linnet("show", run, "--out", tmp_path / "curve.json")
    assert result.exit_code == 0 and json.loads((tmp_path / "curve.json").read_text())["further"]
    assert linnet("show", run, "--out", tmp_path / "curve.json").exit_code == 2


@pytest.mark.parametrize(
    "line", ['{"kind":"step","step":"a","loss":1}', '{"kind":"step","step":1}', "[1]", "{", "\udce9"]
)
def test_a_broken_log_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    train_tiny(tmp_path / "run", steps=1)
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_bytes(b'{"kind":"note"}\n' + line.encode("utf-8", "surrogateescape") + b"\n")
    result = linnet("show", tmp_path / "run")
    if line == '{"kind":"step","step":1}':  # JSON has no word for a loss that is no number
        assert result.exit_code == 0
        return
    assert result.exit_code == 2 and "metrics.jsonl, line 2" in result.stderr


def test_runs_without_steps_have_no_curve(tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", steps=1)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert workbench.show(tmp_path / "run").curve is None
    with pytest.raises(BadInput, match="has no curve: not one step is logged"):
        workbench.learning_curve(tmp_path / "run")


# Verbs that need no torch.

AT_ONCE = {
    "runs {d}": 0,
    "show {d}/run": 0,
    "recipes": 0,
    "recipes text": 0,
    "data check arithmetic {d}/sums.txt": 0,
    "data check places {d}/visits.csv": 0,
    "generate {d}/nothing 1+1=": 2,
    "eval {d}/nothing": 2,
    "export {d}/nothing out": 2,
    "train nonsense": 2,
    "train tiny-text --set bogus=1": 2,
    "train tiny-text --data {d}/nothing.txt": 2,
}
CALLING = """
import json, sys
from typer.testing import CliRunner
from linnet.cli.app import build

for words, code in json.loads(sys.argv[1]).items():
    result = CliRunner().invoke(build(), words.split())
    assert result.exit_code == code, (words, result.stderr)
    assert "torch" not in sys.modules, f"{words} loads torch"
"""


def test_what_needs_no_torch_loads_none(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(run)
    (tmp_path / "sums.txt").write_text("1+1=2\n2+2=4\n")
    rows = [
        f"u{user},2024-01-{day:02d}T{hour:02d}:00:00,p{(user * day + hour) % 5}"
        for user in range(3)
        for day in range(1, 29)
        for hour in (8, 12, 18)
    ]
    (tmp_path / "visits.csv").write_text("\n".join(["user,time,place", *rows]))
    commands = {words.replace("{d}", str(tmp_path)): code for words, code in AT_ONCE.items()}
    command = [sys.executable, "-c", CALLING, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
