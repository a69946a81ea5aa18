"""What cannot be written or read is named with its file and field, all at once, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from foreign_models import folder_of, llama_config, portable, trained
from linnet import workbench
from linnet.errors import BadInput
from linnet.exchange.families import Portable, family_for, read_config
from linnet.exchange.hf import read_folder, write_folder
from linnet.exchange.settings import differences, settled
from linnet.model.config import AttentionConfig, FeedForwardConfig, HeadConfig, ModelConfig, NormConfig
from linnet.tokenization import TokenizerCodec
from linnet.training.checkpoint import weights_of
from small_models import configs, random_model


@given(configs())
@settings(max_examples=60)
def test_a_model_is_written_or_every_choice_in_its_way_is_named(config: ModelConfig) -> None:
    """The list is made here from the choices themselves; nothing else may stand in the way."""
    rotary, bias, scale = config.positions == "rotary", config.attention.bias, config.embedding_scale
    family = "gemma" if scale != 1 else "llama"
    family = "qwen3" if config.attention.qk_norm else "qwen2" if bias == "qkv" else family
    expected = {
        "model.mixer": config.mixer != "attention",
        "model.positions": not rotary,
        "model.attention.rotary_width": rotary and config.rotary_width != config.head_width,
        "model.attention.value_embeddings": config.attention.value_embeddings != "none",
        "model.attention.bias": bias is True if family == "gemma" else bias == "qkv" and family == "qwen3",
        "model.embedding_scale": scale != (config.width**0.5 if family == "gemma" else 1),
        "model.parallel": config.parallel,
        "model.norm.kind": config.norm.kind == "layer",
        "model.norm.bias": config.norm.bias,
        "model.feedforward.kind": not config.gated,
        "model.feedforward.bias": config.feedforward.bias and family != "llama",
        "model.head.bias": config.head.bias,
        "model.head.softcap": config.head.softcap is not None,
        "model.width": family in ("llama", "qwen2") and config.width % config.attention.heads != 0,
    }
    if not any(expected.values()):
        assert family_for(config).name == family
        return
    with pytest.raises(BadInput) as refused:
        family_for(config)
    said = str(refused.value)
    assert {key for key in expected if key in said} == {key for key, here in expected.items() if here}


def test_settings_that_nobody_thought_of_are_found_by_reading_back() -> None:
    ours = llama_config()
    assert differences(ours, settled(ours), "Llama") == []
    changed = settled(ours) | {"head.softcap": 2.0}
    assert differences(ours, changed, "Llama") == ["model.head.softcap=none: Llama has 2.0"]


def test_all_reasons_come_at_once() -> None:
    config = ModelConfig(
        vocabulary=9,
        context=8,
        width=8,
        depth=2,
        mixer=("attention", "gru"),
        positions="learned",
        attention=AttentionConfig(heads=2, causal=False, value_embeddings="all"),
        feedforward=FeedForwardConfig(kind="gelu"),
        norm=NormConfig(kind="layer", bias=True),
        head=HeadConfig(softcap=30.0, bias=True),
        columns={"user": {"kind": "ids", "size": 3}},
    )
    with pytest.raises(BadInput) as refused:
        family_for(config)
    said = str(refused.value)
    for reason in (
        "layer 1 of this model: gru",
        "model.positions=learned",
        "model.attention.causal=false",
        "model.attention.value_embeddings=all",
        "model.norm.kind=layer: Llama has rms",
        "model.norm.bias=true: Llama has false",
        "model.feedforward.kind=gelu",
        "model.head.softcap=30.0",
        "model.head.bias=true",
        "model.columns=user",
    ):
        assert reason in said


def spoil_config(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        stored = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in stored.items() if value is not ...}))

    return spoil


def spoil_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def cut(size: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])

    return spoil


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    where = {"model.norm.weight": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def index_outside(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../x.safetensors"}}))


def integers(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)


def other_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1


DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), ("there is no", "config.json")),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), ("config.json is not JSON",)),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), ("config.json holds a list",)),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ("neither model.safetensors nor",)),
    "pickled": (pickled, ("pickled weights only (pytorch_model.bin)", "run any code", "model.safetensors")),
    "unknown family": (spoil_config(model_type="llamas"), ('"llamas"', 'did you mean "llama"?')),
    "no family": (spoil_config(model_type=...), ("has no model_type", "gpt_neox")),
    "missing keys": (
        spoil_config(hidden_size=..., num_hidden_layers=...),
        ("config.json", "hidden_size is missing", "num_hidden_layers is missing"),
    ),
    "odd values": (
        spoil_config(vocab_size=-3, rms_norm_eps="small", attention_bias="yes"),
        ("vocab_size is -3", "rms_norm_eps is 'small'", "attention_bias is 'yes'"),
    ),
    "another gate": (spoil_config(hidden_act="relu"), ("hidden_act='relu' is not supported", "silu")),
    "yarn": (
        spoil_config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
        ("rope_type='yarn' is not supported",),
    ),
    "quantised": (spoil_config(quantization_config={"bits": 4}), ("quantization_config=",)),
    "heads that do not share": (spoil_config(num_key_value_heads=3), ("4 heads cannot share 3",)),
    "more layers promised": (
        spoil_config(num_hidden_layers=3),
        ("config.json promises", "model.layers.2.input_layernorm.weight [24] is missing", "more"),
    ),
    "fewer layers promised": (
        spoil_config(num_hidden_layers=1),
        (
            "config.json says nothing of tensors that are there",
            "model.layers.1.input_layernorm.weight has no place",
        ),
    ),
    "another vocabulary promised": (
        spoil_config(vocab_size=60),
        ("model.embed_tokens.weight is [61, 24], not [60, 24]", "lm_head.weight"),
    ),
    "tied with another head": (
        lambda folder: (spoil_tensors(other_head)(folder), spoil_config(tie_word_embeddings=True)(folder)),
        ("lm_head.weight differs from model.embed_tokens.weight", "tie_word_embeddings"),
    ),
    "integers": (spoil_tensors(integers), ("model.norm.weight is stored as I8", "BF16")),
    "cut in its header": (cut(100), ("model.safetensors is cut", "the file has 100")),
    "cut to nothing": (cut(3), ("model.safetensors is cut or no safetensors file", "the file has 3")),
    "cut in a tensor": (cut(9000), ("model.safetensors is cut: tensor ", "the file has 9,000")),
    "no safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"{]}}"),
        ("model.safetensors is no safetensors file",),
    ),
    "missing shard": (missing_shard, ("names model-00002-of-00002.safetensors",)),
    "shard outside": (index_outside, ("names a file outside its folder: ../x.safetensors",)),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), ("tokenizer.json: this is no",)),
    "sentencepiece only": (
        lambda f: (f / "tokenizer.json").rename(f / "tokenizer.model"),
        ("has tokenizer.model and no tokenizer.json", "save_pretrained"),
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_with_file_and_field(name: str, tmp_path: Path) -> None:
    spoil, said = DAMAGE[name]
    folder = folder_of(tmp_path / "theirs")
    spoil(folder)
    with pytest.raises(BadInput) as refused:
        workbench.import_run(folder, tmp_path / "run")
    assert all(part in str(refused.value) for part in said), refused.value
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["theirs"], "nothing is left behind"


@given(size=st.integers(0, 40_000))
@settings(max_examples=40)
def test_a_cut_file_is_never_read(size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "cut"
    if not folder.exists():
        folder_of(folder)
    whole = (folder / "model.safetensors").read_bytes()
    short = folder.with_name("short")
    shutil.rmtree(short, ignore_errors=True)
    shutil.copytree(folder, short)
    cut(size)(short)
    if size >= len(whole):
        read_folder(short)
        return
    with pytest.raises(BadInput, match="model.safetensors is cut"):
        read_folder(short)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path: Path) -> None:
    codec = trained()
    config = llama_config(vocabulary=len(codec.tokens) - 1)
    write_folder(tmp_path, Portable(config, portable(config).weights, codec))
    last = codec.tokens[-1]
    with pytest.raises(
        BadInput, match=rf'tokenizer.json has the token "{last}" with id 329, and config.json says'
    ):
        read_folder(tmp_path)


def test_a_special_token_beyond_the_embeddings_is_no_harm_unless_it_frames_texts(tmp_path: Path) -> None:
    """Folders with a padding token that was added later, and never trained."""
    stored = json.loads(trained().content)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    stored["added_tokens"].append({"id": 330, "content": "[PAD]", **flags})
    for end, harmless in (("<end>", True), ("[PAD]", False)):
        codec = TokenizerCodec(json.dumps(stored), None, end)
        folder = tmp_path / end.strip("<[]>")
        write_folder(
            folder, Portable(llama_config(vocabulary=330), portable(llama_config(vocabulary=330)).weights, codec)
        )
        if harmless:
            assert read_folder(folder).model.codec.end_name == end
        else:
            with pytest.raises(BadInput, match=r"generation_config.json: eos_token_id names 330, .* 0..329"):
                read_folder(folder)
            (folder / "generation_config.json").unlink()
            spoil_config(eos_token_id=...)(folder)
            with pytest.raises(BadInput, match=r'has the token "\[PAD\]"'):
                read_folder(folder)


def test_a_folder_without_a_tokenizer_is_used_with_ids(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "theirs")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    record = workbench.import_run(folder, tmp_path / "run")
    assert "prompts and answers are token ids" in record.notes[0]
    (found,) = workbench.generate(tmp_path / "run", ["5 17 60"], max_tokens=4, temperature=0)
    assert found.text.split() == [str(i) for i in found.ids]
    for wrong in ("61", "hello", "3,4"):
        with pytest.raises(BadInput, match=r"prompt 1: \S+ is no id of this model; ids are 0..60, separated by"):
            list(workbench.generate(tmp_path / "run", [wrong]))


def test_numbers_too_large_for_half_precision_are_named(tmp_path: Path) -> None:
    model = random_model(llama_config())
    with torch.no_grad():
        model.blocks[1].feedforward.down.weight[0, 0] = 1e5  # type: ignore[index, union-attr]
    weights = Portable(llama_config(), weights_of(model), trained())
    with pytest.raises(BadInput, match=r"model.layers.1.mlp.down_proj.weight has values that f16 cannot hold"):
        write_folder(tmp_path / "half", weights, "f16")
    write_folder(tmp_path / "brain", weights, "bf16")
    stored = load_file(tmp_path / "brain" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def test_other_families_name_what_they_have_and_we_have_not() -> None:
    gpt2 = {"model_type": "gpt2", "vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2}
    with pytest.raises(BadInput, match="scale_attn_by_inverse_layer_idx=True is not supported"):
        read_config(gpt2 | {"scale_attn_by_inverse_layer_idx": True}, "config.json")
    with pytest.raises(BadInput, match=r"n_embd=9 does not divide into 2 heads"):
        read_config(gpt2 | {"n_embd": 9}, "config.json")
    for change, said in (
        (
            {"model_type": "mistral", "sliding_window": 8},
            "sliding_window=8 is less than max_position_embeddings=64",
        ),
        ({"model_type": "mistral"}, None),  # transformers takes 4096 where none is named
        ({"model_type": "mistral", "max_position_embeddings": 9000}, "sliding_window=4096 is less than"),
        ({"model_type": "gemma", "attention_bias": True}, "attention_bias=True is not supported"),
        ({"model_type": "gemma", "use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window=True is not supported"),
    ):
        small = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
        tree = small | {"intermediate_size": 8, "max_position_embeddings": 64} | change
        if said is None:
            assert read_config(tree, "config.json")[0].name == "mistral"
            continue
        with pytest.raises(BadInput, match=said):
            read_config(tree, "config.json")
    modern = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    qwen3 = modern | {"model_type": "qwen3", "intermediate_size": 8}
    with pytest.raises(BadInput, match="layer_types has sliding_attention"):
        read_config(qwen3 | {"layer_types": ["full_attention", "sliding_attention"]}, "config.json")
    with pytest.raises(BadInput, match="the share that turns is 1 of 4 values of a head"):
        read_config(modern | {"model_type": "gpt_neox", "intermediate_size": 8}, "config.json")
    _, config = read_config(qwen3, "config.json")
    assert config.head_width == 128, "Qwen3 does not derive it"
