"""What edits and reads cost, and how quick ablations, subsets and edges are.

    python -m bench.inspect_speed ablation|edits|patterns|subsets|edges [--run RUN] [--repeats 7]

In turn; medians and quartiles of ratios of processor seconds; one thread unless --threads says otherwise.
Stop other work first. `bench/inspect_peer.py` is the same beside TransformerLens.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from linnet.machine import one_line
from linnet.model.config import AttentionConfig, ModelConfig
from linnet.model.contract import evaluating, parameter_count
from linnet.model.model import Model
from linnet.model.taps import Affine
from linnet.probing import ablation, edge_scores, edges, parts, subsets
from linnet.probing.cases import Cases, Subject, logit_difference
from linnet.probing.patterns import pattern_blocks

SHAPE = ModelConfig(vocabulary=1000, context=2048, width=256, depth=6, attention=AttentionConfig(heads=8))


def model_of(config: ModelConfig) -> Model:
    torch.manual_seed(0)
    return Model(config).eval()


def subject_of(model: Model, prompts: int, tokens: int) -> Subject:
    """Random prompts, each asked about its last token."""
    random = torch.Generator().manual_seed(1)
    ids, other = torch.randint(model.config.vocabulary, (2, prompts, tokens), generator=random)
    targets, wrong = torch.randint(model.config.vocabulary, (2, prompts, 1), generator=random)
    return Subject(model, Cases(ids, targets, torch.tensor([tokens - 1]), wrong, other), logit_difference)


def turns(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Processor seconds of each call, in turn, again and again; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round in range(repeats + 1):
        for name, call in calls.items():
            began = time.process_time()
            call()
            if round:
                seconds[name].append(time.process_time() - began)
    return seconds


def report(what: str, seconds: Mapping[str, list[float]], base: str) -> None:
    for name, own in seconds.items():
        ratios = sorted(a / b for a, b in zip(own, seconds[base], strict=True))
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        spread = f"{quartiles[0]:.3f} .. {quartiles[2]:.3f}"
        print(
            f"{what:28} {name:28} {statistics.median(own) * 1e3:10.2f} ms  / {base}: {quartiles[1]:.3f} ({spread})"
        )


def plain_loop(subject: Subject, units: list[ablation.Unit], by: ablation.By) -> Tensor:
    return ablation.ablate_naively(subject, units, by)


def bench_ablation(options: argparse.Namespace) -> None:
    """All 48 heads to zero: one batch or kept streams, our own loop, TransformerLens' loop."""
    model = model_of(SHAPE)
    units = [ablation.unit_of(part) for part in parts.writers(SHAPE) if part.kind == "head"]
    for prompts, tokens in ((1, 16), (16, 16), (256, 16)):
        subject = subject_of(model, prompts, tokens)
        ours, _ = ablation.ablate(subject, units, "zero")
        torch.testing.assert_close(ours, plain_loop(subject, units, "zero"), rtol=1e-4, atol=1e-4)
        calls = {
            "ours": lambda s=subject: ablation.ablate(s, units, "zero"),
            "our own loop": lambda s=subject: plain_loop(s, units, "zero"),
        }
        report(f"48 heads, {prompts} x {tokens}", turns(calls, options.repeats), "ours")


def bench_edits(options: argparse.Namespace) -> None:
    """A compiled call with an affine edit, and with a residual stream kept, beside one without."""
    model = model_of(SHAPE)
    compiled = torch.compile(model, fullgraph=True)
    ids = torch.randint(1000, (8, 64))
    scale, offset = torch.ones(1, 1, 8, 1), torch.zeros(1, 1, 8, 1)
    edit = (("blocks.2.attn.hook_z", Affine(scale, offset)),)
    keep = ("blocks.3.hook_resid_post",)
    with torch.no_grad():
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        off = 0.0
        for head in range(8):
            scale = torch.ones(1, 1, 8, 1)
            scale[:, :, head] = 0
            one = (("blocks.2.attn.hook_z", Affine(scale, offset)),)
            off = max(off, float((compiled(ids, edit=one).hidden - model(ids, edit=one).hidden).abs().max()))
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
        breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
        print(f"graphs for 8 heads: {graphs}; graph breaks: {breaks}; largest difference from eager {off:.1e}")
        calls = {
            "compiled": lambda: compiled(ids),
            "compiled, affine edit": lambda: compiled(ids, edit=edit),
            "compiled, one stream kept": lambda: compiled(ids, keep=keep),
        }
        report("edits, 8 x 64", turns(calls, options.repeats), "compiled")
        eager = {"eager": lambda: model(ids), "eager, affine edit": lambda: model(ids, edit=edit)}
        report("edits, 8 x 64", turns(eager, options.repeats), "eager")


