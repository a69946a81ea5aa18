"""The engine against its oracle, and what is computed and held only once. Legend: B = rows, V = vocabulary."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from linnet.decoding import engine, loop, naive, scheduler
from linnet.decoding.constraints import Constraint, Pattern
from linnet.decoding.lookup import LONGEST, SHORTEST, Written
from linnet.decoding.requests import Decoding, Request, Sample, Sampling, Stopping
from linnet.decoding.runner import Runner
from linnet.errors import BadInput
from linnet.model.config import AttentionConfig
from linnet.model.contract import evaluating
from linnet.model.costs import costs
from linnet.model.inputs import Inputs
from linnet.model.model import Model
from small_models import configs, random_model, small_config

# What the 13 ids of small models write: nothing, letters, several of them, and the two bytes of one character.
PIECES = (b"", b"a", b"b", b"ab", b"\xc3", b"\xa9", b"c", b"ca", b" ", b"bc", b"d", b"a", b"e")


@pytest.fixture(autouse=True)
def sharing_begins_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of a few tokens share their beginnings here as long ones do elsewhere."""
    monkeypatch.setattr(scheduler, "SHARED_TOKENS", 2)
    monkeypatch.setattr(scheduler, "SHARED_ROWS", 2)
    monkeypatch.setattr(loop, "SPAN", 5)


def same(found: Sequence[Sample], expected: Sequence[Sample]) -> None:
    assert [(s.ids, s.stop) for s in found] == [(s.ids, s.stop) for s in expected]
    np.testing.assert_allclose([s.logprob for s in found], [s.logprob for s in expected], rtol=1e-4, atol=1e-4)


# The engine is the obvious generation, only faster.

IDS = st.integers(0, 12)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.none() | st.integers(1, 13),
    top_p=st.none() | st.floats(0.05, 1.0),
    min_p=st.none() | st.floats(0.01, 1.0),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
)


@st.composite
def requests(draw: st.DrawFn, most: int = 9) -> list[Request]:
    """Several samples of several prompts in any order; many of the prompts begin alike."""
    stem = draw(st.lists(IDS, min_size=1, max_size=9))
    tails = draw(st.lists(st.lists(IDS, max_size=9), min_size=1, max_size=4))
    alone = draw(st.lists(st.lists(IDS, min_size=1, max_size=5), max_size=1))
    prompts = [tuple(stem + tail) for tail in tails] + [tuple(prompt) for prompt in alone]
    chosen = draw(st.lists(st.sampled_from(prompts), min_size=1, max_size=most))
    count: Counter[tuple[int, ...]] = Counter()
    made = []
    for prompt in chosen:
        made.append(Request(prompt, count[prompt]))
        count[prompt] += 1
    return made


@st.composite
def constraints(draw: st.DrawFn, end: int | None) -> Constraint | None:
    expression = draw(st.sampled_from([None, None, "[ab]*c?", "(ab|ca ?)+d", "a{1,3}e*", ""]))
    return None if expression is None else Pattern(expression, PIECES, end)


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    config=configs(),
    wanted=requests(),
    rows=st.sampled_from([1, 2, 3, 8]),
    seed=st.integers(0, 99),
)
def test_it_is_the_oracle_whatever_is_requested(data, config, wanted, rows, seed):
    """Any model, prompts that repeat and begin alike, sampling, penalty, constraint, stop, and round trip."""
    end = data.draw(st.none() | IDS, "end")
    ids = data.draw(st.frozensets(IDS, max_size=1), "stop ids")
    strings = tuple(data.draw(st.lists(st.sampled_from(["ab", "c", "bca", "é", "a ", "dd"]), max_size=2), "stops"))
    decoding = Decoding(
        data.draw(SAMPLINGS, "sampling"),
        data.draw(st.sampled_from([1, 3, 8, 30]), "max tokens"),
        Stopping(end, ids, strings, PIECES),
        data.draw(constraints(end), "constraint"),
        seed,
    )
    model = random_model(config, seed)
    expected = [naive.generate(model, request, decoding) for request in wanted]
    burst = data.draw(st.sampled_from([1, 2, 7]), "burst")
    same(list(engine.generate(Runner(model), wanted, decoding, rows=rows, burst=burst)), expected)
    # In fixed tensors, as on a GPU, which the second generation uses again.
    runner = Runner(model, fixed=True)
    for _ in range(2):
        same(list(engine.generate(runner, wanted, decoding, rows=rows, burst=burst)), expected)


