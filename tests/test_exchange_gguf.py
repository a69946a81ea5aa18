"""GGUF files: read back with the library of llama.cpp's own scripts, with our reader, and with llama.cpp itself.

llama.cpp is built from source and takes minutes to install, so its tests are skipped where it is not there.
"""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foreign_models import (
    CORPUS,
    llama_config,
    logits_of,
    model_of,
    numbered,
    portable,
    strange_texts,
    trained,
    writable_configs,
)
from linnet import workbench
from linnet.codecs import CharacterCodec
from linnet.domains.arithmetic.codec import ArithmeticCodec
from linnet.errors import BadInput
from linnet.exchange.families import Portable
from linnet.exchange.gguf_file import GgufFile
from linnet.exchange.gguf_model import gguf_family, interleaved, read_gguf, write_gguf
from linnet.exchange.gguf_vocabulary import Vocabulary, rules_of, vocabulary_of
from linnet.exchange.settings import settled
from linnet.model.config import AttentionConfig, FeedForwardConfig, HeadConfig, ModelConfig, NormConfig
from linnet.tokenization import TokenizerCodec
from small_models import random_ids

gguf = pytest.importorskip("gguf", reason="gguf is not installed (linnet-sequences[gguf])")


def wide(**changes: Any) -> ModelConfig:
    """Rows of whole blocks, as Q8_0 wants them."""
    attention = AttentionConfig(heads=4, kv_heads=2, head_width=16, rotary_base=3e4)
    return llama_config(
        **{"width": 64, "attention": attention, "feedforward": FeedForwardConfig(width=96), **changes}
    )


def gguf_configs() -> dict[str, ModelConfig]:
    """What both a Hugging Face folder and llama.cpp can hold."""
    shapes = {name: config for name, config in writable_configs().items() if config.feedforward.kind != "geglu"}
    del shapes["qk-norm, untied"], shapes["gemma"]  # biases, which Qwen3 has not in llama.cpp, and another gate
    biased = AttentionConfig(heads=4, bias=True)
    return shapes | {"biased": llama_config(attention=biased, feedforward=FeedForwardConfig(width=40, bias=True))}


def keys_of(file: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}


