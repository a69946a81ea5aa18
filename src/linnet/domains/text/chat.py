"""Conversations, and prompts with completions, as documents: a template writes them, and only answers are scored.

A template is a text with `{content}` and perhaps `{role}`; each message is written with it. The content of a
message of the assistant, and what the template has after it, is an answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from linnet.errors import BadInput
from linnet.untrusted import kind_of

TEMPLATES = {"chatml": "<|im_start|>{role}\n{content}<|im_end|>\n", "plain": "{content}"}
ROLES = ("system", "user", "assistant", "tool")
ANSWERS = "assistant"
COLUMNS = ("messages", "prompt", "completion")
MARKER = re.compile(r"<\|[^|<>\s]+\|>")

Spans = tuple[tuple[int, int], ...]  # first character, and one past the last


class Written(NamedTuple):
    text: str
    answers: Spans


class Template(NamedTuple):
    """What stands before and after the content of a message."""

    before: str
    after: str

    @classmethod
    def of(cls, template: str) -> Template:
        """A template by its name, or as it is."""
        text = TEMPLATES.get(template, template)
        if text.count("{content}") != 1 or text.rfind("{role}") > text.index("{content}"):
            raise BadInput(
                f"data.template is {', '.join(TEMPLATES)}, or a text with {{content}} once and perhaps {{role}} "
                f"before it, not {template!r}"
            )
        return cls(*text.split("{content}"))

    def opening(self, role: str) -> str:
        return self.before.replace("{role}", role)

    @property
    def markers(self) -> tuple[str, ...]:
        """Marks such as <|im_end|>, which a tokenizer keeps whole."""
        whole = "".join(self.opening(role) for role in ROLES) + self.after
        return tuple(dict.fromkeys(MARKER.findall(whole)))

    def conversation(self, system: str | None, exchanges: Sequence[tuple[str, str]], message: str) -> list[str]:
        """What stands before the answer to a message, in the parts that training encodes each by itself."""
        parts, text = [], "" if system is None else self.opening("system") + system + self.after
        for question, answer in exchanges:
            parts += [text + self._turn(question), answer + self.after]
            text = ""
        return [*parts, text + self._turn(message)]

    def _turn(self, message: str) -> str:
        """A message of the user, and what opens the answer to it."""
        return self.opening("user") + message + self.after + self.opening(ANSWERS)

    def write(self, row: Mapping[str, Any], where: str) -> Written:
        """The document of a row with `messages`, or with `prompt` and `completion`."""
        text, answers = "", []
        for role, content in _messages(row, where):
            text += self.opening(role)
            first = len(text)
            text += content + self.after
            if role == ANSWERS:
                answers.append((first, len(text)))
        if not answers:
            raise BadInput(f"{where}: no message of the {ANSWERS}, so there is no answer to learn")
        return Written(text, tuple(answers))


def is_chat(row: Mapping[str, Any]) -> bool:
    return "messages" in row or {"prompt", "completion"} <= set(row)


def _messages(row: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    if not is_chat(row):
        names = ", ".join(map(str, row)) or "nothing"
        raise BadInput(f'{where}: a template needs "messages", or "prompt" and "completion"; there is {names}')
    if "messages" not in row:
        pair = (("user", "prompt"), (ANSWERS, "completion"))
        return [(role, _text(row[name], f'{where}: field "{name}"')) for role, name in pair]
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise BadInput(f'{where}: field "messages" holds {kind_of(messages)}, not a list of messages')
    found = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise BadInput(
                f'{where}, message {number}: expected {{"role": ..., "content": ...}} with a role of '
                f"{', '.join(ROLES)}"
            )
        found.append((message["role"], _text(message.get("content"), f"{where}, message {number}")))
    return found


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{where} holds {kind_of(value)}, not text")
    return value
