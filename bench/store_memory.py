"""What batches from a token store of 10 GB cost in memory beside those from 10 MB. Sparse files take no room.

    python -m bench.store_memory --folder stores

Each size is read in a process of its own: 200 batches from all over an epoch. `private` is memory that only this
process can use; pages of the mapped files come on top and are given back whenever the system wants them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from linnet.data import Packed
from linnet.domains.text.store import Manifest, Shard, StoredPart, open_store

ROW = 1_000  # tokens of a document


def make(folder: Path, tokens: int) -> None:
    """A complete store of zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = tokens // ROW
    sizes = {"tokens-00000": 2 * tokens, "starts": 8 * (rows + 1), "sizes": 8 * rows}
    for name, size in ((f"train-{what}.bin", size) for what, size in sizes.items()):
        with (folder / name).open("wb") as stream:
            stream.truncate(size)
    starts = np.memmap(folder / "train-starts.bin", "<i8", "r+")
    starts[:] = np.arange(rows + 1) * ROW
    shard = Shard(tokens=tokens, rows=rows, sha256="")
    parts = {"train": StoredPart(shards=(shard,), complete=True)}
    manifest = Manifest(dtype="<u2", tokenizer="", sources=(), settings={}, parts=parts)
    (folder / "manifest.json").write_text(manifest.model_dump_json())


def megabytes(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def read(folder: Path, batches: int = 200) -> None:
    """Batches from the beginning, the end, and evenly between."""
    before = megabytes("RssAnon")
    plan = Packed(open_store(folder).rows("train"), 16, 256, 1)
    last = plan.steps_per_epoch - 1
    for step in np.linspace(0, last, batches).astype(int):
        plan.batch(int(step))
    print(
        f"{folder.name}: {last + 1:,} steps an epoch, private {megabytes('RssAnon') - before:.1f} MB more, ",
        end="",
    )
    print(f"mapped {megabytes('RssFile'):.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--read", type=Path, help="read this store and say what it cost")
    args = parser.parse_args()
    if args.read is not None:
        read(args.read)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        for label, tokens in (("10 MB", 5_000_000), ("10 GB", 5_000_000_000)):
            make(Path(name) / label, tokens)
            subprocess.run([sys.executable, __file__, "--read", str(Path(name) / label)], check=True)


if __name__ == "__main__":
    main()
