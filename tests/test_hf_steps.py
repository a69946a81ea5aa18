"""Steps of transformers: the same law as ours for an exported model, and as one pass over the text for others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foreign_models import llama_config, model_of, portable, trained
from linnet.decoding.runner import Runner
from linnet.errors import BadInput
from linnet.exchange.hf import write_folder
from linnet.search.cached_steps import CachedStep, Texts
from linnet.search.model_steps import ModelReader
from linnet.search.steps import Target
from test_model_steps import PROMPT, TEXTS, Grown, grow

transformers = pytest.importorskip("transformers")
TARGET = Target(max_tokens=12)


def law_of(model: Any) -> Any:
    def law(ids: Sequence[int]) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = model(torch.tensor([[*PROMPT, *ids]])).logits[0, -1].log_softmax(-1).numpy()
        return found

    return law


def random_network(kind: str) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 13, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(vocab_size=13, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    elif kind == "neox":
        config = transformers.GPTNeoXConfig(**sizes, intermediate_size=32, max_position_embeddings=32)
    else:
        config = transformers.Qwen3Config(
            **sizes, num_key_value_heads=1, head_dim=8, intermediate_size=32, max_position_embeddings=32
        )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", ["gpt2", "neox", "qwen3"])
@pytest.mark.parametrize("memory", [1 << 20, 12_000])
def test_nodes_have_the_law_of_one_pass_over_their_text(kind: str, memory: int) -> None:
    from linnet.search.hf_steps import HFReader

    model = random_network(kind)
    step = CachedStep(HFReader(model), TARGET, texts=TEXTS, width=5, memory=memory)
    grow(Grown(step, law_of(model)), np.random.default_rng(3), calls=14, depth=10)


def test_an_exported_model_is_searched_like_the_run(tmp_path: Path) -> None:
    from linnet.search.hf_steps import hf_step, load_hf

    config = llama_config()
    codec = trained()
    config = config.model_copy(update={"vocabulary": len(codec.tokens)})
    given = portable(config, codec)
    write_folder(tmp_path / "hf", given)
    theirs = hf_step(*load_hf(tmp_path / "hf"), TARGET)
    mine = CachedStep(
        ModelReader(Runner(model_of(given))),
        TARGET,
        ends=[codec.end],
        texts=Texts(codec.decode, codec.continuation),
    )
    assert theirs.ends == mine.ends
    prompt = codec.encode("The quick").ids.tolist()
    first, second = theirs.begin(prompt), mine.begin(prompt)
    for _ in range(4):
        np.testing.assert_allclose(first.full(0), second.full(0), atol=1e-4)
        token = int(second.ids[0, 1])
        first, second = (s.extend([int(r.handles[0])], [token]) for s, r in ((theirs, first), (mine, second)))
    ids = codec.encode(" brown fox").ids.tolist()
    assert theirs.prompt == mine.prompt == "The quick"
    assert theirs.text(ids) == mine.text(ids) == " brown fox"


def test_the_end_is_checked(tmp_path: Path) -> None:
    from linnet.search.hf_steps import hf_step, load_hf

    codec = trained()
    write_folder(tmp_path / "hf", portable(llama_config(vocabulary=len(codec.tokens)), codec))
    model, tokenizer = load_hf(tmp_path / "hf")
    assert hf_step(model, tokenizer, TARGET, end="<end>").ends == {codec.end}
    with pytest.raises(BadInput, match="'<stop>' is no token of this model"):
        hf_step(model, tokenizer, TARGET, end="<stop>")
    with pytest.raises(BadInput, match="end id 9999 is outside the vocabulary"):
        hf_step(model, tokenizer, TARGET, end=9999)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="cannot be loaded by transformers"):
        load_hf(tmp_path / "empty")


def test_models_that_remember_other_things_are_refused() -> None:
    from linnet.search.hf_steps import HFReader

    config = transformers.MambaConfig(vocab_size=13, hidden_size=8, num_hidden_layers=1, state_size=4)
    with pytest.raises(BadInput, match=r"position_ids|plain attention"):
        HFReader(transformers.AutoModelForCausalLM.from_config(config))
