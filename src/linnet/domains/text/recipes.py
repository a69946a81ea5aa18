"""Text: small language models of headlines, of any corpus, of Wikipedia and of Shakespeare's characters."""

from __future__ import annotations

import math
from typing import Any

from linnet.domains.text.data import AUTOMATIC, TextData
from linnet.domains.text.tokenizer_training import Tokenizing
from linnet.errors import BadInput
from linnet.model.config import AttentionConfig, FeedForwardConfig, HeadConfig, LossConfig, ModelConfig, NormConfig
from linnet.training.run import OptimConfig, Run, TrainingConfig
from linnet.training.schedules import Cosine, OneCycle, WarmupStableDecay

TITLES = 100_000  # of the headline protocol: drawn, and a tenth held out, by a fixed seed
SIZES = range(1, 25)
# Of one book.
CHARACTERS = TextData(documents="file", split="tail", tokenizer=Tokenizing(kind="characters", vocabulary=1_000))


def titles(vocabulary: int, block: tuple[int, int], **rules: bool) -> TextData:
    """The data of the headline protocol; the tokenizer sees the training part only."""
    return TextData(sample=TITLES, tokenizer=Tokenizing(vocabulary=vocabulary, **rules), block=block)


def gpt(width: int, depth: int, context: int, feedforward: FeedForwardConfig, **further: Any) -> ModelConfig:
    """The shape of the runs that ours are measured against: learned positions, eight heads, norms with biases."""
    norm = NormConfig(kind="layer", bias=True, eps=1e-5)
    settings = {"attention": AttentionConfig(heads=8), "norm": norm, "positions": "learned", **further}
    return ModelConfig(width=width, depth=depth, context=context, feedforward=feedforward, **settings)


def headlines() -> Run:
    """Our headline model, 12 of at most 50 million parameters, in the seven epochs of the protocol."""
    attention = AttentionConfig(heads=6, qk_norm=True)
    return Run(
        recipe="headlines",
        data=titles(4_000, (64, 128)),
        model=ModelConfig(
            width=384, depth=6, context=128, attention=attention, dropout=0.1, loss=LossConfig(r_drop=2)
        ),
        optim=OptimConfig(kind="muon", lr=3e-3, weight_decay=0.1, schedule=WarmupStableDecay(decay=0.3)),
        training=TrainingConfig(epochs=7, batch=32, evals_per_epoch=1, packing="apart"),
    )


def headlines_report() -> Run:
    """Everything that the S4 report recommended, as it recommended it."""
    swiglu = FeedForwardConfig(kind="swiglu", multiple=1)  # int(8/3 x width): 1,365
    cycle = OneCycle(pct_start=0.2, div=5, final_div=100)
    return Run(
        recipe="headlines-report",
        data=titles(32_000, (64, 128), urls=True),
        model=gpt(512, 6, 128, swiglu, norm=NormConfig(kind="rms"), dropout=0.05, scaled_residual=False),
        optim=OptimConfig(lr=5e-4, betas=(0.9, 0.95), weight_decay=0.01, schedule=cycle, clip=1.0, ema=0.999),
        training=TrainingConfig(epochs=7, batch=64, evals_per_epoch=5, packing="packed"),
    )


def headlines_baseline() -> Run:
    """Where S4 started (1.7533 by its block metric): plain gradient descent, worse than counting tokens."""
    best = headlines_s4()
    return best.model_copy(
        update={
            "recipe": "headlines-baseline",
            "data": titles(16_000, (64, 128)),
            "model": best.model.model_copy(update={"context": 128, "dropout": 0.1}),
            "optim": OptimConfig(kind="sgd", lr=6e-3, weight_decay=0.0, schedule=Cosine(warmup=0, floor=0)),
        }
    )


def headlines_s4() -> Run:
    """The best run that S4 measured (1.2831 by its block metric): rows of 64 tokens, AdamW, one cycle."""
    gelu, attention = FeedForwardConfig(kind="gelu", bias=True), AttentionConfig(heads=8, bias=True)
    cycle = OneCycle(pct_start=0.15, div=5, final_div=100)
    return Run(
        recipe="headlines-s4",
        data=titles(16_000, (64, 64)),
        model=gpt(512, 6, 64, gelu, attention=attention, dropout=0.05, scaled_residual=False),
        optim=OptimConfig(lr=5e-4, betas=(0.9, 0.999), weight_decay=0.01, schedule=cycle),
        training=TrainingConfig(epochs=7, batch=64, evals_per_epoch=3, packing="packed"),
    )


