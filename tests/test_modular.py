"""Sums modulo p: every pair once, one token a number, and a run that learns, scores and generates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linnet import workbench
from linnet.domains.modular.data import LENGTH, ModularCodec, ModularData
from linnet.domains.tokens import rows_of
from linnet.errors import BadInput


@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 5))
def test_the_parts_hold_every_sum_once(p: int, share: float, seed: int) -> None:
    material = ModularData(p=p, share=share).load(seed)
    parts = [np.asarray(rows_of(part).ids).reshape(-1, LENGTH) for part in (material.train, material.validation)]
    rows = np.concatenate(parts).astype(int)
    assert len(np.unique(rows[:, 0] * p + rows[:, 1])) == len(rows) == p * p
    assert ((rows[:, 0] + rows[:, 1]) % p == rows[:, 3]).all() and (rows[:, 2] == p).all()


@given(st.integers(0, 58), st.integers(0, 58), st.one_of(st.none(), st.integers(0, 58)))
def test_the_codec_gives_back_what_it_read(a: int, b: int, c: int | None) -> None:
    codec, text = ModularCodec(59), f"{a}+{b}=" + ("" if c is None else str(c))
    assert codec.decode(codec.encode(text).ids) == text


@pytest.mark.parametrize("text", ["59+1=", "1-2=", "", "1+2+3="])
def test_what_is_no_sum_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="3\\+4=|from 0 to 58"):
        ModularCodec(59).encode(text)


def test_a_run_learns_and_answers(tmp_path: Path) -> None:
    small = ["data.p=7", "data.share=0.8", "width=32", "batch=64", "feedforward.width=64", "lr=1e-2"]
    record = workbench.train("modular", out=tmp_path / "run", steps=60, settings=small)
    scores = {score.name: score for score in record.scores}
    assert scores["accuracy"].n == 10 and scores["accuracy"].baseline.value == pytest.approx(1 / 7)
    (said,) = workbench.generate(tmp_path / "run", ["3+5="], temperature=0, max_tokens=1)
    assert said.text in map(str, range(7))
    assert workbench.evaluate(tmp_path / "run").scores == record.scores, "all sums that are new"
    assert workbench.evaluate(tmp_path / "run", settings=["n=4"]).scores[0].n == 4
    with pytest.raises(BadInput, match='no split "dev"; leave --split out'):
        workbench.evaluate(tmp_path / "run", split="dev")
