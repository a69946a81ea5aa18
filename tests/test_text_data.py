"""The data of a text run: parts that are fixed, disjoint and complete, and notes that say what is wrong."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from linnet.domains.contract import Material
from linnet.domains.text import data as text
from linnet.domains.text.data import TextData, TokenizerCodec, Tokenizing
from linnet.errors import BadInput
from linnet.rows import Rows
from text_corpora import corpus, sentences

SMALL = Tokenizing(vocabulary=300)


def texts(material: Material, rows: Rows) -> list[str]:
    return [material.codec.decode(rows.row(i)) for i in range(len(rows))]


def parts(data: TextData, seed: int = 1) -> tuple[list[str], list[str]]:
    material = data.load(seed)
    return texts(material, material.train.rows), texts(material, material.validation.rows)


def test_the_parts_are_fixed_disjoint_and_complete(tmp_path: Path) -> None:
    path = corpus(tmp_path / "c.txt")
    data = TextData(paths=(path,), tokenizer=SMALL)
    train, validation = parts(data)
    assert len(validation) == 30
    assert Counter(train + validation) == Counter(sentences(300))
    assert parts(data, seed=2) == (train, validation), "the split does not depend on the seed of the run"
    assert parts(data.model_copy(update={"split_seed": 5}))[1] != validation
    lines = sentences(300)
    assert validation != lines[-30:] and [lines.index(t) for t in validation] == sorted(
        lines.index(t) for t in validation
    )


def test_characters_and_bytes_are_those_of_the_texts(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("\n".join(f"é {line}" for line in sentences(40)))
    material = TextData(paths=(path,), tokenizer=SMALL).load(1)
    for part in (material.train, material.validation):
        found = texts(material, part.rows)
        assert part.rows.characters == sum(map(len, found))
        assert part.rows.utf8_bytes == sum(len(text.encode()) for text in found)
        assert part.rows.targets == len(part.rows.ids) - len(found)


def test_the_tail_is_held_out_where_that_is_set(tmp_path: Path) -> None:
    path = corpus(tmp_path / "c.txt", 50)
    assert parts(TextData(paths=(path,), split="tail", validation=0.2, tokenizer=SMALL))[1] == sentences(50)[-10:]
    whole = path.read_text()
    train, validation = parts(TextData(paths=(path,), split="tail", documents="file", tokenizer=SMALL))
    assert train == [whole[: int(len(whole) * 0.9)]]
    assert train + validation == [whole[: len(train[0])], whole[len(train[0]) :]]


def test_a_single_document_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("one long line " * 100)
    material = TextData(paths=(path,), tokenizer=SMALL).load(1)
    assert "".join(texts(material, material.train.rows) + texts(material, material.validation.rows)) == (
        "one long line " * 100
    )
    assert "the last 10% of the characters are held out for validation" in material.notes


def test_other_files_may_be_the_validation_part(tmp_path: Path) -> None:
    train, held = corpus(tmp_path / "a.txt", 50), corpus(tmp_path / "b.txt", 9, seed=3)
    data = TextData(paths=(train,), validation_paths=(held,), tokenizer=SMALL)
    assert parts(data) == (sentences(50), sentences(9, 3))


def test_a_split_column_is_obeyed_and_test_rows_are_never_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    words = ["train"] * 40 + ["validation"] * 8 + ["test"] * 12
    rows = [{"text": text, "split": word} for text, word in zip(sentences(60), words, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = TextData(paths=(path,), tokenizer=SMALL)
    assert parts(data) == (sentences(60)[:40], sentences(60)[40:48])
    codec = data.load(1).codec
    part = data.read(codec, [path], "test")
    assert [codec.decode(part.rows.row(i)) for i in range(len(part.rows))] == sentences(60)[48:]
    assert len(data.read(codec, [path]).rows) == 60
    assert len(data.read(codec, [path], "dev").rows) == 8
    with pytest.raises(BadInput, match='no "split" column'):
        data.read(codec, [corpus(tmp_path / "plain.txt", 5)], "test")
    path.write_text("".join(json.dumps(row | {"split": "holdout"}) + "\n" for row in rows))
    with pytest.raises(BadInput, match='the split "holdout" is none of train, validation and test'):
        data.load(1)


def test_files_without_a_split_are_trained_on_and_never_held_out(tmp_path: Path) -> None:
    path, plain = tmp_path / "rows.jsonl", corpus(tmp_path / "plain.txt", 5)
    words = ["train"] * 40 + ["validation"] * 8
    rows = [{"text": text, "split": word} for text, word in zip(sentences(60)[12:], words, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = TextData(paths=(path, plain), tokenizer=SMALL)
    assert parts(data) == (sentences(60)[12:52] + sentences(5), sentences(60)[52:])
    assert "5 documents of no split are read as those of the split train" in data.load(1).notes
    del rows[3]["split"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput, match='rows.jsonl, row 4: no "split", which rows near it have'):
        data.load(1)


def test_without_validation_rows_the_training_rows_are_shared_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    words = ["train"] * 40 + ["test"] * 20
    rows = [{"text": text, "split": word} for text, word in zip(sentences(60), words, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, validation = parts(TextData(paths=(path,), tokenizer=SMALL))
    assert len(validation) == 4
    assert Counter(train + validation) == Counter(sentences(60)[:40])


def test_the_pieces_of_a_document_that_was_cut_stay_in_one_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from linnet.domains.text import sources

    monkeypatch.setattr(sources, "BLOCK", 64)
    monkeypatch.setattr(sources, "LONGEST", 100)
    path = tmp_path / "c.txt"
    path.write_text("".join(f"{f'word{i} ' * 60}\n" for i in range(20)))  # each is cut into several pieces
    for sample in (None, 10):
        train, validation = parts(TextData(paths=(path,), sample=sample, validation=0.3, tokenizer=SMALL))
        words = [{text.split()[0] for text in part} for part in (train, validation)]
        assert not words[0] & words[1]
        assert [len(part) for part in words] == ([14, 6] if sample is None else [7, 3])
        assert all("".join(train + validation).count(f"{word} ") == 60 for word in words[0] | words[1])


def test_what_is_met_in_validation_files_is_noted(tmp_path: Path) -> None:
    train, held = corpus(tmp_path / "a.txt", 50), tmp_path / "b.txt"
    held.write_text("one\n\ntwo\n")
    data = TextData(paths=(train,), validation_paths=(held,), tokenizer=SMALL)
    assert "validation files: left out: 1 empty document" in data.load(1).notes


def test_a_sample_is_drawn_and_noted(tmp_path: Path) -> None:
    path = corpus(tmp_path / "c.txt")
    data = TextData(paths=(path,), sample=50, tokenizer=SMALL)
    train, validation = parts(data)
    assert (len(train), len(validation)) == (45, 5)
    assert not Counter(train + validation) - Counter(sentences(300))
    assert set(train) != set(sentences(300)[:45])
    assert "50 of 300 documents are used (sample)" in data.load(1).notes
    assert len(parts(TextData(paths=(path,), sample=1000, tokenizer=SMALL))[0]) == 270


def test_the_tokenizer_sees_the_training_part_alone(tmp_path: Path) -> None:
    train, held = corpus(tmp_path / "a.txt", 100), tmp_path / "b.txt"
    held.write_text("zebra zebra zebra\n" * 50)
    codec = TextData(paths=(train,), validation_paths=(held,), tokenizer=SMALL).load(1).codec
    assert not any("zeb" in token for token in codec.tokens)


def test_a_named_tokenizer_is_kept_and_then_used(tmp_path: Path) -> None:
    path, file = corpus(tmp_path / "c.txt"), tmp_path / "deep" / "tokenizer.json"
    data = TextData(paths=(path,), tokenizer=SMALL.model_copy(update={"file": str(file)}))
    first = data.load(1)
    assert file.is_file()
    other = TextData(paths=(path,), tokenizer=Tokenizing(vocabulary=290, file=str(file))).load(1)
    assert other.codec == first.codec
    assert any("as it is" in note for note in other.notes)


def test_notes_say_what_a_person_should_know(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["same line", "", *sentences(40), "same line"] * 3).encode())
    notes = "; ".join(TextData(paths=(path,), tokenizer=Tokenizing(kind="words", lowercase=True)).load(1).notes)
    for words in (
        "left out: 3 empty documents",
        "dropped: the byte-order mark of 1 file",
        "line ends read as LF: 1 file with CRLF",
        "13 of 126 documents are held out for validation (shuffled)",
        "documents (100.0%) stand word for word in the training text",
        "the vocabulary has",
    ):
        assert words in notes, notes


def test_a_lossy_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("\n".join(f"The {line}" for line in sentences(60)))
    data = TextData(paths=(path,), tokenizer=Tokenizing(kind="words", vocabulary=60, lowercase=True))
    material = data.load(1)
    assert material.validation.note.startswith("lossy tokenizer: 6 of 6 documents do not come back ('The ")
    assert data.read(material.codec, [path]).note.startswith("lossy tokenizer: 60 of 60")
    assert not TextData(paths=(path,), tokenizer=SMALL).load(1).validation.note


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("\n \n\n")
    with pytest.raises(
        BadInput, match="no documents in .*c.txt: 1 file with 4 bytes, and nothing but 3 empty lines"
    ):
        TextData(paths=(path,)).load(1)
    path.write_text("")
    with pytest.raises(BadInput, match="1 file with 0 bytes"):
        TextData(paths=(path,)).load(1)
    with pytest.raises(BadInput, match="no data named: give at least one file or folder with --data"):
        TextData().load(1)


def test_a_very_short_text_says_what_to_bring(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("x\n")
    with pytest.raises(BadInput, match="c.txt holds 1 character, .* begins with about 100,000 characters"):
        TextData(paths=(path,)).load(1)
    path.write_text("one line of text\n")
    notes = TextData(paths=(path,)).load(1).notes
    assert any(note.startswith("there are only 16 characters to learn from") for note in notes), notes
    corpus(path, 1000)
    assert not any("characters to learn from" in note for note in TextData(paths=(path,)).load(1).notes)


def test_a_store_gives_the_same_rows_and_notices_other_settings(tmp_path: Path) -> None:
    path = corpus(tmp_path / "c.txt")
    data = TextData(paths=(path,), tokenizer=SMALL)
    kept = data.model_copy(update={"store": tmp_path / "store"})
    memory, first, second = data.load(1), kept.load(1), kept.load(2)
    for stored in (first, second):
        assert stored.codec == memory.codec
        for part in ("train", "validation"):
            mine, other = getattr(memory, part).rows, getattr(stored, part).rows
            np.testing.assert_array_equal(mine.ids[:], other.ids[:])
            np.testing.assert_array_equal(mine.starts, other.starts)
            assert (mine.characters, mine.utf8_bytes) == (other.characters, other.utf8_bytes)
    assert first.train.rows.fingerprint() == second.train.rows.fingerprint()
    assert first.train.rows.fingerprint() != first.validation.rows.fingerprint()
    with pytest.raises(BadInput, match="is stale: sample was not set and is 20"):
        kept.model_copy(update={"sample": 20}).load(1)
    TokenizerCodec.read(write_other_tokenizer(tmp_path, path))
    with pytest.raises(BadInput, match="another tokenizer"):
        kept.model_copy(
            update={"tokenizer": SMALL.model_copy(update={"file": str(tmp_path / "other.json")})}
        ).load(1)
    with path.open("a") as stream:
        stream.write("one more line\n")
    with pytest.raises(BadInput, match="is stale: .*c.txt has"):
        kept.load(1)


def test_a_store_of_the_cache_is_shared_and_never_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINNET_CACHE", str(tmp_path / "cache"))
    path = corpus(tmp_path / "c.txt")
    data = TextData(paths=(path,), tokenizer=SMALL, store=Path("auto"))
    first, again = data.load(1), data.load(2)
    assert any("encoded documents are read from" in note for note in again.notes)
    assert first.train.rows.fingerprint() == again.train.rows.fingerprint()
    with path.open("a") as stream:
        stream.write("one more line\n")
    assert len(data.load(1).train.rows) == len(first.train.rows) + 1
    data.model_copy(update={"sample": 20}).load(1)
    assert len(list((tmp_path / "cache" / "stores").iterdir())) == 3
    monkeypatch.setattr(text, "LARGE", 10)
    TextData(paths=(path,), tokenizer=Tokenizing(vocabulary=280)).load(1)
    assert len(list((tmp_path / "cache" / "stores").iterdir())) == 4


def write_other_tokenizer(folder: Path, path: Path) -> Path:
    TextData(paths=(path,), tokenizer=Tokenizing(vocabulary=280, file=str(folder / "other.json"))).load(1)
    return folder / "other.json"


def test_a_resumed_run_keeps_its_tokenizer(tmp_path: Path) -> None:
    data = TextData(paths=(corpus(tmp_path / "c.txt"),), tokenizer=SMALL)
    codec = TextData(paths=data.paths, tokenizer=Tokenizing(vocabulary=280)).load(1).codec
    assert data.load(1, codec).codec is codec


def test_the_baseline_counts_the_training_part(tmp_path: Path) -> None:
    path = corpus(tmp_path / "c.txt")
    data = TextData(paths=(path,), tokenizer=SMALL)
    material = data.load(1)
    assert material.validation.baselines is not None
    held, unigram = material.validation.baselines()
    assert (held.name, unigram.name) == ("5-gram", "unigram") and 0.3 < held.value < unigram.value < 6
    other = data.read(material.codec, [corpus(tmp_path / "d.txt", 50, seed=9)])
    assert other.baselines is not None and len(other.baselines()) == 2
    path.unlink()
    without = data.read(material.codec, [tmp_path / "d.txt"])
    assert without.baselines is None
    assert without.notes == (f"no baseline that counts the training text: there is no file or folder {path}",)
