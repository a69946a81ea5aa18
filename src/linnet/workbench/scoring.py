"""The scores of a part of a data set: likelihood of its rows, exactness of its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from linnet.codecs import Codec
from linnet.decoding.engine import generate
from linnet.decoding.requests import Decoding, Request, Sampling, Stopping
from linnet.decoding.runner import Runner
from linnet.domains import Domain, Part, Question
from linnet.domains.text import TextData
from linnet.domains.text.blocks import MARK, block_rows, block_score, block_targets, joined_tokens
from linnet.evaluation import Nats, Units, exact_scores, likelihood_scores, nats, unigram
from linnet.intervals import ratio_interval
from linnet.model.model import Model
from linnet.records import Baseline, Score, System
from linnet.sequences import Sequences
from linnet.training.networks import Network, decoder
from linnet.training.run import Run
from linnet.workbench.places import place_scores

OWN_UNIGRAM = "unigram of the scored text"
BEGINNING = 12  # tokens of a row that name it


def scored(
    network: Network,
    codec: Codec,
    domain: Domain,
    part: Part,
    *,
    rows: int,
    region: Callable[[], AbstractContextManager[object]],
) -> tuple[list[Score], list[System]]:
    """The scores, and where the domain has one, the table of the systems to beat."""
    if part.visits is not None:
        assert not isinstance(network, Model)
        return place_scores(network, part.visits, size=rows, region=region)
    return score(network, codec, domain, part, rows=rows, region=region), []


def score(
    network: Network,
    codec: Codec,
    domain: Domain,
    part: Part,
    *,
    rows: int,
    region: Callable[[], AbstractContextManager[object]],
) -> list[Score]:
    """Every score of tokens that this part allows, each over all of its rows."""
    model, scores = decoder(network), []
    if part.questions:
        answers = answer(model, codec, part.questions, rows=rows, region=region)
        scores += exact_scores(part.questions, answers, domain.right, domain.baseline)
    if len(part.sequences) and part.sequences.targets:
        measured = nats(model, part.sequences, rows=rows, region=region)
        beaten, *others = beaten_by_counting(part, codec)
        units = Units.of(part.sequences, codec, part.unit)
        found = likelihood_scores(measured, part.sequences, units, beaten)
        scores += [in_words(one, part.note, beaten, others) for one in found]
        if isinstance(domain, TextData) and domain.block is not None:
            scores += block_metric(
                model, codec, part.sequences, units, domain.block, beaten, rows=rows, region=region
            )
    return scores


def in_words(score: Score, note: str, beaten: Baseline, others: Sequence[Baseline]) -> Score:
    """The score with what a person should know of it; the weaker baselines in its own unit."""
    assert score.baseline is not None
    scale = score.baseline.value / beaten.value if beaten.value else 0.0
    also = ", ".join(f"{other.name} {other.value * scale:.4f}" for other in others)
    return score.model_copy(update={"note": "; ".join(text for text in (note, also, score.note) if text)})


def beaten_by_counting(part: Part, codec: Codec) -> list[Baseline]:
    """What models that only count reach, in nats per scored token; the best one first."""
    found = part.baselines() if part.baselines is not None else ()
    if not found:  # a model of training text is not at hand: the one of the scored text itself is hard to beat
        found = (Baseline(name=OWN_UNIGRAM, value=unigram(part.sequences, len(codec.tokens))),)
    return sorted(found, key=lambda baseline: baseline.value)


def no_block(domain: Domain, part: Part, codec: Codec, name: str) -> list[str]:
    """Why the block metric that a run asks for is not there."""
    if not isinstance(domain, TextData) or domain.block is None:
        return []
    tokens, (batch, context) = int(joined_tokens(part.sequences, codec.begin is not None).sum()), domain.block
    if tokens > batch * context:
        return []
    return [
        f"no block metric: the {name} has {tokens:,} tokens, and one {batch} x {context} span needs "
        f"{batch * context + 1:,}"
    ]


def cut_rows(part: Part, codec: Codec, context: int, name: str) -> list[str]:
    """Rows that the context cuts, counted, and the first of them named."""
    rows = part.sequences
    longer = rows.longer_than(context)
    if not len(longer):
        return []
    first = rows.row(int(longer[0]))
    begins = codec.decode(first[:BEGINNING].tolist())
    return [
        f"{len(longer):,} of {len(rows):,} {name} rows are longer than the context of {context} tokens and are "
        f"read in pieces; the first has {len(first) - 1:,} tokens and begins {begins!r}"
    ]


def averaged_weights(run: Run) -> list[str]:
    """Whose scores these are, where training keeps two sets of weights."""
    return [f"the scores are those of the averaged weights (optim.ema={run.optim.ema:g})"] if run.optim.ema else []


def block_metric(
    model: Model,
    codec: Codec,
    sequences: Sequences,
    units: Units,
    block: tuple[int, int],
    beaten: Baseline,
    *,
    rows: int,
    region: Callable[[], AbstractContextManager[object]],
) -> list[Score]:
    """The number of the headline protocol, with its coverage; nothing where no span is full (see `no_block`).

    Its interval is that of the units that it covers, with as many of their characters as it covers tokens.
    """
    there = joined_tokens(sequences, codec.begin is not None)
    kept = np.flatnonzero(there)
    batch, context = block
    if len(kept) <= batch * context:
        return []
    cut = block_rows(sequences.ids[kept].astype(np.int64), batch, context)
    starts = np.arange(len(cut) + 1, dtype=np.int64) * (context + 1)
    scored = np.ones(cut.size, bool)
    scored[starts[:-1]] = False
    measured = nats(model, Sequences(cut.reshape(-1), starts, scored), rows=rows, region=region)
    each = measured.each.reshape(len(cut), context + 1)[:, 1:]
    found = block_score(each, len(kept), batch, context, sequences.characters, len(sequences))
    targets = kept[block_targets(len(kept), batch, context)]
    covered = Nats(np.zeros(len(sequences.ids), np.float32), np.zeros(len(sequences.ids), bool))
    covered.each[targets], covered.scored[targets] = each.reshape(-1), True
    sums, tokens = covered.between(units.edges)
    marks = np.histogram(sequences.starts[1:] - 1, units.edges)[0]
    whole = np.add.reduceat(there, units.edges[:-1], dtype=np.int64)
    counts = (units.characters + MARK * marks) * tokens / np.maximum(whole, 1)
    low, high = (found.nats_per_char * side * counts.sum() / sums.sum() for side in ratio_interval(sums, counts))
    spans = "1 span" if found.spans == 1 else f"{found.spans:,} spans"
    return [
        Score(
            name="block_nats_per_char",
            value=found.nats_per_char,
            n=found.characters,
            low=max(0.0, low),
            high=high,
            baseline=Baseline(name=beaten.name, value=beaten.value * found.tokens / found.characters),
            note=f"the headline protocol at {batch} x {context}: {spans}, {found.coverage:.1%} of the "
            "tokens; the end mark counts as 5 characters; not comparable with the scores above"
            + (f"; rows read in windows of {model.config.context}" if context > model.config.context else "")
            + f"; {units.note()}",
        )
    ]


def answer(
    model: Model,
    codec: Codec,
    questions: Sequence[Question],
    *,
    rows: int,
    region: Callable[[], AbstractContextManager[object]],
) -> list[str]:
    """What the model itself writes after each question, greedily, until it ends or the context is full.

    A question that does not fit into the context gets the empty answer.
    """
    begin = [] if codec.begin is None else [codec.begin]
    context = model.config.context
    prompts = [(*begin, *codec.encode(question.prompt).ids.tolist()) for question in questions]
    fitting = [index for index, prompt in enumerate(prompts) if len(prompt) <= context]
    requests = [Request(prompts[index]) for index in fitting]
    answers = [""] * len(questions)
    greedy = Decoding(Sampling(temperature=0), max_tokens=context, stopping=Stopping(end=codec.end))
    with region():
        samples = generate(Runner(model), requests, greedy, rows=rows)
        for index, sample in zip(fitting, samples, strict=True):
            ids = prompts[index][len(begin) :]
            answers[index] = codec.continuation(ids, sample.ids)
    return answers
