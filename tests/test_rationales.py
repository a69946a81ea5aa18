"""Rationales: facts of a window, wordings and their reading, rewards, rows, and answers of a trained run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet import workbench
from linnet.decoding.runner import Runner
from linnet.domains.series.captions import making
from linnet.domains.series.captions.codec import PATCH, PATCHES, CaptionCodec
from linnet.domains.series.captions.data import captioning
from linnet.domains.series.captions.facts import Claim
from linnet.domains.series.captions.scores import examples
from linnet.domains.series.captions.use import by_rules
from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.rationales import grammar
from linnet.domains.series.rationales.data import (
    RationaleData,
    complete,
    label_probabilities,
    window_text,
    windowed,
)
from linnet.domains.series.rationales.facts import KINDS, VALUES, check, measure, true_claims
from linnet.domains.series.rationales.grammar import label_in
from linnet.domains.series.rationales.rewards import Rationale
from linnet.domains.series.rationales.scores import fact_scores, one_hot
from linnet.domains.series.rationales.use import Sampled
from linnet.errors import BadInput
from linnet.figures import save_series
from linnet.model.contract import evaluating
from linnet.workbench.open import load

CLASSES = ("REST", "STANDING_UP")
COLUMNS = "id=subject+recording,group=subject"


def window(seed: int, steps: int = 120) -> np.ndarray:
    """Any motion of a sensor with six channels."""
    random = np.random.default_rng(seed)
    found = random.normal(size=(steps, 6)) * random.uniform(0.02, 2)
    found[:, random.integers(3)] += 9.8 * random.choice([-1, 1])
    found[:, :3] += 3 * random.random() * np.sin(2 * np.pi * np.arange(steps) / random.integers(8, 30))[:, None]
    if random.random() < 0.5:
        found[steps // 2 :, random.integers(3)] += random.uniform(0, 9)
    return np.asarray(found * 10 ** random.uniform(-1, 1))


@given(st.integers(0, 1 << 31), st.integers(0, 6))
@settings(max_examples=150, deadline=None)
def test_every_wording_is_read_as_the_claim_that_it_makes(seed: int, most: int) -> None:
    found = measure(window(seed))
    text = grammar.rationale(found, CLASSES[1], np.random.default_rng(seed), most)
    claims = grammar.read(text)
    assert len(claims) == min(most, len(true_claims(found))) == len({claim.kind for claim in claims})
    assert all(verdict == "true" for _, verdict in grammar.verdicts(text, found))
    assert label_in(text, CLASSES) == CLASSES[1] and label_in(text, CLASSES[:1]) is None
    codec = CaptionCodec.of(grammar.every_wording(CLASSES))
    assert codec.decode(codec.encode(text).ids) == text


@given(st.integers(0, 1 << 31))
@settings(max_examples=60, deadline=None)
def test_facts_do_not_depend_on_units_and_most_not_on_how_the_sensor_is_held(seed: int) -> None:
    signal = window(seed)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    turned = np.concatenate([signal[:, :3] @ turn, signal[:, 3:] @ turn], 1)
    one, scaled, held = measure(signal), measure(7.5 * signal), measure(turned)
    for name in ("strength", "rhythm", "spread", "tilt", "gravity", "turning"):
        assert getattr(one, name) == pytest.approx(getattr(scaled, name), abs=1e-5), name
    for name in ("strength", "rhythm", "spread", "tilt"):
        assert getattr(one, name) == pytest.approx(getattr(held, name), abs=1e-5), name
    for kind in KINDS:  # values of a kind exclude each other
        assert sum(check(Claim(kind, value), one) == "true" for value in VALUES[kind]) <= 1


def test_what_is_planted_is_found() -> None:
    n, random = 240, np.random.default_rng(0)
    t, still = np.arange(n), np.concatenate([np.zeros((n, 3)), random.normal(size=(n, 3)) * [0.1, 0.1, 3]], 1)
    still[:, 1] = -9.8
    shaken = still + np.where(t < n // 2, 0.1, 2.0)[:, None] * random.normal(size=(n, 6))
    stepping = still.copy()
    stepping[:, 1] += 6 * np.sin(2 * np.pi * t / 40)
    fallen = np.where((t < n // 2)[:, None], still, still[:, [1, 0, 2, 3, 4, 5]])
    planted = [
        (still, ("strength", "still"), ("gravity", "y"), ("turning", "z"), ("tilt", "stays"), ("rhythm", "none")),
        (shaken, ("change", "grows")),
        (shaken[::-1], ("change", "shrinks")),
        (stepping, ("strength", "strong"), ("rhythm", "present")),
        (fallen, ("tilt", "changes")),
    ]
    for signal, *wanted in planted:
        found = {(claim.kind, claim.value): claim for claim in true_claims(measure(signal))}
        assert set(wanted) <= set(found), (wanted, found)
    assert measure(stepping).period == 40


def test_rewards_count_facts_and_never_the_label() -> None:
    signal = window(3)
    found, prompt, random = measure(signal), window_text(signal), np.random.default_rng(0)
    true = grammar.rationale(found, CLASSES[0], random, 3)
    every = [Claim(kind, value) for kind in KINDS for value in VALUES[kind]]
    wrong = grammar.clause(next(claim for claim in every if check(claim, found) == "false"), random)
    texts = [true, true.replace(*CLASSES), f"Answer: {CLASSES[0]}.", "", f"{true} the sun shines."]
    assert Rationale()(texts, [()] * len(texts), prompt) == [0.75, 0.75, 0, 0, 0.75]
    assert Rationale()([f"{wrong}; {true}"], [()], prompt)[0] <= 0.5
    with pytest.raises(BadInput, match="the prompt is its numbers"):
        Rationale()([true], [()], "a window")
    with pytest.raises(BadInput, match="three channels"):
        Rationale()([true], [()], "1 2 3; 4 5 6")


def test_a_window_is_a_prompt_of_its_numbers() -> None:
    signal = window(5, 61)
    series = SeriesCodec(
        "classes", tuple("abcdef"), classes=CLASSES, length=61, means=(0.0,) * 6, deviations=(2.0,) * 6
    )
    codec = CaptionCodec.of(grammar.every_wording(CLASSES), windows=series)
    assert CaptionCodec.from_json(codec.to_json()) == codec
    found = codec.encode(window_text(signal))
    assert set(found.ids) == {PATCH} and np.allclose(found.columns[PATCHES], codec.patches(signal), atol=1e-5)
    steps = codec.patches(signal).reshape(-1, 7)
    assert steps[:, -1].sum() == 61 and np.allclose(steps[:61, :-1], np.clip(signal / 2, -8, 8), atol=1e-5)
    with pytest.raises(BadInput, match="different lengths"):
        codec.encode("1 2 3; 4 5")
    with pytest.raises(BadInput, match="a channel has no numbers"):
        codec.encode("1 2;; 4 5")
    with pytest.raises(BadInput, match="2 channels, and the run reads a, b"):
        codec.encode("1 2; 3 4")


def test_answers_are_chosen_by_facts_and_agreement() -> None:
    answers = Sampled(tuple("abcde"), np.array([0, 1, 1, 1, -1]), np.array([0.5, 0.25, 0.0, 0.2, 0.9]), CLASSES)
    assert answers.shares().tolist() == [0.25, 0.75]
    assert answers.shares(30.0)[0] > 0.99
    assert answers.texts[answers.best] == "b"  # .25 + .75, against .5 + .25 and .9
    silent = Sampled(("a",), np.array([-1]), np.array([0.0]), CLASSES)
    assert silent.shares().tolist() == [0.5, 0.5] and silent.best == 0
    wrong = one_hot(["nothing", "Answer: REST."], np.array([0, 0]), CLASSES)
    assert wrong.argmax(1).tolist() == [1, 0]


def write(file: Path, people: Sequence[str], seed: int = 0) -> Path:
    """Two activities of each person, of a sensor whose gravity lies along y or x."""
    random = np.random.default_rng(seed)
    lines = ["subject,recording,t,ax,ay,az,gx,gy,gz,label"]
    for person in people:
        for recording, label in enumerate(CLASSES):
            values = random.normal(size=(160, 6)) * (0.1 if recording else 2.0)
            values[:, recording] += 9.8
            lines += [
                f"{person},{recording},{step},{','.join(f'{value:.4f}' for value in row)},{label}"
                for step, row in enumerate(values.tolist())
            ]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("rationales")
    file = write(folder / "sensor.csv", ["p1", "p2", "p3", "p4", "p5"])
    changed = (f"data.columns='{COLUMNS}'", "data.plain=0.5")
    workbench.train("tiny-rationale", data=[file], out=folder / "run", steps=60, settings=changed)
    return folder / "run", file


def test_a_run_learns_labels_that_eval_and_predict_give(trained: tuple[Path, Path]) -> None:
    run, file = trained
    scores = {score.name: score for score in workbench.evaluate(run, data=[file]).scores}
    assert {"accuracy", "macro_f1", "nats_per_token"} <= set(scores)
    named = list(workbench.predict(run, file, settings=["draws=4"]))
    assert [record.id for record in named][:2] == ["p1/0@0", "p1/0@32"] and len(named) == 40  # type: ignore[attr-defined]
    for record in named:
        assert sum(one.probability for one in record.candidates) == pytest.approx(1)  # type: ignore[attr-defined]


def test_no_person_is_in_both_parts_and_training_windows_overlap(trained: tuple[Path, Path]) -> None:
    run, _ = trained
    opened = load(run)
    data = opened.run.data.model_copy(update={"overlap": 4})
    assert isinstance(data, RationaleData)
    found = data.load(opened.run.seed, opened.codec)
    train, kept = found.train.labelled, found.validation.labelled  # type: ignore[attr-defined]
    assert not set(train.groups) & set(kept.groups)
    assert len(train) > 3 * len(kept) and np.isfinite(complete(train)).all()
    again = data.load(opened.run.seed, opened.codec)
    assert again.train.rows.fingerprint() == found.train.rows.fingerprint()


@pytest.mark.parametrize("before", ["", "The posture stays. "])
def test_labels_have_the_probabilities_of_the_model(trained: tuple[Path, Path], before: str) -> None:
    run, file = trained
    opened = load(run, precision="float32")
    codec, data = captioning(opened.codec), opened.run.data
    texts = list(data.prompts(file).values())[:3]
    windows = [codec.numbers(text) for text in texts]
    found = label_probabilities(
        opened.network, codec, windows, batch=2, region=nullcontext, before=[before] * len(windows)
    )
    for text, row in zip(texts, found, strict=True):
        runner = Runner(opened.model, columns=data.columns_after(codec, text))
        weights = []
        for label in windowed(codec).classes:
            ids, prompt = [*codec.encode(f"{before}Answer: {label}.").ids.tolist(), codec.end], opened.prompt(text)
            with evaluating(opened.model):
                logits, state = runner.prefill([prompt])
                (tokens,), _ = runner.score(logits, state, [ids], before=[prompt])
            weights.append(sum(tokens))
        expected = torch.tensor(weights).softmax(0).numpy()
        np.testing.assert_allclose(row, expected, atol=1e-4)


def test_the_report_of_a_run_has_captions_beside_pictures(trained: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run, _ = trained
    report = (run / "report.md").read_text()
    assert "![captions of held-out series](captions.svg)" in report and "- **window 1**: " in report
    assert (run / "captions.svg").read_bytes().lstrip().startswith(b"<?xml")
    series = list(making.draw(20, 3))
    texts = [by_rules(values, index) for index, values in enumerate(series)]
    shown = examples(texts, series)
    assert [one.text for one in shown] == [texts[int(one.id.split()[1]) - 1] for one in shown]
    assert all(fact.true is not False for one in shown for fact in one.facts)
    for name in ("a.svg", "b.svg"):
        save_series(shown, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_search_on_a_file_of_windows_has_a_tree_for_each(trained: tuple[Path, Path]) -> None:
    run, file = trained
    prompts = workbench.own_prompts(run, file)
    assert prompts is not None and next(iter(prompts)) == "p1/0@0"
    found = list(workbench.search(run, list(prompts.values())[:2], reward="rationale", rollouts=4))
    assert len(found) == 2 and all(0 <= one.best.reward <= 1 for one in found if one.best is not None)
    with pytest.raises(BadInput, match="a rationale is about a window"):
        list(workbench.search(run, ["Answer: REST."], reward="rationale", rollouts=2))


@pytest.mark.parametrize("units", [[0, 0, 0, 0], [0, 0, 1, 1]])
def test_intervals_of_facts_contain_what_was_measured(units: list[int]) -> None:
    """How many facts are stated is no share: several a window are no share above 1."""
    windows = [window(seed) for seed in range(4)]
    texts = [grammar.rationale(measure(one), CLASSES[0], np.random.default_rng(0), 3) for one in windows]
    scores = {one.name: one for one in fact_scores(texts, windows, np.array(units))}
    assert scores["facts_said"].value > 1
    assert scores["facts_true"].low <= scores["facts_true"].value <= scores["facts_true"].high
    said = scores["facts_said"]
    assert said.low <= said.value <= said.high or (np.isnan(said.low) and len(set(units)) == 1)
