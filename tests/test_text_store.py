"""The token store: the same rows as in memory, however it was interrupted, and never a stale or a cut one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.mutations import rehash_store
from faults import Fails, Killed, disk, failing_at, full_from, killed_at
from linnet.data import Packed
from linnet.domains.text.data import TextData
from linnet.domains.text.encoding import encoded
from linnet.domains.text.finding import find
from linnet.domains.text.sources import Passage, Reading, Stream, Tally, read_passages
from linnet.domains.text.store import (
    Manifest,
    Origin,
    Segment,
    Store,
    StoredPart,
    alone,
    open_store,
    write_store,
)
from linnet.domains.text.tokenizer_training import Tokenizing, train_tokenizer
from linnet.errors import BadInput, RunFailed
from linnet.files import locked
from linnet.progress import Display, shown_on
from linnet.tokenization import TokenizerCodec

TEXTS = [f"document number {i} says {'so ' * (i % 5)}é" for i in range(200)]


@pytest.fixture(scope="module")
def codec() -> TokenizerCodec:
    return train_tokenizer([Passage(TEXTS)], Tokenizing(vocabulary=290)).codec


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(TEXTS))
    return path


def origin(corpus: Path, codec: TokenizerCodec | None = None, **settings: object) -> Origin:
    return Origin(find([corpus]).sources, settings, codec.fingerprint() if codec else None)


def make(
    folder: Path, codec: TokenizerCodec, made_from: Origin, read: Stream, segment_tokens: int = 1 << 26
) -> Store:
    with alone(folder):
        return write_store(folder, codec, made_from, {"train": read}, segment_tokens=segment_tokens)


def write(
    folder: Path, corpus: Path, codec: TokenizerCodec, segment_tokens: int = 1 << 26, **settings: object
) -> Store:
    def read(tally: Tally) -> Iterator[Passage]:
        for passage in read_passages(find([corpus]).sources, Reading(), tally):
            for first in range(0, len(passage.texts), 20):
                yield Passage(passage.texts[first : first + 20])

    return make(folder, codec, origin(corpus, codec, **settings), read, segment_tokens)


def in_memory(codec: TokenizerCodec) -> np.ndarray:
    return np.concatenate([block.ids for block in encoded(codec, [Passage(TEXTS)])])


@pytest.mark.parametrize("segment_tokens", [1 << 26, 500])
def test_a_store_holds_the_rows_of_the_corpus(
    tmp_path: Path, corpus: Path, codec: TokenizerCodec, segment_tokens: int
) -> None:
    store = write(tmp_path / "store", corpus, codec, segment_tokens)
    assert (len(store.manifest.parts["train"].segments) > 3) == (segment_tokens == 500)
    rows = store.rows("train")
    np.testing.assert_array_equal(rows.ids[:], in_memory(codec))
    assert [codec.decode(rows.row(i)) for i in range(len(rows))] == TEXTS
    assert rows.row_characters.tolist() == list(map(len, TEXTS)) and rows.characters == sum(map(len, TEXTS))
    assert rows.row_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    scored = np.ones(len(rows.ids), bool)
    scored[rows.starts[:-1]] = False
    np.testing.assert_array_equal(rows.scored[:], scored)
    assert rows.targets == scored.sum()
    assert rows.longest == max(np.diff(rows.starts))
    assert store.codec == codec
    store.verify()


def test_shards_do_not_change_the_batches(tmp_path: Path, corpus: Path, codec: TokenizerCodec) -> None:
    whole, parts = (write(tmp_path / str(n), corpus, codec, n).rows("train") for n in (1 << 26, 300))
    one, other = Packed(whole, 3, 16, 1), Packed(parts, 3, 16, 1)
    for step in range(one.steps_per_epoch):
        assert (one.batch(step)["ids"] == other.batch(step)["ids"]).all()
        assert (one.batch(step)["weights"] == other.batch(step)["weights"]).all()


def test_an_interrupted_encoding_goes_on(tmp_path: Path, corpus: Path, codec: TokenizerCodec) -> None:
    folder, read_again = tmp_path / "store", []

    def interrupted(tally: Tally) -> Iterator[Passage]:
        for first in range(0, 120, 20):
            yield Passage(TEXTS[first : first + 20])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(folder, codec, origin(corpus, codec), interrupted, 700)
    with pytest.raises(BadInput, match="is unfinished"):
        open_store(folder)
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    done = manifest.parts["train"].rows
    assert 0 < done < 120

    def read(tally: Tally) -> Iterator[Passage]:
        for first in range(0, 200, 20):
            read_again.append(first)
            yield Passage(TEXTS[first : first + 20])

    store = make(folder, codec, origin(corpus, codec), read, 700)
    np.testing.assert_array_equal(store.rows("train").ids[:], in_memory(codec))
    assert store.manifest.parts["train"].segments[:1] == manifest.parts["train"].segments[:1]
    assert not list(folder.glob(".*.part"))
    store.verify()
    read_again.clear()
    make(folder, codec, origin(corpus, codec), read)
    assert read_again == [], "a complete store is opened and nothing is read"


def test_of_two_that_make_one_store_the_second_waits(tmp_path: Path, corpus: Path, codec: TokenizerCodec) -> None:
    """As processes that train together do, in the worst order: the second begins while the first is midway."""
    folder, midway, done = tmp_path / "store", threading.Event(), threading.Event()
    read_by: list[str] = []

    def slowly(tally: Tally) -> Iterator[Passage]:
        for first in range(0, 200, 20):
            read_by.append("first")
            yield Passage(TEXTS[first : first + 20])
            if first == 100:
                midway.set()
                assert not done.wait(0.3), "the second has made a store of its own"

    def second() -> None:
        midway.wait()
        write(folder, corpus, codec, 500)
        read_by.append("second")
        done.set()

    thread = threading.Thread(target=second)
    thread.start()
    store = make(folder, codec, origin(corpus, codec), slowly, 500)
    thread.join()
    assert read_by == ["first"] * 10 + ["second"], "the second only opens it"
    np.testing.assert_array_equal(store.rows("train").ids[:], in_memory(codec))
    open_store(folder).verify()


def test_two_processes_that_want_one_store_get_it_whole(tmp_path: Path, corpus: Path) -> None:
    """Each starts as the other does; one encodes, and both train on the same rows."""
    program = (
        "import sys; from pathlib import Path; from linnet.domains.text.data import TextData, Tokenizing\n"
        "paths = [Path(name) for name in sys.argv[1:]]\n"
        "data = TextData(paths=paths[:1], tokenizer=Tokenizing(vocabulary=290), store=paths[1])\n"
        "sys.stdin.read(1)\n"
        "print(data.load(1).train.rows.fingerprint())"
    )
    command = [sys.executable, "-c", program, str(corpus), str(tmp_path / "store")]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    printed = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    store = open_store(tmp_path / "store")
    store.verify()
    assert printed == {store.rows("train").fingerprint() + "\n"}


def test_a_process_that_waits_for_another_says_so(tmp_path: Path) -> None:
    stream, held = io.StringIO(), contextlib.ExitStack()
    held.enter_context(locked(tmp_path))
    thread = threading.Timer(0.3, held.close)
    thread.start()
    with shown_on(Display(stream)), locked(tmp_path, wait=True):
        assert f"waiting for another process that writes {tmp_path}" in stream.getvalue()
    thread.join()


@pytest.mark.parametrize("fails", [killed_at, failing_at, full_from])
def test_an_encoding_that_fails_anywhere_goes_on(
    tmp_path: Path, corpus: Path, codec: TokenizerCodec, fails: Callable[[int], Fails]
) -> None:
    for step in range(1, 500, 13):
        folder = tmp_path / f"store{step}"
        with disk(fails(step)):
            try:
                write(folder, corpus, codec, 500)
                break
            except (Killed, BadInput, RunFailed):
                pass
        store = write(folder, corpus, codec, 500)
        store.verify()
        np.testing.assert_array_equal(store.rows("train").ids[:], in_memory(codec))
        assert not [name for name in os.listdir(folder) if name.startswith(".")]
    assert step > 60


def test_a_stale_store_is_refused_with_what_changed(tmp_path: Path, corpus: Path, codec: TokenizerCodec) -> None:
    folder = tmp_path / "store"
    write(folder, corpus, codec, sample=5)
    with pytest.raises(BadInput, match="is stale: sample was 5 and is 6; delete the folder"):
        open_store(folder, origin(corpus, codec, sample=6))
    stat = corpus.stat()
    os.utime(corpus, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    open_store(folder, origin(corpus, codec, sample=5))  # touched, and the same
    corpus.write_text(corpus.read_text().replace("number 7", "number 8"))
    with pytest.raises(BadInput, match="is stale: the content of .*corpus.txt has changed"):
        open_store(folder)
    corpus.write_text("shorter")
    with pytest.raises(BadInput, match="has 7 bytes, and had"):
        write(folder, corpus, codec, sample=5)
    corpus.unlink()
    with pytest.raises(BadInput, match="corpus.txt is gone"):
        open_store(folder)


def test_a_data_set_of_the_hub_that_changed_makes_a_store_stale(
    tmp_path: Path, corpus: Path, codec: TokenizerCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from linnet.domains.text import store as module

    monkeypatch.setattr(module, "hub_version", lambda name: "first")
    made_from = Origin(find(["hf:some/set"]).sources, {}, codec.fingerprint())
    folder = make(tmp_path / "store", codec, made_from, lambda tally: iter([Passage(TEXTS)])).folder
    open_store(folder, made_from)
    monkeypatch.setattr(module, "hub_version", lambda name: "")
    open_store(folder, made_from)  # nothing can be found out without a network
    monkeypatch.setattr(module, "hub_version", lambda name: "second")
    with pytest.raises(BadInput, match="is stale: hf:some/set has another version; delete the folder"):
        open_store(folder, made_from)


def test_other_files_and_another_tokenizer_are_refused(
    tmp_path: Path, corpus: Path, codec: TokenizerCodec
) -> None:
    folder = tmp_path / "store"
    write(folder, corpus, codec)
    (tmp_path / "more.txt").write_text("more")
    with pytest.raises(BadInput, match=r"made from other files \(.*more.txt\)"):
        open_store(folder, Origin(find([corpus, tmp_path / "more.txt"]).sources, {}))
    other = train_tokenizer([Passage(TEXTS)], Tokenizing(vocabulary=280)).codec
    with pytest.raises(BadInput, match="was made with another tokenizer"):
        open_store(folder, origin(corpus, other))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "<f4"}, "dtype is '<f4'"),
        ({"dtype": "<u8"}, "dtype is '<u8'"),
        ({"settings": {"tokenizer": 1.5}}, "tokenizer was 1.5 and is not set"),
        ({"parts": {}}, "names no train part"),
        ({"tokenizer": "0" * 16}, "codec.json is not the tokenizer that encoded the store"),
    ],
)
def test_a_manifest_that_no_encoding_writes_is_refused(
    tmp_path: Path, corpus: Path, codec: TokenizerCodec, change: dict[str, object], message: str
) -> None:
    file = write(tmp_path / "store", corpus, codec).folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(BadInput, match=message):
        open_store(file.parent, origin(corpus)).rows("train")
    with pytest.raises(BadInput):
        write(file.parent, corpus, codec)


def test_ids_beyond_the_vocabulary_are_refused_though_their_hash_fits(
    tmp_path: Path, corpus: Path, codec: TokenizerCodec
) -> None:
    folder = write(tmp_path / "store", corpus, codec).folder
    tokens = np.fromfile(folder / "train-tokens.bin", "<u2")
    tokens[7] = len(codec.tokens)
    tokens.tofile(folder / "train-tokens.bin")
    rehash_store(folder)
    with pytest.raises(BadInput, match="train-tokens.bin does not hold what was written"):
        open_store(folder).verify()


def test_damage_in_a_store_that_was_begun_is_found_when_it_is_finished(tmp_path: Path, corpus: Path) -> None:
    data = TextData(paths=(corpus,), store=tmp_path / "store", tokenizer=Tokenizing(vocabulary=300))
    data.load(0)
    file = tmp_path / "store" / "manifest.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "parts": {**stored["parts"], "validation": {}}}))
    tokens = np.fromfile(tmp_path / "store" / "train-tokens.bin", "<u2")
    tokens[7] ^= 1
    tokens.tofile(tmp_path / "store" / "train-tokens.bin")
    with pytest.raises(BadInput, match="train-tokens.bin does not hold what was written"):
        data.load(0)


def test_a_file_that_was_cut_is_named(tmp_path: Path, corpus: Path, codec: TokenizerCodec) -> None:
    store = write(tmp_path / "store", corpus, codec, 500)
    shard = store.folder / "train-tokens.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    with pytest.raises(BadInput, match=f"train-tokens.bin was cut: it has {len(content) - 10:,} bytes"):
        open_store(store.folder)
    shard.write_bytes(content[:-2] + b"xx")
    open_store(store.folder)
    with pytest.raises(BadInput, match="train-tokens.bin does not hold what was written"):
        store.verify()
    shard.write_bytes(content)
    for name in ("starts", "sizes", "scored"):
        file = store.folder / f"train-{name}.bin"
        before = file.read_bytes()
        file.write_bytes(before[:-8] + bytes([before[-8] ^ 1]) + before[-7:])
        with pytest.raises(BadInput, match=f"train-{name}.bin does not hold what was written"):
            store.verify()
        file.write_bytes(before)
    shard.unlink()
    with pytest.raises(BadInput, match="train-tokens.bin was cut: it has 0 bytes"):
        open_store(store.folder)


def test_folders_that_are_something_else_are_left_alone(
    tmp_path: Path, corpus: Path, codec: TokenizerCodec
) -> None:
    with pytest.raises(BadInput, match="holds no token store"):
        open_store(tmp_path)
    with pytest.raises(BadInput, match="is not empty and holds no token store"):
        write(tmp_path, corpus, codec)
    store = write(tmp_path / "store", corpus, codec)
    manifest = store.folder / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text[:50])
    with pytest.raises(BadInput, match="manifest.json is not JSON"):
        open_store(store.folder)
    manifest.write_text(text.replace('"format": 3', '"format": 9'))
    with pytest.raises(BadInput, match="has format 9, and this linnet reads 3"):
        open_store(store.folder)
    manifest.write_text(text.replace('"format": 3', '"format": 1'))
    with pytest.raises(BadInput, match=f"format 1, .* delete the folder {store.folder}, and it is encoded again"):
        open_store(store.folder)


def test_ten_gigabytes_of_tokens_cost_no_more_memory_than_ten_megabytes(
    tmp_path: Path, codec: TokenizerCodec
) -> None:
    def peak(tokens: int, rows: int) -> int:
        """Of opening a store of zeros (sparse files take no room) and making three batches."""
        folder = tmp_path / str(tokens)
        folder.mkdir()
        for name, size in (
            ("train-tokens.bin", 2 * tokens),
            ("train-scored.bin", tokens),
            ("train-starts.bin", 8 * (rows + 1)),
            ("train-sizes.bin", 8 * rows),
        ):
            with (folder / name).open("wb") as stream:
                stream.truncate(size)
        starts = np.memmap(folder / "train-starts.bin", "<i8", "r+")
        starts[:] = np.arange(rows + 1) * (tokens // rows)
        del starts
        manifest = Manifest(
            dtype="<u2",
            tokenizer=codec.fingerprint(),
            sources=(),
            settings={},
            parts={"train": StoredPart(segments=(Segment(tokens=tokens, rows=rows, sha256=""),), complete=True)},
        )
        (folder / "manifest.json").write_text(manifest.model_dump_json())
        (folder / "codec.json").write_text(json.dumps(codec.to_json()))
        tracemalloc.start()
        plan = Packed(open_store(folder).rows("train"), 8, 256, 1)
        for step in (0, 1, plan.steps_per_epoch - 1):
            assert plan.batch(step)["ids"].shape == (8, 256)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    small = peak(5_000_000, 1_000)
    assert peak(5_000_000_000, 1_000) < 1.1 * small + 50_000


def test_many_short_rows_cost_no_more_memory_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from linnet import data

    monkeypatch.setattr(data, "WHOLE", 1 << 12)
    monkeypatch.setattr(data, "CHUNK", 1 << 8)

    def peak(rows: int) -> int:
        starts = np.memmap(tmp_path / f"{rows}.bin", "<i8", "w+", shape=(rows + 1,))
        starts[:] = np.arange(rows + 1) * 12
        ids = np.memmap(tmp_path / f"{rows}.ids", "<u2", "w+", shape=(rows * 12,))
        scored = np.memmap(tmp_path / f"{rows}.scored", bool, "w+", shape=(rows * 12,))
        from linnet.rows import Rows

        tracemalloc.start()
        plan = Packed(Rows.of_ids(ids, starts, scored).identified("x"), 8, 64, 1)
        for step in range(5):
            plan.batch(step)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    small = peak(20_000)
    assert peak(400_000) < 1.1 * small + 100_000
