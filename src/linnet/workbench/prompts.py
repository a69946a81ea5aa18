"""Prompts and choices as ids of a model, and what its tokenizer loses of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from linnet.codecs import Codec
from linnet.errors import BadInput
from linnet.exchange.tokens import is_ids_codec, parse_ids
from linnet.tokenization import TokenizerCodec
from linnet.workbench.open import Opened

SHOWN = 40  # characters of a prompt, or unknown parts of it, that a message names


@dataclass(frozen=True)
class Prompt:
    """A prompt as its model reads it; `ids` begin with the begin token of models that have one."""

    name: str  # what messages call it
    text: str
    ids: tuple[int, ...]
    notes: tuple[str, ...] = ()  # what a person should know of it


def no_prompt(codec: Codec) -> Prompt:
    """No text at all: the model begins by itself."""
    if codec.begin is None:
        raise BadInput("this model has no begin token, so it needs something to go on from: give a prompt")
    return Prompt("no prompt", "", (codec.begin,))


def read_prompt(opened: Opened, text: str, name: str) -> Prompt:
    """A prompt that the model can go on from; ids in words where the model has no tokenizer."""
    codec, config = opened.codec, opened.model.config
    if not text:
        raise BadInput(f"{name} is empty: there is nothing to go on from")
    try:
        ids = parse_ids(text, config.vocabulary) if is_ids_codec(codec) else opened.prompt(text)
    except BadInput as error:
        raise BadInput(f"{name}: {error}") from None
    if len(ids) > config.context:
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        raise BadInput(
            f"{name} ({shown!r}) has {len(ids)} tokens, and the context of this model is {config.context}"
        )
    notes = _lost(codec, text, name)
    whole = text if is_ids_codec(codec) else codec.decode(ids)
    if whole != text and whole.startswith(text):  # the codec completes what it reads, such as a sum without its =
        text = whole
        notes.append(f"{name} is read as {whole!r}")
    return Prompt(name, text, ids, tuple(notes))


def after_begin(codec: Codec, ids: tuple[int, ...]) -> tuple[int, ...]:
    """The ids of a prompt without its begin token."""
    return ids if codec.begin is None else ids[1:]


def text_after(codec: Codec, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """What ids write after a prompt. Some models have embeddings to spare, whose ids write nothing."""
    return codec.continuation(after_begin(codec, tuple(prompt)), [i for i in ids if i < len(codec.tokens)])


def choice_after(codec: Codec, prompt: Sequence[int], choice: str) -> tuple[int, ...]:
    """The ids of a choice after a prompt: as both are written together where that leaves the prompt as it is."""
    if not choice.strip() if is_ids_codec(codec) else not choice:
        raise BadInput("a choice is empty: there is nothing to generate")
    if is_ids_codec(codec):
        return parse_ids(choice, len(codec.tokens))
    whole = codec.encode(codec.decode(prompt) + choice).ids.tolist()
    ids = whole[len(prompt) :]
    if whole[: len(prompt)] != list(prompt) or codec.continuation(prompt, ids) != choice:
        ids = codec.encode(choice).ids.tolist()
    written = codec.continuation(prompt, ids)
    if written != choice:
        raise BadInput(f"the choice {choice!r} cannot be written after its prompt: it becomes {written!r}")
    return tuple(ids)


def _lost(codec: Codec, prompt: str, name: str) -> list[str]:
    """The parts of a prompt that this tokenizer has no token for."""
    if not isinstance(codec, TokenizerCodec) or is_ids_codec(codec):
        return []
    encoding = codec.tokenizer.encode(prompt, add_special_tokens=False)
    unknown = [prompt[a:b] for i, (a, b) in zip(encoding.ids, encoding.offsets, strict=True) if i == codec.unknown]
    # Where bytes are left out the offsets of the library are wrong, so each letter is asked about by itself.
    letters = dict.fromkeys(letter for letter in prompt if not letter.isspace())
    gone = [letter for letter in letters if not len(codec.encode(letter))]
    notes = []
    if unknown:
        token = codec.tokens[codec.unknown or 0]
        notes.append(f"{name}: the tokenizer has no token for {_listed(unknown)}; the model reads {token} there")
    if gone:
        notes.append(f"{name}: the tokenizer has no token for {_listed(gone)}; the model does not see that")
    return notes


def _listed(parts: Sequence[str]) -> str:
    different = list(dict.fromkeys(parts))
    more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    return ", ".join(map(repr, different[:SHOWN])) + more
