"""The progress line, read as a person reads it, and the sinks that records go to."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linnet.errors import BadInput
from linnet.progress import Display, Progress, clock, short, shown_on, tracked
from linnet.records import NoteRecord, StepRecord, ValidationRecord
from linnet.training.progress import Course, TrainingProgress, facts, memory
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


class Hands:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_facts_of_a_step_are_said_in_the_order_of_importance() -> None:
    assert list(facts(COURSE, step(), validation(0.11, 0.09), 50e9)) == [
        *("loss 0.1235", "val 0.11 ema 0.09", "12.3k tok/s", "25% of peak", "lr 3.00e-04", "norm 0.512"),
        *("41.3 ms", "412 MB", "batch 64"),
    ]


def test_what_is_not_known_is_not_said() -> None:
    for peak in (None, 0.0, 1e9):  # a run is never faster than its machine
        line = " ".join(facts(COURSE, step(), None, peak))
        assert "val" not in line and "peak" not in line and "gpu" not in line
    assert "| gpu 2.0 GB 87% |" in " | ".join(facts(COURSE, step(gpu_memory_mb=2048.0, gpu_use=0.87), None, None))


def test_the_line_says_how_far_it_is() -> None:
    progress = Progress("training", 3000)
    assert progress.line(1200, ["loss 1", "val 2"], 49.2) == (
        "training 1,200/3,000 40% 0:49 eta 1:14 | loss 1 | val 2"
    )
    assert progress.line(0, [], 3) == "training 0/3,000 0% 0:03", "there is no pace yet"
    assert Progress("encoding", 4096, counted=False).line(1024, [], 5) == "encoding 25% 0:05 eta 0:15"
    assert Progress("reading").line(7, ["7 files"], 5) == "reading 0:05 | 7 files"


def test_the_pace_of_a_resumed_run_is_its_own() -> None:
    progress = Progress("training", 3000, first=1000)
    assert "eta 3:00" in progress.line(1200, [], 20)
    assert "eta" not in progress.line(1000, [], 20)


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.floats(0, 1e7))
def test_no_share_is_more_than_all_and_no_time_is_negative(done: int, whole: int, seconds: float) -> None:
    line = Progress("work", whole).line(done, [], seconds)
    shares = [int(word[:-1]) for word in line.split() if word.endswith("%")]
    assert all(0 <= share <= 100 for share in shares) and "-" not in line


def test_without_a_display_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked(range(5), "scoring", 5)) == list(range(5))
    shown = TrainingProgress(COURSE)
    shown.write(step())
    shown.write(NoteRecord(step=1, text="attention: explicit"))
    shown.close()
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_there_is_a_plain_line_every_few_seconds() -> None:
    stream, now = io.StringIO(), Hands()
    with shown_on(Display(stream, every=5.0, now=now)):
        shown = TrainingProgress(COURSE)
        for number in range(1, 14):
            now.time += 1.0
            shown.write(step(number))
        shown.write(NoteRecord(step=13, text="attention: explicit"))
        shown.close()
    lines = stream.getvalue().splitlines()
    assert [line.split("/")[0] for line in lines] == [
        "training 1",
        "training 6",
        "training 11",
        "attention: explicit",
        "training 13",
    ]
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_on_a_terminal_one_line_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    stream, now = Screen(), Hands()
    with shown_on(Display(stream, now=now)):
        shown = TrainingProgress(COURSE)
        for number in range(1, 4):
            now.time += 1.0
            shown.write(step(number))
            shown.write(validation())
        shown.write(NoteRecord(step=3, text="a note [that] stays"))
        shown.close()
    text = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", stream.getvalue())
    assert text.count("\n") == 2 and text.endswith("\n")
    pieces = [piece for piece in re.split(r"[\r\n]", text) if piece.strip()]
    assert all(len(piece) <= 60 for piece in pieces)
    assert "a note [that] stays" in [piece.strip() for piece in pieces]
    assert "3/3,000" in pieces[-1] and "val 0.11" in pieces[-1] and pieces[-1].rstrip().endswith("…")
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h"), "the cursor comes back"


def test_work_is_announced_and_of_work_within_work_the_innermost_has_the_line() -> None:
    stream, now = io.StringIO(), Hands()
    with shown_on(Display(stream, every=5.0, now=now)):
        for _ in tracked(range(3), "scoring", 3):
            now.time += 4.0
        outer = TrainingProgress(COURSE)
        outer.write(step(1))
        for _ in tracked(range(4), "validating", 40, 10):
            now.time += 2.0
            outer.write(step(2))  # as nobody does
        now.time += 6.0
        outer.write(step(3))
        outer.close()
    assert [line.split("|")[0].split(" 0:")[0] for line in stream.getvalue().splitlines()] == [
        *("scoring 0/3 0%", "scoring 2/3 67%", "scoring 3/3 100%"),
        *("training 1/3,000 0%", "validating 30/40 75%", "validating 40/40 100%", "training 3/3,000 0%"),
    ]


def test_short_work_that_nobody_announced_shows_nothing() -> None:
    for stream in (io.StringIO(), Screen()):
        with shown_on(Display(stream)):
            with Progress("reading", 3) as progress:
                progress.update(3)
            TrainingProgress(COURSE).close()
        assert stream.getvalue() == ""


def test_a_display_survives_work_that_fails() -> None:
    stream = Screen()
    with pytest.raises(ZeroDivisionError), shown_on(Display(stream)):
        progress = Progress("reading", 3)
        progress.update(1, at_once=True)
        _ = 1 / 0
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (987, "987"), (1234, "1.23k"), (99960, "100k"), (4.56e6, "4.56M"), (2e12, "2T")],
)
def test_short_numbers(number: float, text: str) -> None:
    assert short(number) == text


def test_times_and_sizes() -> None:
    assert [clock(s) for s in (0, 6.6, 754, 3723)] == ["0:00", "0:07", "12:34", "1:02:03"]
    assert [memory(m) for m in (412.4, 2048)] == ["412 MB", "2.0 GB"]


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
    record = ValidationRecord(step=5, loss=1.0, ema_loss=0.5, tokens=9, attention_entropy=(0.1, 0.2))
    assert scalars(record) == {
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
    with pytest.raises(BadInput, match=r"pip install .linnet-sequences\[wandb\]"):
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
    pytest.importorskip("trackio", reason="trackio is an extra of its own: pip install linnet-sequences[trackio]")
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
    pytest.importorskip("wandb", reason="wandb is an extra of its own: pip install linnet-sequences[wandb]")
    (sink,) = open_trackers(["wandb"], tmp_path, "arithmetic", {"model": {"depth": 2}})
    sink.write(step(1))
    sink.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
