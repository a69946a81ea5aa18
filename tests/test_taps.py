"""Reading and replacing named points: the table holds, compiled too, and what nobody asks for costs nothing.

Legend: B = rows, T = tokens, S = keys, H = heads, Hk = key-value heads, W = model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linnet.errors import BadInput
from linnet.machine import compiler_at_hand
from linnet.model.config import AttentionConfig, FeedForwardConfig, ModelConfig
from linnet.model.inputs import Inputs
from linnet.model.model import Model
from linnet.model.taps import expand, points
from small_models import configs, random_ids, random_model, small_config
from tapless import tapless_model

ROWS, TOKENS = 2, 5


def sizes(config: ModelConfig, keys: int) -> dict[str, int]:
    """What the names of the axes stand for."""
    return {
        "row": ROWS,
        "position": TOKENS,
        "key": keys,
        "head": config.attention.heads,
        "key_head": config.kv_heads,
        "head_width": config.head_width,
        "width": config.width,
        "hidden": config.feedforward_width,
    }


def check_shapes(config: ModelConfig, kept: dict[str, Tensor], keys: int) -> None:
    table, size = points(config), sizes(config, keys)
    assert list(kept) == list(table)  # each of them, in the order of the forward pass
    for name, axes in table.items():
        assert kept[name].shape == tuple(size[axis] for axis in axes), name


@settings(max_examples=40, deadline=None)
@given(config=configs())
def test_every_tap_of_the_table_is_passed_in_order_with_the_named_axes(config):
    model = random_model(config)
    names = tuple(points(config))
    with torch.inference_mode():
        output = model(random_ids(ROWS, TOKENS), keep=names)
        check_shapes(config, output.kept, TOKENS)
        state = model(random_ids(ROWS, 3), model.empty_state(ROWS)).state
        check_shapes(config, model(random_ids(ROWS, TOKENS), state, keep=names).kept, 3 + TOKENS)


@settings(max_examples=30, deadline=None)
@given(config=configs(), seed=st.integers(0, 99))
def test_reading_every_tap_changes_no_logit(config, seed):
    """Among them the pattern, which only the explicit form has: what is shown is what is computed."""
    model = random_model(config, seed)
    ids = random_ids(ROWS, TOKENS, seed=seed)
    with torch.inference_mode():
        plain, read = model(ids), model(ids, keep=tuple(points(config)))
        torch.testing.assert_close(model.head(read.hidden), model.head(plain.hidden), rtol=1e-5, atol=1e-5)
        assert plain.kept == {}


def test_the_names_are_those_of_transformer_lens():
    table = points(small_config(depth=1, positions="learned"))
    assert list(table) == [
        "hook_embed",
        "hook_pos_embed",
        "blocks.0.hook_resid_pre",
        "blocks.0.ln1.hook_normalized",
        "blocks.0.attn.hook_q",
        "blocks.0.attn.hook_k",
        "blocks.0.attn.hook_v",
        "blocks.0.attn.hook_attn_scores",
        "blocks.0.attn.hook_pattern",
        "blocks.0.attn.hook_z",
        "blocks.0.hook_attn_out",
        "blocks.0.hook_resid_mid",
        "blocks.0.ln2.hook_normalized",
        "blocks.0.mlp.hook_pre",
        "blocks.0.mlp.hook_pre_linear",
        "blocks.0.mlp.hook_post",
        "blocks.0.hook_mlp_out",
        "blocks.0.hook_resid_post",
        "ln_final.hook_normalized",
    ]
    rotary = points(small_config(depth=1))
    assert {"blocks.0.attn.hook_rot_q", "blocks.0.attn.hook_rot_k"} == set(rotary) - set(table)
    assert not any("attn.hook_q" in name for name in points(small_config(mixer="gru")))
    plain = points(small_config(depth=1, feedforward=FeedForwardConfig(kind="relu2")))
    assert set(rotary) - set(plain) == {"blocks.0.mlp.hook_pre_linear"}


def test_taps_are_what_their_names_say():
    model = random_model(small_config(depth=1, positions="learned"))
    names = tuple(points(model.config))
    with torch.no_grad():
        output = model(random_ids(ROWS, TOKENS), keep=names)
    at = {name.removeprefix("blocks.0."): value for name, value in output.kept.items()}
    block = model.blocks[0]

    def close(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    close(at["hook_resid_pre"], at["hook_embed"] + at["hook_pos_embed"])
    close(at["hook_resid_mid"], at["hook_resid_pre"] + at["hook_attn_out"])
    close(at["hook_resid_post"], at["hook_resid_mid"] + at["hook_mlp_out"])
    close(at["ln1.hook_normalized"], block.ln1(at["hook_resid_pre"]))
    close(at["ln_final.hook_normalized"], output.hidden)
    close(at["attn.hook_pattern"], at["attn.hook_attn_scores"].softmax(-1))
    close(at["attn.hook_pattern"].sum(-1), torch.ones(ROWS, 2, TOKENS))
    assert not at["attn.hook_pattern"].triu(1).any()
    close(at["attn.hook_z"], torch.einsum("bhqk,bkgd->bqhd", at["attn.hook_pattern"], at["attn.hook_v"]))
    close(at["hook_attn_out"], block.mixer.out(at["attn.hook_z"].flatten(2)))
    close(at["mlp.hook_post"], F.silu(at["mlp.hook_pre"]) * at["mlp.hook_pre_linear"])
    close(at["hook_mlp_out"], block.feedforward.down(at["mlp.hook_post"]))


@settings(max_examples=25, deadline=None)
@given(config=configs(), data=st.data())
def test_patching_a_value_by_itself_changes_nothing_and_by_another_changes_what_follows(config, data):
    model = random_model(config)
    ids, other = random_ids(ROWS, TOKENS), random_ids(ROWS, TOKENS, seed=1)
    special = ("scores", "pos_embed", "gru.hook")  # functions see the gates of one position at a time
    name = data.draw(st.sampled_from([n for n in points(config) if not any(part in n for part in special)]))
    with torch.inference_mode():
        plain, foreign = model(ids, keep=(name,)), model(other, keep=(name,))
        itself = model(ids, edit=((name, lambda _: plain.kept[name]),))
        torch.testing.assert_close(itself.hidden, plain.hidden, rtol=1e-5, atol=1e-5)
        patched = model(ids, edit=((name, lambda _: foreign.kept[name]),), keep=(name,))
        assert patched.kept[name] is foreign.kept[name]  # what is kept is what went on
        expected_change = not torch.allclose(foreign.kept[name], plain.kept[name])
        assert torch.allclose(patched.hidden, plain.hidden, atol=1e-6) != expected_change


def zero_head(head: int) -> Callable[[Tensor], Tensor]:
    def edit(z: Tensor) -> Tensor:
        return torch.cat((z[:, :, :head], torch.zeros_like(z[:, :, head : head + 1]), z[:, :, head + 1 :]), dim=2)

    return edit


def test_zeroing_a_head_takes_away_what_it_wrote():
    model = random_model(small_config(depth=1))
    ids, names = random_ids(ROWS, TOKENS), ("blocks.0.attn.hook_z", "blocks.0.hook_attn_out")
    with torch.no_grad():
        plain = model(ids, keep=names)
        cut = model(ids, keep=names, edit=((names[0], zero_head(1)),))
    assert not cut.kept[names[0]][:, :, 1].any()
    width = model.config.head_width
    written = plain.kept[names[0]][:, :, 1] @ model.blocks[0].mixer.out.weight[:, width : 2 * width].T
    torch.testing.assert_close(plain.kept[names[1]] - cut.kept[names[1]], written, rtol=1e-4, atol=1e-5)
    assert (model.head(plain.hidden) - model.head(cut.hidden)).abs().max() > 1e-3


def test_edits_of_one_point_apply_in_order():
    model = random_model(small_config())
    ids, name = random_ids(ROWS, TOKENS), "blocks.1.hook_resid_pre"
    with torch.inference_mode():
        kept = model(ids, keep=(name,), edit=((name, lambda x: x + 1), (name, lambda x: x * 2))).kept[name]
        torch.testing.assert_close(kept, (model(ids, keep=(name,)).kept[name] + 1) * 2)


def test_gradients_reach_what_was_kept_and_what_was_put_in():
    model = random_model(small_config())
    ids, name = random_ids(ROWS, TOKENS), "blocks.1.attn.hook_pattern"
    shift = torch.zeros(ROWS, 2, TOKENS, TOKENS, requires_grad=True)
    output = model(ids, keep=(name,), edit=((name, lambda pattern: pattern + shift),))
    gradient = torch.autograd.grad(output.hidden.square().sum(), (output.kept[name], shift))
    assert gradient[0].abs().max() > 0
    torch.testing.assert_close(gradient[0], gradient[1])


@pytest.mark.parametrize(
    "wrong, hint",
    [
        ("blocks.0.attn.hook_patern", 'did you mean "blocks.0.attn.hook_pattern"'),
        ("blocks.2.hook_resid_pre", 'did you mean "blocks.'),
        ("xyz", "there is blocks.0.attn.hook_attn_scores"),
    ],
)
def test_an_unknown_tap_is_named_with_the_nearest(wrong, hint):
    model = random_model(small_config())
    for asked in ({"keep": (wrong,)}, {"edit": ((wrong, lambda x: x),)}):
        with pytest.raises(BadInput, match=f'no tap "{wrong}".*{hint}'):
            model(random_ids(1, 2), **asked)
    with pytest.raises(BadInput, match=f'no tap matches "{wrong}".*{hint}'):
        expand(model.taps(), [wrong])


def test_patterns_of_names_are_expanded_once_each():
    config = small_config(depth=3)
    layers = tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(3))
    assert expand(points(config), ["blocks.*.hook_resid_pre", "blocks.1.hook_resid_pre"]) == layers


def test_an_edit_of_the_wrong_shape_is_named():
    model = random_model(small_config())
    with pytest.raises(ValueError, match=r"an edit of blocks.1.hook_resid_pre .* \[2, 5, 12\] and not \[2, 12\]"):
        model(random_ids(ROWS, TOKENS), edit=(("blocks.1.hook_resid_pre", lambda x: x[:, 0]),))


# In a compiled graph.


@pytest.mark.parametrize(
    "config",
    [
        small_config(depth=1),
        small_config(depth=1, positions="learned", feedforward=FeedForwardConfig(kind="gelu")),
        small_config(depth=1, attention=AttentionConfig(heads=2, qk_norm=True), positions="sinusoidal"),
    ],
    ids=["rotary, shared heads", "learned, gelu", "sinusoidal, normed heads"],
)
def test_reading_and_replacing_work_in_one_graph(config):
    model = random_model(config)
    ids = random_ids(ROWS, TOKENS)
    keep, edit = tuple(points(config)), (("blocks.0.attn.hook_z", zero_head(1)),)
    with torch.no_grad():
        expected = model(ids, keep=keep, edit=edit)
        found = torch.compile(model, fullgraph=True, backend="eager")(ids, keep=keep, edit=edit)
    assert list(found.kept) == list(keep)
    torch.testing.assert_close(found.hidden, expected.hidden, rtol=1e-5, atol=1e-5)
    for name in keep:
        torch.testing.assert_close(found.kept[name], expected.kept[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.skipif(not compiler_at_hand("cpu"), reason="there is no C++ compiler here")
def test_taps_work_in_generated_code_too():
    config = small_config(depth=1, positions="none", feedforward=FeedForwardConfig(kind="relu2"))
    model, ids = random_model(config), random_ids(ROWS, TOKENS)
    keep, edit = ("blocks.0.attn.hook_pattern",), (("blocks.0.attn.hook_z", zero_head(0)),)
    with torch.no_grad():
        expected = model(ids, keep=keep, edit=edit)
        found = torch.compile(model, fullgraph=True)(ids, keep=keep, edit=edit)
    torch.testing.assert_close(found.hidden, expected.hidden, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.kept[keep[0]], expected.kept[keep[0]], rtol=1e-5, atol=1e-5)


def test_torch_itself_says_that_it_cannot_compile_a_recurrent_layer_whole():
    model = random_model(small_config(depth=1, mixer="gru"))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="does not support RNN, GRU"):
        torch.compile(model, fullgraph=True, backend="eager")(random_ids(1, 3))


@pytest.fixture(scope="module")
def without_taps() -> Iterator[type[Model]]:
    """The class `Model` of a copy of the package's source, made without taps."""
    with tapless_model() as (bare, cuts):
        assert cuts == 34  # every call in the files that are copied; none other is left
        yield bare


