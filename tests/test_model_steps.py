"""Steps of real models against the plain way: the whole text through the model again for every node."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.decoding.runner import Runner
from linnet.errors import BadInput, RunFailed
from linnet.model.inputs import Inputs
from linnet.model.model import Model
from linnet.search.budgets import Budget
from linnet.search.cached_steps import CachedStep, Texts
from linnet.search.largest import largest
from linnet.search.methods.maxent import MaxEnt
from linnet.search.model_steps import ModelReader
from linnet.search.node_cache import NodeCache
from linnet.search.reward import Reward
from linnet.search.steps import Rows, Target
from linnet.search.tree import search
from small_models import configs, random_model, small_config, with_vectors

PROMPT = (3, 1, 4, 1)
TEXTS = Texts(lambda ids: " ".join(map(str, ids)), lambda prompt, ids: " ".join(map(str, ids)))
Law = Callable[[Sequence[int]], np.ndarray]


def step_of(model: Model, *, target: Target = Target(max_tokens=12), **options: Any) -> CachedStep:  # noqa: B008
    columns = (lambda ids: {"vector": vectors(ids)}) if model.config.columns else None
    return CachedStep(ModelReader(Runner(model, columns=columns)), target, texts=TEXTS, **options)


def vectors(ids: Sequence[int]) -> np.ndarray:
    """A further column that depends on all that was read."""
    return np.cumsum(np.outer(np.array(ids, np.float32), np.linspace(-0.1, 0.2, 12, dtype=np.float32)), 0)


def law_of(model: Model, prompt: Sequence[int] = PROMPT) -> Law:
    """Log-probabilities after the prompt and some ids, from nothing but one pass over all of them."""

    def law(ids: Sequence[int]) -> np.ndarray:
        whole = [*prompt, *ids]
        columns = {"ids": torch.tensor([whole])}
        if model.config.columns:
            columns["vector"] = torch.from_numpy(vectors(whole))[None]
        with torch.inference_mode():
            hidden = model(Inputs(columns)).hidden[:, -1]
            return model.head(hidden).float().log_softmax(-1)[0].numpy()

    return law


class Grown:
    """A tree that is grown in the step and checked against the law, node by node."""

    def __init__(self, step: CachedStep, law: Law) -> None:
        self.step, self.law = step, law
        self.ids: dict[int, tuple[int, ...]] = {}
        self._check(step.begin(PROMPT), [()])

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> Rows:
        rows = self.step.extend(parents, tokens)
        paths = [(*self.ids[parent], token) for parent, token in zip(parents, tokens, strict=True)]
        self._check(rows, paths)
        return rows

    def _check(self, rows: Rows, paths: Sequence[tuple[int, ...]]) -> None:
        for index, (handle, path) in enumerate(zip(rows.handles.tolist(), paths, strict=True)):
            self.ids[handle] = path
            right = self.law(path)
            np.testing.assert_allclose(rows.full(index), right, atol=2e-5)
            np.testing.assert_allclose(rows.logprobs[index], right[rows.ids[index]], atol=2e-5)
            mass = np.exp(rows.logprobs[index].astype(float)).sum() + np.exp(rows.rest[index])
            assert mass == pytest.approx(1, abs=1e-5)
            others = np.delete(right, rows.ids[index])
            assert not len(others) or others.max() <= rows.logprobs[index].min() + 2e-5
            assert (np.diff(rows.logprobs[index]) <= 0).all()


def grow(grown: Grown, random: np.random.Generator, calls: int, depth: int) -> None:
    """Calls that go on from the last nodes, from some of them, from one of them twice, or from any nodes."""
    last = [0]
    for _ in range(calls):
        known = [handle for handle, ids in grown.ids.items() if len(ids) < depth]
        last = [handle for handle in last if len(grown.ids[handle]) < depth]
        kind = random.integers(4) if last else 3
        count = int(random.integers(1, 5))
        if kind == 0:
            parents = list(random.permutation(last))
        elif kind == 1:
            parents = list(random.permutation(last))[: max(1, len(last) // 2)]
        elif kind == 2:
            parents = list(random.choice(last, count))
        else:
            parents = list(random.choice(known, count))
        pairs = sorted({(int(parent), int(random.integers(13))) for parent in parents})
        pairs = [pair for pair in pairs if (*grown.ids[pair[0]], pair[1]) not in grown.ids.values()]
        if pairs:
            order = random.permutation(len(pairs))
            chosen = [pairs[i] for i in order]
            last = grown.extend([p for p, _ in chosen], [t for _, t in chosen]).handles.tolist()


@settings(max_examples=25, deadline=None)
@given(configs(), st.integers(0, 2**31), st.sampled_from([13, 5]), st.sampled_from([1 << 20, 18_000]))
def test_every_node_has_the_law_of_a_pass_over_its_whole_text(
    config: Any, seed: int, width: int, memory: int
) -> None:
    """For all models, in any order of calls, and where the memory is too small for all nodes, too."""
    model = random_model(config, seed % 7)
    step = step_of(model, width=width, memory=memory)
    grow(Grown(step, law_of(model)), np.random.default_rng(seed), calls=12, depth=10)


def test_models_with_further_columns_can_be_searched() -> None:
    model = with_vectors()
    grow(Grown(step_of(model), law_of(model)), np.random.default_rng(0), calls=12, depth=10)


def test_the_model_reads_each_token_once_and_forgotten_ones_again() -> None:
    model = random_model(small_config())
    line = [int(token) for token in np.random.default_rng(1).integers(13, size=8)]

    step = step_of(model)
    handles = [int(step.begin(PROMPT).handles[0])]
    for token in line:
        handles.append(int(step.extend([handles[-1]], [token]).handles[0]))
    assert step.forward_tokens == 8
    for handle, token in zip(handles, line, strict=False):
        step.extend([handle], [(token + 1) % 13])
    assert step.forward_tokens == 16, "a fork of any node costs its own token"
    bytes_of_a_token = 2 * 2 * 4 * 4  # two layers of keys and values, one head of four float32
    small = step_of(model, target=Target(max_tokens=4), memory=2 * 4 * bytes_of_a_token)
    (root,) = small.begin(PROMPT).handles
    for first_token in (1, 2):
        tip = root
        for token in (first_token, 5, 6):
            (tip,) = small.extend([tip], [token]).handles
    assert small.cache.stored <= 3
    before = small.forward_tokens
    small.extend([2], [7])
    assert small.forward_tokens - before > 1, "three slots do not hold six tokens"


def test_the_prompt_is_computed_once() -> None:
    model = random_model(small_config())
    read = []
    hook = model.register_forward_hook(lambda _, args, __: read.append(Inputs.of(args[0]).shape))
    step = step_of(model)
    (root,) = step.begin(PROMPT).handles
    step.extend([root] * 5, range(5))
    hook.remove()
    assert read == [(1, 4), (5, 1)] and step.prompt_tokens == 4 and step.forward_tokens == 5


def test_a_row_can_be_had_again() -> None:
    model = random_model(small_config())
    step, law = step_of(model, width=3), law_of(model)
    (root,) = step.begin(PROMPT).handles
    one = step.extend([root, root], [5, 6]).handles
    two = step.extend(one[::-1].copy(), [7, 8]).handles
    np.testing.assert_allclose(step.row(int(two[0])), law((6, 7)), atol=2e-5)
    np.testing.assert_allclose(step.row(int(root)), law(()), atol=2e-5)
    assert step.forward_tokens == 5 and step.prompt_tokens == 8
    step.release([int(one[0]), int(two[1])])
    np.testing.assert_allclose(step.extend([int(two[0])], [2]).full(0), law((6, 7, 2)), atol=2e-5)


def test_temperature_and_cuts_belong_to_the_target() -> None:
    model = random_model(small_config())
    target = Target(max_tokens=3, temperature=0.7, top_k=6, top_p=0.9)
    rows = step_of(model, target=target, width=4).begin(PROMPT)
    shares = np.exp(law_of(model)(()) / 0.7)
    order = np.argsort(-shares)
    shares[order[6:]] = 0
    before = np.cumsum(shares[order]) - shares[order]
    shares[order[before >= 0.9 * shares.sum()]] = 0
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(rows.full(0), np.log(shares / shares.sum()), atol=2e-5)
    exact = shares / shares.sum()
    assert np.exp(rows.rest[0]) == pytest.approx(1 - np.sort(exact)[-4:].sum(), abs=1e-6)


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ((), {}, "no begin token"),
        ((1, 13), {}, "outside the vocabulary"),
        ((1, 2), {"ends": [2]}, "ends with an end token"),
        (PROMPT, {"ends": [13]}, "end id 13 is outside the vocabulary of the model"),
        (PROMPT, {"target": Target(max_tokens=22)}, "use fewer max tokens"),
        (PROMPT, {"memory": 100}, "bytes of memory"),
    ],
)
def test_what_cannot_be_searched_is_refused(prompt: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        step_of(random_model(small_config()), **options).begin(prompt)


def test_weights_that_are_no_numbers_are_named() -> None:
    model = random_model(small_config())
    with torch.no_grad():
        model.get_parameter("final_norm.weight").fill_(float("nan"))
    with pytest.raises(RunFailed, match=r"NaN.*final_norm\.weight"):
        step_of(model).begin(PROMPT)


@given(st.integers(0, 2**31), st.integers(1, 6), st.sampled_from([40, 100, 333]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_largest_are_those_of_a_whole_sort(seed: int, count: int, width: int, coarse: bool) -> None:
    values = torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
    values = (2 * values).round() if coarse else values
    ids, found = largest(values, count)
    right, order = values.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(found, right[:, :count]) and torch.equal(ids, order[:, :count])


def test_slots_are_given_up_oldest_and_deepest_first() -> None:
    cache = NodeCache(1, torch.float32, torch.device("cpu"), 5 * 4)  # four slots and that of zeros
    first = cache.add(np.array([0]), np.array([7]))
    below = cache.add(np.array([first[0], first[0]]), np.array([8, 9]))
    other = cache.add(np.array([0]), np.array([6]))
    for handles in (first, below, other):
        chosen = handles[cache.vacancy(handles)]
        cache.write(chosen, torch.from_numpy(chosen[:, None]).float())
        cache.read(cache.paths(handles))
    assert cache.read(cache.paths(below)).tolist() == [[[1.0], [2.0]], [[1.0], [3.0]]]
    more = cache.add(np.array([4]), np.array([5]))
    cache.write(more[cache.vacancy(more)], torch.full((1, 1), 5.0))
    assert cache.slot[other[0]] == 0, "the one that was used longest ago makes room"
    last = cache.add(np.array([0]), np.array([4]))
    cache.write(last[cache.vacancy(last)], torch.full((1, 1), 6.0))
    assert cache.stored == 4 and cache.slot[first[0]] and not cache.slot[below].all(), "then one that is deeper"


@pytest.mark.parametrize("width", [256, 3])
@pytest.mark.parametrize("chosen", [0.0, 0.75])
def test_a_tree_of_rounded_probabilities_can_be_searched_to_its_end(width: int, chosen: float) -> None:
    """Probabilities of a model in float32 do not add up to 1; a value is exact all the same once all is seen."""
    model = random_model(small_config(vocabulary=5), 1)
    law, lam = law_of(model), 4.0
    exact = -np.inf
    for ids in itertools.product(range(5), repeat=3):
        logprob = sum(float(law(ids[:depth])[token]) for depth, token in enumerate(ids))
        exact = np.logaddexp(exact, logprob + lam * ids.count(2) / 3)
    reward = Reward(lambda texts, ids, prompt: [one.count(2) / 3 for one in ids], most=1.0, least=0.0)
    method = MaxEnt(lam, chosen=chosen)
    tree = search(
        PROMPT,
        step_of(model, target=Target(max_tokens=3), width=width),
        method=method,
        reward=reward,
        budget=Budget(rollouts=2000),
    )
    assert tree.rollouts == len(tree.leaves) == 5**3 and tree.unseen == 0
    assert tree.value.low == tree.value.high == pytest.approx(exact / lam, abs=1e-6)