@settings(max_examples=25, deadline=None)
@given(wanted=requests(), rows=st.sampled_from([1, 2, 3, 8]), seed=st.integers(0, 99), end=IDS, stop=IDS)
def test_events_tell_each_sample_once_and_nothing_after_its_end(wanted, rows, seed, end, stop):
    model = random_model(small_config(), seed)
    decoding = Decoding(Sampling(), 12, Stopping(end, frozenset({stop})), seed=seed)
    tokens: list[list[int]] = [[] for _ in wanted]
    done: dict[int, Sample] = {}
    for event in engine.events(Runner(model), wanted, decoding, rows=rows):
        assert event.index not in done
        if isinstance(event, engine.Tokens):
            tokens[event.index] += event.ids
        else:
            done[event.index] = event.sample
    assert [done[index].ids for index in range(len(wanted))] == [tuple(ids) for ids in tokens]
    for ids in tokens:
        assert not {end, stop} & set(ids) and len(ids) <= 12
    # The same in the order of the asks, whichever of them ends first.
    assert list(engine.generate(Runner(model), wanted, decoding, rows=rows)) == [
        done[index] for index in range(len(wanted))
    ]


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(0.8, top_p=0.9)])
def test_samples_do_not_depend_on_how_many_rows_there_are(sampling: Sampling) -> None:
    """In float32 samples may differ from a near tie on, and only there; they are counted."""
    config = small_config(vocabulary=200, context=48, width=32, attention=AttentionConfig(heads=4, kv_heads=2))
    model = random_model(config)
    random = np.random.default_rng(0)
    stem = random.integers(0, 200, 9).tolist()
    wanted = [
        Request((*(stem if place % 3 else ()), *random.integers(0, 200, 1 + place % 7).tolist()), place)
        for place in range(64)
    ]
    decoding = Decoding(sampling, 8, Stopping(end=4), seed=3, count_ties=True)
    first, *others = ([*engine.generate(Runner(model), wanted, decoding, rows=rows)] for rows in (64, 8, 1))
    tied = sum(sample.near_ties for sample in first)
    assert tied <= 0.01 * sum(len(sample.ids) for sample in first)
    for other in others:
        certain = [place for place in range(64) if not first[place].near_ties + other[place].near_ties]
        assert len(certain) >= 64 - tied
        same([other[place] for place in certain], [first[place] for place in certain])


# Fixed loops, as a GPU has them.


def many(count: int) -> list[Request]:
    return [Request((1, 2, *[5] * (index % 4), index % 13), index) for index in range(count)]


@pytest.mark.parametrize("rows", [64, 1, 3])
def test_fixed_loops_have_few_shapes_and_are_used_again(rows: int, monkeypatch) -> None:
    """The second call finds the tensors of the first, whatever its prompts are, and gives the same samples."""
    model, shapes = random_model(small_config()), []
    whole = loop.Graphs.run

    def run(self: loop.Graphs, shape: Any, step: Any) -> None:
        shapes.append(shape)
        whole(self, shape, step)

    monkeypatch.setattr(loop.Graphs, "run", run)
    runner, decoding = Runner(model, fixed=True), Decoding(Sampling(0.8, repetition_penalty=1.2), 20, Stopping(3))
    expected = list(engine.generate(Runner(model), many(40), decoding, rows=rows))
    same(list(engine.generate(runner, many(40), decoding, rows=rows, burst=4)), expected)
    (kept,) = runner.loops.values()
    assert {size for size, _ in shapes} <= {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40}
    assert {reach for _, reach in shapes} <= {4 + 2, 9 + 2, 14 + 2, 19 + 2, 23}  # two tokens are shared
    places = [layer.keys.data_ptr() for layer in kept.whole[0].layers]  # type: ignore[union-attr]
    other = [Request((4, 7, *request.prompt[2:]), request.sample) for request in many(40)]
    expected = list(engine.generate(Runner(model), other, decoding, rows=rows))
    same(list(engine.generate(runner, other, decoding, rows=rows, burst=4)), expected)
    assert list(runner.loops.values()) == [kept]
    assert [layer.keys.data_ptr() for layer in kept.whole[0].layers] == places  # type: ignore[union-attr]


def test_two_generations_of_one_runner_do_not_share_a_loop() -> None:
    """And no more loops are kept than may be."""
    model, decoding = random_model(small_config()), Decoding(Sampling(), 9)
    runner = Runner(model, fixed=True)
    expected = list(engine.generate(Runner(model), many(6), decoding))
    first, second = (engine.generate(runner, many(6), decoding, burst=2) for _ in range(2))
    found = list(zip(first, second, strict=True))
    same([one for one, _ in found], expected)
    same([other for _, other in found], expected)
    assert len(runner.loops) == 1
    for count in range(1, 8):
        list(engine.generate(runner, many(count), decoding))
    assert len(runner.loops) == loop.KEPT


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(), Sampling(0.8, 5, 0.9, 0.05, 1.2)])
def test_a_step_waits_for_nothing_on_the_host(sampling: Sampling) -> None:
    """On a device without numbers, nothing can be read back, and tensors of the host cannot be mixed in."""
    with torch.device("meta"):
        model = Model(small_config(vocabulary=300)).eval()
    runner, decoding = Runner(model, fixed=True), Decoding(sampling, 20, count_ties=True)
    rows = [scheduler.Row.of(index, request, 20, decoding) for index, request in enumerate(many(4))]
    with evaluating(model):
        running = loop.Loop.begin(runner, decoding, 4, 40, None, burst=8)
        _, state = runner.prefill([row.request.prompt for row in rows])
        running.put([0, 1, 2, 3], state, [0, 1, 2, 3])
        for row in rows:
            row.drawn.append(1)
        running.admit([0, 1, 2, 3], rows)
        for kept in ([0, 1, 2, 3], [0, 3]):
            running.compact(kept)
            step = scheduler.Step(tuple(rows[: len(kept)]), tuple(range(len(kept))), 3, None)
            with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # when it is all over
                running.run(step)
    assert running.turn.device.type == running.memory.lengths.device.type == "meta"


