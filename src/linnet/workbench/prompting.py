"""Prompts and choices as ids of a model, and what its tokenizer loses of them."""

from __future__ import annotations

from collections.abc import Sequence

from linnet.codecs import Codec
from linnet.domains.text.tokenization import TokenizerCodec
from linnet.errors import BadInput
from linnet.exchange.tokens import ids_in_words, speaks_in_ids
from linnet.workbench.opening import Opened

SHOWN = 40  # characters of a prompt, or unknown parts of it, that a message names


def read(opened: Opened, prompt: str, place: str) -> tuple[int, ...]:
    """The ids of a prompt that the model can go on from; `place` is what errors call it."""
    if not prompt:
        raise BadInput(f"{place} is empty: there is nothing to go on from")
    context = opened.model.config.context
    try:
        ids = _ids(opened, prompt)
    except BadInput as error:
        raise BadInput(f"{place}: {error}") from None
    if len(ids) > context:
        shown = prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]}..."
        raise BadInput(f"{place} ({shown!r}) has {len(ids)} tokens, and the context of this model is {context}")
    return ids


def _ids(opened: Opened, prompt: str) -> tuple[int, ...]:
    if speaks_in_ids(opened.codec):
        return ids_in_words(prompt, opened.model.config.vocabulary)
    return opened.prompt(prompt)


def chosen(codec: Codec, prompt: Sequence[int], choice: str) -> tuple[int, ...]:
    """The ids of a choice after a prompt: as both are written together where that leaves the prompt as it is."""
    if not choice.strip() if speaks_in_ids(codec) else not choice:
        raise BadInput("a choice is empty: there is nothing to generate")
    if speaks_in_ids(codec):
        return ids_in_words(choice, len(codec.tokens))
    whole = codec.encode(codec.decode(prompt) + choice).ids.tolist()
    ids = whole[len(prompt) :]
    if whole[: len(prompt)] != list(prompt) or codec.continuation(prompt, ids) != choice:
        ids = codec.encode(choice).ids.tolist()
    written = codec.continuation(prompt, ids)
    if written != choice:
        raise BadInput(f"the choice {choice!r} cannot be written after its prompt: it becomes {written!r}")
    return tuple(ids)


def lost(codec: Codec, prompt: str, place: str) -> list[str]:
    """What a person should know of the parts of a prompt that this tokenizer has no token for."""
    if not isinstance(codec, TokenizerCodec) or speaks_in_ids(codec):
        return []
    encoding = codec.tokenizer.encode(prompt, add_special_tokens=False)
    unknown = [prompt[a:b] for i, (a, b) in zip(encoding.ids, encoding.offsets, strict=True) if i == codec.unknown]
    # Where bytes are left out the offsets of the library are wrong, so each letter is asked about by itself.
    letters = dict.fromkeys(letter for letter in prompt if not letter.isspace())
    gone = [letter for letter in letters if not len(codec.encode(letter))]
    said = []
    if unknown:
        name = codec.tokens[codec.unknown or 0]
        said.append(f"{place}: the tokenizer has no token for {_listed(unknown)}; the model reads {name} there")
    if gone:
        said.append(f"{place}: the tokenizer has no token for {_listed(gone)}; the model does not see that")
    return said


def _listed(parts: Sequence[str]) -> str:
    different = list(dict.fromkeys(parts))
    more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    return ", ".join(map(repr, different[:SHOWN])) + more
