"""Mutated files of other people's: each is read, or refused as bad input; `bench/fuzz.py` draws thousands more."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bench.mutations import mutate, rehash
from foreign_models import CORPUS, folder_of, llama_config, portable, trained
from linnet import workbench
from linnet.domains.text.finding import find
from linnet.domains.text.sources import Reading, Tally, read_passages
from linnet.errors import BadInput, RunFailed
from linnet.exchange.families import Portable
from linnet.exchange.gguf_model import read_gguf, write_gguf
from linnet.exchange.hf import read_folder
from linnet.tokenization import TokenizerCodec
from tiny_runs import MUON, Killed, Watching, train_tiny

CONFIG = llama_config(vocabulary=330)


def hugging_face(at: Path) -> None:
    folder_of(at, CONFIG, trained())


def gguf(at: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed (linnet-sequences[gguf])")
    at.mkdir()
    write_gguf(at / "m.gguf", Portable(CONFIG, portable(CONFIG).weights, trained()), "f32", "m")


def tokenizer(at: Path) -> None:
    at.mkdir()
    (at / "tokenizer.json").write_text(trained().content)


def run(at: Path) -> None:
    train_tiny(at, "ema=0.9", steps=2)


def text(at: Path) -> None:
    at.mkdir()
    (at / "rows.jsonl").write_text("".join(f'{{"text": "{i} fox", "split": "train"}}\n' for i in range(20)))
    (at / "lines.txt").write_text("\n".join(CORPUS))


def unfinished(at: Path) -> None:
    """A run that stopped after its second checkpoint, with the state of two optimisers and averaged weights."""
    with pytest.raises(Killed):
        train_tiny(at, *MUON, "batch=32", "eval_every=1", steps=4, progress=Watching(3))


def use_tokenizer(at: Path) -> None:
    codec = TokenizerCodec.read(at)
    assert len(codec.tokens) > 0 and codec.unknown in (None, *range(len(codec.tokens)))
    codec.decode(codec.encode("the fox").ids)
    assert codec.pieces is None or len(codec.pieces) == len(codec.tokens)


def use_run(at: Path) -> None:
    workbench.show(at)
    workbench.generate(at, ["1+2="], max_tokens=1)
    workbench.export_run(at, at.with_name("copy"), to="run", force=True)


def use_text(at: Path) -> None:
    list(read_passages(find([str(file) for file in at.iterdir()]).sources, Reading(), Tally()))


FORMATS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "Hugging Face": (hugging_face, read_folder),
    "GGUF": (gguf, lambda at: read_gguf(at / "m.gguf")),
    "tokenizer": (tokenizer, use_tokenizer),
    "run": (run, use_run),
    "unfinished": (unfinished, workbench.resume),
    "text": (text, use_text),
}


@pytest.mark.parametrize("name", FORMATS)
@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=25)
def test_mutants_are_read_or_refused(name: str, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    make, use = FORMATS[name]
    whole = tmp_path_factory.getbasetemp() / f"whole {name}"
    if not whole.exists():
        make(whole)
    mutant, draw = whole.with_name("mutant"), random.Random(seed)
    shutil.rmtree(mutant, ignore_errors=True)
    shutil.copytree(whole, mutant)
    mutate(draw.choice(sorted(file for file in mutant.rglob("*") if file.is_file())), draw)
    for checkpoint in mutant.glob("checkpoints/*"):
        rehash(checkpoint)
    try:
        use(mutant)
    except (BadInput, RunFailed) as error:
        assert str(error) and "\n" not in str(error)[:200]


Tensors = dict[str, torch.Tensor]


def renamed(state: Tensors, old: str, new: str) -> Tensors:
    return {key.replace(old, new): value for key, value in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: renamed(state, "adamw/", "adam/"), "unknown adam/"),
        (lambda state: renamed(state, "embed", "embedding"), "unknown adamw/embedding"),
        (lambda state: renamed(state, "/exp_avg_sq", "/second"), "/second; "),
        (lambda state: renamed(state, "muon/", "adamw/"), "unknown adamw/blocks"),
        (lambda state: {key.rpartition("/")[0]: value for key, value in state.items()}, "unknown adamw/"),
        (lambda state: {key: value for key, value in state.items() if not key.endswith("step")}, "missing adamw/"),
        (lambda state: {key: value[None] for key, value in state.items()}, r"has the shape \[1"),
    ],
)
def test_the_state_of_another_optimiser_is_named(
    tmp_path: Path, change: Callable[[Tensors], Tensors], message: str
) -> None:
    unfinished(tmp_path / "run")
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    save_file(change(load_file(newest / "loop.safetensors")), newest / "loop.safetensors")
    rehash(newest)
    with pytest.raises(BadInput, match=f"optimiser state in .* is not that of this run: .*{message}"):
        workbench.resume(tmp_path / "run")
