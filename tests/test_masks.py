"""Who sees whom, cell by cell; and what follows: padding, packing and trees change nothing.

Legend: B = rows, T = new tokens, S = slots.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linnet.model import kernels, masks
from linnet.model.config import AttentionConfig
from linnet.model.inputs import Inputs
from small_models import configs, random_ids, random_model, small_config, vectors_then_ids, with_vectors

POSITION_KINDS = ["rotary", "sinusoidal", "learned", "none"]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def seen(mask: kernels.Mask, rows: int, tokens: int) -> Tensor:
    """The mask written out: bool [B, T, S]."""
    dense = mask.dense(tokens, tokens, torch.device("cpu"))
    return (
        torch.ones(rows, tokens, tokens, dtype=torch.bool) if dense is None else dense[:, 0].expand(rows, -1, -1)
    )


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 7),
    causal=st.booleans(),
    packed=st.booleans(),
    lengths=st.none() | st.lists(st.integers(1, 7), min_size=2, max_size=2),
    seed=st.integers(0, 99),
)
def test_one_convention_causal_times_padding_times_document(tokens, causal, packed, lengths, seed):
    documents = random_ids(2, tokens, vocabulary=3, seed=seed).sort(dim=1).values if packed else None
    lengths = None if lengths is None else [min(length, tokens) for length in lengths]
    inputs = Inputs(
        {"ids": torch.zeros(2, tokens, dtype=torch.int64)},
        documents=documents,
        lengths=None if lengths is None else torch.tensor(lengths),
    )
    found = seen(masks.without_memory(inputs, tokens, causal), 2, tokens)
    for row in range(2):
        real = tokens if lengths is None else lengths[row]
        for query in range(real):  # what padding sees is nobody's business
            for key in range(tokens):
                together = documents is None or documents[row, query] == documents[row, key]
                expected = bool(together) and key < real and (key <= query or not causal)
                assert bool(found[row, query, key]) == expected, (row, query, key)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=2, max_size=2),
    tokens=st.integers(1, 5),
    tree=st.booleans(),
    seed=st.integers(0, 99),
)
def test_going_on_sees_what_the_row_remembers_and_itself(lengths, tokens, tree, seed):
    random = torch.Generator().manual_seed(seed)
    ancestors = torch.rand(2, tokens, tokens, generator=random).tril() > 0.5
    inputs = Inputs.of(
        Inputs({"ids": torch.zeros(2, tokens, dtype=torch.int64)}, ancestors=ancestors if tree else None)
    )
    remembered = torch.tensor(lengths)
    span = max(lengths) + tokens
    slots = remembered[:, None] + torch.arange(tokens)[None]
    mask = masks.with_memory(inputs, slots, remembered, span, tokens).allowed
    assert mask is not None
    for row in range(2):
        for query in range(tokens):
            for slot in range(span):
                token = slot - lengths[row]
                above = 0 <= token <= query
                if tree and 0 <= token < tokens:
                    above = token == query or bool(ancestors[row, query, token])
                expected = slot < lengths[row] or above
                assert bool(mask[row, 0, query, slot]) == expected, (row, query, slot)


def test_the_causal_mask_is_cached_by_shape():
    cpu = torch.device("cpu")
    assert kernels.causal_square(5, cpu) is kernels.causal_square(5, cpu)
    assert kernels.causal_square(5, cpu).shape == (5, 5)
    assert kernels.causal_square(6, cpu).shape == (6, 6)


@pytest.mark.parametrize("kernel", ["explicit", "blocked", "fused"])
def test_a_mask_first_made_in_evaluation_serves_training(kernel, monkeypatch):
    kernels._cached_square.cache_clear()
    monkeypatch.setattr("linnet.model.kernels.attention_form", lambda *_, **__: kernel)
    model = random_model(small_config())
    ids, documents = random_ids(2, 11), torch.zeros(2, 11, dtype=torch.int64)
    for inputs in (Inputs({"ids": ids}), Inputs({"ids": ids}, documents=documents)):
        with torch.inference_mode():
            model(inputs)
        model(inputs).hidden.sum().backward()


@settings(max_examples=20, deadline=None)
@given(
    config=configs(causal=False, mixers=("attention",)),
    lengths=st.lists(st.integers(1, 6), min_size=3, max_size=3),
)
def test_padding_is_never_seen_without_a_causal_mask(config, lengths):
    model = random_model(config)
    ids = random_ids(3, 6)
    found = model(Inputs({"ids": ids}, lengths=torch.tensor(lengths))).hidden
    for row, length in enumerate(lengths):
        close(found[row, :length], model(ids[row : row + 1, :length]).hidden[0])


def test_without_a_causal_mask_the_future_is_seen():
    causal, open_ = (
        random_model(small_config(attention=AttentionConfig(heads=2, causal=causal))) for causal in (True, False)
    )
    ids = random_ids(1, 6)
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 13
    close(causal(changed).hidden[:, :-1], causal(ids).hidden[:, :-1], 1e-6)
    assert (open_(changed).hidden[:, :-1] - open_(ids).hidden[:, :-1]).abs().max() > 1e-3


def test_padding_is_never_seen_in_blocks_either(monkeypatch):
    monkeypatch.setattr("linnet.model.kernels.BLOCK", 3)
    model = random_model(small_config(attention=AttentionConfig(heads=2, causal=False)))
    ids = random_ids(2, 10)
    close(model(Inputs({"ids": ids}, lengths=torch.tensor([7, 10]))).hidden[0, :7], model(ids[:1, :7]).hidden[0])


def test_an_empty_row_among_others_is_no_nan():
    config = small_config(attention=AttentionConfig(heads=2, causal=False))
    hidden = random_model(config)(Inputs({"ids": random_ids(2, 4)}, lengths=torch.tensor([0, 4]))).hidden
    assert bool(hidden.isfinite().all())


@settings(max_examples=25, deadline=None)
@given(
    config=configs(mixers=("attention",)),
    cuts=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=2, max_size=2),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_packed_documents_equal_rows_of_their_own(config, cuts, causal, seed):
    config = config.model_copy(update={"attention": config.attention.model_copy(update={"causal": causal})})
    model = random_model(config, seed)
    tokens = max(sum(lengths) for lengths in cuts)
    ids = random_ids(2, tokens, seed=seed)
    documents = torch.full((2, tokens), -1)  # what is left is padding
    for row, lengths in enumerate(cuts):
        documents[row, : sum(lengths)] = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    hidden = model(Inputs({"ids": ids}, documents=documents)).hidden
    for row, lengths in enumerate(cuts):
        first = 0
        for length in lengths:
            alone = model(ids[row : row + 1, first : first + length]).hidden[0]
            close(hidden[row, first : first + length], alone)
            first += length


def random_tree(tokens: int, random: torch.Generator) -> tuple[list[int], Tensor]:
    """The parent of each token (-1 for a root) and the bool [T, T] of tokens above it."""
    parents = [int(torch.randint(-1, token, (1,), generator=random)) if token else -1 for token in range(tokens)]
    above = torch.eye(tokens, dtype=torch.bool)
    for token, parent in enumerate(parents):
        if parent >= 0:
            above[token] |= above[parent]
    return parents, above


@settings(max_examples=25, deadline=None)
@given(
    config=configs(mixers=("attention",)),
    tokens=st.integers(1, 8),
    prefixes=st.none() | st.lists(st.integers(1, 6), min_size=2, max_size=2),
    seed=st.integers(0, 99),
)
def test_a_packed_tree_equals_each_of_its_paths(config, tokens, prefixes, seed):
    """From nothing, and after rows of different lengths in the state; padding nodes harm nobody."""
    model = random_model(config, seed)
    random = torch.Generator().manual_seed(seed)
    above = torch.zeros(2, tokens + 2, tokens + 2, dtype=torch.bool)  # two nodes of padding
    for row in range(2):
        above[row, :tokens, :tokens] = random_tree(tokens, random)[1]
    ids = random_ids(2, tokens + 2, seed=seed + 1)
    before = random_ids(2, 6, seed=seed + 2)
    state = None
    if prefixes is not None:
        lengths = torch.tensor(prefixes)
        state = model(Inputs({"ids": before}, lengths=lengths), model.empty_state(2)).state
    with torch.no_grad():
        hidden = model(Inputs({"ids": ids}, ancestors=above), state).hidden
    assert bool(hidden.isfinite().all())
    for row in range(2):
        start = before[row, : 0 if prefixes is None else prefixes[row]]
        for token in range(tokens):
            path = ids[row, above[row, token]]
            alone = model(torch.cat((start, path))[None]).hidden[0, -1]
            close(hidden[row, token], alone, 1e-4)


def test_a_tree_may_leave_out_that_a_token_is_above_itself():
    model = random_model(small_config())
    ids = random_ids(1, 3)
    strict = torch.tensor([[[0, 0, 0], [1, 0, 0], [1, 0, 0]]], dtype=torch.bool)
    whole = strict | torch.eye(3, dtype=torch.bool)
    close(
        model(Inputs({"ids": ids}, ancestors=strict)).hidden,
        model(Inputs({"ids": ids}, ancestors=whole)).hidden,
        0.0,
    )


def test_a_state_goes_on_after_a_tree_once_the_tree_is_forgotten():
    model = random_model(small_config())
    start, after = random_ids(1, 5), random_ids(1, 4, seed=1)
    with torch.inference_mode():
        state = model(start, model.empty_state(1)).state
        state = model(
            Inputs({"ids": random_ids(1, 6)}, ancestors=torch.eye(6, dtype=torch.bool)[None]), state
        ).state
        hidden = model(after, state.truncate(5)).hidden
        close(hidden, model(torch.cat((start, after), dim=1)).hidden[:, 5:])


@pytest.mark.parametrize("positions", POSITION_KINDS)
def test_vectors_before_the_ids_of_a_row_are_steps_like_others(positions):
    """Vectors taken from the embedding give what their tokens would, padded rows and a state included."""
    model = with_vectors(positions=positions)
    ids = random_ids(2, 7)
    vectors = model.embedding(ids[:, :3])
    whole = model(vectors_then_ids(vectors[:, :0], ids)).hidden
    close(model(vectors_then_ids(vectors, ids[:, 3:])).hidden, whole)
    with torch.no_grad():
        begun = vectors_then_ids(vectors, ids[:, 3:6], lengths=torch.tensor([6, 4]))
        first = model(begun, model.empty_state(2))
        assert first.state is not None and first.state.lengths.tolist() == [6, 4]
        rest = torch.stack((ids[0, 6:7], ids[1, 4:5]))
        hidden = model(vectors_then_ids(vectors[:, :0], rest), first.state).hidden
    close(hidden[0, 0], whole[0, 6])
    close(hidden[1, 0], whole[1, 4])
