"""Ours beside TransformerLens 4.3: patterns, lens, attribution, head patching, and a loop over all heads.

    python -m bench.inspect_peer [--repeats 5] [--prompts 1 16]

Runs where transformer-lens, transformers and tokenizers are installed. The model is a 6 x 256 Llama of 8 heads,
with random weights, made by transformers. First both must agree; then each zeroes 48 heads, in turn.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.inspect_speed import report, turns
from linnet import workbench
from linnet.machine import one_line
from linnet.model.contract import evaluating
from linnet.model.model import Model
from linnet.probing import ablation, attribution, parts, patching
from linnet.probing.cases import Cases, Subject, logit_difference

VOCABULARY = 1000


def llama(folder: Path) -> None:
    """A random Llama with a tokenizer of words, written into this folder."""
    transformers, tokenizers = (importlib.import_module(name) for name in ("transformers", "tokenizers"))
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = {"unk_token": "w0", "eos_token": "w1", "bos_token": "w2", "pad_token": "w3"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=256, bos_token_id=2, eos_token_id=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)


def read_by_transformers(folder: Path) -> Any:
    transformers = importlib.import_module("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def peer_of(folder: Path) -> Any:
    """The peer changes the model that it is made of, so it gets one of its own."""
    transformers, model = importlib.import_module("transformers"), read_by_transformers(folder)
    bridge = importlib.import_module("transformer_lens.model_bridge").TransformerBridge
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return bridge.boot_transformers(str(folder), hf_model=model, tokenizer=tokenizer, device="cpu")


def cases_of(prompts: int, tokens: int = 16) -> Cases:
    random = torch.Generator().manual_seed(1)
    ids, other = torch.randint(5, VOCABULARY, (2, prompts, tokens), generator=random)
    targets, wrong = torch.randint(5, VOCABULARY, (2, prompts, 1), generator=random)
    return Cases(ids, targets, torch.tensor([tokens - 1]), wrong, other)


def difference(logits: Tensor, cases: Cases) -> Tensor:
    return logit_difference(logits[None, :, -1:], cases)[0]


def agree(model: Model, peer: Any, hf: Any) -> None:
    """The largest differences of everything that both compute."""
    cases = cases_of(4)
    subject, depth = Subject(model, cases), model.config.depth
    names = tuple(model.taps())
    with torch.no_grad():
        logits, cache = peer.run_with_cache(cases.ids)
        ours = model(cases.ids, keep=names)
        theirs = hf(cases.ids, output_hidden_states=True, output_attentions=True)
        found: dict[str, Tensor] = {"logits": model.head(ours.hidden) - logits}
        for end in ("attn.hook_pattern", "attn.hook_z", "hook_resid_post", "mlp.hook_post"):
            pairs = [(f"blocks.{n}.{end}", ours.kept[f"blocks.{n}.{end}"]) for n in range(depth)]
            found[end] = torch.stack([value - cache[name].view(value.shape) for name, value in pairs])
        stream = [ours.kept[f"blocks.{n}.hook_resid_post"] for n in range(depth)]
        lens = [(model.head(model.final_norm(x)), peer.unembed(peer.ln_final(x))) for x in stream]
        found["logit lens"] = torch.stack([a - b for a, b in lens])
        hidden = zip(stream[:-1], theirs.hidden_states[1:], strict=False)
        found["transformers' hidden states"] = torch.stack([a - b for a, b in hidden])
        patterns = zip(range(depth), theirs.attentions, strict=True)
        found["transformers' attentions"] = torch.stack(
            [ours.kept[f"blocks.{n}.attn.hook_pattern"] - b for n, b in patterns]
        )
        found["attribution"] = attributed(model, cases) - attributed_by_peer(peer, cache, cases)
    found["head patching"] = patched(subject) - patched_by_peer(peer, cases)
    for name, off in found.items():
        print(f"agreement, {name:30} largest difference {float(off.abs().max()):.1e}")


def attributed(model: Model, cases: Cases) -> Tensor:
    """[parts, B] without biases: embed, then attention and feed-forward of each layer."""
    found = attribution.attribute(model, cases)
    named = dict(zip(found.names, found.values[:, :, 0], strict=True))
    rows = [named["embed"]]
    for layer in range(model.config.depth):
        rows.append(sum(value for name, value in named.items() if name.startswith(f"head.{layer}.")) + 0 * rows[0])
        rows.append(named[f"mlp.{layer}"])
    return torch.stack(rows)


def attributed_by_peer(peer: Any, cache: Any, cases: Cases) -> Tensor:
    assert cases.wrong is not None
    stack = cache.decompose_resid(layer=-1, mode="all", apply_ln=False)
    scaled = cache.apply_ln_to_stack(stack, layer=-1)[:, :, -1]  # [parts, B, W]
    weights = peer.W_U  # [W, V]
    direction = weights[:, cases.targets[:, 0]] - weights[:, cases.wrong[:, 0]]
    return torch.einsum("pbw,wb->pb", scaled, direction)


def patched(subject: Subject) -> Tensor:
    """[layer, head]: what is asked of the corrupt prompts with one head of the clean ones."""
    chosen, shape = patching.patches(subject, "head", by_position=False)
    return patching.patch(subject, chosen).patched.mean(1).view(shape)


def patched_by_peer(peer: Any, cases: Cases) -> Tensor:
    """The same by hooks, one call a head."""
    with torch.no_grad():
        _, cache = peer.run_with_cache(cases.ids)
        rows = []
        for layer in range(6):
            name = f"blocks.{layer}.attn.hook_z"
            for head in range(8):
                logits = peer.run_with_hooks(cases.corrupt, fwd_hooks=[(name, putting(cache[name], head))])
                rows.append(difference(logits, cases).mean())
    return torch.stack(rows).view(6, 8)


def putting(source: Tensor, head: int) -> Callable[..., Tensor]:
    def hook(value: Tensor, hook: Any = None) -> Tensor:
        shaped = value.view(*value.shape[:2], 8, -1).clone()
        shaped[:, :, head] = source.view(shaped.shape)[:, :, head]
        return shaped.view(value.shape)

    return hook


def zeroing(head: int) -> Callable[..., Tensor]:
    def hook(value: Tensor, hook: Any = None) -> Tensor:
        value = value.clone()
        value.view(*value.shape[:2], 8, -1)[:, :, head] = 0
        return value

    return hook


def loop_of_peer(peer: Any, cases: Cases) -> Tensor:
    with torch.no_grad():
        rows = [
            difference(peer.run_with_hooks(cases.ids, fwd_hooks=[(f"blocks.{n}.attn.hook_z", zeroing(h))]), cases)
            for n in range(6)
            for h in range(8)
        ]
    return torch.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, nargs="*", default=[1, 16])
    options = parser.parse_args()
    torch.set_num_threads(1)
    version = importlib.import_module("importlib.metadata").version("transformer-lens")
    print(f"{one_line()}, transformer-lens {version}")
    with tempfile.TemporaryDirectory() as folder:
        written, run = Path(folder) / "llama", Path(folder) / "run"
        llama(written)
        workbench.import_run(written, run)
        model, peer, hf = workbench.load(run).model, peer_of(written), read_by_transformers(written)
    agree(model, peer, hf)
    units = [ablation.unit_of(part) for part in parts.writers(model.config) if part.kind == "head"]
    for prompts in options.prompts:
        subject = Subject(model, cases_of(prompts))
        with evaluating(model):
            expected = ablation.ablate(subject, units, "zero")[0]
        torch.testing.assert_close(loop_of_peer(peer, subject.cases), expected, rtol=1e-3, atol=1e-4)
        calls: Mapping[str, Callable[[], object]] = {
            "ours": lambda s=subject: ablation.ablate(s, units, "zero"),  # type: ignore[misc]
            "our own loop": lambda s=subject: ablation.ablate_naively(s, units, "zero"),  # type: ignore[misc]
            "TransformerLens, a loop": lambda s=subject: loop_of_peer(peer, s.cases),  # type: ignore[misc]
        }
        report(f"48 heads, {prompts} x 16", turns(calls, options.repeats), "ours")


if __name__ == "__main__":
    main()
