"""Small models and codecs for the tests of exchange, and texts that tokenizers trip over."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from linnet.domains.text.sources import Passage
from linnet.domains.text.tokenizer_training import Tokenizing, train_tokenizer
from linnet.exchange.families import Portable
from linnet.exchange.hf import write_folder
from linnet.exchange.tokens import ids_codec
from linnet.model.config import AttentionConfig, FeedForwardConfig, HeadConfig, ModelConfig, RotaryScaling
from linnet.model.model import Model
from linnet.tokenization import TokenizerCodec
from linnet.training.checkpoint import load_weights, weights_of
from small_models import random_model

CORPUS = [
    "The quick brown fox doesn't jump over 12 lazy dogs; it's 3.5 metres away.",
    "Größe, naïve café, 日本語の文 and 😀 emoji\ttabs  double   spaces\n",
    "def add(a, b):\n    return a + b  # http://example.com/path?x=1&y=2 @somebody",
] * 4
PIECES = [
    *(
        "the",
        "The",
        " fox",
        "doesn't",
        "I'LL",
        "'s",
        " ",
        "  ",
        "\n",
        "\t",
        "\u00a0",
        "\u200b",
        "12",
        "345",
        "٣",
        "²",
    ),
    *(
        "é",
        "e\u0301",
        "ß",
        "日本",
        "😀",
        "👩\u200d🚀",
        "<end>",
        "<begin>",
        "<unk>",
        "http://x.y?z",
        "...",
        "—",
        "_",
        "%",
    ),
    *("Ⅷ", "ﬁ", "A", "zzz", "\\", '"', "@name", "\r\n"),
]


def strange_texts(count: int = 1000) -> list[str]:
    """Texts of pieces that tokenizers cut in different ways."""
    draw = random.Random(7)
    return ["".join(draw.choice(PIECES) for _ in range(draw.randint(1, 20))) for _ in range(count)]


def trained(kind: str = "bpe", vocabulary: int = 330, **rules: object) -> TokenizerCodec:
    """A codec learned from the small corpus."""
    wanted = Tokenizing.model_validate({"kind": kind, "vocabulary": vocabulary, **rules})
    return train_tokenizer([Passage(CORPUS)], wanted).codec


def llama_config(**changes: object) -> ModelConfig:
    """Grouped queries, a head width of its own, another rotary base, an untied head."""
    chosen: dict[str, object] = {
        "vocabulary": 61,
        "context": 48,
        "width": 24,
        "depth": 2,
        "attention": AttentionConfig(heads=4, kv_heads=2, head_width=10, rotary_base=5e5),
        "feedforward": FeedForwardConfig(width=40),
        "head": HeadConfig(tied=False),
    }
    return ModelConfig.model_validate(chosen | changes)


def writable_configs() -> dict[str, ModelConfig]:
    """One of each thing that the families can be which linnet writes."""
    slowed = RotaryScaling(kind="llama3", factor=8.0, context=16)
    return {
        "grouped, untied": llama_config(),
        "tied": llama_config(attention=AttentionConfig(heads=3), head=HeadConfig()),
        "biased, geglu": llama_config(
            attention=AttentionConfig(heads=4, bias=True),
            feedforward=FeedForwardConfig(kind="geglu", width=40, bias=True),
        ),
        "llama3 angles": llama_config(
            attention=AttentionConfig(heads=4, rotary_base=500.0, rotary_scaling=slowed)
        ),
        "linear angles": llama_config(
            attention=AttentionConfig(heads=4, rotary_scaling=RotaryScaling(kind="linear", factor=4.0))
        ),
        "qk-norm, tied": llama_config(
            attention=AttentionConfig(heads=5, kv_heads=1, head_width=8, qk_norm=True, rotary_base=1e6),
            head=HeadConfig(),
        ),
        "qk-norm, untied": llama_config(
            attention=AttentionConfig(heads=4, kv_heads=2, qk_norm=True, bias=True), context=64
        ),
        "qkv biased": llama_config(attention=AttentionConfig(heads=4, kv_heads=2, bias="qkv", rotary_base=1e6)),
        "gemma": llama_config(
            attention=AttentionConfig(heads=4, kv_heads=1, head_width=16),
            feedforward=FeedForwardConfig(kind="geglu_tanh", width=40),
            head=HeadConfig(),
            embedding_scale=24**0.5,
        ),
    }


def portable(config: ModelConfig, codec: TokenizerCodec | None = None, seed: int = 0) -> Portable:
    return Portable(config, weights_of(random_model(config, seed)), codec or numbered(config.vocabulary))


def numbered(vocabulary: int) -> TokenizerCodec:
    """The codec of a folder without a tokenizer."""
    return ids_codec("here", vocabulary, [])[0]


def model_of(brought: Portable) -> Model:
    model = Model(brought.config).eval()
    load_weights(model, brought.weights, "the imported weights")
    return model


def logits_of(model: Model, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.head(model(ids).hidden)


def folder_of(path: Path, config: ModelConfig | None = None, codec: TokenizerCodec | None = None) -> Path:
    """A Hugging Face folder of a small random model."""
    write_folder(path, portable(config or llama_config(), codec))
    return path
