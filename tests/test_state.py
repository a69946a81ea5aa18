"""A state is linear, counts its bytes, and never changes a value: in pieces equals whole, alone equals together.

Legend: B = rows, Hk = key-value heads, S = slots, D = head width, W = model width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linnet.model.config import AttentionConfig
from linnet.model.costs import costs
from linnet.model.inputs import Inputs, Output
from linnet.model.model import Model
from linnet.model.state import ConsumedStateError, KeyValues, State
from small_models import MIXERS, configs, random_ids, random_model, small_config


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def going(output: Output) -> State:
    assert output.state is not None
    return output.state


def in_pieces(model: Model, ids: Tensor, cuts: Sequence[int], slots: int | None = None) -> Tensor:
    """Hidden vectors of the whole rows, computed piece by piece."""
    state = model.empty_state(len(ids), slots)
    pieces = []
    for first, last in itertools.pairwise([0, *cuts, ids.shape[1]]):
        output = model(ids[:, first:last], state)
        state = going(output)
        pieces.append(output.hidden)
    return torch.cat(pieces, dim=1)


@pytest.fixture(params=["attention", "gru", "attention and gru"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    mixer = dict(zip(["attention", "gru", "attention and gru"], MIXERS, strict=True))[request.param]
    with torch.inference_mode():
        yield random_model(small_config(mixer=mixer))


USES = {
    "a model call": lambda model, state: model(random_ids(2, 1), state),
    "select": lambda model, state: state.select(torch.tensor([0])),
    "truncate": lambda model, state: state.truncate(1),
    "lengths": lambda model, state: state.lengths,
    "rows": lambda model, state: state.rows,
    "nbytes": lambda model, state: state.nbytes,
    "filled": lambda model, state: state.filled,
}


@pytest.mark.parametrize("use", USES)
def test_a_consumed_state_raises_whatever_is_asked_of_it(model, use):
    state = model.empty_state(2)
    model(random_ids(2, 3), state)
    with pytest.raises(ConsumedStateError, match="go on with the state that the call returned"):
        USES[use](model, state)


def test_truncating_consumes_too():
    model = random_model(small_config())
    with torch.inference_mode():
        state = going(model(random_ids(2, 3), model.empty_state(2)))
    state.truncate(2)
    with pytest.raises(ConsumedStateError):
        model(random_ids(2, 1), state)


def test_a_refused_call_leaves_the_state_alive(model):
    state = going(model(random_ids(2, 3), model.empty_state(2)))
    ids = random_ids(2, 1)
    with pytest.raises(ValueError, match="the state remembers 2 rows, and ids came for 3"):
        model(random_ids(3, 1), state)
    with pytest.raises(ValueError, match="a state continues one a row|recurrent"):
        model(Inputs({"ids": ids}, documents=torch.zeros_like(ids)), state)
    with pytest.raises(Exception, match="no tap"):
        model(ids, state, keep=("hook_embedding",))
    assert state.lengths.tolist() == [3, 3]
    model(ids, state)


def test_forks_that_diverge_equal_separate_runs(model):
    start, left, right = random_ids(2, 5), random_ids(2, 4, seed=1), random_ids(2, 4, seed=2)
    state = going(model(start, model.empty_state(2)))
    fork = state.select(torch.tensor([0, 1]))
    outputs = []
    for ids, one in ((left, state), (right, fork)):
        first = model(ids[:, :2], one)
        outputs.append(torch.cat((first.hidden, model(ids[:, 2:], going(first)).hidden), dim=1))
    close(outputs[0], model(torch.cat((start, left), dim=1)).hidden[:, 5:])
    close(outputs[1], model(torch.cat((start, right), dim=1)).hidden[:, 5:])


def test_select_takes_rows_in_any_order_and_number(model):
    start, after = random_ids(3, 5), random_ids(4, 3, seed=1)
    lengths, rows = torch.tensor([2, 5, 3]), torch.tensor([2, 0, 2, 1])
    state = going(model(Inputs({"ids": start}, lengths=lengths), model.empty_state(3))).select(rows)
    assert state.rows == 4 and state.lengths.tolist() == [3, 2, 3, 5]
    hidden = model(after, state).hidden
    for place, row in enumerate(rows.tolist()):
        alone = torch.cat((start[row, : lengths[row]], after[place]))[None]
        close(hidden[place], model(alone).hidden[0, lengths[row] :])


def test_truncating_is_free_and_exact():
    with torch.inference_mode():
        model = random_model(small_config())
        ids, other = random_ids(2, 9), random_ids(2, 4, seed=1)
        state = going(model(ids, model.empty_state(2)))
        before = _buffers(state)
        state = state.truncate(5)
        assert [b.data_ptr() for b in _buffers(state)] == [b.data_ptr() for b in before]
        assert (state.lengths.tolist(), state.filled) == ([5, 5], 5)
        close(model(other, state).hidden, model(torch.cat((ids[:, :5], other), dim=1)).hidden[:, 5:])


def test_truncating_each_row_to_its_own_length():
    with torch.inference_mode():
        model = random_model(small_config())
        ids, other = random_ids(2, 9), random_ids(2, 4, seed=1)
        state = going(model(ids, model.empty_state(2))).truncate(torch.tensor([3, 20]))
        assert state.lengths.tolist() == [3, 9]
        hidden = model(other, state).hidden
        close(hidden[0], model(torch.cat((ids[:1, :3], other[:1]), dim=1)).hidden[0, 3:])
        close(hidden[1], model(torch.cat((ids[1:], other[1:]), dim=1)).hidden[0, 9:])


def test_a_recurrent_layer_does_not_go_back():
    with torch.inference_mode():
        model = random_model(small_config(mixer=("attention", "gru")))
        state = going(model(random_ids(2, 5), model.empty_state(2)))
        with pytest.raises(ValueError, match="fork with select"):
            state.truncate(4)
        state = state.truncate(5)  # forgets nothing, so it may; and the refusal consumed nothing
        model(random_ids(2, 1), state)


def test_a_negative_length_is_refused():
    with pytest.raises(ValueError, match="cannot be truncated to -1"):
        random_model(small_config()).empty_state(1).truncate(-1)


def _buffers(state: State) -> list[Tensor]:
    return [
        buffer
        for layer in state._live().layers
        for buffer in ((layer.keys, layer.values) if isinstance(layer, KeyValues) else (layer.hidden,))
    ]


@settings(max_examples=30, deadline=None)
@given(config=configs(), rows=st.integers(1, 4), slots=st.integers(0, 9), half=st.booleans())
def test_bytes_are_those_of_the_formula(config, rows, slots, half):
    dtype = torch.bfloat16 if half else torch.float32
    state = random_model(config).empty_state(rows, slots, dtype)
    attended = config.mixers.count("attention")
    numbers = attended * 2 * config.kv_heads * slots * config.head_width
    numbers += (config.depth - attended) * config.width
    assert state.nbytes == rows * (numbers * dtype.itemsize + 8)  # and 8 for the length of the row
    assert state.nbytes == sum(b.nbytes for b in _buffers(state)) + state.lengths.nbytes
    per_token = costs(config, kv_bytes=dtype.itemsize).kv_bytes_per_token
    grown = random_model(config).empty_state(rows, slots + 1, dtype).nbytes - state.nbytes
    assert grown == rows * per_token


def test_a_state_writes_in_place_until_it_has_to_grow():
    with torch.inference_mode():
        model = random_model(small_config())
        state = model.empty_state(1, slots=4)
        places = [b.data_ptr() for b in _buffers(state)]
        state = going(model(random_ids(1, 2), state))
        state = going(model(random_ids(1, 2), state))
        assert [b.data_ptr() for b in _buffers(state)] == places
        state = going(model(random_ids(1, 1), state))
        assert [b.shape[2] for b in _buffers(state)] == [8] * 4  # growth doubles


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("positions", ["rotary", "sinusoidal", "learned", "none"])
def test_in_pieces_equals_whole_at_every_cut(mixer, positions):
    model = random_model(small_config(mixer=mixer, positions=positions))
    ids = random_ids(2, 9)
    with torch.inference_mode():
        whole = model(ids).hidden
        for cut in range(1, 9):
            close(in_pieces(model, ids, [cut]), whole)
        close(in_pieces(model, ids, range(1, 9)), whole)


@settings(max_examples=30, deadline=None)
@given(
    config=configs(),
    cuts=st.sets(st.integers(1, 11)),
    rows=st.integers(1, 3),
    slots=st.integers(0, 14),
    seed=st.integers(0, 99),
)
def test_any_model_in_any_pieces_equals_whole(config, cuts, rows, slots, seed):
    """Growth beyond the slots included."""
    model = random_model(config, seed)
    ids = random_ids(rows, 12, seed=seed)
    with torch.inference_mode():
        close(in_pieces(model, ids, sorted(cuts), slots), model(ids).hidden)


@settings(max_examples=25, deadline=None)
@given(
    config=configs(),
    lengths=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_rows_may_go_on_by_different_lengths(config, lengths, seed):
    """Each call adds its own number of tokens to each row, none at all to some."""
    model = random_model(config, seed)
    rows: list[list[Tensor]] = [[], [], []]
    with torch.inference_mode():
        state = model.empty_state(3, slots=2)
        for call, added in enumerate(lengths):
            ids = random_ids(3, max(1, *added), seed=100 * seed + call)
            output = model(Inputs({"ids": ids}, lengths=torch.tensor(added)), state)
            state = going(output)
            for row, length in enumerate(added):
                rows[row].append(ids[row, :length])
                if length:
                    close(output.hidden[row, :length], model(torch.cat(rows[row])[None]).hidden[0, -length:])
        assert state.lengths.tolist() == [sum(added) for added in zip(*lengths, strict=True)]


@settings(max_examples=25, deadline=None)
@given(config=configs(), order=st.permutations(range(4)), seed=st.integers(0, 99))
def test_a_row_alone_equals_it_in_a_batch_and_permuted(config, order, seed):
    model = random_model(config, seed)
    ids, after = random_ids(4, 7, seed=seed), random_ids(4, 2, seed=seed + 1)
    lengths = torch.tensor([7, 3, 5, 1])

    def run(rows: list[int]) -> tuple[Tensor, Tensor]:
        output = model(Inputs({"ids": ids[rows]}, lengths=lengths[rows]), model.empty_state(len(rows)))
        return output.hidden, model(after[rows], going(output)).hidden

    with torch.inference_mode():
        first, second = run([0, 1, 2, 3])
        first_permuted, second_permuted = run(order)
        for place, row in enumerate(order):
            first_alone, second_alone = run([row])
            real = slice(0, int(lengths[row]))
            for other in (first_permuted[place], first_alone[0]):
                close(other[real], first[row, real])
            for other in (second_permuted[place], second_alone[0]):
                close(other, second[row])


def test_gradients_flow_through_a_state(model):
    """Learning through pieces gives the gradient of the whole, and nothing is overwritten that it needs."""
    with torch.inference_mode(False):
        model = random_model(model.config)
        ids, targets = random_ids(2, 9), random_ids(2, 9, seed=1)
        found = []
        for hidden in (model(ids).hidden, in_pieces(model, ids, [1, 4, 5], slots=3)):
            model.head.nll(hidden, targets).sum().backward()
            found.append({name: p.grad for name, p in model.named_parameters()})
            model.zero_grad()
    for name, gradient in found[0].items():
        assert gradient is not None and float(gradient.abs().max()) > 0, name
        close(found[1][name], gradient, 1e-4)


def test_a_state_of_half_the_bytes_goes_on_nearly_the_same():
    model = random_model(small_config())
    ids = random_ids(2, 9)
    with torch.inference_mode():
        state = going(model(ids[:, :5], model.empty_state(2, dtype=torch.bfloat16)))
        hidden = model(ids[:, 5:], state).hidden
        assert hidden.dtype == torch.float32
        close(hidden, model(ids).hidden[:, 5:], 5e-2)


def test_prefill_and_steps_compile_without_a_break():
    model = random_model(small_config(depth=1))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    ids = random_ids(2, 7)
    with torch.inference_mode():
        output = compiled(ids[:, :5], model.empty_state(2))
        pieces = [output.hidden]
        for step in (5, 6):
            output = compiled(ids[:, step : step + 1], going(output))
            pieces.append(output.hidden)
        close(torch.cat(pieces, dim=1), model(ids).hidden)


def test_a_model_that_attends_both_ways_has_no_state():
    model = random_model(small_config(attention=AttentionConfig(heads=2, causal=False)))
    with pytest.raises(ValueError, match="attends both ways"):
        model(random_ids(1, 2), model.empty_state(1))


def test_learned_positions_end_where_the_table_ends():
    model = random_model(small_config(positions="learned", context=6))
    with torch.inference_mode():
        state = going(model(random_ids(1, 6), model.empty_state(1)))
        with pytest.raises(ValueError, match="learned positions end at 6 tokens, and 7 are needed"):
            model(random_ids(1, 1), state)
        model(random_ids(1, 2), state.truncate(4))