@pytest.mark.skipif(torch.cuda.is_available(), reason="here a step can be recorded")
def test_steps_that_cannot_be_recorded_are_run() -> None:
    """And it is said once."""
    graphs, steps = loop.Graphs(torch.device("cuda")), list[int]()
    for _ in range(4):
        graphs.run("shape", lambda: steps.append(1))
    assert len(steps) == 4 and not graphs.recording and graphs.problem
    runner, problem = Runner(random_model(small_config()), fixed=True), graphs.problem
    for _ in range(2):
        list(engine.generate(runner, many(3), Decoding(Sampling(), 6)))
        for kept in runner.loops.values():
            kept.graphs = graphs
    assert runner.notes == [f"steps are not recorded as CUDA graphs: {problem}"]
    assert not runner.fixed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "sampling", [Sampling(0), Sampling(0.8, 20, 0.9), Sampling(min_p=0.05, repetition_penalty=1.3)]
)
def test_a_gpu_draws_what_a_processor_draws(sampling: Sampling) -> None:
    """Up to near ties; its steps are recorded, and the second call repeats what the first one recorded."""
    config = small_config(vocabulary=200, context=48, width=32, attention=AttentionConfig(heads=4, kv_heads=2))
    model = random_model(config)
    wanted = [Request((7, 8, 9, *range(index % 5), index), index) for index in range(40)]
    decoding = Decoding(sampling, 30, Stopping(end=4), seed=3, count_ties=True)
    expected = list(engine.generate(Runner(model), wanted, decoding))
    runner = Runner(random_model(config).cuda())
    for _ in range(3):
        found = list(engine.generate(runner, wanted, decoding))
        certain = [index for index in range(40) if not found[index].near_ties + expected[index].near_ties]
        agreeing = [index for index in certain if found[index].ids == expected[index].ids]
        # A draw may fall beside the edge of a share; greedy tokens without a near tie may not differ.
        assert len(certain) > 30 and len(agreeing) >= len(certain) - (0 if sampling.greedy else 2)
        same([found[index] for index in agreeing], [expected[index] for index in agreeing])
    assert runner.fixed and not runner.notes
    assert all(kept.graphs._recorded for kept in runner.loops.values())


# What is computed, and what is held.


class Reading:
    """Counts the tokens that a model reads in prompts and in steps."""

    def __init__(self, model: Model) -> None:
        self.prompts = self.steps = 0
        self.hook = model.register_forward_pre_hook(self._count)

    def _count(self, model: object, given: tuple[Any, ...]) -> None:
        if isinstance(given[0], Inputs) and given[0].lengths is not None:
            self.prompts += int(given[0].lengths.sum())
        else:
            self.steps += given[0].numel()


@pytest.mark.parametrize("shared", [0, 5])
@pytest.mark.parametrize("rows", [1, 3, 8, 64])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("mixer", ["attention", ("attention", "gru")])
def test_a_prompt_is_computed_once_however_many_samples_it_has(shared, rows, shuffled, mixer) -> None:
    model = random_model(small_config(mixer=mixer))
    stem = tuple(range(shared))
    prompts = [(*stem, 12 - i, *range(i)) for i in range(5)]
    wanted = [Request(prompt, sample) for prompt in prompts for sample in range(7)]
    if shuffled:
        wanted = [wanted[index] for index in np.random.default_rng(0).permutation(len(wanted))]
    reading = Reading(model)
    decoding = Decoding(Sampling(), 6, Stopping(end=3))
    samples = list(engine.generate(Runner(model), wanted, decoding, rows=rows))
    whole = sum(map(len, prompts))
    # What all begin with is read once for all, or once for each prompt whose samples fill the seats.
    assert reading.prompts == (whole if rows < 14 else whole - 4 * shared)
    assert max(len(sample.ids) for sample in samples) == 6
    reading.hook.remove()
    same(samples[:3], [naive.generate(model, request, decoding) for request in wanted[:3]])


