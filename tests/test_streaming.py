"""Text that comes in pieces, strings that end it, and what may come next: on every kind of codec, for any ids."""

from __future__ import annotations

import functools

import pytest
import regex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.codecs import CharacterCodec, Codec
from linnet.decoding.constraints import Pattern
from linnet.decoding.requests import Stopping, Streaming
from linnet.domains.arithmetic.codec import ArithmeticCodec
from linnet.domains.text.sources import Passage
from linnet.domains.text.tokenizer_training import Tokenizing, train_tokenizer
from linnet.errors import BadInput
from linnet.exchange.tokens import ids_codec
from linnet.tokenization import TokenizerCodec

TEXTS = [
    "the cat sat on the mat",
    "don't do that, café au lait",
    "日本語 日本 的日子 😀 ok 😀",
    "naïve façade\n",
] * 9


def trained(kind: str, vocabulary: int = 320) -> TokenizerCodec:
    wanted = Tokenizing.model_validate({"kind": kind, "vocabulary": vocabulary, "specials": ["<|user|>"]})
    return train_tokenizer([Passage(TEXTS)], wanted).codec


def spelling() -> TokenizerCodec:
    """As older Llama models have it: a mark for a blank, bytes for what has no token, the first blank dropped."""
    names = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁the",
        "cat",
        "é",
        "日",
        "a",
    ]
    model = tokenizers.models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    parts = tokenizers.decoders
    tokenizer.decoder = parts.Sequence(
        [parts.Replace("▁", " "), parts.ByteFallback(), parts.Fuse(), parts.Strip(" ", 1, 0)]
    )
    return TokenizerCodec(tokenizer.to_str(), "<s>", "</s>")


def marking() -> TokenizerCodec:
    names = ["<s>", "▁the", "▁cat", "s", "▁", "é"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=[]))
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    return TokenizerCodec(tokenizer.to_str(), "<s>", None)


KINDS = {
    "characters": lambda: CharacterCodec("abcdé日 \n"),
    "byte pairs": lambda: trained("bpe"),
    "unigram": lambda: trained("unigram"),
    "words": lambda: trained("words", 40),
    "letters": lambda: trained("characters", 60),
    "spelling": spelling,
    "marking": marking,
    "numbers": lambda: ids_codec("test", 12, [])[0],
    "arithmetic": lambda: ArithmeticCodec("add", reverse="all", width=3),
}
WRITING = ("characters", "byte pairs", "unigram", "letters")  # exactly the bytes of their ids in a row


@functools.cache
def codec_of(kind: str) -> Codec:
    return KINDS[kind]()


@st.composite
def sequences(draw: st.DrawFn, codec: Codec, most: int = 25) -> list[int]:
    """Any ids, and often those of a text, whose characters are whole."""
    ids = st.lists(st.integers(0, len(codec.tokens) - 1), max_size=most)
    runs = [draw(ids)]
    if isinstance(codec, TokenizerCodec) and draw(st.booleans()):
        text = draw(st.sampled_from([*TEXTS[:4], "😀é日"]))
        try:
            runs.append(codec.encode(text).ids.tolist())
        except BadInput:  # the smallest of these vocabularies have no token for some characters
            runs.append([])
        runs.append(draw(ids))
    return [token for run in runs for token in run][:most]


STOPS = st.lists(
    st.sampled_from(["a", "ab", "at", " c", "é", "日本", "\n", "the cat", "bab", "s s", "5", "😀"]), max_size=3
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), stops=STOPS)
def test_the_pieces_are_the_text_up_to_its_stop(kind, data, stops):
    codec = codec_of(kind)
    prompt, ids = data.draw(sequences(codec, 6)), data.draw(sequences(codec))
    stopping = Stopping(strings=tuple(stops), text=codec.continuation)
    text = Streaming(codec, prompt, stopping)
    pieces = [text.add(token) for token in ids]
    assert "".join([*pieces, text.finish()]) == stopping.cut(codec.continuation(prompt, ids))
    assert text.finish() == ""


@pytest.mark.parametrize("kind", WRITING)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_certain_is_not_held_back(kind, data):
    """A text comes as far as its last whole character."""
    codec = codec_of(kind)
    pieces = codec.pieces
    assert pieces is not None
    whole = [i for i, piece in enumerate(pieces) if piece and b"\xff" not in piece and decodes(piece)]
    ids = data.draw(st.lists(st.sampled_from(whole), max_size=12))
    text, given_out = Streaming(codec), ""
    for place, token in enumerate(ids, 1):
        given_out += text.add(token)
        assert given_out == codec.decode(ids[:place])


def test_parts_of_characters_and_of_stops_are_held_back() -> None:
    codec = codec_of("byte pairs")
    smile = [bytes([byte]) for byte in "😀".encode()]
    pieces = list(codec.pieces or ())
    spelt = [pieces.index(byte) for byte in smile]
    text = Streaming(codec)
    assert [text.add(token) for token in spelt] == ["", "", "", ""]  # no id of it is a whole character
    assert text.add(pieces.index(b"a")) == "😀a"
    stopped = Streaming(codec, (), Stopping(strings=("abc",), pieces=codec.pieces))
    given_out = [stopped.add(pieces.index(letter)) for letter in (b"a", b"b", b"a", b"b", b"d")]
    assert given_out == ["", "", "ab", "", "abd"]
    ended = Streaming(codec, (), Stopping(strings=("abc", "b"), pieces=codec.pieces))
    given_out = [ended.add(pieces.index(letter)) for letter in (b"a", b"b")]
    assert (given_out, ended.finish()) == (["", ""], "a")  # "abc" might have begun before "b"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_are_no_tokens_are_named(kind) -> None:
    codec = codec_of(kind)
    size = len(codec.tokens)
    for wrong in (-1, size, 10**9):
        named = rf"id {wrong} stands for no token of this codec \(0..{size - 1}\)"
        with pytest.raises(BadInput, match=named):
            Streaming(codec).add(wrong)
        with pytest.raises(BadInput, match=named):
            Streaming(codec, [wrong])
        with pytest.raises(BadInput, match=named):
            codec.decode([0, wrong])


