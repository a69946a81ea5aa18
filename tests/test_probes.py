"""Probes find what is there, nothing where there is nothing, and say what it is worth."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.probe_chance import drawn, inside
from linnet import workbench
from linnet.domains.arithmetic.codec import ArithmeticCodec
from linnet.domains.arithmetic.labels import labels_of
from linnet.domains.arithmetic.problems import Task, longest_carry
from linnet.errors import BadInput, RunFailed
from linnet.probing.known.programs import known_circuit
from linnet.probing.probes import Labelled, Settings, Split, baselines, probe, values_at
from small_models import random_ids, random_model, small_config

FEW = Settings(sparse=(1,))


def test_a_label_in_one_channel_is_found_there() -> None:
    data, values = drawn(100, 4)
    split = Split.of(data, FEW)
    found = probe(split, "tap", values, FEW)
    assert found.linear.value > 0.99 and found.channels == (5,) and found.sparse[1].value > 0.99
    assert found.linear.low <= found.linear.value <= found.linear.high
    assert found.control.value < 0.6 and found.selectivity > 0.4
    base = baselines(split)
    assert base.majority.value < 0.5 and base.token_and_position.value < 0.5


def test_what_token_and_position_say_is_their_baseline() -> None:
    ids = random_ids(200, 5, vocabulary=6)
    told = Labelled(ids, (ids + torch.arange(5)) % 3, ("a", "b", "c"))
    base = baselines(Split.of(told, FEW))
    assert base.token_and_position.value == 1 and base.token.value < 0.7


def test_shuffled_labels_give_chance_inside_the_interval() -> None:
    """At least 95 of 100 in the long run; of 40 repeats 33 or more are inside with a probability of 99.97 %."""
    assert sum(map(inside, range(40))) >= 33


def test_the_carry_of_the_known_adder_is_read_after_its_feed_forward() -> None:
    known = known_circuit("adder")
    ids, answers = known.prompts(200)
    digits = {known.tokens.index(str(digit)): digit for digit in range(10)}
    labels = torch.full(ids.shape, -1)
    for row, line in enumerate(ids.tolist()):
        first, second = line[1:4], line[5:8]
        carry = 0
        for column in range(3):
            labels[row, 8 + column] = carry
            carry = (digits[first[column]] + digits[second[column]] + carry) // 10
        labels[row, 11] = carry
    data = Labelled(ids, labels, ("0", "1"))
    values = values_at(known.model, data, ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"))
    split = Split.of(data, FEW)
    before, after = (probe(split, tap, values[tap], FEW).linear for tap in values)
    assert after.value == 1 and before.high < 1
    assert baselines(split).token_and_position.value < 0.95


def test_probes_without_two_classes_are_refused() -> None:
    data, values = drawn(20, 3)
    with pytest.raises(BadInput, match="two classes or more"):
        Split.of(Labelled(data.ids, torch.zeros_like(data.labels), ("only",)), FEW)
    one_sided = torch.zeros_like(data.labels)
    one_sided[3] = 1
    with pytest.raises(BadInput, match="in the (trained|scored) rows all labels are 'a'"):
        Split.of(Labelled(data.ids, one_sided, ("a", "b")), FEW)
    model = random_model(small_config())
    rows = Labelled(random_ids(4, 6), torch.zeros(4, 6, dtype=torch.int64), ("a", "b"))
    with pytest.raises(BadInput, match='no tap "blocks.0.hook_resid_pst"; did you mean'):
        values_at(model, rows, ("blocks.0.hook_resid_pst",))
    with pytest.raises(BadInput, match="single positions"):
        values_at(model, rows, ("blocks.0.attn.hook_pattern",))
    with pytest.raises(BadInput, match="has no head 2"):
        values_at(model, rows, ("blocks.0.attn.hook_z",), 2)


@given(st.integers(0, 999), st.integers(0, 999), st.sampled_from(["none", "answer", "all"]))
@settings(max_examples=60)
def test_carry_and_digit_labels_are_those_of_schoolbook_addition(a: int, b: int, reverse: str) -> None:
    codec = ArithmeticCodec("add", reverse=reverse, width=3)  # type: ignore[arg-type]
    ids = [codec.begin, *codec.encode(f"{a}+{b}={a + b}").ids.tolist(), codec.end]
    found = labels_of(codec, ids)
    first = [codec.tokens[i] for i in ids].index("=")
    written = [codec.tokens[i] for i in ids[first + 1 : first + 5]]
    assert found["digit"][first : first + 4] == written and found["digit"][first + 4 :] == [None, None]
    carries = [one for one in found["carry"] if one is not None]
    ordered = carries if reverse != "none" else carries[::-1]
    known, carry = ["0"], 0
    for column in range(3):
        carry = (a // 10**column % 10 + b // 10**column % 10 + carry) // 10
        known.append(str(carry))
    assert ordered == known and (longest_carry([a, b]) > 0) == ("1" in known)


def test_depth_counts_open_brackets() -> None:
    codec = ArithmeticCodec("expression", reverse="none")
    ids = codec.encode("((1+2)*3)-4").ids.tolist()
    found = labels_of(codec, ids)
    assert "".join(label or "." for label in found["depth"]) == "12222111000."
    assert found["operation"][-3:] == ["-", "-", None]


@pytest.mark.parametrize(
    "task, width, question, wanted",
    [
        ("add", 2, "-3+-4=", [None, None, None, "+", "+", "+", "+", None]),
        ("subtract", None, "-3--4=", [None, None, "-", "-", "-", None]),
        ("expression", None, "(2-3)-1=", [None, None, "-", "-", "-", "-", "-", None]),
    ],
)
def test_the_sign_of_a_number_is_no_operation(
    task: Task, width: int | None, question: str, wanted: list[str | None]
) -> None:
    codec = ArithmeticCodec(task, signs=True, width=width)
    assert labels_of(codec, codec.encode(question).ids.tolist())["operation"] == wanted


def first_or_not(tokens: tuple[str, ...]) -> list[str | None]:
    return ["first" if index == 0 else "later" for index in range(len(tokens))]


def test_any_function_can_label(adder: Path) -> None:
    record = workbench.probe(adder, "test_probes:first_or_not", rows=20, taps=("blocks.0.hook_resid_post",))
    assert np.array(record.values).shape == (1, len(record.labels["reading"]))
    assert record.values[0][0] == 1 and record.facts["token and position"] == "1.0000 (1.0000 .. 1.0000)"
    with pytest.raises(BadInput, match='did you mean "carry"'):
        workbench.probe(adder, "cary")
    with pytest.raises(BadInput, match="has no 'nothing'"):
        workbench.probe(adder, "test_probes:nothing")


def broken(tokens: object) -> None:
    raise KeyError("mine")


def unfit(tokens: object) -> int:
    return 3


def test_faults_of_a_persons_own_function_are_called_that(adder: Path) -> None:
    for analysis in (
        workbench.probe,
        lambda run, name: workbench.interchange(run, name, step=6),
    ):
        with pytest.raises(RunFailed, match="test_probes:broken raised KeyError: 'mine'"):
            analysis(adder, "test_probes:broken")
        with pytest.raises(BadInput, match="test_probes:unfit gave '3'; it has to give"):
            analysis(adder, "test_probes:unfit")
        with pytest.raises(BadInput, match="cannot be imported: ValueError: Empty module name"):
            analysis(adder, ":unfit")


def parity(tokens: tuple[str, ...]) -> tuple[int, Callable[[object], str]]:
    return int(tokens[1]) % 2, lambda value: "odd" if value else "even"


def test_an_answer_that_is_no_token_is_named(adder: Path) -> None:
    with pytest.raises(BadInput, match="the answer '(odd|even)' of test_probes:parity is no token of this run"):
        workbench.interchange(adder, "test_probes:parity", step=6)


def test_a_module_beside_the_person_is_found_and_its_mistakes_are_named(
    adder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_labels.py").write_text("def label(tokens): return list(tokens)")
    (tmp_path / "my_own_mistake.py").write_text("def label(tokens: return")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert workbench.probe(adder, "my_own_labels:label", rows=20).facts["classes"]
    with pytest.raises(BadInput, match="my_own_mistake:label cannot be imported"):
        workbench.probe(adder, "my_own_mistake:label")
