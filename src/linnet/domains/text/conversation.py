"""Talking with a model: messages are written with the template of its run, as training wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from linnet.codecs import Codec
from linnet.domains.text.chat import MARKER, Template
from linnet.domains.text.data import TextData
from linnet.errors import BadInput, counted
from linnet.records import GenerationRecord, PieceRecord
from linnet.workbench import Options, Session
from linnet.workbench.prompts import Prompt

ROOM = 4  # a quarter of the context is kept for an answer where no number of tokens is given


@dataclass
class Conversation:
    """The exchanges so far. Where the context is full, the oldest ones are left out of what the model reads."""

    session: Session
    template: Template
    system: str | None
    options: Options
    exchanges: list[tuple[str, str]] = field(default_factory=list)  # message, answer

    @classmethod
    def open(
        cls,
        run: Path | str,
        options: Options,
        *,
        template: str | None = None,
        system: str | None = None,
        checkpoint: int | None = None,
        device: str | None = None,
    ) -> Conversation:
        """Load a run once. `template` is that of its data unless another is given."""
        session = Session.open(run, checkpoint=checkpoint, device=device)
        data = session.opened.run.data
        chosen = template or (data.template if isinstance(data, TextData) else None)
        if chosen is None:
            raise BadInput(
                f"{run} was not trained on conversations, so it has no template: name one with --template "
                "(chatml, plain, or a text with {role} and {content}), or use linnet generate"
            )
        return cls(session, Template.of(chosen), system, options)

    def answer(self, message: str) -> Iterator[PieceRecord | GenerationRecord]:
        """The answer to a message, as it comes; afterwards both belong to the conversation."""
        prompt = self._prompt(message)
        ids, strings = stops_of(self.template, self.session.opened.codec)
        options: Options = {**self.options, "n": 1, "stops": strings, "stop_ids": ids}
        options["seed"] = (self.options.get("seed") or 0) + len(self.exchanges)
        for record in self.session.go_on([prompt], **options):
            if isinstance(record, GenerationRecord):
                self.exchanges.append((message, record.text))
            yield record

    def _prompt(self, message: str) -> Prompt:
        """As much of the conversation as fits, with the message at its end."""
        context = self.session.opened.model.config.context
        room = min(self.options.get("max_tokens") or max(1, context // ROOM), context - 1)
        for first in range(len(self.exchanges) + 1):
            parts = self.template.conversation(self.system, self.exchanges[first:], message)
            ids = encoded(self.session.opened.codec, parts)
            if len(ids) + room <= context:
                note = f"the first {counted(first, 'exchange')} no longer fit into the context and are left out"
                return Prompt("the conversation", "".join(parts), ids, (note,) if first else ())
        raise BadInput(
            f"the message has {len(ids)} tokens as it is written; beside {room} for the answer the context has "
            f"room for {context - room}"
        )


def encoded(codec: Codec, parts: Sequence[str]) -> tuple[int, ...]:
    """The ids of parts of a document that are encoded each by itself, after the begin token."""
    begin = [] if codec.begin is None else [codec.begin]
    return (*begin, *(token for part in parts for token in codec.encode(part).ids.tolist()))


def stops_of(template: Template, codec: Codec) -> tuple[list[int], list[str]]:
    """What ends an answer beside the end token: the mark after it, or else the next message."""
    marks = MARKER.findall(template.after)
    if marks and marks[0] in codec.tokens:
        return [codec.tokens.index(marks[0])], []
    following = marks[0] if marks else template.after + template.opening("user")
    return [], [following] if following.strip() else []
