"""Both ways between linnet and transformers: the same logits, the same ids, the same tensors, bit for bit.

transformers is the oracle throughout; it is imported once for the whole file, since that takes seconds.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from foreign_models import (
    CORPUS,
    folder_of,
    llama_config,
    logits_of,
    model_of,
    portable,
    strange_texts,
    trained,
    writable_configs,
)
from linnet import workbench
from linnet.codecs import CharacterCodec, Codec
from linnet.domains.arithmetic.codec import ArithmeticCodec
from linnet.exchange.families import Portable
from linnet.exchange.hf import read_folder, write_folder
from linnet.exchange.settings import settled
from linnet.exchange.tokens import read_tokenizer
from linnet.model.config import AttentionConfig, ModelConfig
from linnet.model.model import Model
from linnet.tokenization import TokenizerCodec
from small_models import random_ids

CLOSE = 2e-5  # between two orders of the same float32 sums


@pytest.fixture(scope="module")
def hf() -> Any:
    library = pytest.importorskip("transformers", reason="transformers is not installed (linnet-sequences[hf])")
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library


def loaded(hf: Any, folder: Path) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def their_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(ids).logits


@pytest.mark.parametrize("name", writable_configs())
def test_transformers_computes_what_we_compute(hf: Any, name: str, tmp_path: Path) -> None:
    config = writable_configs()[name]
    ours = portable(config)
    family, notes = write_folder(tmp_path, ours)
    theirs = loaded(hf, tmp_path)
    assert type(theirs).__name__ == f"{family.capitalize()}ForCausalLM"
    known = {"qk-norm, tied": "qwen3", "qk-norm, untied": "qwen3", "qkv biased": "qwen2", "gemma": "gemma"}
    assert family == known.get(name, "llama")
    assert not notes
    ids = random_ids(2, config.context, vocabulary=config.vocabulary)
    torch.testing.assert_close(their_logits(theirs, ids), logits_of(model_of(ours), ids), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", writable_configs())
def test_there_and_back_is_the_same_model_bit_for_bit(name: str, tmp_path: Path) -> None:
    ours = portable(writable_configs()[name])
    write_folder(tmp_path / "first", ours)
    back = read_folder(tmp_path / "first").model
    assert settled(back.config) == settled(ours.config)
    assert back.weights.keys() == ours.weights.keys()
    assert all(torch.equal(back.weights[key], ours.weights[key]) for key in ours.weights)
    write_folder(tmp_path / "second", back)
    for file in (tmp_path / "first").iterdir():
        assert (tmp_path / "second" / file.name).read_bytes() == file.read_bytes()


def their_models(hf: Any) -> dict[str, Any]:
    """Small models of every family that linnet reads, each with something unusual."""
    llama = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    llama |= {"num_attention_heads": 4, "max_position_embeddings": 48}
    neox = {**llama, "num_attention_heads": 3}
    gpt2 = {"vocab_size": 61, "n_positions": 48, "n_embd": 24, "n_layer": 2, "n_head": 3}
    gpt2 |= {"bos_token_id": None, "eos_token_id": None}
    angles = {"rope_type": "default", "rope_theta": 500.0}
    slowed = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0}
    slowed |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    whole = {**angles, "partial_rotary_factor": 1.0}
    return {
        "gpt2": hf.GPT2LMHeadModel(hf.GPT2Config(**gpt2)),
        "gpt2, exact gelu, untied": hf.GPT2LMHeadModel(
            hf.GPT2Config(**gpt2, n_inner=50, activation_function="gelu", tie_word_embeddings=False)
        ),
        "gpt2 without its head": hf.GPT2Model(hf.GPT2Config(**gpt2)),
        "llama": hf.LlamaForCausalLM(
            hf.LlamaConfig(**llama, num_key_value_heads=2, head_dim=10, rope_parameters=angles)
        ),
        "llama, biased, slowed": hf.LlamaForCausalLM(
            hf.LlamaConfig(**llama, attention_bias=True, mlp_bias=True, hidden_act="gelu", rope_parameters=slowed)
        ),
        "smollm": hf.LlamaForCausalLM(
            hf.LlamaConfig(**llama, num_key_value_heads=1, tie_word_embeddings=True, rms_norm_eps=1e-5)
        ),
        "qwen3": hf.Qwen3ForCausalLM(hf.Qwen3Config(**llama, num_key_value_heads=2, head_dim=16)),
        "qwen2": hf.Qwen2ForCausalLM(hf.Qwen2Config(**llama, num_key_value_heads=2, rope_parameters=angles)),
        "mistral": hf.MistralForCausalLM(
            hf.MistralConfig(**llama, num_key_value_heads=1, head_dim=10, sliding_window=None)
        ),
        "mistral, a window of all": hf.MistralForCausalLM(
            hf.MistralConfig(**llama, num_key_value_heads=2, sliding_window=48)
        ),
        "gemma": hf.GemmaForCausalLM(hf.GemmaConfig(**llama, num_key_value_heads=1, head_dim=256)),
        "gemma, exact gelu, untied": hf.GemmaForCausalLM(
            hf.GemmaConfig(
                **llama, num_key_value_heads=4, head_dim=16, hidden_act="gelu", tie_word_embeddings=False
            )
        ),
        "pythia": hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**neox)),
        "neox in sequence": hf.GPTNeoXForCausalLM(
            hf.GPTNeoXConfig(**neox, use_parallel_residual=False, attention_bias=False, rope_parameters=whole)
        ),
    }


def randomise(model: Any, seed: int) -> None:
    """Weights with which a fault of wiring would show; fresh ones are close to zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim < 2 else noise / math.sqrt(min(parameter.shape)))


