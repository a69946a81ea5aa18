"""`linnet search` and `workbench.search`: records, trees on disk, comparisons, interrupts and refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

from linnet import workbench
from linnet.cli.app import build
from linnet.domains.registry import registry
from linnet.errors import BadInput
from linnet.search.budgets import Budget
from linnet.search.methods import METHODS, MaxEnt, named
from linnet.search.named import reward_of, score_of
from linnet.search.records import SearchComparisonRecord, SearchRecord, SearchTreeRecord
from linnet.search.saving import read_saved
from linnet.search.steps import TableStep, Target
from linnet.search.tree import Tree
from linnet.workbench.search_source import source_of
from text_corpora import corpus
from tiny_runs import train_tiny

LAM = ["lam=4", "reward.partial=true"]


@pytest.fixture(scope="module")
def adder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("searched") / "adder"
    train_tiny(path, "eval_every=60", "data.instances=400", steps=60)
    return path


def searched(run: Path, *prompts: str, **options: Any) -> list[SearchRecord]:
    chosen = {"reward": "exact", "settings": LAM, "rollouts": 24, **options}
    return list(workbench.search(run, prompts, **chosen))


def linnet(*words: str | Path) -> Result:
    return CliRunner().invoke(build(), list(map(str, words)))


def same(one: SearchRecord, other: SearchRecord, *, but: Sequence[str] = ("seconds",)) -> bool:
    left = {"exclude": {*but, "seconds"}}
    return one.model_dump(**left) == other.model_dump(**left)  # type: ignore[arg-type]


def test_a_record_has_its_fixed_shape_and_the_truth_about_its_best(adder: Path) -> None:
    (record,) = searched(adder, "12+34=", samples=5)
    line = json.loads(record.line())
    fixed = "method rollouts forward_tokens reward_calls seconds best value value_error log_partition samples"
    assert line["kind"] == "search" and set(fixed.split()) <= set(line)
    assert {"text", "reward", "logprob"} <= set(line["best"]) and len(line["samples"]) == 5
    right = score_of("exact", {"partial": True})
    assert record.best is not None
    for found in (record.best, *record.samples):
        assert right([found.text], [found.ids], "12+34=") == [found.reward] and found.reward <= record.best.reward
    assert record.low is not None and record.high is not None and record.value is not None
    assert record.low <= record.value <= record.high
    assert record.value_error == pytest.approx((record.high - record.low) / 2)
    assert record.log_partition == pytest.approx(4 * record.value)
    (generated,) = workbench.generate(adder, ["12+34="], temperature=0)
    (greedy,) = searched(adder, "12+34=", method="greedy", samples=1)
    assert greedy.best is not None and greedy.best.text == generated.text
    assert greedy.best.logprob == pytest.approx(generated.logprob, abs=1e-4)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_each_method_can_be_named_and_goes_on_after_it_was_saved(adder: Path, tmp_path: Path, method: str) -> None:
    """Saved, opened and extended, it is the tree that was extended at once: whole waves of the same sizes."""
    options: dict[str, Any] = {"method": method, "samples": 3, "settings": [*LAM[1:], "lam=4", "wave=8"]}
    (first,) = searched(adder, "7+8=", **options, rollouts=16, out=tmp_path / "tree")
    assert first.tree == str(tmp_path / "tree") and first.method == method
    (later,) = workbench.resume_search(tmp_path / "tree", rollouts=8, samples=3, settings=["wave=8"])
    tree = grown(adder, "7+8=", method, (16, 8))
    assert later.best is not None and tree.best is not None
    assert later.best.text == tree.best.text and later.unseen == pytest.approx(tree.unseen, abs=1e-6)
    assert later.statistics.nodes == tree.nodes.count


def grown(run: Path, prompt: str, method: str, parts: Sequence[int], widest: int | None = None) -> Tree:
    """The same search without a disk; the samples of the first part are drawn, as for its record."""
    source = source_of(run)
    read = source.read(prompt, "the prompt")
    target = Target(max_tokens=source.context - len(read.ids) + 1)
    step = source.step(read.text, target, 1 << 24)
    if widest is not None:
        step.widest = widest
    score = score_of("exact", {"partial": True})
    tree = Tree(read.ids, step, named(method, lam=4.0), reward_of(score, score, "exact"), 0)
    for part in parts:
        tree.extend(Budget(rollouts=part, wave=8))
        tree.samples(3)
    return tree


def columns(tree: Tree) -> dict[str, np.ndarray]:
    return {name: tree.nodes[name] for name in ("parent", "token", "kind", "visits", "reward")}


@pytest.mark.parametrize("widest", [1, 3])
def test_the_tree_is_the_same_on_any_split_of_a_batch(adder: Path, widest: int) -> None:
    whole, split = grown(adder, "7+8=", "maxent", [32]), grown(adder, "7+8=", "maxent", [32], widest)
    for name, values in columns(whole).items():
        np.testing.assert_array_equal(values, split.nodes[name])
    assert whole.value.value == pytest.approx(split.value.value, abs=1e-5)


def test_a_table_and_a_folder_of_transformers_give_the_tree_of_the_run(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    data = corpus(tmp_path / "c.txt", 200)
    small = [
        "training.steps=30",
        "training.eval_every=30",
        "threads=1",
        "data.block=[4,16]",
    ]
    workbench.train("tiny-text", data=[data], out=tmp_path / "run", settings=small)
    workbench.export_run(tmp_path / "run", tmp_path / "hf", to="hf")
    trees = []
    for folder in (tmp_path / "run", tmp_path / "hf"):
        source = source_of(folder)
        ids = source_of(tmp_path / "run").read("the cat ", "the prompt").ids
        trees.append(length_tree(source.step("the cat ", Target(max_tokens=5), 1 << 26), ids))
    model, ends = source_of(tmp_path / "run"), trees[0].step.ends
    oracle = model.step("the cat ", Target(max_tokens=5), 1 << 26)
    (root,) = oracle.begin(ids).handles.tolist()
    known = {(): root}

    def law(whole: tuple[int, ...]) -> np.ndarray:
        path = whole[len(ids) :]
        if path not in known:
            (known[path],) = oracle.extend([known[path[:-1]]], [path[-1]]).handles.tolist()
        return np.exp(oracle.row(known[path]).astype(float))

    table = TableStep(law, Target(max_tokens=5), ends=ends)
    trees.append(length_tree(table, ids))
    for tree in trees[1:]:
        for name, values in columns(trees[0]).items():
            np.testing.assert_array_equal(values, tree.nodes[name])
        assert tree.value.value == pytest.approx(trees[0].value.value, abs=1e-4)


def length_tree(step: Any, ids: Sequence[int]) -> Tree:
    score = score_of("length", {"target": 5})
    return Tree(ids, step, MaxEnt(lam=3.0), reward_of(score, score, "length"), 1).extend(Budget(rollouts=24))


SMALL = ("model.width=16", "model.depth=1", "batch=4", "eval_every=1", "threads=1")


WRITTEN = [name for name in sorted(registry().recipes) if registry().recipe(name)[0] in ("arithmetic", "text")]


@pytest.mark.parametrize("recipe", WRITTEN)
def test_every_recipe_that_writes_texts_can_be_searched(recipe: str, tmp_path: Path) -> None:
    domain, _ = registry().recipe(recipe)
    heads = [] if "s2" in recipe else ["model.attention.heads=2"]
    data = [corpus(tmp_path / "c.txt", 120)] if domain == "text" else []
    made = [*SMALL, *heads, *(["data.instances=60"] if domain == "arithmetic" else [])]
    workbench.train(recipe, data=data, out=tmp_path / "run", settings=made, steps=1)
    prompt = "1+2=" if domain == "arithmetic" else "a "
    (record,) = workbench.search(tmp_path / "run", [prompt], reward="length", rollouts=4, max_tokens=3, samples=2)
    assert record.best is not None and 0 <= record.best.reward <= 1 and record.forward_tokens > 0


def test_methods_stand_beside_each_other_at_one_budget(adder: Path) -> None:
    found = workbench.compare_searches(
        adder,
        ["1+2=", "3+4="],
        ["greedy", "best_of_n", "maxent"],
        reward="exact",
        rollouts=8,
        settings=["repeats=3"],
    )
    assert isinstance(found, SearchComparisonRecord)
    assert [row.method for row in found.methods] == ["greedy", "best_of_n", "maxent"]
    first, *others = found.methods
    assert first.lead is None and first.rollouts == 1 and found.n == 6 and found.seeds == 3
    for row in others:
        assert row.lead == pytest.approx(row.reward_best - first.reward_best)
        assert row.lead_low is not None and row.lead_high is not None and row.lead_low <= row.lead <= row.lead_high
        assert row.rollouts == 8 and row.low <= row.reward_best <= row.high
    with pytest.raises(BadInput, match='none of these methods has a setting "wdth"'):
        workbench.compare_searches(adder, ["1+2="], ["beam"], reward="exact", settings=["wdth=3"])


def test_rollouts_go_where_the_value_is_uncertain(adder: Path) -> None:
    prompts = ["1+2=", "3+4=", "55+66="]
    evenly = searched(adder, *prompts, samples=0, settings=[*LAM, "wave=4"], rollouts=12)
    shared = searched(adder, *prompts, samples=0, settings=[*LAM, "wave=4"], rollouts=12, adaptive=True)
    assert sum(one.rollouts for one in shared) <= sum(one.rollouts for one in evenly)
    assert max(one.high - one.low for one in shared) <= max(one.high - one.low for one in evenly) + 0.1
    assert [one.prompt for one in shared] == prompts


def test_an_interrupt_gives_the_tree_so_far(adder: Path) -> None:
    calls = []

    def impatient(texts: Sequence[str], ids: Sequence[Any], prompt: str) -> list[float]:
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return [0.0] * len(texts)

    found = []
    with pytest.raises(KeyboardInterrupt):
        for record in workbench.search(
            adder, ["1+2=", "3+4="], reward=impatient, rollouts=400, samples=0, settings=["wave=8"]
        ):
            found.append(record)
    assert len(found) == 1 and 0 < found[0].rollouts < 400 and found[0].best is not None
    assert "interrupted" in found[0].notes[0]


def test_the_log_probability_of_a_run_is_a_reward(adder: Path) -> None:
    (own,) = searched(adder, "1+2=", reward="logprob", settings=["lam=1"], method="best_first", samples=3)
    assert own.reward_calls == 0 and own.samples
    for one in own.samples:
        assert one.reward == pytest.approx(one.logprob)
    (other,) = searched(adder, "1+2=", reward="logprob", settings=[f"reward.run={str(adder)!r}"], samples=3)
    assert other.reward_calls > 0
    for one in other.samples:
        assert one.reward == (-math.inf if one.text.startswith("?") else pytest.approx(one.logprob, abs=1e-3))


def test_the_saved_tree_can_be_drawn(adder: Path, tmp_path: Path) -> None:
    (record,) = searched(adder, "12+34=", out=tmp_path / "tree", samples=0)
    drawn = SearchTreeRecord.model_validate_json((tmp_path / "tree" / "tree.json").read_bytes())
    assert SearchRecord.model_validate_json((tmp_path / "tree" / "record.json").read_bytes()) == record
    assert drawn.parent[0] == -1 and all(parent < node for node, parent in enumerate(drawn.parent))
    assert drawn.visits[0] == record.rollouts
    shares = np.bincount(drawn.parent[1:], drawn.prior[1:], len(drawn.parent))
    assert shares.max() <= 1 + 1e-5
    leaves = [node for node, ending in enumerate(drawn.ending) if ending in ("end", "cut")]
    assert len(leaves) == record.statistics.texts
    assert sum(drawn.visits[node] for node in leaves) == record.rollouts


def damaged(folder: Path, how: str) -> None:
    settings = folder / "search.json"
    stored = json.loads(settings.read_text())
    if how == "format":
        stored["format"] = 99
    elif how == "type":
        stored["leaves"] = "none"
    elif how == "counts":
        del stored["counts"]["mass"]
    elif how == "arrays":
        (folder / "arrays.safetensors").write_bytes(b"nothing")
    elif how == "model":
        stored["source"]["path"] = str(folder.parent / "other")
    settings.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("format", "format 99"),
        ("type", "leaves is 'none', not a list"),
        ("counts", "counts has no mass"),
        ("arrays", "arrays.safetensors"),
        ("model", "another model"),
    ],
)
def test_a_broken_tree_is_refused(adder: Path, tmp_path: Path, how: str, words: str) -> None:
    searched(adder, "1+2=", out=tmp_path / "tree", samples=0, rollouts=4)
    if how == "model":
        train_tiny(tmp_path / "other", "eval_every=5", steps=5)
    damaged(tmp_path / "tree", how)
    with pytest.raises(BadInput, match=words):
        list(workbench.resume_search(tmp_path / "tree", rollouts=4))
    assert words == "format 99" or how != "format" or read_saved(tmp_path / "tree")


BROKEN_MEMORY: list[tuple[str, str, Callable[[dict[str, Any]], object], str]] = [
    ("best_first", "an entry of text", lambda memory: memory["frontier"].append(["x", -1.0, 0, 0]), "frontier"),
    ("best_first", "an entry of three", lambda memory: memory["frontier"].append([1.0, -1.0, 0]), "frontier"),
    (
        "best_first",
        "no such node",
        lambda memory: memory["frontier"].append([1.0, -1.0, 10**6, 0]),
        "does not have",
    ),
    (
        "best_first",
        "no such child",
        lambda memory: memory["frontier"].append([1.0, -1.0, 0, 10**6]),
        "does not have",
    ),
    ("best_first", "no list", lambda memory: memory.update(frontier=3), "frontier"),
    ("maxent", "a short list", lambda memory: memory.update(shrinkage=[8, [1.0]]), "for each depth"),
    ("maxent", "text", lambda memory: memory.update(chosen="many"), "chosen"),
    ("smc", "no such leaf", lambda memory: memory["run"].update(leaves=[10**6] * 4, proposals=[]), "no node"),
    ("smc", "fewer proposals", lambda memory: memory["run"].update(proposals=[0]), "different lengths"),
    ("smc", "no leaves", lambda memory: memory["run"].update(leaves=[], proposals=[]), "different lengths"),
]


@pytest.mark.parametrize(("method", "what", "change", "words"), BROKEN_MEMORY, ids=lambda one: str(one)[:20])
def test_what_a_method_kept_is_refused_where_it_points_nowhere(
    adder: Path, tmp_path: Path, method: str, what: str, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    searched(adder, "1+2=", out=tmp_path / "tree", samples=0, rollouts=4, method=method)
    settings = tmp_path / "tree" / "search.json"
    stored = json.loads(settings.read_text())
    change(stored["memory"])
    settings.write_text(json.dumps(stored))
    with pytest.raises(BadInput, match=words):
        list(workbench.resume_search(tmp_path / "tree", rollouts=4))


@pytest.mark.parametrize("change", ["shorter", "wider", "slot"])
def test_columns_of_a_saved_tree_that_do_not_fit_together_are_refused(
    adder: Path, tmp_path: Path, change: str
) -> None:
    searched(adder, "1+2=", out=tmp_path / "tree", samples=0, rollouts=4)
    file = tmp_path / "tree" / "arrays.safetensors"
    arrays = load_file(file)
    if change == "shorter":
        arrays["nodes.token"] = arrays["nodes.token"][:-1].copy()
    elif change == "wider":
        arrays["rows.ids"] = np.pad(arrays["rows.ids"], ((0, 0), (0, 1)))
    else:
        arrays["nodes.slot"][-1] = 999
    save_file(arrays, file)
    with pytest.raises(BadInput, match=r"arrays\.safetensors"):
        list(workbench.resume_search(tmp_path / "tree", rollouts=4))


def test_the_command_line_speaks_json_and_draws(adder: Path, tmp_path: Path) -> None:
    words: list[str | Path] = ["search", adder, "1+2=", "3+4=", "--reward", "exact", "--rollouts", "6"]
    plain = linnet(*words, "--seed", "1", "--set", "lam=4", "--json")
    assert plain.exit_code == 0, plain.output
    lines = [json.loads(line) for line in plain.stdout.splitlines()]
    assert [(line["kind"], line["prompt"]) for line in lines] == [("search", "1+2="), ("search", "3+4=")]
    again = linnet(*words, "--seed", "1", "--set", "lam=4", "--json")
    for line, other in zip(lines, map(json.loads, again.stdout.splitlines()), strict=True):
        assert {**line, "seconds": 0} == {**other, "seconds": 0}, "the same seed gives the same tree"
    drawn = linnet(*words, "--preset", "quick").stdout
    assert "visits" in drawn and "unseen mass" in drawn and "forward tokens" in drawn
    table = linnet(*words, "--compare", "best_of_n,maxent").stdout
    assert "best_of_n" in table and "maxent" in table and "lead" in table
    saved = linnet(*words[:3], *words[4:], "--out", tmp_path / "tree", "--json")
    assert saved.exit_code == 0
    resumed = linnet("search", "--resume", tmp_path / "tree", "--rollouts", "6", "--json")
    assert json.loads(resumed.stdout)["rollouts"] > json.loads(saved.stdout)["rollouts"]
    (file := tmp_path / "prompts.txt").write_text("1+1=\n2+2=\n")
    assert len(linnet("search", adder, "--file", file, *words[4:], "--json").stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a search needs a reward"),
        (["--reward", "exat"], 'no reward "exat"; did you mean "exact"'),
        (["--reward", "exact", "--set", "lam=-1"], "lam is -1.0; it must be 0"),
        (["--reward", "exact", "--set", "lam=inf"], "lam is inf"),
        (["--reward", "exact", "--set", "lam=high"], "lam is 'high', not a number"),
        (["--reward", "exact", "--rollouts", "0"], "at least 1"),
        (["--reward", "exact", "--method", "maxnt"], 'no method "maxnt"; did you mean "maxent"'),
        (["--reward", "exact", "--set", "lamb=3"], 'has no setting "lamb"; did you mean "lam"'),
        (["--reward", "exact", "--max-tokens", "100"], "use fewer max tokens"),
        (["--reward", "exact", "--temperature", "0"], "temperature is 0.0"),
        (["--reward", "exact", "--set", "cut=no"], "cut is"),
        (["--reward", "exact", "--set", "memory=0"], "at least 1"),
        (["--reward", "exact", "--seconds", "0"], "budget of 0"),
        (["--reward", "exact", "--compare", "maxent", "--out", "x"], "exclude each other"),
        (["--reward", "math:nan"], "cannot be called"),
    ],
)
def test_what_cannot_be_searched_is_named(adder: Path, words: list[str], message: str) -> None:
    refused = linnet("search", adder, "1+2=", *words)
    assert refused.exit_code == 2 and message in refused.stderr, refused.stderr
    assert refused.stdout == "" and "Traceback" not in refused.stderr


def test_a_search_without_a_run_or_a_readable_prompt_is_refused(adder: Path, tmp_path: Path) -> None:
    assert "a search needs a run" in linnet("search").stderr
    assert "is no saved search" in linnet("search", "--resume", adder).stderr
    assert "one+two" in linnet("search", adder, "one+two", "--reward", "exact").stderr
    assert (
        "one prompt"
        in linnet("search", adder, "1+1=", "2+2=", "--reward", "exact", "--out", tmp_path / "t").stderr
    )
    assert math.isfinite(searched(adder, "1+1=", rollouts=2)[0].seconds)


def test_a_setting_that_is_text_may_look_like_a_number(adder: Path) -> None:
    for settings in (["reward.label=046"], ["reward.label=46"], ['reward.label="46"']):
        (found,) = searched(adder, "12+34=", reward="label", settings=settings, rollouts=1)
        assert found.best is not None


def test_a_saved_search_keeps_what_it_began_with(adder: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tmp_path / "p.txt").write_text("1+2=\n")
    began = ["reward.partial=true", "least=0", "most=1", "lam=2"]
    searched(adder, "7+8=", settings=began, rollouts=8, out=tree)
    (later,) = workbench.resume_search(
        tree, rollouts=4, method="maxent", reward="exact", settings=[*began, "wave=2"]
    )
    assert later.settings["lam"] == 2 and later.high is not None
    other = ["--method mcts", "--reward length", "--max-tokens 2", "--temperature 0.5", "--seed 3", "--adaptive"]
    settings = ["--set lam=3", "--set reward.partial=false", "--set top_k=2", "--set most=2"]
    elsewhere = [
        f"--file {tmp_path / 'p.txt'}",
        f"--out {tmp_path / 'other'}",
        "--checkpoint 60",
        "--precision int8",
    ]
    for option in (*other, *settings, *elsewhere):
        refused = linnet("search", "--resume", tree, *option.split())
        assert refused.exit_code == 2 and ("goes on with its own" in refused.stderr or "exclude" in refused.stderr)


def test_a_limit_that_was_given_is_saved(adder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zeros.py").write_text("def zero(texts, ids, prompt):\n    return [0.0] * len(texts)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    searched(adder, "7+8=", reward="zeros:zero", settings=["least=0", "most=1"], rollouts=8, out=tmp_path / "tree")
    (later,) = workbench.resume_search(tmp_path / "tree", rollouts=4)
    assert later.low is not None and later.high is not None and later.high < 1
