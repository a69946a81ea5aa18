"""Studies measure what they say: cascades have their length, waves come apart, corrections are Holm's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import study_brackets, study_carry, study_modular
from bench.studies import study
from linnet.domains.arithmetic.codec import ArithmeticCodec
from linnet.errors import BadInput
from linnet.intervals import NORMAL


@given(st.integers(0, 4), st.integers(0, 1000), st.sampled_from((5, 10)))
def test_a_cascade_runs_as_far_as_it_says(length: int, seed: int, columns: int) -> None:
    for first, second in study_carry.cascades(length, 20, seed, columns).tolist():
        digits = [(first // 10**i % 10, second // 10**i % 10) for i in range(columns)]
        sums = [a + b for a, b in digits]
        assert sums[0] >= 10 and sums[1 : 1 + length] == [9] * length
        assert all(total < 9 for total in sums[1 + length :])
        assert min(first, second) >= 0 and max(first, second) < 10**columns


@pytest.mark.parametrize(
    "settings", [{"reverse": "none"}, {"reverse": "all"}, {"scratchpad": True, "reverse": "none"}]
)
def test_what_a_model_writes_itself_is_all_that_follows_the_question(settings: dict[str, Any]) -> None:
    codec = ArithmeticCodec("add", width=5, **settings)
    operands = study_carry.cascades(2, 20, 1)
    ids, following, written = study_carry.rows(operands, codec)
    for (a, b), before, after, mask in zip(operands.tolist(), ids, following, written, strict=True):
        whole = [codec.begin, *codec.encode(f"{a}+{b}={a + b}").ids, codec.end]
        assert [int(before[0]), *after[: len(whole) - 1].tolist()] == whole
        assert after[mask].tolist() == whole[whole.index(codec.tokens.index("=")) + 1 :]


def test_every_subtask_has_the_carries_that_it_says() -> None:
    for name, operands in study_carry.subtasks(30, 5).items():
        totals = (operands[:, :, None] // 10 ** np.arange(5) % 10).sum(1)
        if name == "no carry":
            assert len(operands) == 30 and (totals < 9).all()
        else:
            assert (totals[:, 0] > 9).all() and ((totals == 9).sum(1) == int(name.split()[1])).all()


@given(st.integers(3, 15), st.integers(0, 100))
def test_all_frequencies_together_are_everything_that_depends_on_the_sum(p: int, seed: int) -> None:
    p += 1 - p % 2
    random = torch.Generator().manual_seed(seed)
    index = torch.arange(p)
    total = (index[:, None] + index[None]) % p
    by_sum = torch.randn(p, p, generator=random, dtype=torch.float64)
    by_sum -= by_sum.mean(0)
    logits = by_sum[total]
    found = study_modular.through(logits, list(range(1, p // 2 + 1)))
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-9)
    noise = torch.randn(p, 1, p, generator=random, dtype=torch.float64).expand(p, p, p)  # of a alone
    assert float(study_modular.through(noise, [1]).abs().max()) < 1e-9


def test_holm_multiplies_the_least_p_by_the_number_of_heads() -> None:
    heads = [study_brackets.Excess(0, head, nats, 1.0, 0.0) for head, nats in enumerate((0.0, 4.0, NORMAL, 3.0))]
    corrected = [one.p for one in study_brackets.holm(heads)]
    assert corrected[2] == pytest.approx(0.1) and corrected[0] == 1
    assert corrected[1] == pytest.approx(4 * 6.334e-5, rel=1e-3)
    assert corrected[3] == pytest.approx(3 * 0.0026998, rel=1e-3)
    assert [one.special for one in study_brackets.holm(heads)] == [False, True, False, True]


def test_a_study_ends_in_a_page_and_its_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = study("modular", tmp_path, seeds=1, quick=True)
    assert [path.name for path in paths] == ["modular.md", "modular-losses.svg"]
    text = paths[0].read_text()
    assert "| AdamW | 1 |" in text and "| Muon | 1 |" in text
    assert paths == study("modular", tmp_path, seeds=1, quick=True) and text == paths[0].read_text()
    with pytest.raises(BadInput, match="AdamW-seed1.json was measured with other settings"):
        study("modular", tmp_path, seeds=1)
    with pytest.raises(BadInput, match='did you mean "carry"'):
        study("cary", tmp_path)


def test_losses_are_those_of_whole_and_partial_logits() -> None:
    p = 7
    index = torch.arange(p)
    total = (index[:, None] + index[None]) % p
    difference = (total[..., None] - index) % p
    logits = 10 * torch.cos(2 * np.pi * 2 * difference.double() / p)
    chosen = torch.zeros(p, p, dtype=torch.bool)
    chosen[:3] = True
    assert study_modular.key_frequencies(logits)[0] == 2
    found = study_modular.losses(logits, chosen, [2])
    assert found["test accuracy"] == 1 and found["restricted loss"] == pytest.approx(found["test loss"], abs=1e-9)
    assert found["excluded loss"] == pytest.approx(float(np.log(p)), abs=1e-9)
