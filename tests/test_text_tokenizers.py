"""Tokenizers: lossless where they say so, the same for the same text, and honest about small corpora."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.domains.text.finding import Source
from linnet.domains.text.sources import Passage, Tally, shown
from linnet.domains.text.tokenizer_training import (
    Tokenizing,
    _without_long_runs,
    contradictions,
    splitter,
    supported,
    train_tokenizer,
)
from linnet.errors import BadInput
from linnet.progress import Display, shown_on
from linnet.tokenization import TokenizerCodec

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "mat",
    "Ask",
    "HN",
    "Show",
    "how",
    "why",
    "is",
    "it",
    "that",
    "Rust",
    "Go",
    "C",
]
WORDS += ["faster", "than", "http", "server", "2019", "in", "a"]  # fmt: skip


def titles(n: int = 400, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) for _ in range(n)]


def trained(kind: str = "bpe", texts: list[str] | None = None, **wanted: object) -> TokenizerCodec:
    texts = titles() if texts is None else texts
    settings = Tokenizing.model_validate({"kind": kind, "vocabulary": 300, **wanted})
    return train_tokenizer([Passage(texts)], settings).codec


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def byte_codec(request: pytest.FixtureRequest) -> TokenizerCodec:
    return trained(request.param, urls=True, mentions=True, numbers="groups")


@settings(max_examples=80, deadline=None)
@given(text=st.text(max_size=60))
def test_byte_level_codecs_give_every_text_back(byte_codec: TokenizerCodec, text: str) -> None:
    ids = byte_codec.encode(text).ids
    assert byte_codec.decode(ids) == text
    assert not {byte_codec.begin, byte_codec.end} & set(ids.tolist())


@settings(max_examples=80, deadline=None)
@given(text=st.text(max_size=20), cut=st.integers(0, 60))
def test_a_prompt_and_its_continuation_make_the_whole(byte_codec: TokenizerCodec, text: str, cut: int) -> None:
    ids = byte_codec.encode(text).ids.tolist()
    before, after = ids[:cut], ids[cut:]
    opened = byte_codec.decode(before)
    added = byte_codec.continuation(before, after)
    assert (opened + added == text) or opened.rstrip("\ufffd") + added == text


@settings(max_examples=80, deadline=None)
@given(ids=st.lists(st.integers(0, 299), max_size=20))
def test_any_ids_decode(byte_codec: TokenizerCodec, ids: list[int]) -> None:
    assert isinstance(byte_codec.decode([i for i in ids if i < len(byte_codec.tokens)]), str)


def test_encode_many_is_encode(byte_codec: TokenizerCodec) -> None:
    texts = [*titles(50, 1), "", "日本語"]
    flat, lengths = byte_codec.encode_many(texts)
    assert flat.dtype == np.uint16
    for text, ids in zip(texts, np.split(flat, np.cumsum(lengths)[:-1]), strict=True):
        assert (ids == byte_codec.encode(text).ids).all()


def test_special_tokens_in_a_text_are_text(byte_codec: TokenizerCodec) -> None:
    text = "how <end> is <unk>ed"
    assert byte_codec.decode(byte_codec.encode(text).ids) == text
    framed = [byte_codec.begin, *byte_codec.encode("so").ids, byte_codec.end]
    assert byte_codec.decode(framed) == "so"


def test_marks_after_a_url_and_addresses_of_mail_are_left_to_the_other_rules() -> None:
    from linnet.domains.text.tokenizer_training import splitter

    def cut(text: str, **rules: bool) -> list[str]:
        return [piece for piece, _ in splitter(Tokenizing(**rules)).pre_tokenize_str(text)]  # type: ignore[arg-type]

    assert cut("see https://a.io/b?c=1), and", urls=True) == ["see", "Ġhttps://a.io/b?c=1", "),", "Ġand"]
    assert cut("(www.a.io/b/.", urls=True) == ["(", "www.a.io/b/", "."]
    assert cut("hi @pg_2, ann@example.org", mentions=True) == [
        *("hi", "Ġ@pg_2", ",", "Ġann", "@", "example", ".", "org")
    ]


def test_a_single_special_needs_no_list() -> None:
    assert Tokenizing.model_validate({"specials": "<|user|>"}).specials == ("<|user|>",)


def test_own_specials_are_single_tokens_that_texts_may_hold() -> None:
    codec = trained(specials=("<|user|>", "<|assistant|>"))
    ids = codec.encode("<|user|>why<|assistant|>it is").ids.tolist()
    assert ids[0] == codec.tokens.index("<|user|>")
    assert codec.decode(ids) == "<|user|>why<|assistant|>it is"


def test_rules_cut_where_they_say() -> None:
    text = "See https://a.io/b?c=1 by @pg_2 in 12345 days"

    def pieces(**rules: object) -> list[str]:
        return [piece for piece, _ in splitter(Tokenizing(**rules)).pre_tokenize_str(text)]  # type: ignore[arg-type]

    assert "Ġhttps" in pieces() and "Ġ12345" in pieces()
    assert "Ġhttps://a.io/b?c=1" in pieces(urls=True)
    assert "Ġ@pg_2" in pieces(mentions=True)
    assert {"Ġ123", "45"} <= set(pieces(numbers="groups"))
    assert {"Ġ1", "2", "3", "4", "5"} <= set(pieces(numbers="digits"))
    for rules in ({"urls": True}, {"mentions": True}, {"numbers": "digits"}):
        assert "".join(pieces(**rules)) == text.replace(" ", "Ġ")


def test_a_url_becomes_one_token_where_the_rule_is_on() -> None:
    texts = ["see https://example.org/news now", "at https://example.org/news too"] * 50
    url = "https://example.org/news"
    assert "Ġ" + url in trained(texts=texts, urls=True).tokens
    assert "Ġ" + url not in trained(texts=texts).tokens


def test_words_are_ordered_by_count_then_bytes() -> None:
    codec = trained("words", ["b a é", "a é b", "zz zz zz", "only once"], vocabulary=50)
    assert codec.tokens == ("<end>", "<unk>", "zz", "a", "b", "é")
    assert codec.unknown == 1
    assert codec.decode(codec.encode("a lost b, zz").ids) == "a <unk> b <unk> zz"


def test_words_may_be_lowercased() -> None:
    codec = trained("words", ["The cat.", "the Cat."], vocabulary=50, lowercase=True)
    assert codec.decode(codec.encode("THE cat.").ids) == "the cat."


def test_characters_are_one_id_each() -> None:
    codec = trained("characters", ["héllo\n", "wörld"])
    assert codec.tokens == ("<end>", "<unk>", *sorted(set("héllo\nwörld")))
    assert codec.decode(codec.encode("hello\n\nwörld").ids) == "h<unk>llo\n\nwörld"
    assert len(codec.encode("hello").ids) == 5


def test_characters_keep_the_most_frequent() -> None:
    assert trained("characters", ["aabbbc"], vocabulary=4).tokens[2:] == ("a", "b")


def test_training_in_another_process_gives_the_same_file() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_text_tokenizers import trained\n"
        "print(*(trained(kind).fingerprint() for kind in ('bpe', 'words', 'characters')))"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    printed = {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)}
    assert len(printed) == 1


def test_a_vocabulary_that_the_corpus_cannot_support_is_shrunk_and_noted() -> None:
    wanted = Tokenizing(vocabulary=16_000)
    assert supported(wanted, 5_000_000) == (16_000, ())
    size, notes = supported(wanted, 147_000)
    assert size == 1470
    assert notes == (
        "vocabulary 16,000 was shrunk to 1,470: the training text has about 147,000 characters, "
        "100 for each token",
    )
    texts = titles(20)
    small = train_tokenizer([Passage(texts)], Tokenizing(vocabulary=5000), characters=600)
    assert len(small.codec.tokens) < 400
    assert "instead of 5,000: the corpus has no more pieces that occur 2 times" in small.notes[0]


def test_impossible_wishes_are_refused() -> None:
    with pytest.raises(BadInput, match="at least 257 are needed"):
        trained(vocabulary=200)
    with pytest.raises(BadInput, match="the corpus is empty"):
        train_tokenizer([], Tokenizing())


def test_a_tokenizer_json_is_read_and_written_as_is(tmp_path: Path) -> None:
    codec = trained()
    first = tmp_path / "first.json"
    first.write_text(json.dumps(json.loads(codec.content), indent=3), encoding="utf-8")
    read = TokenizerCodec.read(first)
    read.write(tmp_path / "second" / "tokenizer.json")
    assert (tmp_path / "second" / "tokenizer.json").read_bytes() == first.read_bytes()
    assert (read.begin_name, read.end_name) == ("<end>", "<end>")
    stored = json.loads(json.dumps(read.to_json()))
    assert stored["kind"] == "tokenizer"
    assert TokenizerCodec.from_json(stored) == read


def test_framing_of_a_foreign_tokenizer_is_found(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    vocabulary = {"a": 0, "<|endoftext|>": 1, "</s>": 2, "[START]": 3}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(["<|endoftext|>", "</s>", "[START]"])
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    codec = TokenizerCodec.read(tmp_path)
    assert (codec.begin_name, codec.end_name) == ("</s>", "</s>")
    assert len(codec.encode("aaaa").ids) == 4
    config = {"bos_token": {"content": "[START]"}, "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    codec = TokenizerCodec.read(tmp_path)
    assert (codec.begin, codec.end) == (3, 1)
    with pytest.raises(BadInput, match='no token "<eod>"'):
        TokenizerCodec.read(tmp_path, end="<eod>")


def test_files_that_are_no_tokenizer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"model": 3}')
    with pytest.raises(BadInput, match="bad.json: this is no tokenizer.json"):
        TokenizerCodec.read(tmp_path / "bad.json")
    with pytest.raises(BadInput, match="there is no file .*nowhere.json"):
        TokenizerCodec.read(tmp_path / "nowhere.json")
    (tmp_path / "latin.json").write_bytes(b'{"\xe9": 1}')
    with pytest.raises(BadInput, match="latin.json: byte 2 is no UTF-8 text"):
        TokenizerCodec.read(tmp_path / "latin.json")


def test_progress_shows_files_and_speed(tmp_path: Path) -> None:
    file = tmp_path / "c.txt"
    file.write_text("ten bytes\n")
    stream, now, tally = io.StringIO(), iter(range(10_000)), Tally()

    def passages() -> Iterator[Passage]:
        for _ in range(250):
            tally.files += 1
            tally.documents += 2
            tally.stored_bytes += 10
            yield Passage(["x" * 10_000] * 2)

    with shown_on(Display(stream, every=10, now=lambda: next(now) / 10)):
        assert len(list(shown(passages(), "tokenizer", [Source(str(file), "text")] * 250, tally))) == 250
    first, last = stream.getvalue().splitlines()[:: len(stream.getvalue().splitlines()) - 1]
    assert re.fullmatch(
        r"tokenizer \d+% 0:\d\d eta \d:\d\d \| \d+/250 files \| \d+ documents \| .* MB \| .* MB/s", first
    )
    assert last.startswith("tokenizer 100% ") and "| 250/250 files | 500 documents | 5.0 MB |" in last


def test_unbroken_runs_are_cut_before_a_trainer_sees_them() -> None:
    for long in ("x" * 700, " " * 700, "-" * 700, "日本語" * 300, "a b " + "ab" * 400 + " c"):
        (pieces,) = _without_long_runs([[long]])
        assert "".join(pieces) == long
        assert max(max(map(len, re.findall(r"\w+|[^\w\s]+|\s+", piece))) for piece in pieces) <= 256
    sound = ["a normal text, 12 " * 99, "short", "https://example.org/" + "path/" * 99]
    assert list(_without_long_runs([sound])) == [sound]


def test_a_text_without_a_space_is_learned_in_seconds() -> None:
    """200,000 letters in a row took minutes; what is learned still fits the run."""
    random = np.random.default_rng(0)
    run = "".join(map(chr, 0x4E00 + random.zipf(1.3, 200_000) % 2000))
    began = time.process_time()
    codec = trained("bpe", [run], vocabulary=2_000)
    assert time.process_time() - began < 60
    assert len(codec.encode(run).ids) < 0.8 * len(run)


def test_a_huge_id_is_refused_before_its_rows_are_made(tmp_path: Path) -> None:
    stored = json.loads(trained("words", vocabulary=20).content)
    stored["model"]["vocab"]["cat"] = 2**31
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(stored))
    with pytest.raises(BadInput, match=r"one of them the id 2,147,483,648"):
        TokenizerCodec.read(path)


def test_a_panic_of_the_library_is_bad_input() -> None:
    stored = json.loads(trained().content)
    stored["model"]["continuing_subword_prefix"] = "a prefix that is longer than every token"
    with pytest.raises(BadInput, match="this is no tokenizer.json"):
        TokenizerCodec(json.dumps(stored), None, None).encode("text")


def test_a_tokenizer_without_a_normalizer_has_its_contradictions_named() -> None:
    stored = json.loads(trained("words", vocabulary=20).content)
    del stored["normalizer"]
    codec = TokenizerCodec(json.dumps(stored), None, None)
    assert contradictions(codec, Tokenizing(kind="words", vocabulary=20)) == []
