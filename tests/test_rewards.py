"""Rewards by name, what they give, and what happens when one goes wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linnet.domains.arithmetic.rewards import Exact
from linnet.errors import BadInput, RunFailed
from linnet.search.named import offered, reward_of, score_of
from linnet.search.reward import Ids
from linnet.search.rewards.calls import Calls
from linnet.search.rewards.spectral import GRID, numbers, spectrum

ANSWERS = ["46", "45", "37", "4", "?4;6", "-46", ""]


def length(texts: Sequence[str], ids: Sequence[Ids], prompt: str) -> list[int]:
    return [len(text) for text in texts]


def fussy(texts: Sequence[str], ids: Sequence[Ids], prompt: str) -> list[float]:
    """Cannot bear one answer."""
    if "37" in texts:
        raise KeyError("thirty-seven")
    return [0.0] * len(texts)


def slow(texts: Sequence[str], ids: Sequence[Ids], prompt: str) -> list[float]:
    time.sleep(30)
    return [0.0] * len(texts)


def dying(texts: Sequence[str], ids: Sequence[Ids], prompt: str) -> list[float]:
    os._exit(3)


def scored(name: str, texts: Sequence[str], prompt: str = "", **settings: Any) -> list[float]:
    score = score_of(name, settings)
    ids = [tuple(range(len(text))) for text in texts]
    return reward_of(score, Calls(score), name).numbers(texts, ids, prompt).tolist()


def test_all_named_rewards_give_numbers_within_their_limits() -> None:
    settings = {
        "regex": {"pattern": "4"},
        "label": {"label": "46"},
        "classifier": {"function": f"{__name__}:by_length", "label": "long"},
    }
    series = " ".join(map(str, range(20)))
    prompts = {"facts": series, "spectral": series, "rationale": "; ".join([series] * 3)}
    for name in sorted(set(offered("reward")) - {"logprob"}):
        score = score_of(name, settings.get(name, {}))
        prompt = prompts.get(name, "12+34=")
        reward = reward_of(score, score, name)
        assert (reward.least, reward.most) == (0.0, 1.0)
        assert reward.numbers(ANSWERS, [(1,)] * len(ANSWERS), prompt).shape == (len(ANSWERS),)


def test_the_exact_reward_and_its_partial_credit() -> None:
    assert scored("exact", ANSWERS, "12+34=") == [1, 0, 0, 0, 0, 0, 0]
    partial = scored("exact", ANSWERS, "12+34=", partial=True)
    assert partial == pytest.approx([1, 0.4, 0.4, 0, 0, 0, 0])  # 45: length, first digit; 37: length, residue
    assert scored("exact", ["1101", "1100"], "13 to binary") == [1, 0]
    with pytest.raises(BadInput, match="the reward exact checks arithmetic"):
        scored("exact", ["1"], "a poem about spring")


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.text("0123456789-?;", max_size=8))
def test_only_the_right_answer_earns_everything(a: int, b: int, answer: str) -> None:
    for partial in (False, True):
        found = Exact(partial)([answer, str(a + b)], [(), ()], f"{a}+{b}=")
        assert found[1] == 1 and (found[0] == 1) == (answer == str(a + b)) and 0 <= found[0] <= 1


def test_texts_are_matched_labelled_and_measured() -> None:
    assert scored("regex", ["ab1", "ab", "1"], pattern="[0-9]$") == [1, 0, 1]
    assert scored("regex", ["ab1", "1"], pattern="[0-9]", whole=True) == [0, 1]
    assert scored("label", ["Walking.", "so: walking", "Answer: WALKING!"], label="walking") == [1, 0, 0]
    said = ["first Answer: running", "Answer: running, no, Answer: walking", "walking"]
    assert scored("label", said, label="walking", after="Answer:") == [0, 1, 0]
    assert scored("length", ["", "abc", "abcdefgh"], target=4) == [0, 0.75, 1]
    assert scored("length", ["a bc d", "a"], target=2, unit="words") == [1, 0.5]


def by_length(texts: Sequence[str]) -> list[Any]:
    return ["long" if len(text) > 3 else {"long": 0.25, "short": 0.75} for text in texts]


def test_a_classifier_gives_labels_or_probabilities() -> None:
    found = scored("classifier", ["word", "a"], function=f"{__name__}:by_length", label="long")
    assert found == [1, 0.25]


def wave(rate: float, length: int, phase: float = 0.0) -> str:
    return " ".join(f"{value:.4f}" for value in np.sin(rate * np.arange(length) + phase))


@pytest.mark.parametrize("metric", ["l1", "wasserstein", "kl"])
def test_series_that_sound_alike_are_rewarded(metric: str) -> None:
    noise = " ".join(f"{value:.4f}" for value in np.random.default_rng(0).normal(size=60))
    texts = [wave(0.9, 64), wave(0.9, 48, 1.0), noise, wave(2.2, 64), "1 2 3"]
    same, alike, other, far, short = scored("spectral", texts, wave(0.9, 64), metric=metric)
    assert same == pytest.approx(1) and short == 0
    assert alike > max(other, far)


def test_a_forecast_is_compared_with_the_end_of_the_series_before_it() -> None:
    history, texts = wave(0.9, 64), [wave(0.9, 32, 0.9 * 64), wave(2.2, 32), wave(0.9, 4)]
    whole = [f"{' '.join(history.split()[-32:])} {text}" for text in texts[:2]]
    found = scored("spectral", texts, history, before=32)
    assert found[:2] == pytest.approx(scored("spectral", whole, history)) and found[2] == 0
    assert found[0] > found[1]
    assert scored("spectral", texts, history, before=900)[0] == pytest.approx(
        scored("spectral", [f"{history} {texts[0]}"], history)[0]
    )


def test_numbers_are_found_and_a_spectrum_has_the_power_of_its_series() -> None:
    assert numbers("a -1.5, 2e3 .5 and 1e999 7.").tolist() == [-1.5, 2000, 0.5, 7]
    series = np.random.default_rng(1).normal(size=4096)
    power = spectrum(series)
    assert power.shape == GRID.shape and power.mean() == pytest.approx(1, rel=0.15)  # white noise of variance 1
    tone = spectrum(np.sin(2 * np.pi * 0.25 * np.arange(512)))
    assert GRID[tone.argmax()] == 0.25
    with pytest.raises(BadInput, match="the prompt has 2 numbers"):
        scored("spectral", ["1"], "1 2")


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("regx", {}, 'no reward "regx"; did you mean "regex"'),
        ("regex", {}, "pattern is missing"),
        ("regex", {"pattern": "("}, "no regular expression"),
        ("regex", {"pattren": "a"}, 'no setting "pattren"; did you mean "pattern"'),
        ("length", {"target": 0}, "target is 0; it has to be at least 1"),
        ("label", {"label": " . "}, "no letter or digit"),
        ("math:tau2", {}, "math has no 'tau2'"),
        ("math:pi", {}, "cannot be called"),
        ("math:sqrt", {"a": 1}, "is a function and has no settings"),
        ("no_such_module:f", {}, "cannot be imported"),
        (":f", {}, "cannot be imported: ValueError: Empty module name"),
        ("broken_rewards:f", {}, "cannot be imported: SyntaxError"),
        ("classifier", {"function": "broken_rewards:f", "label": "a"}, "cannot be imported: SyntaxError"),
    ],
)
def test_what_is_no_reward_is_named(
    name: str, settings: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_rewards.py").write_text("def f(:")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as refused:
        score_of(name, settings)
    assert words in str(refused.value)


def test_a_function_beside_the_person_who_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_rewards.py").write_text(
        "def vowels(texts, ids, prompt):\n    return [2.0 for _ in texts]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert scored("my_own_rewards:vowels", ["a", "b"]) == [2, 2]


@pytest.mark.parametrize("processes", [1, 3])
def test_processes_change_nothing(processes: int) -> None:
    texts = [str(10**n) for n in range(7)]
    with Calls(length, processes=processes) as calls:
        assert calls(texts, [(1,)] * 7, "").tolist() == list(range(1, 8))
        assert calls(texts[:1], [(1,)], "").tolist() == [1]
        assert calls([], [], "").tolist() == [] and calls.answers == 8


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("score", "seconds", "error", "words"),
    [
        (fussy, 20, BadInput, "raised KeyError: 'thirty-seven'"),
        (slow, 0.2, RunFailed, "had not scored '46'"),
        (lambda texts, ids, prompt: [1.0], 20, BadInput, ""),
    ],
)
def test_what_goes_wrong_is_reported_with_the_answer(
    processes: int, score: Any, seconds: float, error: type[Exception], words: str
) -> None:
    limit = seconds + 4 * (processes - 1) if score is slow else seconds
    with Calls(score, seconds=limit, processes=processes) as calls, pytest.raises(error) as failed:
        calls(ANSWERS, [(1,)] * len(ANSWERS), "12+34=")
    assert words in str(failed.value)
    if score is fussy:
        assert str(failed.value).endswith("for the answer '37'") and "test_rewards.py, line" in str(failed.value)


def test_a_process_that_dies_is_reported() -> None:
    with Calls(dying, processes=2) as calls, pytest.raises(BadInput, match=r"ended .*exit code 3"):
        calls(ANSWERS, [(1,)] * len(ANSWERS), "")


@pytest.mark.parametrize("options", [{"seconds": 0.0}, {"seconds": float("inf")}, {"processes": 0}])
def test_how_a_reward_is_called_is_checked(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Calls(length, **options)
