"""Edits: affine ones equal functions, eager, compiled and through a state; each one changes what comes out.

Legend: B = rows, T = tokens, W = model width.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linnet.decoding import naive
from linnet.decoding.engine import generate
from linnet.decoding.requests import Decoding, Request, Sampling
from linnet.decoding.runner import Runner
from linnet.errors import BadInput
from linnet.model.model import Model
from linnet.model.taps import Affine, AtPositions, Edit, points
from linnet.probing import patterns
from linnet.probing.watch import Watch
from small_models import configs, random_ids, random_model, small_config, taps_without_effect

ROWS, TOKENS = 2, 6
MIXED = {"mixer": ("attention", "gru")}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_affine(model: Model, name: str, tokens: int, seed: int) -> Affine:
    """An edit of every axis of this tap, for one row."""
    shape = list(model(random_ids(1, tokens), keep=(name,)).kept[name].shape)
    return Affine(1 + noise(*shape, seed=seed) / 4, noise(*shape, seed=seed + 1) / 4)


def as_function(edit: Affine) -> Edit:
    """The same by a function, which knows where masked scores are."""
    return lambda value: torch.where(value == -math.inf, value, value * edit.scale + edit.offset)


def at_pieces(model: Model, ids: Tensor, edits: tuple[tuple[str, Edit], ...], pieces: list[int]) -> Tensor:
    state, hidden = model.empty_state(len(ids)), []
    for piece in ids.split(pieces, dim=1):
        output = model(piece, state, edit=edits)
        assert output.state is not None
        state = output.state
        hidden.append(output.hidden)
    return torch.cat(hidden, 1)


@settings(max_examples=40, deadline=None)
@given(config=configs(), data=st.data())
def test_an_affine_edit_is_its_function_at_once_and_through_a_state(config, data):
    model = random_model(config)
    name = data.draw(st.sampled_from(list(points(config))))
    with torch.inference_mode():
        edit = some_affine(model, name, TOKENS, data.draw(st.integers(0, 9)))
        ids = random_ids(ROWS, TOKENS)
        at_once = model(ids, edit=((name, edit),)).hidden
        if "gru" not in name:  # whose functions see one position at a time
            expected = model(ids, edit=((name, as_function(edit)),)).hidden
            torch.testing.assert_close(at_once, expected, rtol=1e-5, atol=1e-5)
        pieces = at_pieces(model, ids, ((name, edit),), [2, 1, 3])
        torch.testing.assert_close(pieces, at_once, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(config=configs(), data=st.data())
def test_beyond_its_positions_an_edit_leaves_everything_alone(config, data):
    model, ids = random_model(config), random_ids(ROWS, TOKENS)
    first = [name for name in points(config) if name.startswith("blocks.0.") and name[-2:] in ("_q", "_k", "_v")]
    name = data.draw(st.sampled_from(["blocks.0.hook_resid_pre", "blocks.0.ln1.hook_normalized", *first]))
    with torch.inference_mode():
        edit = ((name, some_affine(model, name, 2, 0)),)
        plain, edited = (model(ids, edit=e, keep=(name,)) for e in ((), edit))
        torch.testing.assert_close(edited.kept[name][:, 2:], plain.kept[name][:, 2:], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(edited.kept[name][:, :2], plain.kept[name][:, :2])
        torch.testing.assert_close(at_pieces(model, ids, edit, [3, 3]), edited.hidden, rtol=1e-4, atol=1e-4)


def test_rows_heads_and_positions_are_edited_apart():
    model, name = random_model(small_config(depth=1)), "blocks.0.attn.hook_z"
    scale = torch.ones(ROWS, TOKENS, 2, 1)
    scale[1, 3, 0] = 0
    with torch.no_grad():
        plain = model(random_ids(ROWS, TOKENS), keep=(name,)).kept[name]
        cut = model(random_ids(ROWS, TOKENS), keep=(name,), edit=((name, Affine(scale, torch.zeros(()))),))
    assert not cut.kept[name][1, 3, 0].any()
    rest = scale.expand_as(plain) == 1
    torch.testing.assert_close(cut.kept[name][rest], plain[rest])


def test_a_function_may_ask_for_positions():
    model, name = random_model(small_config()), "blocks.1.hook_resid_pre"
    seen: list[Tensor] = []

    def note(value: Tensor, positions: Tensor) -> Tensor:
        seen.append(positions)
        return value + (positions == 4)[..., None]

    with torch.inference_mode():
        ids = random_ids(ROWS, TOKENS)
        edits = ((name, AtPositions(note)),)
        torch.testing.assert_close(at_pieces(model, ids, edits, [3, 2, 1]), model(ids, edit=edits).hidden)
    assert [positions[-1].tolist() for positions in seen[:3]] == [[0, 1, 2], [3, 4], [5]]


@settings(max_examples=30, deadline=None)
@given(config=configs())
def test_every_tap_fires_and_every_edit_changes_what_comes_out(config):
    assert taps_without_effect(random_model(config), random_ids(ROWS, TOKENS)) == []


@pytest.mark.parametrize("mixer", ["gru", ("attention", "gru"), ("gru", "attention")])
def test_a_recurrent_layer_with_open_gates_computes_what_torch_does(mixer):
    model, ids = random_model(small_config(mixer=mixer)), random_ids(ROWS, TOKENS)
    keep = tuple(name for name in model.taps() if "gru.hook" in name)
    with torch.inference_mode():
        plain, opened = model(ids), model(ids, keep=keep)
        torch.testing.assert_close(opened.hidden, plain.hidden, rtol=1e-5, atol=1e-5)
        state = model(ids[:, :3], model.empty_state(ROWS)).state
        rest = model(ids[:, 3:], state, keep=keep)
    torch.testing.assert_close(rest.hidden, plain.hidden[:, 3:], rtol=1e-5, atol=1e-5)
    for name in keep:
        torch.testing.assert_close(rest.kept[name], opened.kept[name][:, 3:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, MIXED, {"positions": "learned"}], ids=["rotary", "recurrent", "learned"])
def test_edited_models_decode_as_the_slow_way_does(changes):
    model = random_model(small_config(**changes))
    scale, offset = torch.ones(1, 5, 1), torch.zeros(1, 5, 1)
    scale[:, 3:5], offset[:, 4] = 0.3, 2.0
    edits = (("blocks.0.hook_mlp_out", Affine(scale, offset)), ("blocks.1.hook_resid_pre", lambda x: x * 1.1))
    decoding = Decoding(Sampling(temperature=0), max_tokens=6)
    requests = [Request((3, 4)), Request((1,)), Request((3, 4, 5, 6))]
    fast = list(generate(Runner(model, edit=edits), requests, decoding, rows=2))
    slow = [naive.generate(model, request, decoding, edit=edits) for request in requests]
    assert [sample.ids for sample in fast] == [sample.ids for sample in slow]
    assert [sample.ids for sample in slow] != [naive.generate(model, r, decoding).ids for r in requests]


def test_an_edit_that_gives_nan_is_named_with_its_position():
    model, name = random_model(small_config()), "blocks.1.attn.hook_z"
    offset = torch.zeros(ROWS, TOKENS, 1, 1)
    offset[1, 4] = math.nan
    with pytest.raises(BadInput, match=r"the edit of blocks.1.attn.hook_z gives NaN, first at row 1, position 4"):
        model(random_ids(ROWS, TOKENS), edit=((name, Affine(torch.ones(()), offset)),))
    state = model(random_ids(ROWS, 3), model.empty_state(ROWS)).state
    with pytest.raises(BadInput, match="first at row 1, position 4, head 0"):
        model(random_ids(ROWS, 3), state, edit=((name, Affine(torch.ones(()), offset)),))


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_one_graph_serves_every_head_row_and_position(positions):
    model, name = random_model(small_config(positions=positions)), "blocks.1.attn.hook_z"
    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    ids = random_ids(ROWS, TOKENS)
    for seed in range(5):
        scale, offset = (noise(ROWS, TOKENS, 2, 1, seed=seed) > 0).float(), noise(1, 1, 2, 4, seed=seed)
        edit = ((name, Affine(scale, offset.expand(1, TOKENS, 2, 4).contiguous())),)
        with torch.no_grad():
            found, expected = compiled(ids, edit=edit).hidden, model(ids, edit=edit).hidden
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


@settings(max_examples=20, deadline=None)
@given(config=configs(), data=st.data())
def test_a_call_goes_on_from_any_point_of_the_residual_stream(config, data):
    model, ids = random_model(config), random_ids(ROWS, TOKENS)
    streams = [name for name in points(config) if "hook_resid" in name]
    name = data.draw(st.sampled_from(streams))
    last = "ln_final.hook_normalized"
    edit = ((last, Affine(torch.full((), 2.0), torch.ones(()))),)
    with torch.inference_mode():
        whole = model(ids, keep=(name, last), edit=edit)
        rest = model.forward_from(name, whole.kept[name], ids, keep=(last,), edit=edit)
    assert torch.equal(rest.hidden, whole.hidden) and torch.equal(rest.kept[last], rest.hidden)
    if name != streams[0]:
        with pytest.raises(BadInput, match="no tap"):
            model.forward_from(name, whole.kept[name], ids, keep=("blocks.0.hook_resid_pre",))
    with pytest.raises(BadInput, match='"hook_embed" is no tap of the residual stream'):
        model.forward_from("hook_embed", whole.kept[name], ids)


# Patterns without all of them at once.


@settings(max_examples=15, deadline=None)
@given(config=configs(mixers=("attention", ("gru", "attention"))), block=st.sampled_from([2, 256]))
def test_blocks_of_patterns_are_the_kept_patterns(config, block):
    model, ids, whole = random_model(config), random_ids(ROWS, TOKENS), patterns.BLOCK
    keep = tuple(name for name in model.taps() if name.endswith("hook_pattern"))
    with torch.inference_mode():
        kept = model(ids, keep=keep).kept
    try:
        patterns.BLOCK = block
        found = list(patterns.pattern_blocks(model, ids))
    finally:
        patterns.BLOCK = whole
    for name in keep:
        own = [part.shares for part in found if f"blocks.{part.layer}.attn.hook_pattern" == name]
        torch.testing.assert_close(torch.cat(own, 2), kept[name], rtol=1e-5, atol=1e-5)


def test_the_pattern_of_a_recurrent_layer_mixes_its_candidates():
    model, ids = random_model(small_config(mixer="gru", depth=1)), random_ids(ROWS, TOKENS)
    names = [f"blocks.0.gru.hook_{end}" for end in ("update", "candidate", "state")]
    with torch.inference_mode():
        kept = model(ids, keep=tuple(names)).kept
        model.get_parameter("blocks.0.mixer.gru.weight_ih_l0")[12:24] = 0  # one gate for all channels, from a bias
        model.get_parameter("blocks.0.mixer.gru.weight_hh_l0")[12:24] = 0
        for name in ("bias_ih_l0", "bias_hh_l0"):
            model.get_parameter(f"blocks.0.mixer.gru.{name}")[12:24] = 0.3
        update, candidate, state = (model(ids, keep=tuple(names)).kept[name] for name in names)
        found = patterns.recurrent_pattern(model, ids, 0)
    torch.testing.assert_close(found @ candidate, state, rtol=1e-4, atol=1e-5)
    assert not found.triu(1).any() and (found.sum(-1) <= 1 + 1e-6).all()
    assert not torch.equal(kept[names[0]], update)


# Hooks.


def test_a_watch_reads_and_edits_and_leaves_nothing_behind():
    model, ids = random_model(small_config()), random_ids(ROWS, TOKENS)
    model.train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    plain, seen = Watch(model)(ids).hidden, []
    with Watch(model) as watch:
        watch.register("pattern", "blocks.0.attn.hook_pattern")
        watch.register("note", "blocks.1.hook_resid_pre", lambda value: seen.append(value.shape))
        torch.testing.assert_close(watch(ids).hidden, plain)
        assert watch.values["pattern"].shape == (ROWS, 2, TOKENS, TOKENS) and seen == [(ROWS, TOKENS, 12)]
        watch.register("half", "blocks.1.hook_mlp_out", lambda value: value / 2)
        watch.register("same", "blocks.0.hook_mlp_out", Affine(torch.full((), 0.5), torch.zeros(())))
        assert watch.names == ("pattern", "note", "half", "same")
        assert not torch.allclose(watch(ids).hidden, plain)
        with pytest.raises(BadInput, match='"half" is registered already, at blocks.1.hook_mlp_out'):
            watch.register("half", "blocks.0.hook_mlp_out")
        with pytest.raises(BadInput, match='no tap "blocks.0.hook_mlp_ou"; did you mean'):
            watch.register("new", "blocks.0.hook_mlp_ou")
        watch.clear("half", "same")
        torch.testing.assert_close(watch(ids).hidden, plain)
        with pytest.raises(BadInput, match='nothing is registered as "half"'):
            watch.clear("half")
    assert watch.names == () and model.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
