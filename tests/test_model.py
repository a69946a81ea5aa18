"""The model as a whole: its parts against other people's, its first loss, and what it refuses.

Legend: B = rows, T = tokens, W = model width, D = head width.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from linnet.errors import BadInput
from linnet.model.config import AttentionConfig, FeedForwardConfig, HeadConfig, ModelConfig, NormConfig
from linnet.model.contract import evaluating
from linnet.model.inputs import Inputs
from linnet.model.layers import rotate, rotation, sinusoids
from linnet.model.model import Model
from small_models import configs, random_ids, random_model, small_config, vectors_then_ids, with_vectors
from test_costs import PUBLISHED


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# Against torch's own parts.


def torch_encoder(model: Model) -> nn.TransformerEncoder:
    """torch's pre-norm encoder with the weights of a model with GELU, layer norms and biases everywhere."""
    config = model.config
    layer = nn.TransformerEncoderLayer(
        config.width,
        config.attention.heads,
        config.feedforward_width,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=config.norm.eps,
        batch_first=True,
        norm_first=True,
    )
    final = nn.LayerNorm(config.width, eps=config.norm.eps)
    encoder = nn.TransformerEncoder(layer, config.depth, norm=final, enable_nested_tensor=False)
    renamed = {
        "ln1.": "norm1.",
        "ln2.": "norm2.",
        "mixer.qkv.weight": "self_attn.in_proj_weight",
        "mixer.qkv.bias": "self_attn.in_proj_bias",
        "mixer.out.": "self_attn.out_proj.",
        "feedforward.up.": "linear1.",
        "feedforward.down.": "linear2.",
        "blocks.": "layers.",
        "final_norm.": "norm.",
    }
    weights = {}
    for name, value in model.state_dict().items():
        if name.startswith(("blocks.", "final_norm.")):
            for ours, theirs in renamed.items():
                name = name.replace(ours, theirs)
            weights[name] = value
    encoder.load_state_dict(weights)
    return encoder.eval()


@pytest.mark.parametrize("causal", [True, False])
def test_it_is_torchs_own_encoder_where_the_two_overlap(causal):
    config = small_config(
        width=16,
        positions="learned",
        attention=AttentionConfig(heads=4, bias=True, causal=causal),
        feedforward=FeedForwardConfig(kind="gelu", bias=True),
        norm=NormConfig(kind="layer", bias=True),
    )
    model = random_model(config)
    assert model.position_embedding is not None
    ids = random_ids(3, 9)
    x = model.embedding(ids) + model.position_embedding.weight[:9]
    mask = nn.Transformer.generate_square_subsequent_mask(9) if causal else None
    expected = torch_encoder(model)(x, mask=mask, is_causal=causal)
    close(model(ids).hidden, expected)
    close(model.head(model(ids).hidden), expected @ model.embedding.weight.T)


def test_a_recurrent_layer_is_torchs_own_between_norms():
    model = random_model(small_config(depth=1, mixer="gru", positions="none"))
    block, ids = model.blocks[0], random_ids(2, 6)
    x = model.embedding(ids)
    x = x + block.mixer.gru(block.ln1(x))[0]
    x = x + block.feedforward.down(feedforward_by_hand(block.feedforward.up(block.ln2(x)), "swiglu"))
    close(model(ids).hidden, model.final_norm(x))


def feedforward_by_hand(pre: Tensor, kind: str) -> Tensor:
    half = pre.shape[-1] // 2
    gate, value = pre[..., :half], pre[..., half:]
    if kind == "swiglu":
        return gate / (1 + torch.exp(-gate)) * value
    if kind == "geglu":
        return 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))) * value
    if kind == "gelu":
        return 0.5 * pre * (1 + torch.erf(pre / math.sqrt(2)))
    return torch.where(pre > 0, pre * pre, 0)


