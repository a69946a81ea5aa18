"""The codec of text: a `tokenizer.json` of the `tokenizers` library, kept byte for byte.

It encodes and decodes; how a tokenizer is made is in `tokenizer_training`. Special tokens in a text are
text: a document that says `<end>` does not end there.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from linnet.codecs import Encoded, known
from linnet.errors import BadInput, library, nearest
from linnet.files import write_atomically
from linnet.tokenized_text import ends_text, written_bytes
from linnet.untrusted import Fields, parse_object, read_object, read_text, refusing

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END, UNKNOWN = "<end>", "<unk>"  # the end of one document is where the next begins
BEGIN_NAMES = ("<begin>", "<s>", "<bos>", "<|begin_of_text|>", "<|im_start|>", "[CLS]", "<|startoftext|>")
END_NAMES = (END, "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "[SEP]")
MOST_UNUSED = 1 << 20  # ids without a token


@dataclass(frozen=True)
class TokenizerCodec:
    """Text and token ids. `content` is the text of a tokenizer.json; begin and end are names in it, or None."""

    content: str
    begin_name: str | None
    end_name: str | None

    def __post_init__(self) -> None:
        for name in (self.begin_name, self.end_name):
            if name is not None and self.tokenizer.token_to_id(name) is None:
                raise BadInput(f'the tokenizer has no token "{name}"{nearest(name, self._special_names)}')

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The library's object, set to take every text as it is."""
        with refusing("this is no tokenizer.json"):
            tokenizer: Tokenizer = tokenizers_library().Tokenizer.from_str(self.content)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        return tokenizer

    @property
    def stored(self) -> dict[str, Any]:
        """The tokenizer.json as an object."""
        return parse_object(self.content, "tokenizer.json")

    @functools.cached_property
    def tokens(self) -> tuple[str, ...]:
        by_id = {i: name for name, i in self.tokenizer.get_vocab(with_added_tokens=True).items()}
        if not by_id:
            raise BadInput("this tokenizer has no tokens")
        if max(by_id) > len(by_id) + MOST_UNUSED:
            raise BadInput(
                f"this tokenizer has {len(by_id):,} tokens, and one of them the id {max(by_id):,}: a model would "
                "need weights for each id below it"
            )
        return tuple(by_id.get(i, f"<unused {i}>") for i in range(max(by_id) + 1))

    @functools.cached_property
    def begin(self) -> int | None:
        return None if self.begin_name is None else self.tokenizer.token_to_id(self.begin_name)

    @functools.cached_property
    def end(self) -> int | None:
        return None if self.end_name is None else self.tokenizer.token_to_id(self.end_name)

    @functools.cached_property
    def unknown(self) -> int | None:
        """The id that stands for what the vocabulary lacks; None where nothing can be lacking."""
        model = self.stored["model"]
        if isinstance(model.get("unk_id"), int):
            return int(model["unk_id"])
        name = model.get("unk_token")
        return None if name is None else self.tokenizer.token_to_id(name)

    def encode(self, value: str) -> Encoded:
        with refusing(f"the tokenizer has no token for a part of {value[:60]!r}"):
            ids = self.tokenizer.encode(value, add_special_tokens=False).ids
        return Encoded(np.array(ids, dtype=np.int64))

    def encode_many(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of many texts end to end, and how many each has; all cores work on it."""
        return self.flat(self.ids_of(texts))

    def ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        with refusing(f"the tokenizer has no token for a part of {texts[0][:60] if texts else ''!r}"):
            return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def flat(self, ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Lists of ids as one array, and the length of each."""
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        small = np.uint16 if len(self.tokens) <= 1 << 16 else np.uint32
        return np.fromiter(itertools.chain.from_iterable(ids), small, int(lengths.sum())), lengths

    def texts_of(self, ids: list[list[int]]) -> list[str]:
        """The texts of many lists of ids that are without begin and end."""
        with refusing("the tokenizer cannot decode"):
            return list(self.tokenizer.decode_batch(ids, skip_special_tokens=False))

    def decode(self, ids: Iterable[int]) -> str:
        """The text; where ids end amid a character, U+FFFD stands for its bytes."""
        framing = (self.begin, self.end)
        found = [i for i in known(ids, len(self.tokens)) if i not in framing]
        with refusing("the tokenizer cannot decode"):
            return self.tokenizer.decode(found, skip_special_tokens=False)

    def continuation(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """What `ids` add to the prompt's text, also where they complete a character that it left open."""
        before, whole = self.decode(prompt), self.decode([*prompt, *ids])
        kept = before.rstrip("\ufffd")
        return whole[len(before) :] if whole.startswith(before) else whole[len(kept) :]

    @functools.cached_property
    def pieces(self) -> tuple[bytes, ...] | None:
        return written_bytes(self._decoder, self._writing)

    def settled(self, ids: Sequence[int]) -> int:
        ended = self._ends_text
        return next((count for count in range(len(ids), 0, -1) if ended[ids[count - 1]]), 0)

    @functools.cached_property
    def _ends_text(self) -> tuple[bool, ...]:
        return ends_text(self._decoder, self._writing)

    @functools.cached_property
    def _decoder(self) -> Mapping[str, Any] | None:
        decoder: Mapping[str, Any] | None = self.stored.get("decoder")
        return decoder

    @functools.cached_property
    def _writing(self) -> tuple[str | None, ...]:
        """The names of the tokens that write something."""
        silent = {self.begin, self.end}
        named = map(self.tokenizer.id_to_token, range(len(self.tokens)))
        return tuple(None if i in silent else name for i, name in enumerate(named))

    def fingerprint(self) -> str:
        framing = f"{self.begin_name}\0{self.end_name}\0"
        return hashlib.sha256((framing + self.content).encode()).hexdigest()[:16]

    @property
    def rewriting(self) -> tuple[str, ...]:
        return ()

    def to_json(self) -> dict[str, Any]:
        return {"kind": "tokenizer", "begin": self.begin_name, "end": self.end_name, "tokenizer": self.content}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TokenizerCodec:
        fields = Fields("the codec", stored)
        names = [fields.text(key) if stored.get(key) is not None else None for key in ("begin", "end")]
        content = fields.text("tokenizer")
        fields.refuse()
        return cls(content, *names)

    @classmethod
    def read(cls, path: Path, begin: str | None = None, end: str | None = None) -> TokenizerCodec:
        """A tokenizer.json, or the folder that holds one; begin and end are found by name unless given."""
        file = path / "tokenizer.json" if path.is_dir() else path
        content = read_text(file)
        try:
            bare = cls(content, None, None)
            names = set(bare.tokens)
        except BadInput as error:
            raise BadInput(f"{file}: {error}") from error
        config = _config_beside(file)
        end = end or _first(names, config.get("eos_token"), *END_NAMES)
        begin = begin or _first(names, config.get("bos_token"), *BEGIN_NAMES) or end
        return cls(content, begin, end)

    def write(self, path: Path) -> None:
        """The tokenizer.json as it was read or trained."""
        write_atomically(path, self.content.encode())

    @property
    def _special_names(self) -> list[str]:
        return [token.content for token in self.tokenizer.get_added_tokens_decoder().values()]


def tokenizers_library() -> Any:
    """The `tokenizers` package, or the advice to install it."""
    return library("tokenizers", "text needs the tokenizers library", "text")


def _config_beside(file: Path) -> dict[str, str]:
    """The begin and end names in the tokenizer_config.json next to a tokenizer, if there is one."""
    config = file.with_name("tokenizer_config.json")
    if not config.is_file():
        return {}
    stored = read_object(config)
    names = {}
    for key in ("bos_token", "eos_token"):
        value = stored.get(key)
        name = value.get("content") if isinstance(value, dict) else value
        if isinstance(name, str):
            names[key] = name
    return names


def _first(present: set[str], *candidates: str | None) -> str | None:
    return next((name for name in candidates if name is not None and name in present), None)