def test_keys_and_names_are_those_of_the_format(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    model = Portable(wide(vocabulary=330), portable(wide(vocabulary=330)).weights, trained())
    assert write_gguf(file, model, "f32", "fox").notes == ()
    keys = keys_of(file)
    assert keys["general.architecture"] == "llama"
    assert keys["general.name"] == "fox"
    expected = {
        "context_length": 48,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "rope.freq_base": 3e4,
        "rope.dimension_count": 16,
        "vocab_size": 330,
    }
    assert {key: keys[f"llama.{key}"] for key in expected} == expected
    assert keys["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert keys["tokenizer.ggml.tokens"] == list(trained().tokens)
    assert keys["tokenizer.ggml.token_type"] == [3] + [1] * 329
    assert (keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.add_bos_token"]) == (0, True)
    names = {tensor.name for tensor in gguf.GGUFReader(file).tensors}
    assert {"token_embd.weight", "output_norm.weight", "output.weight", "blk.1.attn_output.weight"} <= names
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    assert all(known.get_name(name, try_suffixes=(".weight", ".bias")) == name for name in names)


@pytest.mark.parametrize("heads", [1, 3])
def test_rows_change_places_as_in_the_conversion_scripts(heads: int) -> None:
    rows = torch.randn(heads * 6, 5, generator=torch.Generator().manual_seed(0))
    swapped = rows.numpy().reshape(heads, 2, 3, 5).swapaxes(1, 2).reshape(rows.shape)
    form = interleaved(heads)
    np.testing.assert_array_equal(form.written(rows).numpy(), swapped)
    assert torch.equal(form.read(form.written(rows)), rows)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_numbers_are_stored_in_the_type_that_was_asked_for(kind: str, tmp_path: Path) -> None:
    model, file = portable(wide(head=HeadConfig())), tmp_path / "m.gguf"
    write_gguf(file, model, kind, "m")  # type: ignore[arg-type]
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert "output.weight" not in stored, "a tied head is not written twice"
    types = {name: tensor.tensor_type.name.lower() for name, tensor in stored.items()}
    assert {found for name, found in types.items() if "norm" not in name} == {kind}
    assert {found for name, found in types.items() if "norm" in name} == {"f32"}
    ours = model.weights["embedding.weight"].numpy()
    theirs = gguf.quants.dequantize(stored["token_embd.weight"].data, stored["token_embd.weight"].tensor_type)
    largest = np.abs(ours.reshape(-1, 32)).max(1, keepdims=True)
    steps = {"f32": 0, "f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 0.6 / 127}
    assert (np.abs(ours - theirs).reshape(-1, 32) <= steps[kind] * largest).all()
    back = read_gguf(file).model.weights["embedding.weight"].numpy()
    np.testing.assert_array_equal(back, theirs)


def test_matrices_that_blocks_do_not_divide_fall_back_and_that_is_said(tmp_path: Path) -> None:
    written = write_gguf(tmp_path / "m.gguf", portable(llama_config()), "q8_0", "m")
    assert any("have rows that 32 does not divide" in note for note in written.notes)
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert types == {"F16", "F32"}


@pytest.mark.parametrize("name", gguf_configs())
def test_there_and_back_is_the_same_model_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = portable(gguf_configs()[name])
    write_gguf(tmp_path / "m.gguf", model, "f32", "m")
    if name == "llama3 angles":  # stored as a table, from which the rule cannot be told
        with pytest.raises(BadInput, match=r"rope_freqs.weight is a table of angles"):
            read_gguf(tmp_path / "m.gguf")
        return
    back = read_gguf(tmp_path / "m.gguf").model
    ours, theirs = settled(model.config), settled(back.config)
    assert ours == theirs
    assert all(torch.equal(back.weights[key], model.weights[key]) for key in model.weights)
    assert back.weights.keys() == model.weights.keys()


def test_what_llama_cpp_cannot_hold_is_named() -> None:
    for config, said in (
        (
            llama_config(feedforward=FeedForwardConfig(kind="geglu")),
            "model.feedforward.kind=geglu: Llama of llama.cpp has swiglu",
        ),
        (llama_config(attention=AttentionConfig(heads=4, qk_norm=True, bias=True)), "model.attention.bias=true"),
        (writable_configs()["llama3 angles"], None),
        (llama_config(attention=AttentionConfig(heads=4, head_width=8, bias=True)), "as wide as the model only"),
        (
            llama_config(norm=NormConfig(kind="layer"), positions="none"),
            "model.positions=none.*model.norm.kind=layer",
        ),
    ):
        if said is None:
            assert gguf_family(config).name == "llama"
            continue
        with pytest.raises(BadInput, match=said):
            gguf_family(config)


def with_cuts(pre: str) -> TokenizerCodec:
    """The small tokenizer with the rules for words that llama.cpp calls `pre`."""
    tokenizer = TokenizerCodec(trained().content, None, None).tokenizer
    tokenizer.pre_tokenizer = rules_of(pre)
    stored = json.loads(tokenizer.to_str())
    stored["model"]["ignore_merges"] = pre == "llama-bpe"
    return TokenizerCodec(json.dumps(stored), "<end>", "<end>")


def codecs() -> dict[str, TokenizerCodec | CharacterCodec]:
    known = {pre: with_cuts(pre) for pre in ("gpt-2", "smollm", "qwen2", "llama-bpe")}
    return known | {
        "specials": trained(specials=("<|user|>",)),
        "characters": trained("characters", 80),
        "own characters": CharacterCodec("\n !abc~\x7f"),
    }


def texts_for(codec: TokenizerCodec | CharacterCodec) -> list[str]:
    if isinstance(codec, TokenizerCodec) and len(codec.tokens) > 200:
        return strange_texts()
    special = {"<end>", "<begin>", "<unk>"}
    draw, letters = random.Random(1), [token for token in codec.tokens if token not in special]
    return ["".join(draw.choices(letters, k=draw.randint(1, 20))) for _ in range(1000)]


def in_ascii(codec: TokenizerCodec | CharacterCodec) -> bool:
    return len(codec.tokens) > 200 or "".join(codec.tokens).isascii()


@pytest.mark.parametrize("name", codecs())
def test_a_known_tokenizer_comes_back_with_the_same_ids(name: str, tmp_path: Path) -> None:
    codec = codecs()[name]
    config = llama_config(vocabulary=len(codec.tokens))
    file = tmp_path / "m.gguf"
    written = write_gguf(file, Portable(config, portable(config).weights, codec), "f32", "m")
    if not in_ascii(codec):
        assert "single characters beyond ASCII" in written.notes[0]
        assert not written.tokenizer
        return
    back = read_gguf(file).model.codec
    assert written.tokenizer
    assert (back.begin, back.end) == (codec.begin, codec.end)
    for text in texts_for(codec):
        assert back.encode(text).ids.tolist() == codec.encode(text).ids.tolist(), text
    if name in ("gpt-2", "smollm", "qwen2", "llama-bpe"):
        assert keys_of(file)["tokenizer.ggml.pre"] == name


def test_any_other_tokenizer_is_left_out_and_the_reason_given(tmp_path: Path) -> None:
    refused = {
        "no rule of llama.cpp cuts words": trained(urls=True),
        "does not change texts before it cuts them (Lowercase)": trained(lowercase=True),
        "of the kind Unigram": trained("unigram"),
        "of the kind WordLevel": trained("words", 80),
        "reverses the digits of numbers, pads numbers to 3 digits": ArithmeticCodec("add", width=3),
    }
    for said, codec in refused.items():
        found = vocabulary_of(codec, len(codec.tokens))
        assert isinstance(found, str)
        assert said in found
    config = llama_config(vocabulary=330)
    written = write_gguf(
        tmp_path / "m.gguf", Portable(config, portable(config).weights, trained(urls=True)), "f32", "m"
    )
    assert "llama.cpp takes and gives ids only: no rule of llama.cpp" in written.notes[0]
    assert keys_of(tmp_path / "m.gguf")["tokenizer.ggml.model"] == "none"


def test_a_model_without_an_end_token_names_a_free_id_or_warns() -> None:
    codec = TokenizerCodec(trained().content, None, None)
    full, free = vocabulary_of(codec, 330), vocabulary_of(codec, 333)
    assert isinstance(full, Vocabulary) and isinstance(free, Vocabulary)
    assert (full.end, free.end) == (None, 330)
    assert "--ignore-eos" in full.notes[0]
    assert free.tokens[330:] == ("<unused 330>", "<unused 331>", "<unused 332>")


@given(share=st.floats(0, 0.9999))
@settings(max_examples=60)
def test_a_cut_file_is_named_with_what_it_ends_in(share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = tmp_path_factory.getbasetemp() / "whole.gguf"
    if not whole.exists():
        config = llama_config(vocabulary=330)
        write_gguf(whole, Portable(config, portable(config).weights, trained()), "f32", "m")
    content = whole.read_bytes()
    short = whole.with_name("short.gguf")
    short.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BadInput, match=r"short.gguf is (cut: (key|tensor|the|its) |no GGUF file)"):
        read_gguf(short)


def test_numbers_that_no_reader_knows_are_named_with_their_tensor(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    kind = gguf.GGMLQuantizationType.Q8_K  # what llama.cpp computes with and never stores
    writer.add_tensor(
        "blk.0.attn_q.weight", np.zeros((2, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), raw_dtype=kind
    )
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(BadInput, match="tensor blk.0.attn_q.weight is stored as Q8_K, which cannot be read"):
        GgufFile.open(file).read("blk.0.attn_q.weight")


def test_keys_that_promise_what_tensors_do_not_hold(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(file, portable(llama_config()), "f32", "m")
    content = file.read_bytes()
    at = content.index(b"llama.block_count") + len("llama.block_count") + 4
    file.write_bytes(content[:at] + (3).to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(BadInput, match=r"m.gguf: its header promises .* blk.2.attn_norm.weight \[24\] is missing"):
        read_gguf(file)
    file.write_bytes(
        content.replace(b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00llama", b"")
    )
    with pytest.raises(BadInput):
        read_gguf(file)
    file.write_bytes(content.replace(b"llama.block_count", b"llama.black_count"))
    with pytest.raises(BadInput, match=r"m.gguf: llama.block_count is missing"):
        workbench.import_run(file, tmp_path / "run")
    (tmp_path / "other.gguf").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(BadInput, match="does not begin with GGUF"):
        workbench.import_run(tmp_path / "other.gguf", tmp_path / "run")


needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python is not installed (it is built from source: pip install llama-cpp-python)",
)


def llama_cpp_model(file: Path) -> Any:
    import llama_cpp

    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}  # else keys lose bits
    return llama_cpp.Llama(str(file), n_ctx=48, n_threads=1, logits_all=True, verbose=False, **exact)


@needs_llama_cpp
@pytest.mark.parametrize("name", gguf_configs())
def test_llama_cpp_computes_what_we_compute(name: str, tmp_path: Path) -> None:
    config = gguf_configs()[name]
    model, file = portable(config), tmp_path / "m.gguf"
    write_gguf(file, model, "f32", "m")
    ids = random_ids(1, 40, vocabulary=config.vocabulary)
    theirs = llama_cpp_model(file)
    theirs.eval(ids[0].tolist())
    expected = logits_of(model_of(model), ids)[0].numpy()
    np.testing.assert_allclose(theirs.scores[:40], expected, rtol=0, atol=1e-3)


@needs_llama_cpp
@pytest.mark.parametrize("name", [name for name, codec in codecs().items() if in_ascii(codec)])
def test_llama_cpp_gives_the_same_ids(name: str, tmp_path: Path) -> None:
    codec = codecs()[name]
    config = llama_config(vocabulary=len(codec.tokens))
    write_gguf(tmp_path / "m.gguf", Portable(config, portable(config).weights, codec), "q8_0", "m")
    theirs = llama_cpp_model(tmp_path / "m.gguf")
    begin = [] if codec.begin is None else [codec.begin]
    for text in [*texts_for(codec), *(CORPUS if len(codec.tokens) > 200 else ())]:
        ids = codec.encode(text).ids.tolist()
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == ids, text
        assert theirs.tokenize(text.encode(), add_bos=True, special=False) == begin + ids
    assert theirs.token_eos() == codec.end


def test_numbers_stand_for_tokens_where_there_is_no_tokenizer(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", portable(llama_config(), numbered(61)), "f32", "m")
    record = workbench.import_run(tmp_path / "m.gguf", tmp_path / "run")
    assert "token ids" in record.notes[0]