def test_rows_that_have_ended_make_room_at_once_or_leave() -> None:
    """Steps read few tokens of rows that are empty."""
    model = random_model(small_config())
    wanted = [Request((1, 2, place % 13), place) for place in range(200)]
    reading = Reading(model)
    samples = list(engine.generate(Runner(model), wanted, Decoding(Sampling(), 20, Stopping(end=3)), rows=16))
    needed = sum(max(0, len(sample.ids) - (sample.stop == "length")) for sample in samples)
    assert needed <= reading.steps < 1.35 * needed


class Peak(TorchDispatchMode):
    """The most bytes that all tensors made inside hold at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage.nbytes() and storage._cdata not in self.live:
                    self.live[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.live.values()))
        return out


@pytest.mark.parametrize("rows, distinct, end", [(1, 1, None), (8, 8, None), (32, 32, 3), (32, 4, 3)])
def test_memory_is_that_of_the_formula(rows, distinct, end, monkeypatch) -> None:
    """Weights, keys and values, and what is computed on the way, within a tenth of the first two."""
    monkeypatch.setattr(scheduler, "PREFILL_TOKENS", 64)
    monkeypatch.setattr(scheduler, "SHARED_TOKENS", 1000)
    heads = AttentionConfig(heads=4, kv_heads=4, head_width=32)
    config = small_config(context=128, width=16, depth=48, attention=heads, positions="none")
    model = random_model(config)
    wanted = [
        Request((place * distinct // rows % 13, place * distinct // rows // 13, *[5] * 46), place)
        for place in range(rows)
    ]
    with Peak() as peak:
        samples = list(
            engine.generate(Runner(model), wanted, Decoding(Sampling(), 16, Stopping(end=end)), rows=rows)
        )
    assert max(len(sample.ids) for sample in samples) == 16
    weights = sum(parameter.nbytes for parameter in model.parameters())
    formula = weights + costs(config).kv_bytes_per_token * rows * (48 + 16)
    assert 0.9 * formula < weights + peak.most < 1.1 * formula


# Guesses from what stands there already.


def repeating(count: int) -> list[Request]:
    """Prompts in which much stands twice."""
    return [Request((1, 2, 3, 4, 5, 1, 2, 3, *range(index), 1, 2, 3), index) for index in range(count)]


@pytest.mark.parametrize("lookup", [1, 4, 9])
@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(), Sampling(0.3, 5, 0.9, 0.05)])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize(("rows", "fixed"), [(1, False), (3, False), (64, False), (5, True)])
def test_guessing_changes_no_sample(lookup, sampling, positions, rows, fixed) -> None:
    """Also at the end of the context, and where a sample stops in the midst of what was guessed."""
    model = random_model(small_config(vocabulary=12, context=40, positions=positions))
    wanted = repeating(9)
    decoding = Decoding(sampling, 40, Stopping(end=7), seed=1)
    expected = list(engine.generate(Runner(model), wanted, decoding, rows=rows))
    runner = Runner(model, fixed=fixed)
    for _ in range(2):
        found = engine.generate(runner, wanted, replace(decoding, lookup=lookup), rows=rows)
        same(list(found), expected)


def test_a_row_that_repeats_itself_takes_few_passes() -> None:
    """A model that always continues a cycle is read several tokens at a time."""
    model = random_model(small_config(vocabulary=12, context=60))
    reading = Reading(model)
    sample = next(engine.generate(Runner(model), repeating(1), Decoding(Sampling(0), 48)))
    plain, reading.steps, reading.prompts = reading.steps, 0, 0
    found = next(engine.generate(Runner(model), repeating(1), Decoding(Sampling(0), 48, lookup=8)))
    assert found.ids == sample.ids
    assert plain == 47 and reading.steps < plain, "some tokens were read in passes of several"


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6))
def test_a_guess_is_what_followed_the_last_tokens_before(ids: list[int], most: int) -> None:
    """The oracle looks for the longest piece, and for its last place, from the back."""
    expected: list[int] = []
    for length in range(min(LONGEST, len(ids)), SHORTEST - 1, -1):
        places = [end for end in range(length, len(ids)) if ids[end - length : end] == ids[-length:]]
        if places:
            line = list(ids)
            for index in range(most):
                line.append(line[places[-1] + index])
            expected = line[len(ids) :]
            break
    assert Written(ids).guess(most) == expected


def test_guesses_are_refused_where_each_token_decides_about_the_next() -> None:
    config = small_config()
    for decoding in (Decoding(Sampling(repetition_penalty=1.2), lookup=3), Decoding(lookup=-1)):
        with pytest.raises(BadInput, match="lookup"):
            decoding.check(config, [Request((1,))])
    with pytest.raises(BadInput, match="recurrent"):
        Decoding(lookup=3).check(small_config(mixer="gru"), [Request((1,))])