def test_we_compute_what_transformers_computes(hf: Any, tmp_path: Path) -> None:
    ids = random_ids(2, 48, vocabulary=61)
    for seed, (name, model) in enumerate(their_models(hf).items()):
        folder = tmp_path / name
        randomise(model, seed)
        # Some in one file, some in shards with an index.
        model.save_pretrained(folder, **({"max_shard_size": "10KB"} if seed % 2 else {}))
        assert (folder / "model.safetensors").is_file() != bool(seed % 2)
        brought = read_folder(folder)
        theirs = loaded(hf, folder)
        torch.testing.assert_close(
            logits_of(model_of(brought.model), ids), their_logits(theirs, ids), rtol=0, atol=CLOSE, msg=name
        )
        assert brought.family == theirs.config.model_type
        check_inside(model_of(brought.model), theirs, ids, name)


def check_inside(ours: Model, theirs: Any, ids: torch.Tensor, name: str) -> None:
    """What we keep is what transformers returns: the residual stream behind each layer, and every pattern."""
    depth = ours.config.depth
    taps = [f"blocks.{layer}.{end}" for end in ("hook_resid_post", "attn.hook_pattern") for layer in range(depth)]
    with torch.inference_mode():
        kept = ours(ids, keep=(*taps, "ln_final.hook_normalized")).kept
        expected = theirs(ids, output_hidden_states=True, output_attentions=True)
    streams = [*(kept[tap] for tap in taps[: depth - 1]), kept["ln_final.hook_normalized"]]
    for found, known in zip(streams, expected.hidden_states[1:], strict=True):
        torch.testing.assert_close(found, known, rtol=1e-5, atol=1e-5, msg=name)
    for tap, known in zip(taps[depth:], expected.attentions, strict=True):
        torch.testing.assert_close(kept[tap], known, rtol=1e-5, atol=1e-5, msg=name)


