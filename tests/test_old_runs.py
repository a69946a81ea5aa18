"""Run folders of older formats, kept as they were written then, still open."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from linnet import workbench
from linnet.records import RunRecord

OLD = Path(__file__).parent / "old_runs" / "format1"


def test_an_old_run_folder_stays_loadable(tmp_path: Path) -> None:
    """Format 1, as it was written then: shown, resumed, scored, and the same greedy answers."""
    assert sum(path.stat().st_size for path in OLD.rglob("*") if path.is_file()) < 60_000
    out = tmp_path / "old"
    shutil.copytree(OLD, out)
    shown = workbench.show(out)
    assert (shown.state, shown.step, shown.checkpoints, shown.best) == ("finished", 56, (56,), 56)
    record = workbench.resume(out)
    stored = RunRecord.model_validate_json((OLD / "record.json").read_bytes())
    assert record == stored.model_copy(update={"path": str(out)}), "and not where it was trained"
    known = {"2+9=": "11", "3+8=": "11", "4+6=": "10", "4+7=": "11", "5+5=": "10", "7+4=": "11"}
    said = list(workbench.generate(out, list(known), temperature=0))
    assert {generation.prompt: generation.text for generation in said} == known
    assert [generation.logprob for generation in said] == pytest.approx(
        [-0.26, -0.22, -0.24, -0.20, -0.25, -0.23], abs=0.01
    )
    scores = {score.name: score.value for score in record.scores}
    again = workbench.evaluate(out, settings=["n=11"]).scores
    assert again and "nats_per_token" in scores
    (listed,) = workbench.runs([out])
    assert (listed.recipe, listed.state) == ("tiny-arithmetic", "finished")


def test_an_old_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """Without its record it is resumed from its checkpoint: scored again, with the scores it had."""
    out = tmp_path / "old"
    shutil.copytree(OLD, out)
    (out / "record.json").unlink()
    before = json.loads((OLD / "record.json").read_text())["scores"]
    threads = torch.get_num_threads()
    record = workbench.resume(out)
    torch.set_num_threads(threads)
    for mine, theirs in zip(record.scores, before, strict=True):
        assert mine.name == theirs["name"]
        np.testing.assert_allclose(mine.value, theirs["value"], rtol=1e-4)
