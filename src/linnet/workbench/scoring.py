"""The scores of a part of a data set: likelihood of its rows, exactness of its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from linnet.codecs import Codec
from linnet.decoding.asking import Ask, Decoding, Stopping
from linnet.decoding.engine import generate
from linnet.decoding.sampling import Sampling
from linnet.domains import Domain, Part, Question
from linnet.domains.text import TextData
from linnet.domains.text.blocks import block_rows, block_score, joined
from linnet.evaluation import bootstrap, exact_scores, likelihood_scores, nats, unigram
from linnet.model.model import Model
from linnet.records import Baseline, Score, System
from linnet.sequences import Sequences
from linnet.training.networks import Network, decoder
from linnet.workbench.places import place_scores


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
        found = likelihood_scores(measured, part.sequences, beaten)
        if isinstance(domain, TextData) and domain.block is not None:
            found += block_metric(model, codec, part.sequences, domain.block, beaten, rows=rows, region=region)
        scores += [one if one.note else in_words(one, part.note, beaten, others) for one in found]
    return scores


def in_words(score: Score, note: str, beaten: Baseline, others: Sequence[Baseline]) -> Score:
    """The score with what a person should know of it; the weaker baselines in its own unit."""
    assert score.baseline is not None
    scale = score.baseline.value / beaten.value if beaten.value else 0.0
    said = [f"{other.name} {other.value * scale:.4f}" for other in others]
    return score.model_copy(update={"note": "; ".join(text for text in (note, ", ".join(said)) if text)})


def beaten_by_counting(part: Part, codec: Codec) -> list[Baseline]:
    """What models that only count reach, in nats per scored token; the best one first."""
    found = [Baseline(name="unigram", value=unigram(part.sequences, len(codec.tokens)))]
    counted = part.baseline() if part.baseline is not None else None
    if counted is not None:
        found.append(counted)
    return sorted(found, key=lambda baseline: baseline.value)


def block_metric(
    model: Model,
    codec: Codec,
    sequences: Sequences,
    block: tuple[int, int],
    beaten: Baseline,
    *,
    rows: int,
    region: Callable[[], AbstractContextManager[object]],
) -> list[Score]:
    """The number of the headline protocol, with its coverage; nothing where no span is full."""
    tokens = joined(sequences, codec.begin is not None)
    batch, context = block
    if len(tokens) <= batch * context:
        return []
    cut = block_rows(tokens, batch, context)
    starts = np.arange(len(cut) + 1, dtype=np.int64) * (context + 1)
    scored = np.ones(cut.size, bool)
    scored[starts[:-1]] = False
    measured = nats(model, Sequences(cut.reshape(-1), starts, scored, 0, 0), rows=rows, region=region)
    found = block_score(measured.sums, len(tokens), batch, context, sequences.characters, len(sequences))
    low, high = bootstrap(measured.sums, np.full(len(measured.sums), found.characters / len(measured.sums)))
    return [
        Score(
            name="block_nats_per_char",
            value=found.nats_per_char,
            n=found.characters,
            low=low,
            high=high,
            baseline=Baseline(name=beaten.name, value=beaten.value * found.tokens / found.characters),
            note=f"the headline protocol at {batch} x {context}: {found.spans} spans, {found.coverage:.1%} of the "
            "tokens; the end mark counts as 5 characters; not comparable with the scores above",
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
    asks = [Ask(prompts[index]) for index in fitting]
    answers = [""] * len(questions)
    greedy = Decoding(Sampling(temperature=0), max_tokens=context, stopping=Stopping(end=codec.end))
    with region():
        samples = generate(model, asks, greedy, rows=rows)
        for index, sample in zip(fitting, samples, strict=True):
            ids = prompts[index][len(begin) :]
            answers[index] = codec.continuation(ids, sample.ids)
    return answers
