"""Going on from prompts: samples as records, or their text as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from linnet.codecs import Codec
from linnet.decoding import engine
from linnet.decoding.allowed import Allowed, ByPrompt, Pattern, Tree
from linnet.decoding.asking import Ask, Decoding, Reason, Sample, Stopping, check, limit
from linnet.decoding.compiling import Compiled, choose, compiling
from linnet.decoding.products import Weights, pack
from linnet.decoding.sampling import Sampling
from linnet.decoding.streaming import Streaming
from linnet.errors import BadInput
from linnet.model.model import Model
from linnet.records import GenerationRecord, PieceRecord
from linnet.workbench.asked import Asked, refuse_slips
from linnet.workbench.ends import further_ends
from linnet.workbench.opening import Opened, load, weights_in
from linnet.workbench.pace import Pace
from linnet.workbench.prompting import chosen, lost, read
from linnet.workbench.using import settings_of


@dataclass(frozen=True)
class Prepared:
    """Everything that generation needs, checked."""

    opened: Opened
    prompts: Sequence[str]
    encoded: Sequence[tuple[int, ...]]
    asks: Sequence[Ask]
    decoding: Decoding
    rows: int
    step: engine.Step
    pace: Callable[[Pace], None] | None

    def told(self, place: int) -> tuple[int, ...]:
        """The prompt of this ask as its codec wrote it, without a begin token."""
        return self.asks[place].prompt[0 if self.opened.codec.begin is None else 1 :]

    def prompt(self, place: int) -> str:
        return self.prompts[place * len(self.prompts) // len(self.asks)]

    def written(self, ids: Sequence[int]) -> list[int]:
        """Some models have embeddings to spare; ids beyond those of the codec write nothing."""
        known = len(self.opened.codec.tokens)
        return [i for i in ids if i < known]

    def record(self, place: int, sample: Sample) -> GenerationRecord:
        text = self.opened.codec.continuation(self.told(place), self.written(sample.ids))
        text = self.decoding.stopping.cut(text)
        return GenerationRecord(
            prompt=self.prompt(place),
            text=text,
            ids=sample.ids,
            logprob=sample.logprob,
            stop=self.stop(place, sample),
            near_ties=sample.near_ties if self.decoding.count_ties else None,
        )

    def stop(self, place: int, sample: Sample) -> Reason:
        """Why it ended: a choice that is complete at the last token that was allowed was not cut."""
        allowed, end = self.decoding.allowed, self.decoding.stopping.end
        if sample.stop != "length" or not isinstance(allowed, ByPrompt):
            return sample.stop
        following = allowed.after(self.asks[place].prompt, sample.ids)
        return "end" if following is not None and set(following) <= {end} else sample.stop

    def events(self) -> Iterator[engine.Event]:
        """What the engine does, with the time that it takes."""
        started, first, tokens = time.perf_counter(), 0.0, 0
        with self.opened.region():
            model = self.opened.model
            for event in engine.events(model, self.asks, self.decoding, rows=self.rows, step=self.step):
                if isinstance(event, engine.Drawn):
                    tokens += 1
                first = first or time.perf_counter() - started
                yield event
        if self.pace is not None:
            asked = sum(map(len, self.encoded))
            spent = time.perf_counter() - started
            compiling = self.step.compiled_in if isinstance(self.step, Compiled) else 0.0
            self.pace(Pace(len(self.asks), asked, tokens, first, spent, compiling))


def generate(path: Path | str, prompts: Sequence[str], **asked: Unpack[Asked]) -> Iterator[GenerationRecord]:
    """Samples of each prompt, in the order of the prompts."""
    prepared = prepare(path, prompts, asked)
    return (record for record in in_order(prepared, prepared.events()) if isinstance(record, GenerationRecord))


def stream(
    path: Path | str, prompts: Sequence[str], **asked: Unpack[Asked]
) -> Iterator[PieceRecord | GenerationRecord]:
    """Pieces of text as soon as they are certain, and the samples in the order of the prompts."""
    prepared = prepare(path, prompts, asked)
    return in_order(prepared, with_pieces(prepared))


def in_order(
    prepared: Prepared, events: Iterator[engine.Event | PieceRecord]
) -> Iterator[PieceRecord | GenerationRecord]:
    """Each finished sample when all before it are finished."""
    early: dict[int, GenerationRecord] = {}
    following = 0
    for event in events:
        if isinstance(event, PieceRecord):
            yield event
        elif isinstance(event, engine.Done):
            early[event.place] = prepared.record(event.place, event.sample)
        while following in early:
            yield early.pop(following)
            following += 1


def with_pieces(prepared: Prepared) -> Iterator[engine.Event | PieceRecord]:
    """The events of the engine, and between them what is certain of each text."""
    codec, stopping = prepared.opened.codec, prepared.decoding.stopping
    open_texts: dict[int, Streaming] = {}
    for event in prepared.events():
        place = event.place
        text = open_texts.setdefault(place, Streaming(codec, prepared.told(place), stopping))
        if isinstance(event, engine.Drawn):
            piece = "".join(text.add(token) for token in prepared.written([event.token]))
        else:
            piece = open_texts.pop(place).finish()
        if piece:
            yield PieceRecord(prompt=prepared.prompt(place), sample=prepared.asks[place].sample, text=piece)
        yield event


def prepare(path: Path | str, prompts: Sequence[str], asked: Asked) -> Prepared:
    """Open the run and read what is asked of it; what cannot be done is refused here."""
    refuse_slips(prompts, asked)
    n = asked.get("n", 1)
    if n < 1:
        raise BadInput(f"n is {n}; at least one sample of each prompt must be asked for")
    weights = weights_in(asked.get("precision"))
    opened = load(path, checkpoint=asked.get("checkpoint"), device=asked.get("device"), precision="float32")
    rows = settings_of(asked.get("settings", ()), batch=64, compile="auto")
    codec, model = opened.codec, opened.model
    places = asked.get("places", [f"prompt {place}" for place in range(1, len(prompts) + 1)])
    encoded = [read(opened, prompt, place) for prompt, place in zip(prompts, places, strict=True)]
    asks = [Ask(ids, sample) for ids in encoded for sample in range(n)]
    tokens, seed = asked.get("max_tokens"), asked.get("seed")
    sampling = sampling_of(asked)
    decoding = Decoding(
        sampling,
        model.config.context if tokens is None else tokens,
        stopping_of(codec, asked, further_ends(opened.folder, model.config.vocabulary)),
        allowed_of(opened, dict.fromkeys(encoded), asked),
        seed=0 if seed is None else seed,
        # In other numbers rounding moves far more than ties, and where tokens are drawn it moves few of them.
        count_ties=sampling.temperature == 0 and weights == "float32",
    )
    check(model, asks, decoding)
    fit(model, asks, decoding)
    step = packed_step(model, weights, asks, decoding, rows["batch"], rows["compile"])
    if remark := asked.get("remark"):
        for said in remarks(codec, dict(zip(prompts, places, strict=True)), sampling, n):
            remark(said)
    return Prepared(opened, prompts, encoded, asks, decoding, rows["batch"], step, asked.get("pace"))


def remarks(codec: Codec, places: Mapping[str, str], sampling: Sampling, n: int) -> Iterator[str]:
    """What a person should know of these prompts, and of what was asked."""
    for prompt, place in places.items():
        yield from lost(codec, prompt, place)
    if n > 1 and sampling.temperature == 0:
        yield f"at temperature 0 the {n} samples of a prompt are all the same"


def packed_step(
    model: Model, weights: Weights, asks: Sequence[Ask], decoding: Decoding, rows: int, compile: str
) -> engine.Step:
    """The step of a model that is packed for it: one graph, where that was asked for or pays."""
    if compile not in ("auto", "on", "off"):
        raise BadInput(f'--set compile={compile}: it can be "auto", "on" or "off"')
    found = None
    if compile == "on":
        found = compiling(model, weights, len(asks), rows)
    elif compile == "auto":
        tokens = max((limit(model, ask, decoding) for ask in asks), default=0)
        found = choose(model, weights, len(asks), rows, tokens)
    pack(model, weights, single=found is not None and found.single)
    return engine.Plain(model) if found is None else Compiled(model, found)


def sampling_of(asked: Asked) -> Sampling:
    return Sampling(
        asked.get("temperature", 1.0),
        asked.get("top_k"),
        asked.get("top_p"),
        asked.get("min_p"),
        asked.get("repetition_penalty", 1.0),
    )


def stopping_of(codec: Codec, asked: Asked, further_ends: Iterable[int] = ()) -> Stopping:
    known = len(codec.tokens)

    def text(prompt: Sequence[int], drawn: Sequence[int]) -> str:
        return codec.continuation(prompt, [token for token in drawn if token < known])

    stops = tuple(asked.get("stops", ()))
    named = frozenset(asked.get("stop_ids", ()))
    return Stopping(codec.end, named, stops, codec.pieces, text, frozenset(further_ends))


def allowed_of(opened: Opened, prompts: Iterable[tuple[int, ...]], asked: Asked) -> Allowed | None:
    """A tree of choices for each prompt, since a text may be cut into tokens by what stands before it."""
    choices, expression = asked.get("choices"), asked.get("pattern")
    codec = opened.codec
    if choices is not None and expression is not None:
        raise BadInput("a sample is one of some choices or matches a pattern; give one of them")
    if expression is not None:
        if codec.pieces is None:
            raise BadInput(
                "the tokens of this run do not write their text in order, so no pattern can be followed"
            )
        pattern = Pattern(expression, codec.pieces, codec.end)
        pattern.check()
        return pattern
    if choices is None:
        return None
    begin = 0 if codec.begin is None else 1
    return ByPrompt(
        {
            prompt: Tree.of((chosen(codec, prompt[begin:], choice) for choice in choices), codec.end)
            for prompt in prompts
        }
    )


def fit(model: Model, asks: Sequence[Ask], decoding: Decoding) -> None:
    """Refuse choices that would be cut: what came out would be none of them."""
    if not isinstance(decoding.allowed, ByPrompt):
        return
    for ask in asks:
        allowed = decoding.allowed.allowances[ask.prompt]
        room = limit(model, ask, decoding)
        if isinstance(allowed, Tree) and allowed.longest > room:
            raise BadInput(
                f"a choice has {allowed.longest} tokens, and there is room for {room} (max tokens, context)"
            )
