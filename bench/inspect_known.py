"""Edges of circuits that are known exactly: how far exact edges, ACDC, EAP and EAP-IG tell them apart.

    python -m bench.inspect_known [NAME ...] [--pairs 32]

Hard attention (inverse temperature 40) and soft attention (4), in turn.
"""

from __future__ import annotations

import argparse

import torch

from linnet.machine import one_line
from linnet.model.contract import evaluating
from linnet.probing import edge_scores, edges, parts
from linnet.probing.cases import Cases, Subject
from linnet.probing.known.programs import HARD, PROGRAMS, KnownCircuit, known_circuit

SOFT = 4.0
THRESHOLDS = (1e-6, 1e-4, 1e-3, 1e-2, 0.1)  # of ACDC, in shares of the whole effect


def subject_of(known: KnownCircuit, pairs: int) -> Subject:
    """Pairs of prompts, each asked at the step where their answers differ."""
    clean, corrupt, steps = known.pairs(pairs, seed=1)
    rows = torch.arange(pairs)
    with evaluating(known.model):
        right, wrong = (known.model.head(known.model(ids).hidden)[rows, steps] for ids in (clean, corrupt))
    targets, others = right.argmax(-1), wrong.argmax(-1)
    return Subject(known.model, Cases(clean, targets[:, None], steps[:, None], others[:, None], corrupt))


def measure(name: str, sharpness: float, pairs: int) -> None:
    known = known_circuit(name, sharpness)
    subject = subject_of(known, pairs)
    exact, runs = edges.exact_edges(subject)
    order = parts.edges(known.model.config)
    true = torch.tensor([(writer.name, reader.name) in known.circuit.edges for writer, reader in order])
    largest, whole = exact.abs().amax(1), float((runs.clean - runs.corrupt).mean())
    found = {
        "exact": largest,
        "acdc": edge_scores.acdc_scores(subject, runs, [share * abs(whole) for share in THRESHOLDS]),
        "eap": edge_scores.eap(subject, runs).abs(),
        "eap-ig": edge_scores.eap_ig(subject, runs).abs(),
    }
    areas = ", ".join(f"{method} {edge_scores.auroc(scores, true):.3f}" for method, scores in found.items())
    missed = int((found["eap"][true] < 1e-6).sum())
    ends = f"least true {float(largest[true].min()):.1e}, largest other {float(largest[~true].max()):.1e}"
    print(f"{name:10} {sharpness:4g}: {int(true.sum())} of {len(order)} edges; {ends}")
    print(f"{'':15} AUROC {areas}; eap is 0 at {missed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--pairs", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(one_line())
    for name in options.names or PROGRAMS:
        for sharpness in (HARD, SOFT):
            measure(name, sharpness, options.pairs)


if __name__ == "__main__":
    main()
