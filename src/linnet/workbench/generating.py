"""Going on from prompts: samples as records, or their text as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from linnet.codecs import Codec
from linnet.decoding import engine
from linnet.decoding.allowed import Allowed, ByPrompt, Pattern, Tree
from linnet.decoding.asking import Ask, Decoding, Sample, Stopping, check, limit
from linnet.decoding.compiling import Compiled, choose, compiling
from linnet.decoding.products import Weights, pack
from linnet.decoding.sampling import Sampling
from linnet.decoding.streaming import Streaming
from linnet.errors import BadInput
from linnet.model.model import Model
from linnet.records import GenerationRecord, PieceRecord
from linnet.workbench.opening import Opened, load, weights_in
from linnet.workbench.using import settings_of


@dataclass(frozen=True)
class Pace:
    """How long it took; `first` is when the first token was there, so it is the time of the first prompts."""

    samples: int
    prompt_tokens: int
    tokens: int
    first: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return (
            f"{counted(self.samples, 'sample')}, {counted(self.tokens, 'token')} in {self.seconds:.2f} s "
            f"({self.tokens_per_second:,.0f} tokens/s); the first after {self.first:.2f} s "
            f"({counted(self.prompt_tokens, 'token')} of prompts)"
        )


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


class Asked(TypedDict, total=False):
    """What may be said about samples besides their prompts."""

    n: int  # samples of each prompt
    max_tokens: int | None  # None: as far as the context goes
    temperature: float  # 0 is greedy; 1 unless set
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    stops: Sequence[str]  # a sample ends where one of these begins
    stop_ids: Sequence[int]
    choices: Sequence[str] | None  # a sample is one of these
    pattern: str | None  # a sample matches this regular expression
    seed: int | None
    settings: Sequence[str]  # batch=64: rows that are computed together
    device: str | None
    precision: str | None
    pace: Callable[[Pace], None] | None  # told when all samples are there


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
        given = {"ids": sample.ids, "logprob": sample.logprob, "stop": sample.stop}
        return GenerationRecord(prompt=self.prompt(place), text=text, **given)

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
            self.pace(Pace(len(self.asks), asked, tokens, first, time.perf_counter() - started))


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
    n = asked.get("n", 1)
    if n < 1:
        raise BadInput(f"n is {n}; at least one sample of each prompt must be asked for")
    weights = weights_in(asked.get("precision"))
    opened = load(path, device=asked.get("device"), precision="float32")
    chosen = settings_of(asked.get("settings", ()), batch=64, compile="auto")
    codec, model = opened.codec, opened.model
    encoded = [read(opened, prompt, place) for place, prompt in enumerate(prompts, 1)]
    asks = [Ask(ids, sample) for ids in encoded for sample in range(n)]
    tokens, seed = asked.get("max_tokens"), asked.get("seed")
    decoding = Decoding(
        sampling_of(asked),
        model.config.context if tokens is None else tokens,
        stopping_of(codec, asked),
        allowed_of(opened, dict.fromkeys(encoded), asked),
        seed=0 if seed is None else seed,
    )
    check(model, asks, decoding)
    fit(model, asks, decoding)
    step = packed_step(model, weights, asks, decoding, chosen["batch"], chosen["compile"])
    return Prepared(opened, prompts, encoded, asks, decoding, chosen["batch"], step, asked.get("pace"))


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


def read(opened: Opened, prompt: str, place: int) -> tuple[int, ...]:
    """The ids of a prompt that the model can go on from; `place` counts from 1."""
    if not prompt:
        raise BadInput(f"prompt {place} is empty: there is nothing to go on from")
    ids, context = opened.prompt(prompt), opened.model.config.context
    if len(ids) > context:
        shown = prompt if len(prompt) <= 40 else f"{prompt[:40]}..."
        raise BadInput(
            f"prompt {place} ({shown!r}) has {len(ids)} tokens, and the context of this model is {context}"
        )
    return ids


def sampling_of(asked: Asked) -> Sampling:
    return Sampling(
        asked.get("temperature", 1.0),
        asked.get("top_k"),
        asked.get("top_p"),
        asked.get("min_p"),
        asked.get("repetition_penalty", 1.0),
    )


def stopping_of(codec: Codec, asked: Asked) -> Stopping:
    known = len(codec.tokens)

    def text(prompt: Sequence[int], drawn: Sequence[int]) -> str:
        return codec.continuation(prompt, [token for token in drawn if token < known])

    stops = tuple(asked.get("stops", ()))
    return Stopping(codec.end, frozenset(asked.get("stop_ids", ())), stops, codec.pieces, text)


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


def chosen(codec: Codec, prompt: Sequence[int], choice: str) -> tuple[int, ...]:
    """The ids of a choice after a prompt: as both are written together where that leaves the prompt as it is."""
    if not choice:
        raise BadInput("a choice is empty: there is nothing to generate")
    whole = codec.encode(codec.decode(prompt) + choice).ids.tolist()
    ids = whole[len(prompt) :]
    if whole[: len(prompt)] != list(prompt) or codec.continuation(prompt, ids) != choice:
        ids = codec.encode(choice).ids.tolist()
    written = codec.continuation(prompt, ids)
    if written != choice:
        raise BadInput(f"the choice {choice!r} cannot be written after its prompt: it becomes {written!r}")
    return tuple(ids)


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
