"""What is read from files, and what a person reads about files that cannot be read."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.domains.text import sources
from linnet.domains.text.corpus import drawn
from linnet.domains.text.finding import find
from linnet.domains.text.sources import Reading, Tally, read_passages
from linnet.errors import BadInput


def read(*paths: Path | str, **reading: str) -> tuple[list[str], Tally]:
    tally = Tally()
    passages = read_passages(find(paths).sources, Reading(**reading), tally)  # type: ignore[arg-type]
    return [text for passage in passages for text in passage.texts], tally


def message(*paths: Path, **reading: str) -> str:
    with pytest.raises(BadInput) as caught:
        read(*paths, **reading)
    return str(caught.value)


def test_line_paragraph_and_file_documents(tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_text("one\ntwo\n\n\nthree\n \t\nfour\n")
    assert read(path)[0] == ["one", "two", "three", "four"]
    assert read(path, documents="paragraph")[0] == ["one\ntwo", "three", "four"]
    assert read(path, documents="file")[0] == ["one\ntwo\n\n\nthree\n \t\nfour\n"]
    assert read(path)[1].empty == 3


def test_every_form_gives_the_same_documents(tmp_path: Path) -> None:
    import polars

    texts = ["héllo wörld", "second", "日本語 \U0001f600"]
    joined = "\n".join(texts).encode()
    rows = "\n".join(json.dumps({"id": i, "text": t}) for i, t in enumerate(texts)).encode()
    (tmp_path / "a.txt").write_bytes(joined)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(joined))
    (tmp_path / "c.jsonl").write_bytes(rows)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(rows))
    polars.DataFrame({"text": texts}).write_parquet(tmp_path / "e.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert read(path)[0] == texts, path
    documents, tally = read(tmp_path)
    assert documents == texts * 5
    assert (tally.files, tally.documents) == (5, 15)


@given(
    rows=st.lists(st.tuples(st.text(), st.text()), max_size=6),
    block=st.integers(1, 9),
    mark=st.sampled_from(",\t"),
)
def test_a_column_of_a_table_is_the_documents(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], block: int, mark: str
) -> None:
    """Whatever stands in a cell, and wherever a block ends: what csv wrote comes back, line ends as LF."""
    written = [[cell.replace("\0", "").replace("\r", "") for cell in row] for row in rows]
    table = tmp_path_factory.mktemp("tables") / ("titles.csv" if mark == "," else "titles.tsv")
    with table.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter=mark, lineterminator="\n").writerows([["id", "title"], *written])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BLOCK", block)
        found = list(read_passages(find([table]).sources, Reading(field="title"), Tally()))
    expected = [text for _, text in written if text and not text.isspace()]
    assert [text for passage in found for text in passage.texts] == expected


def test_what_is_wrong_with_a_table_is_named(tmp_path: Path) -> None:
    table = tmp_path / "titles.csv"
    table.write_text("id,title\n1,Ada\n2\n")
    assert 'row 2: no field "text"; there is id, title; name the one with the text: --set field=NAME' in message(
        table
    )
    assert 'row 3: field "title" holds null, not text' in message(table, field="title")


def test_a_folder_is_read_in_the_order_of_paths_without_hidden_files(tmp_path: Path) -> None:
    for name in (
        "AB/wiki_00",
        "AA/wiki_01",
        "AA/wiki_00",
        "AA/.wiki.crc",
        "_more/x.txt",
        "AA/_SUCCESS",
        "citations.txt",
        "AA/picture.png",
        "README.md",
        "LICENSE",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(tmp_path)[0] == ["AA/wiki_00", "AA/wiki_01", "AB/wiki_00", "_more/x.txt", "citations.txt"]
    assert find([tmp_path]).notes == (
        f"not read: 4 files of {tmp_path} (and 1 hidden): AA/_SUCCESS, AA/picture.png, LICENSE, README.md; "
        "text is read from .txt, .txt.gz, .jsonl, .jsonl.gz, .parquet and, by name, .csv and .tsv",
    )


def test_a_file_of_an_unknown_kind_is_read_as_lines_and_that_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"text": "one"}]\n')
    assert read(path)[0] == ['[{"text": "one"}]']
    assert find([path]).notes == (
        f'{path} is read as plain text, since the ending ".json" names no kind that is known; '
        "rows of JSON are known by the ending .jsonl",
    )
    path = tmp_path / "rows.txt"
    path.write_text("one\n")
    assert not find([path]).notes


def test_what_is_replaced_in_rows_is_counted_too(tmp_path: Path) -> None:
    import polars

    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a\\u0000b\\u0000 \\ud800"}\n')
    documents, tally = read(path, errors="replace")
    assert documents == ["a\ufffdb\ufffd \ufffd"]
    assert tally.remarks() == (
        "replaced by U+FFFD: 2 NUL characters",
        "replaced by U+FFFD: 1 half surrogate pair",
    )
    polars.DataFrame({"text": ["a\0"]}).write_parquet(tmp_path / "p.parquet")
    assert read(tmp_path / "p.parquet", errors="replace")[1].remarks() == ("replaced by U+FFFD: 1 NUL character",)


def test_gzip_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "no-suffix"
    path.write_bytes(gzip.compress(b"packed"))
    assert read(path)[0] == ["packed"]


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.sampled_from("ab é\n\r日\U0001f600"), max_size=60),
    block=st.integers(1, 7),
    documents=st.sampled_from(["line", "paragraph", "file"]),
)
def test_blocks_do_not_matter(tmp_path_factory, text: str, block: int, documents: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("blocks") / "x.txt"
    path.write_bytes(text.encode())
    whole = read(path, documents=documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BLOCK", block)
        assert read(path, documents=documents) == whole
    if documents == "paragraph":
        assert not any(line.isspace() or not line for text in whole[0] for line in text.split("\n"))
    normal = text.replace("\r\n", "\n").replace("\r", "\n")
    if documents == "line":
        assert whole[0] == [line for line in normal.split("\n") if line.strip()]
    elif documents == "file":
        assert whole[0] == ([normal] if normal.strip() else [])


def test_a_bad_byte_is_named_with_file_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xc3\xa9\n" * 300_000 + b"caf\xe9 noir\n")
    error = message(path)
    assert (
        "latin.txt" in error
        and f"{300_000 * 6 + 3:,}" in error
        and "0xe9" in error
        and "--errors replace" in error
    )
    documents, tally = read(path, errors="replace")
    assert documents[-1] == "caf\ufffd noir"
    assert "replaced by U+FFFD: 1 invalid UTF-8 character" in tally.remarks()


def test_a_cut_character_at_the_end_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.txt"
    path.write_bytes("abc日".encode()[:-1])
    assert "byte 3 (0xe6)" in message(path)
    assert read(path, errors="replace")[0] == ["abc\ufffd"]


def test_the_offset_counts_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "bom.txt"
    path.write_bytes(b"\xef\xbb\xbfab\xff")
    assert "byte 5 (0xff)" in message(path)


def test_a_byte_order_mark_is_dropped_and_noted(tmp_path: Path) -> None:
    path = tmp_path / "bom.txt"
    path.write_bytes(b"\xef\xbb\xbfhello\n")
    documents, tally = read(path)
    assert documents == ["hello"]
    assert tally.remarks() == ("dropped: the byte-order mark of 1 file",)


def test_mixed_line_ends_are_read_as_lf_and_noted(tmp_path: Path) -> None:
    path = tmp_path / "mixed.txt"
    path.write_bytes(b"one\r\ntwo\rthree\nfour\x0bstill four\xe2\x80\xa8and still")
    documents, tally = read(path)
    assert documents == ["one", "two", "three", "four\x0bstill four\u2028and still"]
    assert tally.remarks() == ("line ends read as LF: 1 file with CR and CRLF and LF",)


def test_nul_bytes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "nul.txt"
    path.write_bytes(b"some text " * 20 + b"\0more\n")
    assert "byte 200 is NUL" in message(path)
    documents, tally = read(path, errors="replace")
    assert documents == ["some text " * 20 + "\ufffdmore"]
    assert tally.remarks() == ("replaced by U+FFFD: 1 NUL character",)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (bytes(range(256)) * 8, "looks like a binary file"),
        (b"PK\x03\x04rest", "a zip archive"),
        ("hello".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        ("hello\n".encode("utf-16-le") * 9, "iconv -f UTF-16LE -t UTF-8"),
        ("hello\n".encode("utf-16-be") * 9, "iconv -f UTF-16BE -t UTF-8"),
        ("naïve\n".encode("latin-1"), "iconv -f WINDOWS-1252 -t UTF-8 data.txt"),
    ],
)
def test_binary_files_are_refused_by_what_they_are(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(content)
    error = message(path)
    assert what in error and "data.txt" in error


def test_a_gzip_file_that_was_cut_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.txt.gz"
    path.write_bytes(gzip.compress(np.random.default_rng(0).bytes(1000).hex().encode())[:-200])
    assert "cut.txt.gz is no whole gzip file" in message(path)


def test_rows_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    import polars

    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n\n{"text": oops}\n')
    assert "rows.jsonl, row 3 is not JSON" in message(path)
    path.write_text('{"text": "fine"}\n{"body": "b", "id": 1}\n')
    assert 'row 2: no field "text"; there is body, id' in message(path)
    path.write_text('{"text": 7}\n')
    assert 'row 1: field "text" holds an integer, not text' in message(path)
    path.write_text('[\n{"text": "a"}\n]')
    assert "row 1 is not JSON: Expecting value (column 2); each line holds one object, such as" in message(path)
    path.write_text('["a"]\n')
    assert "row 1: expected an object" in message(path)
    path.write_text('{"text": "half \\ud800"}\n')
    assert "half a surrogate pair" in message(path)
    assert read(path, errors="replace")[0] == ["half \ufffd"]
    polars.DataFrame({"body": ["a"], "n": [1]}).write_parquet(tmp_path / "p.parquet")
    assert 'no column "text"; there is body, n' in message(tmp_path / "p.parquet")
    assert 'column "n" holds Int64, not text' in message(tmp_path / "p.parquet", field="n")
    (tmp_path / "q.parquet").write_text("no parquet")
    assert "q.parquet is no Parquet file" in message(tmp_path / "q.parquet")


def test_a_line_of_json_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK", 1 << 8)
    monkeypatch.setattr(sources, "LONGEST_ROW", 1 << 10)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n{"text": "' + "x" * 5_000)
    assert "row 2: more than 1,024 characters in one line" in message(path)


def test_split_words_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"text": t, "split": s}) + "\n" for t, s in zip("abc", ("x", "y", "x"), strict=True))
    )
    tally = Tally()
    (first,) = read_passages(find([path]).sources, Reading(), tally)
    assert first.splits == ["x", "y", "x"]


def test_missing_and_empty_places_are_named(tmp_path: Path) -> None:
    assert "there is no file or folder" in message(tmp_path / "nowhere")
    assert "it is empty" in message(tmp_path)
    (tmp_path / "a.png").write_bytes(b"x")
    assert "it holds 1 .png; text is read from .txt" in message(tmp_path)
    with pytest.raises(BadInput, match="give at least one file or folder"):
        find([])


def test_a_very_long_document_is_cut_at_a_space_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK", 64)
    monkeypatch.setattr(sources, "LONGEST", 100)
    text = "word " * 100
    for documents in ("line", "file"):
        path = tmp_path / "long.txt"
        path.write_text(text)
        pieces, tally = read(path, documents=documents)
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= 100
        assert tally.cut == len(pieces) - 1
        assert "cut at a space" in tally.remarks()[0]


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK", 1 << 14)

    def peak(lines: int) -> int:
        path = tmp_path / f"{lines}.txt"
        path.write_text("a line of text that repeats\n" * lines)
        tracemalloc.start()
        passages = read_passages(find([path]).sources, Reading(), Tally())
        assert sum(len(passage.texts) for passage in passages) == lines
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    small = peak(2_000)
    assert peak(40_000) < 1.2 * small + 20_000


@pytest.mark.filterwarnings("ignore")
def test_a_data_set_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the datasets extra is not installed")
    (tmp_path / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read(f"hf:{tmp_path}")[0] == ["one", "two"]
    with pytest.raises(BadInput, match="cannot be read"):
        read(f"hf:{tmp_path}@nothing")


@given(total=st.integers(0, 300), share=st.floats(0, 1), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_draws_have_the_exact_size_and_are_settled_by_the_seed(total: int, share: float, seed: int) -> None:
    take = round(total * share)
    marks = list(drawn(total, take, seed))
    assert len(marks) == total and sum(marks) == take
    assert marks == list(drawn(total, take, seed))


def test_draws_are_even_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from linnet.domains.text import corpus

    monkeypatch.setattr(corpus, "MARKS", 8)
    hits = np.zeros(20)
    for seed in range(600):
        hits += list(drawn(20, 5, seed))
    assert abs(hits / 600 - 0.25).max() < 0.08