def sized(recipe: str, size: int, data: TextData, *, epochs: float | None, dropout: float) -> Run:
    """One dial: `size` layers of 64 x `size` channels; batch and learning rate follow from it.

    Wider models want smaller steps (about 1 / sqrt(width) for AdamW's part) and more tokens in each; Muon's rate
    for the hidden matrices needs no change.
    """
    if size not in SIZES:
        raise BadInput(
            f"size={size} is no size: it goes from {SIZES[0]} to {SIZES[-1]} (layers, 64 channels each)"
        )
    width, context = 64 * size, 256
    rate = round(3e-3 * math.sqrt(256 / width), 6)
    tokens = 4096 * 2 ** round(math.log2(max(1, size / 4)))
    attention, schedule = AttentionConfig(heads=size, qk_norm=True), WarmupStableDecay(decay=0.3)
    return Run(
        recipe=recipe,
        data=data,
        model=ModelConfig(width=width, depth=size, context=context, attention=attention, dropout=dropout),
        optim=OptimConfig(kind="muon", lr=rate, weight_decay=0.1, schedule=schedule),
        training=TrainingConfig(epochs=epochs, batch=tokens // context, packing="packed"),
    )


def text(size: int = 4) -> Run:
    """Any corpus, one document a line by default; `size` is the one dial. Short text is read again."""
    data = TextData(tokenizer=Tokenizing(vocabulary=8_000))
    return sized("text", size, data, epochs=None, dropout=0.1)


def wiki(size: int = 6) -> Run:
    """Articles from JSON lines or text files, encoded once into a store on disk and read from there."""
    data = TextData(tokenizer=Tokenizing(vocabulary=16_000), validation=0.05, store=AUTOMATIC)
    return sized("wiki", size, data, epochs=1, dropout=0.0)


def wiki_s2() -> Run:
    """S2's own shape: two layers on lines of wiki text, with 10,000 lower-cased words; one epoch."""
    words = Tokenizing(kind="words", vocabulary=10_000, lowercase=True)
    gelu = FeedForwardConfig(kind="gelu_tanh", width=1024, bias=True)
    return Run(
        recipe="wiki-s2",
        data=TextData(tokenizer=words, validation=0.05),
        model=gpt(256, 2, 128, gelu, head=HeadConfig(tied=False)),
        optim=OptimConfig(lr=2e-3, schedule=WarmupStableDecay(decay=0.3)),
        training=TrainingConfig(epochs=1, batch=32, evals_per_epoch=2, packing="packed"),
    )


def shakespeare() -> Run:
    """Characters of one book; the last tenth is held out. 0.8 million parameters, minutes on two cores."""
    attention, schedule = AttentionConfig(heads=4, qk_norm=True), WarmupStableDecay(decay=0.4)
    return Run(
        recipe="shakespeare",
        data=CHARACTERS,
        model=ModelConfig(width=128, depth=4, context=128, attention=attention, dropout=0.05),
        optim=OptimConfig(kind="muon", lr=3e-3, muon_lr=0.02, weight_decay=0.05, schedule=schedule),
        training=TrainingConfig(steps=2000, batch=16, eval_every=500, packing="packed"),
    )


def tiny_text() -> Run:
    """Seconds on any machine: for tests and for a first look at one's own text."""
    return Run(
        recipe="tiny-text",
        data=TextData(tokenizer=Tokenizing(vocabulary=512)),
        model=ModelConfig(width=32, depth=2, context=32, attention=AttentionConfig(heads=2)),
        optim=OptimConfig(lr=3e-3, schedule=Cosine()),
        training=TrainingConfig(steps=60, batch=16, eval_every=20, packing="packed"),
    )


def tiny_characters() -> Run:
    """The same with characters of one book."""
    return tiny_text().model_copy(update={"recipe": "tiny-characters", "data": CHARACTERS})
