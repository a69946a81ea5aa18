"""The progress line, read as a person reads it, and the sinks that records go to."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linnet.errors import BadInput
from linnet.records import NoteRecord, StepRecord, ValidationRecord
from linnet.training import progress
from linnet.training.progress import Course, Moment, Progress, clock, memory, render, short
from linnet.training.sinks import JsonLines, open_trackers, scalars

COURSE = Course(steps=3000, first=0, rows=64, flops_per_token=1e6, device="cpu", precision="float32")


def step(number: int = 1200, **changes: float) -> StepRecord:
    known = {
        "loss": 0.12345,
        "lr": 3e-4,
        "grad_norm": 0.512,
        "tokens": 1_000_000,
        "tokens_per_second": 12_340.0,
        "ms": 41.27,
        "data_wait": 0.0,
        "memory_mb": 412.4,
    }
    return StepRecord.model_validate(known | changes | {"step": number})


def validation(loss: float = 0.11, ema: float | None = None, number: int = 1000) -> ValidationRecord:
    return ValidationRecord(step=number, loss=loss, ema_loss=ema, tokens=512)


def test_the_line_says_everything_where_there_is_room() -> None:
    moment = Moment(step(), validation(0.11, 0.09), elapsed=49.2, peak=50e9)
    assert render(COURSE, moment) == (
        "[#########---------------] 1200/3000 40% | loss 0.1235 | val 0.11 ema 0.09 | lr 3.00e-04 | "
        "norm 0.512 | 12.3k tok/s | batch 64 | 41.3 ms | 25% of peak | 412 MB | 0:49 eta 1:14"
    )


def test_what_is_not_known_is_not_said() -> None:
    line = render(COURSE, Moment(step(), None, elapsed=49.2, peak=None))
    assert "val" not in line and "peak" not in line and "gpu" not in line


def test_a_gpu_is_said() -> None:
    line = render(COURSE, Moment(step(gpu_memory_mb=2048.0, gpu_use=0.87), None, elapsed=1.0, peak=None))
    assert "| gpu 2.0 GB 87% |" in line


def test_a_narrow_terminal_keeps_what_matters_most() -> None:
    moment = Moment(step(), validation(), elapsed=49.2, peak=50e9)
    assert render(COURSE, moment, 79) == (
        "[###-----] 1200/3000 40% | loss 0.1235 | val 0.11 | 12.3k tok/s | 0:49 eta 1:14"
    )
    assert render(COURSE, moment, 40) == "[###-----] 1200/3000 40% | loss 0.1235"
    assert render(COURSE, moment, 30) == "1200/3000 | 40% | loss 0.1235"
    assert render(COURSE, moment, 12) == "1200/3000 | "


@given(
    st.integers(1, 10**7),
    st.floats(0, 1e12),
    st.floats(0, 1e9),
    st.floats(0, 1e7),
    st.integers(1, 250),
)
def test_the_line_always_fits(number: int, speed: float, ms: float, elapsed: float, width: int) -> None:
    moment = Moment(step(number, tokens_per_second=speed, ms=ms), validation(), elapsed, peak=1e9)
    assert len(render(COURSE, moment, width)) <= width


def test_the_pace_of_a_resumed_run_is_its_own() -> None:
    course = Course(steps=3000, first=1000, rows=64, flops_per_token=1e6, device="cpu", precision="float32")
    assert progress.remaining(course, Moment(step(1200), None, elapsed=20.0, peak=None)) == pytest.approx(180.0)
    assert progress.remaining(course, Moment(step(1000), None, elapsed=0.0, peak=None)) is None


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0"), (987, "987"), (1234, "1.23k"), (99960, "100k"), (4.56e6, "4.56M"), (2e12, "2T")],
)
def test_short_numbers(number: float, said: str) -> None:
    assert short(number) == said


def test_times_and_sizes() -> None:
    assert [clock(s) for s in (0, 6.6, 754, 3723)] == ["0:00", "0:07", "12:34", "1:02:03"]
    assert [memory(m) for m in (412.4, 2048)] == ["412 MB", "2.0 GB"]


class Hands:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_without_a_terminal_there_is_a_plain_line_every_few_seconds() -> None:
    stream, now = io.StringIO(), Hands()
    shown = Progress(COURSE, stream, every=5.0, now=now)
    for number in range(1, 14):
        now.time += 1.0
        shown.write(step(number))
    shown.write(NoteRecord(step=13, text="attention: explicit"))
    shown.close()
    lines = stream.getvalue().splitlines()
    assert [line.split("] ")[-1].split("/")[0] for line in lines] == [
        "1",
        "6",
        "11",
        "attention: explicit",
        "13",
    ]
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_on_a_terminal_one_line_is_rewritten() -> None:
    stream, now = io.StringIO(), Hands()
    shown = Progress(COURSE, stream, columns=lambda: 60, now=now)
    for number in range(1, 4):
        now.time += 1.0
        shown.write(step(number))
        shown.write(validation())
    shown.close()
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    pieces = text.rstrip("\n").split("\r")[1:]
    assert len(pieces) == 4 and all(len(piece.removesuffix("\x1b[K")) <= 59 for piece in pieces)
    assert "val 0.11" in pieces[-1]


def test_a_run_without_a_step_shows_nothing() -> None:
    stream = io.StringIO()
    Progress(COURSE, stream, columns=lambda: 60).close()
    assert stream.getvalue() == ""


def test_json_lines_go_on_at_the_offset_of_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path)
    sink.write(step(1))
    kept = sink.offset
    sink.write(step(2))
    assert len(path.read_text().splitlines()) == 2, "each line is on disk as soon as it is written"
    sink.close()
    again = JsonLines(path, kept)
    again.write(step(2, loss=9.0))
    again.close()
    assert [(row["step"], row["loss"]) for row in map(json.loads, path.read_text().splitlines())] == [
        (1, 0.12345),
        (2, 9.0),
    ]


def test_json_lines_that_were_lost_leave_no_hole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path, 10_000)
    sink.write(step(1))
    sink.close()
    assert json.loads(path.read_bytes())["step"] == 1


def test_names_that_trackers_group_by() -> None:
    assert scalars(step())["train/loss"] == 0.12345
    assert "train/gpu_use" not in scalars(step())
    said = ValidationRecord(step=5, loss=1.0, ema_loss=0.5, tokens=9, attention_entropy=(0.1, 0.2))
    assert scalars(said) == {
        "validation/loss": 1.0,
        "validation/ema_loss": 0.5,
        "validation/attention_entropy/0": 0.1,
        "validation/attention_entropy/1": 0.2,
    }


def test_an_unknown_tracker_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match='"tensorbord"; did you mean "tensorboard"'):
        open_trackers(["tensorbord"], tmp_path, "arithmetic", {})


def test_a_tracker_that_is_not_installed_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BadInput, match=r"pip install linnet\[wandb\]"):
        open_trackers(["wandb"], tmp_path, "arithmetic", {})


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (sink,) = open_trackers(["tensorboard"], tmp_path, "arithmetic", {})
    for number in (1, 2, 3):
        sink.write(step(number, loss=1.0 / number))
    sink.write(validation(0.5, number=2))
    sink.write(NoteRecord(step=3, text="not a number"))
    sink.close()
    (resumed,) = open_trackers(["tensorboard"], tmp_path, "arithmetic", {}, step=2)
    resumed.write(step(3, loss=7.0))
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 7.0),
    ]
    assert [e.step for e in events.Scalars("validation/loss")] == [2]


@pytest.mark.filterwarnings("ignore")  # the warnings of a tracker are its own affair
def test_trackio_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is an extra of its own: pip install linnet[trackio]")
    folder = tmp_path / "run"
    folder.mkdir()
    (sink,) = open_trackers(["trackio"], folder, "arithmetic", {"model": {"depth": 2}})
    sink.write(step(1))
    sink.write(validation(0.5, number=1))
    sink.close()
    import trackio

    (run,) = trackio.Api().runs("linnet-arithmetic")
    assert run.name == "run"


@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    pytest.importorskip("wandb", reason="wandb is an extra of its own: pip install linnet[wandb]")
    (sink,) = open_trackers(["wandb"], tmp_path, "arithmetic", {"model": {"depth": 2}})
    sink.write(step(1))
    sink.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
