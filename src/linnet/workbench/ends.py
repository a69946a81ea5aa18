"""Ids that end a text beside the end token of the codec: models of other people may have several.

An imported run keeps them in its folder, in `generation.json`; runs that were trained here have no such file.
"""

from __future__ import annotations

import json

from linnet.errors import BadInput
from linnet.files import write_atomically
from linnet.training.checkpoint import RunFolder
from linnet.untrusted import read_object, shown

FILE, KEY = "generation.json", "further_ends"


def keep_ends(folder: RunFolder, ends: tuple[int, ...]) -> None:
    if ends:
        write_atomically(folder.path / FILE, json.dumps({KEY: ends}).encode())


def further_ends(folder: RunFolder, vocabulary: int) -> tuple[int, ...]:
    """The ids that this run keeps; refuses what is no id of its model."""
    file = folder.path / FILE
    if not file.is_file():
        return ()
    stored = read_object(file).get(KEY)
    right = isinstance(stored, list) and all(type(i) is int and 0 <= i < vocabulary for i in stored)
    if not isinstance(stored, list) or not right:
        raise BadInput(f"{file}: {KEY} is {shown(stored)}, not a list of ids of this model (0..{vocabulary - 1})")
    return tuple(stored)