def bench_patterns(options: argparse.Namespace) -> None:
    """Patterns of all layers kept, and the memory of 2,048 tokens x 12 heads x 12 layers one layer at a time."""
    model = model_of(SHAPE)
    keep = tuple(name for name in model.taps() if name.endswith("hook_pattern"))
    with evaluating(model):
        for tokens in (64, 128, 256):
            ids = torch.randint(1000, (8, tokens))
            calls = {"plain": lambda i=ids: model(i), "patterns kept": lambda i=ids: model(i, keep=keep)}
            report(f"patterns, 8 x {tokens}", turns(calls, options.repeats), "plain")


def bench_memory(options: argparse.Namespace) -> None:
    """Peak memory beyond that of a plain call, of the patterns of 2,048 tokens in blocks."""

    config = ModelConfig(vocabulary=1000, context=2048, width=384, depth=12, attention=AttentionConfig(heads=12))
    model = model_of(config)
    ids = torch.randint(1000, (1, 2048))
    with evaluating(model):
        model(ids)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for block in pattern_blocks(model, ids):
        block.shares.amax()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"2,048 tokens x 12 heads x 12 layers: {(after - before) / 1024:.0f} MB more at the peak")


def bench_subsets(options: argparse.Namespace) -> None:
    """All subsets of the ten parts of an adder, 500 problems."""
    if options.run:
        from linnet.workbench.cases import analysis_of

        subject = analysis_of(options.run, n=500).subject
    else:
        config = ModelConfig(vocabulary=13, context=32, width=128, depth=2, attention=AttentionConfig(heads=4))
        subject = subject_of(model_of(config), 500, 14)
    chosen = parts.writers(subject.model.config)[1:]
    began, worked = time.perf_counter(), time.process_time()
    table = subsets.exact_subsets(subject, chosen).mean(1).double().numpy()
    seconds, own = time.perf_counter() - began, time.process_time() - worked
    off = abs(subsets.shapley(table).sum() - (table[-1] - table[0]))
    size = parameter_count(subject.model)
    cases = subject.cases.ids.shape
    print(f"{len(chosen)} parts, {len(table):,} subsets, {cases[0]} x {cases[1]} tokens, {size:,} parameters")
    print(f"{seconds:.1f} s, {own:.1f} of the processor; Shapley values off the total by {off:.1e}")


def bench_edges(options: argparse.Namespace) -> None:
    """Every edge of 6 layers x 8 heads, and how far EAP and EAP-IG are from them."""
    model = model_of(SHAPE)
    if options.run:
        from linnet.workbench.cases import analysis_of

        subject = analysis_of(options.run, needs_corrupt=True, n=options.prompts).subject
    else:
        subject = subject_of(model, options.prompts, 16)
    began, worked = time.perf_counter(), time.process_time()
    exact, runs = edges.exact_edges(subject)
    print(f"{len(exact):,} exact edges, {options.prompts} x {subject.cases.ids.shape[1]} tokens: "
          f"{time.perf_counter() - began:.0f} s, {time.process_time() - worked:.0f} of the processor")  # fmt: skip
    mean = exact.mean(1)
    for name, made in (("eap", edge_scores.eap), ("eap-ig", edge_scores.eap_ig)):
        began = time.perf_counter()
        found = made(subject, runs)
        seconds = time.perf_counter() - began
        rank = edge_scores.rank_correlation(found.abs(), mean.abs())
        tops = ", ".join(f"top {k}: {edge_scores.top_overlap(found, mean, k):.2f}" for k in (10, 50, 200))
        print(f"{name}: {seconds:.1f} s; rank correlation {rank:.3f}; {tops}")


BENCHES: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "ablation": bench_ablation,
    "edits": bench_edits,
    "patterns": bench_patterns,
    "memory": bench_memory,
    "subsets": bench_subsets,
    "edges": bench_edges,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*BENCHES])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(one_line())
    BENCHES[options.what](options)


if __name__ == "__main__":
    main()
