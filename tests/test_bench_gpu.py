"""`bench/gpu.py` reports what it measures, what fails and what it has no time for, and ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import gpu

ROOT = Path(__file__).parent.parent


def failing() -> Iterator[gpu.Row]:
    yield {"number": 1}
    raise ValueError("a defect")


def endless() -> Iterator[gpu.Row]:
    yield {"number": 2}
    time.sleep(600)


@pytest.mark.slow
def test_what_goes_wrong_is_named_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    report = gpu.Report(600, out)
    report.measure("train tiny", "first", failing)
    monkeypatch.setitem(gpu.CAPS, "decode", 12.0)
    report.measure("decode tiny", "second", endless)
    report.limit = 10.0
    report.measure("small", "third", failing)
    report.spare.close()
    rows = json.loads(out.read_text())
    found = [{key: value for key, value in row.items() if key not in ("at", "lines")} for row in rows]
    assert found == [
        {"section": "train tiny", "name": "first", "number": 1},
        {"section": "train tiny", "name": "first", "failed": "ValueError: a defect"},
        {"section": "decode tiny", "name": "second", "number": 2},
        {"section": "decode tiny", "name": "second", "failed": "stopped: it took too long"},
        {"section": "small", "name": "third", "skipped": found[-1]["skipped"]},
    ]
    assert any("in failing" in line for line in rows[1]["lines"])
    printed = capsys.readouterr().out.splitlines()
    assert "train tiny | first | number 1" in printed[0] and "s] small | third | skipped" in printed[-1]


@pytest.mark.slow
def test_one_command_measures_a_section(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--tiny", "--only", "machine,small", "--out", str(out)]
    done = subprocess.run([sys.executable, "bench/gpu.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    machine, small = json.loads(out.read_text())
    assert machine["float32 TFLOP/s"] >= 0 and "torch" in machine["name"]
    assert small["steps"] == 30 and small["ms a step"] > 0 and len(done.stdout.splitlines()) == 2
    wrong = subprocess.run(
        [sys.executable, "bench/gpu.py", "--only", "all"], cwd=ROOT, capture_output=True, text=True
    )
    assert wrong.returncode == 2 and "no section is called all" in wrong.stderr


def test_drawn_titles_are_the_same_each_time(tmp_path: Path) -> None:
    one, two = (gpu.draw_titles(tmp_path / name, 50).read_text().splitlines() for name in ("one", "two"))
    assert one == two and len(one) == 50 and all(4 <= len(line.split()) <= 12 for line in one)
