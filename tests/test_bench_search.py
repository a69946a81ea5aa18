"""What the search benchmark compares with, and how it adds up what it measured in part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.search import Parts, Work, agree, grown, random_runner, step_of
from bench.search_naive import Naive, logits_of, naive_tokens
from bench.search_stages import PROMPT, TOKENS, Curve
from bench.stages import subjects
from bench.training import Shape
from linnet import workbench
from linnet.decoding.runner import Runner
from linnet.errors import BadInput, RunFailed
from small_models import random_model, small_config


def test_the_obvious_loop_reads_the_whole_text_for_every_token() -> None:
    model = random_model(small_config())
    seen: list[tuple[int, ...]] = []

    def score(ids: object) -> float:
        seen.append(tuple(ids))  # type: ignore[arg-type]
        return 0.5

    naive = Naive(logits_of(model, model.head), 3, rollouts=4, max_tokens=6, early_stop=False)
    root, counts = naive.search((1, 2, 4), score, np.random.default_rng(0))
    # Every leaf has the same reward, which is that of their soft mean, too.
    assert root.visits == 4 and root.value == pytest.approx(0.5)
    assert all(len(ids) == 6 for ids in seen) and len(root.children) == 3
    one = Naive(naive.logits, None, rollouts=1, max_tokens=6)
    _, counts = one.search((1, 2, 4), score, np.random.default_rng(0))
    assert (counts.tokens, counts.forward_tokens) == (6, naive_tokens(3, 6))
    stopped = Naive(naive.logits, 3, rollouts=20, max_tokens=12)
    seen.clear()
    stopped.search((1, 2, 4), score, np.random.default_rng(0))
    assert all(3 not in ids[:-1] for ids in seen) and any(ids[-1] == 3 for ids in seen)


def test_a_rollout_is_the_sum_of_its_tokens() -> None:
    def take(length: int) -> float:
        return 0.5 + 0.01 * length + 1e-4 * length**2

    curve = Curve.of(take, PROMPT)
    for tokens in (50, 250):
        right = sum(take(PROMPT + token) for token in range(tokens))
        assert curve.rollout(tokens) == pytest.approx(right)
    ending = sum(take(PROMPT + token) * 0.99**token for token in range(250))
    assert curve.rollout(250, 0.99 ** np.arange(250)) == pytest.approx(ending)


def test_prompts_of_a_run_are_measured_on_what_its_search_reads(tmp_path: Path) -> None:
    """The obvious forward reads the same patches as ours, and texts end as often as the model draws an end."""
    file = tmp_path / "series.csv"
    values = np.random.default_rng(0).normal(size=(4, 60)).round(3)
    file.write_text("".join(f"s{row}," + ",".join(map(str, one)) + "\n" for row, one in enumerate(values)))
    run = Path(workbench.train("tiny-captions", out=tmp_path / "run", steps=2).path)
    opened = workbench.load(run, precision="float32")
    for subject in subjects(opened, [file], 1):
        naive = logits_of(subject.model, subject.model.head, subject.columns, rows=2)(subject.prompt)
        ours, _ = Runner(opened.model, columns=subject.columns).prefill([subject.prompt])
        torch.testing.assert_close(naive.expand(1, -1), ours, rtol=0, atol=1e-4)
        assert subject.model.config.context > len(subject.prompt) + TOKENS
        assert subject.reached[0] == 1 and (np.diff(subject.reached) <= 0).all()
    with pytest.raises(BadInput, match="give --data"):
        subjects(opened, [], 2)


def test_systems_that_compute_something_else_are_not_timed() -> None:
    agree({"ours": ("float32", [-1.0, -2.0]), "theirs": ("float32", [-1.001, -2.0])})
    with pytest.raises(RunFailed, match="theirs differs from ours by 0.5"):
        agree({"ours": ("float32", [-1.0]), "theirs": ("float32", [-1.5])})


def test_the_parts_of_a_search_are_timed() -> None:
    shape = Shape(1, 16, heads=2, vocabulary=600, context=32)
    step, work = step_of(random_runner(shape, "float32"), 4), Work(8, 6, 4, 3)
    parts = Parts(step)
    tree = grown(step, work.ids(shape.vocabulary), work)
    assert tree.rollouts == 6 and all(seconds > 0 for seconds in parts.seconds.values())