@pytest.mark.parametrize("kind", ["gelu", "geglu", "swiglu", "relu2"])
def test_each_feed_forward_is_its_formula(kind):
    model = random_model(small_config(depth=1, feedforward=FeedForwardConfig(kind=kind, width=10, bias=True)))
    names = ("blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out")
    kept = model(random_ids(2, 4), keep=names).kept
    layer = model.blocks[0].feedforward
    assert layer.up.out_features == (20 if kind in ("geglu", "swiglu") else 10)
    close(kept[names[1]], layer.down(feedforward_by_hand(layer.up(kept[names[0]]), kind)))


@pytest.mark.parametrize("kind, width", [("gelu", 48), ("relu2", 48), ("swiglu", 32), ("geglu", 32)])
def test_feed_forwards_have_nearly_equal_parameters_unless_told(kind, width):
    assert small_config(feedforward=FeedForwardConfig(kind=kind)).feedforward_width == width


def test_norms_are_their_formulas():
    x = 3 * torch.randn(2, 5, 12) + 1
    rms = random_model(small_config()).final_norm
    layer = random_model(small_config(norm=NormConfig(kind="layer", bias=True))).final_norm
    close(rms(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * rms.weight)
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    close(layer(x), normed * layer.weight + layer.bias)


def test_queries_and_keys_are_normed_where_asked():
    model = random_model(small_config(attention=AttentionConfig(heads=2, kv_heads=1, head_width=4, qk_norm=True)))
    ids = random_ids(2, 6)
    before = model(ids).hidden
    with torch.no_grad():
        model.blocks[0].mixer.qkv.weight[:12] *= 7  # queries and keys: 2 + 1 heads of 4
    close(model(ids).hidden, before, 1e-4)


# Positions.


@settings(max_examples=30, deadline=None)
@given(
    positions=st.lists(st.integers(0, 300), min_size=2, max_size=5),
    width=st.sampled_from([2, 4, 10]),
    base=st.sampled_from([100.0, 10_000.0]),
)
def test_rotary_turns_pairs_as_complex_numbers(positions, width, base):
    place = torch.tensor([positions])
    x = torch.randn(1, 1, len(positions), width)
    cosines, sines = rotation(place, width, base)
    turned = rotate(x, cosines[:, None], sines[:, None])
    half = width // 2
    complex_x = torch.complex(x[..., :half].double(), x[..., half:].double())
    angles = place.double()[:, None, :, None] * base ** (-torch.arange(half).double() / half)
    expected = complex_x * torch.polar(torch.ones_like(angles), angles)
    close(turned.double(), torch.cat((expected.real, expected.imag), -1), 1e-3)


def test_rotary_scores_depend_on_distance_only():
    """A rotary model does not know where a row starts; a learned table does."""
    ids = random_ids(1, 6)
    for positions, moves in (("rotary", False), ("learned", True), ("sinusoidal", True), ("none", False)):
        model = with_vectors(positions=positions)
        scores, none = "blocks.0.attn.hook_attn_scores", torch.zeros(1, 0, 12)
        plain = model(vectors_then_ids(none, ids), keep=(scores,)).kept[scores].tril()
        padding = vectors_then_ids(torch.zeros(1, 3, 12), ids)
        shifted = model(padding, keep=(scores,)).kept[scores][:, :, 3:, 3:].tril()
        assert torch.allclose(shifted, plain, atol=1e-4) != moves, positions


@pytest.mark.parametrize("width", [8, 7])
def test_sinusoids_are_sines_and_cosines_of_falling_rates(width):
    table = sinusoids(torch.arange(50)[None], width)
    assert table.shape == (1, 50, width)
    half = (width + 1) // 2
    for place in (0, 1, 17, 49):
        for index in range(width):
            angle = place / 10_000 ** (index % half / half)
            expected = math.sin(angle) if index < half else math.cos(angle)
            assert float(table[0, place, index]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("positions", ["rotary", "sinusoidal", "learned"])
def test_order_matters_where_there_are_positions(positions):
    """Without positions one layer of attention sees a bag: the last token is indifferent to the order."""
    ids = random_ids(1, 6)
    swapped = ids[:, [1, 0, 2, 3, 4, 5]]
    for kind, indifferent in ((positions, False), ("none", True)):
        model = random_model(small_config(positions=kind, depth=1))
        same = torch.allclose(model(ids).hidden[:, -1], model(swapped).hidden[:, -1], atol=1e-5)
        assert same == indifferent


# Parts of the inputs.


def test_columns_of_ids_are_added_to_the_tokens():
    model = random_model(
        small_config(columns={"hour": {"size": 24, "kind": "ids"}, "user": {"size": 3, "kind": "ids"}})
    )
    ids, hour, user = random_ids(2, 5), random_ids(2, 5, vocabulary=24), random_ids(2, 5, vocabulary=3)
    kept = model(Inputs({"ids": ids, "user": user, "hour": hour}), keep=("hook_embed",)).kept["hook_embed"]
    table = {name: model.get_parameter(f"columns.{name}.enter.weight") for name in ("hour", "user")}
    close(kept, model.embedding(ids) + table["hour"][hour] + table["user"][user])


def test_columns_go_on_with_a_state():
    model = random_model(small_config(columns={"hour": {"size": 24, "kind": "ids"}}, mixer=("attention", "gru")))
    ids, hour = random_ids(2, 6), random_ids(2, 6, vocabulary=24)
    whole = model(Inputs({"ids": ids, "hour": hour})).hidden
    with torch.no_grad():
        first = model(Inputs({"ids": ids[:, :4], "hour": hour[:, :4]}), model.empty_state(2))
        rest = model(Inputs({"ids": ids[:, 4:], "hour": hour[:, 4:]}), first.state).hidden
    close(rest, whole[:, 4:])


def test_padding_changes_no_real_token():
    model = random_model(small_config(mixer=("attention", "gru")))
    ids = random_ids(2, 6)
    padded = torch.cat((ids, random_ids(2, 3, seed=7)), dim=1)
    close(model(Inputs({"ids": padded}, lengths=torch.tensor([6, 6]))).hidden[:, :6], model(ids).hidden)


# The start.


@pytest.mark.parametrize("name", [*PUBLISHED, "untied", "recurrent"])
def test_the_first_loss_is_the_log_of_the_vocabulary(name):
    """Within 1 %, in the mean over all targets that might be asked for."""
    configs = {
        "untied": ModelConfig(vocabulary=500, context=32, width=256, depth=3, head=HeadConfig(tied=False)),
        "recurrent": ModelConfig(vocabulary=100, context=32, width=128, depth=2, mixer="gru"),
    }
    config = configs[name] if name in configs else PUBLISHED[name][0]
    for seed in range(1 if config.vocabulary > 10_000 else 3):
        torch.manual_seed(seed)
        model = Model(config)
        with torch.inference_mode():
            logits = model.head(model(random_ids(4, 16, vocabulary=config.vocabulary, seed=seed)).hidden)
        first = (logits.logsumexp(-1) - logits.mean(-1)).mean()
        assert first.item() == pytest.approx(math.log(config.vocabulary), rel=0.01)


def test_weights_start_as_the_config_says():
    config = ModelConfig(
        vocabulary=400, context=64, width=128, depth=8, positions="learned", init_std=0.03,
        attention=AttentionConfig(bias=True), norm=NormConfig(kind="layer", bias=True),
    )  # fmt: skip
    for scaled in (True, False):
        torch.manual_seed(0)
        model = Model(config.model_copy(update={"scaled_residual": scaled}))
        writes = 0.03 / math.sqrt(16) if scaled else 0.03
        for name, parameter in model.named_parameters():
            values = parameter.detach()
            if name.endswith("bias"):
                assert not values.any(), name
            elif name == "final_norm.weight":
                assert bool((values == values[0]).all()) and 0 < values[0] <= 1
            elif parameter.ndim == 1:
                assert bool((values == 1).all()), name
            else:
                written = name.endswith(("mixer.out.weight", "feedforward.down.weight"))
                assert float(values.std()) == pytest.approx(writes if written else 0.03, rel=0.05), name
                assert abs(float(values.mean())) < 0.002, name


def test_the_same_seed_starts_the_same_model():
    def made(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return Model(small_config()).state_dict()

    first, again, other = made(1), made(1), made(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_biases_are_switched_by_part():
    def biased(**changes: object) -> set[str]:
        model = Model(small_config(**changes))
        names = {name for name, _ in model.named_parameters() if name.endswith("bias")}
        return {name.removeprefix("blocks.0.").rpartition(".")[0] for name in names if "blocks.1" not in name}

    assert biased() == set()
    assert biased(attention=AttentionConfig(heads=2, bias=True)) == {"mixer.qkv", "mixer.out"}
    assert biased(feedforward=FeedForwardConfig(bias=True)) == {"feedforward.up", "feedforward.down"}
    assert biased(norm=NormConfig(kind="layer", bias=True)) == {"ln1", "ln2", "final_norm"}
    assert biased(norm=NormConfig(kind="layer")) == set()
    assert biased(head=HeadConfig(bias=True)) == {"head"}


def test_dropout_is_for_training_only():
    model = random_model(small_config(dropout=0.5))
    ids = random_ids(2, 6)
    assert torch.equal(model(ids).hidden, model(ids).hidden)
    model.train()
    assert not torch.equal(model(ids).hidden, model(ids).hidden)
    with evaluating(model):
        assert not model.training and torch.equal(model(ids).hidden, model(ids).hidden)
        assert not torch.is_grad_enabled()
    assert model.training
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert model.training


@settings(max_examples=20, deadline=None)
@given(config=configs())
def test_every_parameter_of_every_model_learns(config):
    model = random_model(config).train()
    hidden = model(random_ids(2, 7)).hidden
    model.head.loss(hidden, random_ids(2, 7, seed=1), torch.ones(2, 7)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        constant = (
            name.endswith(("k_norm.bias", "qkv.bias")) or config.width == 1
        )  # keys shifted alike change nothing
        assert bool(parameter.grad.any()) or constant or config.head_width == 2, name


# What is refused.


@pytest.mark.parametrize(
    "wrong, message",
    [
        (
            {"width": 10, "attention": {"heads": 4}},
            "width 10 does not divide into 4 heads; set attention.head_width",
        ),
        ({"attention": {"heads": 4, "kv_heads": 3}}, "4 heads cannot share 3 key-value heads evenly"),
        ({"attention": {"heads": 2, "kv_heads": 4}}, "2 heads cannot share 4 key-value heads evenly"),
        ({"attention": {"heads": 4, "head_width": 3}}, "rotary positions need an even head width, not 3"),
        ({"mixer": ("attention",), "depth": 2}, "1 mixers are named for a depth of 2"),
        ({"norm": {"kind": "rms", "bias": True}}, "an rms norm has no bias; use kind=layer"),
        ({"mixer": "lstm"}, "'attention' or 'gru'"),
        ({"heads": 4}, "heads\n  Extra inputs are not permitted"),
        ({"dropout": 1.0}, "dropout\n  Input should be less than 1"),
        ({"width": 0}, "width\n  Input should be greater than or equal to 1"),
        (
            {"columns": {"hour": {"kind": "ids", "size": 0}}},
            "columns.hour.ids.size\n  Input should be greater than or equal to 1",
        ),
        ({"head": {"softcap": 0}}, "head.softcap\n  Input should be greater than 0"),
    ],
)
def test_a_config_that_makes_no_model_says_why(wrong, message):
    with pytest.raises(ValidationError) as caught:
        ModelConfig.model_validate(wrong)
    assert message in str(caught.value)


def test_odd_head_widths_are_fine_without_rotary_positions():
    config = small_config(positions="sinusoidal", attention=AttentionConfig(heads=2, head_width=3))
    assert random_model(config)(random_ids(1, 4)).hidden.shape == (1, 4, 12)


def test_a_model_needs_its_sizes():
    with pytest.raises(BadInput, match="needs a vocabulary and a context, not vocabulary=0, context=5"):
        Model(ModelConfig(context=5))


IDS = random_ids(2, 3)
BOOLS = torch.ones(2, 3, 3, dtype=torch.bool)
REFUSED = {
    "flat ids": (IDS[0], r"ids need the shape \[rows, tokens\], not \(3,\)"),
    "lengths": (Inputs({"ids": IDS}, lengths=torch.tensor([3])), r"lengths need the shape \[2\], not \[1\]"),
    "documents": (Inputs({"ids": IDS}, documents=IDS[:, :2]), r"documents need the shape \[2, 3\], not \[2, 2\]"),
    "ancestors": (
        Inputs({"ids": IDS}, ancestors=BOOLS[:, :2]),
        r"ancestors need the shape \[2, 3, 3\], not \[2, 2, 3\]",
    ),
    "a column of another shape": (
        Inputs({"ids": IDS, "hour": IDS[:, :1]}),
        r"values of the column hour need the shape \[2, 3\], not \[2, 1\]",
    ),
    "another column": (Inputs({"ids": IDS, "user": IDS}), r"\['hour', 'ids'\], not \['ids', 'user'\]"),
    "no further column": (IDS, r"reads the columns \['hour', 'ids'\], not \['ids'\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_inputs_that_do_not_fit_are_named_with_their_sizes(name):
    inputs, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        random_model(small_config(columns={"hour": {"size": 13, "kind": "ids"}}))(inputs)


def test_a_recurrent_layer_refuses_to_keep_documents_apart():
    model = random_model(small_config(mixer=("attention", "gru")))
    for inputs in (Inputs({"ids": IDS}, documents=IDS), Inputs({"ids": IDS}, ancestors=BOOLS)):
        with pytest.raises(ValueError, match="a recurrent mixer runs over whole rows"):
            model(inputs)


def test_learned_positions_end_with_the_context():
    model = random_model(small_config(positions="learned", context=5))
    with pytest.raises(ValueError, match="learned positions end at 5 tokens, and 6 are needed"):
        model(random_ids(1, 6))


def test_packed_documents_longer_than_the_table_of_positions_are_told_apart_from_long_ones():
    """Positions restart with each document; rotary models may go beyond their context."""
    assert random_model(small_config(context=4)).eval()(random_ids(1, 9)).hidden.shape == (1, 9, 12)


def test_half_precision_gives_nearly_the_same():
    model = random_model(small_config())
    ids = random_ids(2, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        half = model(ids).hidden.float()
    assert F.cosine_similarity(half, model(ids).hidden, dim=-1).min() > 0.999


@pytest.mark.parametrize(("which", "layers"), [("alternate", (0, 2)), ("all", (0, 1, 2)), ("none", ())])
def test_values_looked_up_by_token_are_added_to_those_that_are_computed(which, layers):
    """The same as editing the values of a model without the tables; a step without a token adds nothing."""
    attention = AttentionConfig(heads=2, kv_heads=1, head_width=4, value_embeddings=which)
    model, plain = with_vectors(depth=3, attention=attention), with_vectors(depth=3)
    assert model.config.value_layers == layers
    tables = {layer: model.get_parameter(f"blocks.{layer}.mixer.values.weight") for layer in layers}
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "mixer.values" not in k})
    ids = random_ids(3, 7)
    inputs = vectors_then_ids(torch.randn(3, 2, model.config.width), ids)

    def adding(table):
        return lambda v: v + F.pad(table[ids][:, :, None], (0, 0, 0, 0, 2, 0))

    edits = tuple((f"blocks.{layer}.attn.hook_v", adding(table)) for layer, table in tables.items())
    torch.testing.assert_close(model(inputs).hidden, plain(inputs, edit=edits).hidden)