def test_old_folders_are_read_too(hf: Any, tmp_path: Path) -> None:
    """Keys and buffers as they were written before transformers 5."""
    model = their_models(hf)["pythia"]
    randomise(model, 3)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"], config["dtype"]
    old = config | {"rotary_pct": 0.25, "rotary_emb_base": 77, "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(old))
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in range(2):
        tensors[f"gpt_neox.layers.{layer}.attention.masked_bias"] = torch.tensor(-1e9)
        tensors[f"gpt_neox.layers.{layer}.attention.bias"] = torch.ones(1, 1, 48, 48, dtype=torch.bool)
        tensors[f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(1)
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    ids = random_ids(2, 40, vocabulary=61)
    brought = read_folder(tmp_path).model
    assert brought.config.attention.rotary_base == 77
    theirs = loaded(hf, tmp_path)
    torch.testing.assert_close(logits_of(model_of(brought), ids), their_logits(theirs, ids), rtol=0, atol=CLOSE)


def writable_codecs() -> dict[str, tuple[Codec, list[str]]]:
    """Codecs with texts that they accept."""
    texts = strange_texts()
    letters = sorted(set("".join(CORPUS)))
    draw = random.Random(3)
    drawn = ["".join(draw.choices(letters, k=draw.randint(1, 30))) for _ in range(1000)]
    sums = [f"{draw.randrange(999)}+{draw.randrange(999)}=" for _ in range(1000)]
    named = ["".join(draw.choices(["ab", " ", "<end>", "<begin>", "c"], k=9)) for _ in range(1000)]
    return {
        "bpe": (trained(), texts),
        "bpe with rules": (trained(urls=True, mentions=True, numbers="digits", specials=("<|user|>",)), texts),
        "lowercase": (trained(lowercase=True), texts),
        "unigram": (trained("unigram"), texts),
        "words": (trained("words", 80), texts),
        "characters": (trained("characters", 80), drawn),
        "own characters": (CharacterCodec("".join(sorted(set("<end>< begin>abc")))), named),
        "sums": (ArithmeticCodec("add", reverse="none"), sums),
    }


def test_tokenizers_give_the_same_ids_there(hf: Any, tmp_path: Path) -> None:
    for name, (codec, texts) in writable_codecs().items():
        folder, size = tmp_path / name, len(codec.tokens)
        config = llama_config(vocabulary=size)
        write_folder(folder, Portable(config, portable(config).weights, codec))
        tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (codec.begin, codec.end), name
        assert len(tokenizer) == size, f"{name}: no token is added there"
        begin = [] if codec.begin is None else [codec.begin]
        for text in texts:
            ids = codec.encode(text).ids.tolist()
            assert tokenizer(text, add_special_tokens=False).input_ids == ids, (name, text)
            assert tokenizer(text).input_ids == begin + ids, (name, text)
        if name != "words":  # which loses spaces, and transformers joins words in its own way
            ids = codec.encode(texts[0]).ids.tolist()
            assert tokenizer.decode(ids, skip_special_tokens=True) == codec.decode(ids)
        read = read_folder(folder).model.codec
        assert (read.begin, read.end) == (codec.begin, codec.end), name
        assert all(read.encode(text).ids.tolist() == codec.encode(text).ids.tolist() for text in texts[:200]), name


def test_characters_without_a_token_are_refused_there_too(hf: Any, tmp_path: Path) -> None:
    config = llama_config(vocabulary=5)
    write_folder(tmp_path, Portable(config, portable(config).weights, CharacterCodec("abc")))
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(Exception, match="WordLevel error"):
        tokenizer("abd")


def test_begin_and_end_tokens_are_those_that_transformers_uses(hf: Any, tmp_path: Path) -> None:
    """A name such as <s> in the vocabulary alone makes no begin token; one that is put before a text does."""
    codec = trained()
    for name, begins in (("none", False), ("begins", True)):
        config = llama_config(vocabulary=len(codec.tokens))
        write_folder(
            tmp_path / name, portable(config, TokenizerCodec(codec.content, "<end>" if begins else None, None))
        )
        brought = read_folder(tmp_path / name).model.codec
        tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / name)
        assert (brought.begin is not None) == begins
        assert brought.end is None
        assert tokenizer("fox").input_ids == [*([brought.begin] if begins else []), *brought.encode("fox").ids]
    # What the model's config names as its end is obeyed where the tokenizer says nothing, in lists too.
    config_file = tmp_path / "none" / "config.json"
    (tmp_path / "none" / "generation_config.json").unlink()
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"eos_token_id": [5, 6]}))
    assert read_folder(tmp_path / "none").model.codec.end == 5


