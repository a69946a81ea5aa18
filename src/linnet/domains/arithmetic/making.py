"""`linnet data make arithmetic`: train, dev and test files whose problems never meet, in JSON lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from linnet.domains.arithmetic.drawing import draw_distinct
from linnet.domains.arithmetic.problems import PartName, Space, groups_of, solve
from linnet.domains.arithmetic.steps import spaced, written_steps
from linnet.errors import BadInput
from linnet.files import refuse_existing, write_texts
from linnet.records import DataRecord

FILES: dict[PartName, str] = {"train": "train", "validation": "dev", "test": "test"}
RULES = {
    "add": "elementwise_add",
    "subtract": "elementwise_subtract",
    "multiply": "long_multiplication",
    "expression": "operator_precedence",
    "polynomial": "foil_method",
}


def make(
    directory: Path,
    space: Space,
    instances: int = 20_000,
    seed: int = 42,
    with_steps: bool = False,
    balanced: bool = True,
    force: bool = False,
) -> DataRecord:
    """Write train.jsonl, dev.jsonl and test.jsonl (eight, one and one tenth of the instances, all distinct)."""
    if instances < 10:
        raise BadInput(f"{instances} instances cannot be parted into train, dev and test; at least 10 can")
    sizes: dict[PartName, int] = {"validation": instances // 10, "test": instances // 10}
    sizes["train"] = instances - sum(sizes.values())
    paths = {part: Path(directory) / f"{name}.jsonl" for part, name in FILES.items()}
    for path in paths.values():
        refuse_existing(path, force=force)
    drawn = {part: draw_distinct(space, seed, sizes[part], part, balanced and part == "train") for part in FILES}
    texts = {
        paths[part]: _lines(space, questions, FILES[part], seed, with_steps) for part, questions in drawn.items()
    }
    write_texts(texts, force=force)
    return DataRecord(
        path=str(directory),
        rows={paths[part].name: len(questions) for part, questions in drawn.items()},
        counts=_group_counts(space, drawn),
        problems=tuple(
            f"{paths[part].name} has {len(questions)} rows instead of {sizes[part]}: the space holds no more"
            for part, questions in drawn.items()
            if len(questions) < sizes[part]
        ),
    )


def _lines(space: Space, questions: Sequence[str], split: str, seed: int, with_steps: bool) -> Iterator[str]:
    for number, question in enumerate(questions):
        rule = RULES.get(space.task) or f"decimal_to_{question.rsplit(' ', 1)[1]}"
        row = {
            "input": question if space.task in ("base", "polynomial") else spaced(question),
            "gold": solve(space.task, question),
            "task": space.task,
            "seed": seed,
            "ground_truth_rule": rule,
        }
        if with_steps:
            row["steps"] = written_steps(space.task, question)
        yield json.dumps(row | {"split": split, "instance_id": number}) + "\n"


def _group_counts(space: Space, drawn: dict[PartName, list[str]]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for question in (q for questions in drawn.values() for q in questions):
        for name, group in groups_of(space.task, question).items():
            counts.setdefault(name, Counter())[str(group)] += 1
    return {name: dict(sorted(found.items())) for name, found in counts.items()}