@pytest.mark.parametrize("kind", WRITING)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_bytes_of_ids_are_those_of_their_text(kind, data):
    codec = codec_of(kind)
    ids = data.draw(sequences(codec))
    assert codec.pieces is not None and len(codec.pieces) == len(codec.tokens)
    assert b"".join(codec.pieces[i] for i in ids).decode(errors="replace") == codec.decode(ids)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bytes_that_are_spelt_are_those_of_the_text_where_they_are_whole(data):
    codec = codec_of("spelling")
    ids = data.draw(sequences(codec))
    assert codec.pieces is not None
    written = b"".join(codec.pieces[i] for i in ids)
    if decodes(written):
        assert written.decode().removeprefix(" ") == codec.decode(ids)


def test_codecs_whose_tokens_depend_on_each_other_say_so() -> None:
    assert {kind for kind in KINDS if codec_of(kind).pieces is None} == {"words", "numbers", "arithmetic"}


def decodes(written: bytes) -> bool:
    try:
        written.decode()
    except UnicodeDecodeError:
        return False
    return True


# What ends a sample.


@pytest.mark.parametrize("kind", WRITING)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), stops=STOPS.filter(bool))
def test_a_stop_string_is_seen_with_the_token_that_completes_it(kind, data, stops):
    codec = codec_of(kind)
    ids = data.draw(sequences(codec))
    for stopping in (
        Stopping(strings=tuple(stops), pieces=codec.pieces),
        Stopping(strings=tuple(stops), text=codec.continuation),
    ):
        seen = next((n for n in range(len(ids)) if stopping.reason((), ids[:n], ids[n])), None)
        there = (n for n in range(len(ids)) if any(stop in codec.decode(ids[: n + 1]) for stop in stops))
        assert seen == next(there, None)


def test_why_a_sample_ends() -> None:
    stopping = Stopping(1, frozenset({2}), ("bc",), (b"", b"", b"", b"ab", b"c", b"b"))
    assert [stopping.reason((), (3,), token) for token in (1, 2, 4, 5)] == ["end", "stop", "stop", None]
    assert stopping.reason((), (5, 0, 0, 0, 0), 4) == "stop"  # tokens that write nothing stand between
    assert stopping.reason((), (3,), 99) is None  # models may have ids to spare
    assert stopping.cut("xabcbc") == "xa"


@pytest.mark.parametrize(
    "strings, message",
    [(("a", ""), "a stop string is empty"), (("a\ufffd",), "no text contains"), (("\ud800",), "no text contains")],
)
def test_strings_that_nothing_ends_with_are_refused(strings, message):
    with pytest.raises(BadInput, match=message):
        Stopping(strings=strings, pieces=(b"a",))


# What may come next.


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    expression=st.sampled_from(["[a-z ]+", "the (cat|mat)s?", "日本?.*", r"(\w+ )*\w+", "a{2,5}é?", "(?:ab|a)*c"]),
    kind=st.sampled_from(["byte pairs", "spelling", "characters"]),
)
def test_a_pattern_allows_what_can_still_match(data, expression, kind):
    """Step by step, against the library asked about each id; parts of characters are never allowed."""
    codec = codec_of(kind)
    assert codec.pieces is not None
    pattern, drawn, written = Pattern(expression, codec.pieces, codec.end), [], ""
    for _ in range(6):
        wanted = [
            i
            for i, piece in enumerate(codec.pieces)
            if piece and decodes(piece) and regex.fullmatch(expression, written + piece.decode(), partial=True)
        ]
        complete = regex.fullmatch(expression, written) is not None
        if not wanted and not complete:  # the rest has no token of its own
            with pytest.raises(BadInput, match="no token of this model goes on from"):
                pattern.after(drawn)
            return
        found = pattern.after(drawn)
        ended = [codec.end] if complete and codec.end is not None else []
        assert found is not None and sorted(found) == sorted([*wanted, *ended])
        if not wanted:
            return
        drawn.append(data.draw(st.sampled_from(wanted)))
        written += codec.pieces[drawn[-1]].decode()


def test_a_pattern_remembers_no_more_than_it_may(monkeypatch) -> None:
    monkeypatch.setattr("linnet.decoding.constraints.REMEMBERED", 3)
    pattern = Pattern("a*", (b"a", b"aa"), None)
    for length in range(20):
        assert pattern.after((0,) * length) == (0, 1)
    assert len(pattern._known) == 3


@pytest.mark.parametrize(
    "expression, message", [("(", "is no regular expression"), ("ü", "no token of this model goes on")]
)
def test_patterns_that_lead_nowhere_are_refused(expression, message) -> None:
    with pytest.raises(BadInput, match=message):
        Pattern(expression, (b"a", b"\xc3", b"\xbc"), 0).check()