def graphs(model: torch.nn.Module, ids: Tensor) -> list[str]:
    """The code of the graphs that the compiler gets: as captured, forward, and backward."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func

    seen: list[str] = []

    def note(module: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        seen.append(module.code)
        return make_boxed_func(module.forward)

    lower = aot_autograd(fw_compiler=note, bw_compiler=note)

    def backend(module: torch.fx.GraphModule, examples: list[Any]) -> Any:
        seen.append(module.code)
        return lower(module, examples)

    torch._dynamo.reset()
    torch.compile(model, fullgraph=True, backend=backend)(ids).hidden.sum().backward()
    return seen


def kept_for_backward(model: torch.nn.Module, ids: Tensor) -> list[tuple[int, ...]]:
    """Shapes of everything that one eager forward keeps alive."""
    shapes: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids)
    return shapes


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_with_nothing_asked_the_graph_is_that_of_a_model_without_taps(without_taps, positions):
    config = small_config(depth=1, positions=positions, dropout=0.1)
    ids = random_ids(ROWS, TOKENS)
    tapped, bare = Model(config), without_taps(config)
    bare.load_state_dict(tapped.state_dict())
    found, expected = graphs(tapped, ids), graphs(bare, ids)
    assert len(found) == 3 and found == expected


@settings(max_examples=20, deadline=None)
@given(config=configs())
def test_with_nothing_asked_nothing_more_is_kept(without_taps, config):
    ids = random_ids(ROWS, TOKENS)
    tapped, bare = random_model(config), without_taps(config).eval()
    bare.load_state_dict(tapped.state_dict())
    assert torch.equal(tapped(ids).hidden, bare(ids).hidden)
    assert kept_for_backward(tapped, ids) == kept_for_backward(bare, ids)
    assert tapped(Inputs({"ids": ids})).kept == {}