def test_their_tokenizers_give_the_same_ids_here(hf: Any, tmp_path: Path) -> None:
    """Files as transformers writes them, the two files of the first GPT-2, and pieces with byte fallback."""
    library = pytest.importorskip("tokenizers")
    modern = library.Tokenizer.from_str(trained().content)
    pieces = library.Tokenizer(library.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    pieces.normalizer = library.normalizers.Sequence(
        [library.normalizers.Prepend("\u2581"), library.normalizers.Replace(" ", "\u2581")]
    )
    names = ["<unk>", "<s>", "</s>"]
    trainer = library.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[*names, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=sorted(set("".join(CORPUS))),
        show_progress=False,
    )
    pieces.train_from_iterator(CORPUS, trainer)
    pieces = library.Tokenizer.from_str(_without_added_bytes(pieces.to_str()))
    pieces.decoder = library.decoders.ByteFallback()
    pieces.post_processor = library.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend = hf.PreTrainedTokenizerFast
    backend(tokenizer_object=modern, eos_token="<end>").save_pretrained(tmp_path / "modern")
    backend(tokenizer_object=pieces, bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path / "pieces")
    modern.model.save(str(tmp_path))
    (tmp_path / "old").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).rename(tmp_path / "old" / name)
    for name, framing in (("modern", (None, "<end>")), ("pieces", ("<s>", "</s>")), ("old", (None, "<end>"))):
        folder, size = tmp_path / name, 700
        config = {"model_type": "gpt2", "vocab_size": size, "eos_token_id": 2 if name == "pieces" else 0}
        (folder / "config.json").write_text(json.dumps(config))
        codec = read_tokenizer(folder, config, size)[0]
        assert (codec.begin_name, codec.end_name) == framing
        theirs = hf.GPT2Tokenizer.from_pretrained(folder) if name == "old" else backend.from_pretrained(folder)
        begin = [] if codec.begin is None else [codec.begin]
        for text in strange_texts():
            plain = text.replace("<", "(")  # special tokens in a text are text here, and special there
            assert begin + codec.encode(plain).ids.tolist() == theirs(plain).input_ids, (name, plain)


def _without_added_bytes(content: str) -> str:
    """The bytes of a fallback are words of the vocabulary, not special tokens."""
    stored = json.loads(content)
    stored["added_tokens"] = stored["added_tokens"][:3]
    return json.dumps(stored)


def import_config() -> ModelConfig:
    return llama_config(
        vocabulary=330, context=96, attention=AttentionConfig(heads=4, kv_heads=2, head_width=10, qk_norm=True)
    )


def test_an_imported_run_is_used_like_our_own(hf: Any, tmp_path: Path) -> None:
    codec = TokenizerCodec(trained().content, None, None)
    source, run = tmp_path / "theirs", tmp_path / "run"
    folder_of(source, import_config(), codec)
    record = workbench.import_run(source, run)
    assert (record.family, record.begin, record.end, record.context) == ("qwen3", None, None, 96)
    theirs, tokenizer = loaded(hf, source), hf.AutoTokenizer.from_pretrained(source)
    prompts = ["The quick brown", "Größe 12 ", " fox"]
    found = list(workbench.generate(run, prompts, temperature=0, max_tokens=64))
    for prompt, generation in zip(prompts, found, strict=True):
        given = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            ids = theirs.generate(**given, do_sample=False, max_new_tokens=64, pad_token_id=0)[0].tolist()
        assert list(generation.ids) == ids[given.input_ids.shape[1] :]
        assert generation.text == tokenizer.decode(generation.ids)
    shown = workbench.show(run)
    assert (shown.parameters, shown.best, shown.state) == (record.parameters, 0, "finished")
    assert workbench.resume(run).recipe == "imported"
    (tmp_path / "texts.txt").write_text("\n".join(CORPUS), encoding="utf-8")
    scores = workbench.evaluate(run, data=[tmp_path / "texts.txt"]).scores
    assert "the first token of each of" in scores[0].note
    values = torch.tensor(workbench.attention(run, "The quick fox").values)
    torch.testing.assert_close(values.sum(-1), torch.ones(values.shape[:-1]), rtol=0, atol=1e-5)
