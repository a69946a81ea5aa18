"""A run as one value and as `run.toml`: round trips, short keys, and mistakes that are named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from linnet.domains.arithmetic.data import ArithmeticData
from linnet.domains.registry import registry
from linnet.errors import BadInput
from linnet.model.config import AttentionConfig, FeedForwardConfig, HeadConfig, IdColumn, ModelConfig, NormConfig
from linnet.training.run import OptimConfig, Run, TrainingConfig
from linnet.training.schedules import Constant, Cosine, Linear, OneCycle, WarmupStableDecay
from linnet.training.settings import changed, flatten, parse, parse_setting, to_toml
from linnet.untrusted import read_toml
from linnet.workbench.train import made, prepare

TINY = made("tiny-arithmetic")
POSITIVE = st.floats(1e-12, 1e12)
SHARES = st.floats(0, 1)
BELOW_ONE = st.floats(0, 1, exclude_max=True)
COUNTS = st.integers(1, 10**9)

SCHEDULES = st.one_of(
    st.builds(Constant, warmup=POSITIVE),
    st.builds(Cosine, warmup=SHARES, floor=SHARES),
    st.builds(Linear, warmup=POSITIVE, floor=SHARES),
    st.builds(WarmupStableDecay, decay=SHARES, shape=st.sampled_from(["linear", "sqrt"])),
    st.builds(OneCycle, pct_start=st.floats(0.01, 0.99), div=st.floats(1, 1e6)),
)
OPTIMS = st.builds(
    OptimConfig,
    kind=st.sampled_from(["adamw", "muon"]),
    lr=POSITIVE,
    betas=st.tuples(BELOW_ONE, BELOW_ONE),
    schedule=SCHEDULES,
    clip=POSITIVE,
    ema=BELOW_ONE,
)
MODELS = st.builds(
    ModelConfig,
    width=st.integers(1, 100).map(lambda n: 8 * n),
    depth=st.just(3),
    mixer=st.one_of(st.just("gru"), st.tuples(*[st.sampled_from(["attention", "gru"])] * 3)),
    attention=st.builds(AttentionConfig, heads=st.just(4), kv_heads=st.sampled_from([None, 1, 2])),
    feedforward=st.builds(FeedForwardConfig, width=st.one_of(st.none(), COUNTS)),
    norm=st.just(NormConfig(kind="layer", bias=True)),
    head=st.builds(HeadConfig, tied=st.booleans(), softcap=st.one_of(st.none(), POSITIVE)),
    columns=st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda name: name != "ids"),
        st.builds(IdColumn, size=COUNTS),
        max_size=3,
    ),
)
TRAININGS = st.builds(
    TrainingConfig,
    steps=st.one_of(st.none(), COUNTS),
    epochs=st.one_of(st.none(), POSITIVE),
    batch=st.integers(100, 10**6),
    accumulation=st.integers(1, 100),
    patience=st.one_of(st.none(), COUNTS),
    sinks=st.lists(st.sampled_from(["tensorboard", "wandb"])).map(tuple),
)
DATA = st.builds(
    ArithmeticData,
    digits=st.integers(1, 9).map(lambda n: (1, n)),
    signs=st.booleans(),
    paths=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).map(Path), max_size=2
    ).map(tuple),
)
RUNS = st.builds(
    Run,
    recipe=st.text(st.characters(codec="utf-8")),
    seed=st.integers(0, 2**63 - 1),
    data=DATA,
    model=MODELS,
    optim=OPTIMS,
    training=TRAININGS,
)


@given(RUNS)
def test_a_run_comes_back_from_its_toml(run: Run) -> None:
    assert parse(tomllib.loads(to_toml(run)), "run.toml") == run


@pytest.mark.parametrize("name", registry().recipes)
def test_every_recipe_comes_back_from_its_toml(name: str) -> None:
    run = made(name)
    assert parse(tomllib.loads(to_toml(run)), "run.toml") == run


def test_a_toml_file_is_a_recipe(tmp_path: Path) -> None:
    """What a run folder holds can be trained again, with changes."""
    run = changed(TINY, [("optim.schedule", "wsd"), ("model.depth", 3), ("schedule.decay", 0.4)])
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(run))
    assert prepare(str(path)) == run
    assert prepare(str(path), settings=["model.depth=1"], seed=7).model.depth == 1


def test_a_toml_file_may_say_only_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'recipe = "tiny-arithmetic"\n[optim.schedule]\nwarmup = 3\nkind = "linear"\n'
        "[model]\nwidth = 30\n[model.attention]\nheads = 3\n"
    )
    run = prepare(str(path))
    assert run.optim.schedule == Linear(warmup=3)
    assert (run.model.width, run.model.attention.heads, run.training) == (30, 3, TINY.training)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("width = 3", 'needs a line such as recipe = "arithmetic"'),
        ('recipe = "tiny-arithmetc"', 'there is no recipe "tiny-arithmetc"; did you mean "tiny-arithmetic"?'),
        ('recipe = "tiny-arithmetic"\n[model]\ndeph = 2', 'unknown key "model.deph"; did you mean "model.depth"?'),
        ('recipe = "tiny-arithmetic"\nmodel = 2', "model"),
        ('recipe = "tiny-arithmetic"\nformat = 3', "run format 3, and this linnet reads up to 2: update linnet"),
        ("recipe = ", "is not valid TOML"),
    ],
)
def test_a_wrong_toml_file_is_named_with_its_mistake(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=re.escape(said)) as refused:
        prepare(str(path))
    assert "mine.toml" in str(refused.value) or "recipe" in text
    assert refused.value.exit_code == 2


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no file .*nowhere.toml"):
        prepare(str(tmp_path / "nowhere.toml"))
    with pytest.raises(BadInput, match="there is no file .*nowhere.jsonl"):
        prepare("tiny-arithmetic", data=[tmp_path / "nowhere.jsonl"])
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="bytes.toml: byte 0 is no UTF-8 text"):
        read_toml(tmp_path / "bytes.toml")


# Settings.

KEYS = st.from_regex(r"[a-z_]+(\.[a-z_]+){0,3}", fullmatch=True)
VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.booleans(),
    st.text(st.characters(codec="utf-8")),
    st.lists(st.integers(0, 9)),
    st.dictionaries(KEYS.filter(lambda key: "." not in key), st.booleans(), max_size=2),
)


@given(KEYS, VALUES)
def test_a_value_is_read_as_toml(key: str, value: Any) -> None:
    written = tomli_w.dumps({"x": value}).strip()
    if "\n" in written or not written.startswith("x ="):
        written = "x = " + inline(value)
    assert parse_setting(f"{key}={written.removeprefix('x =').strip()}") == (key, value)


def inline(value: Any) -> str:
    """TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return tomli_w.dumps({"x": value}).strip().removeprefix("x = ")


@given(KEYS, st.from_regex(r"[A-Za-z/][A-Za-z0-9_/.:-]*", fullmatch=True))
def test_what_is_not_toml_is_plain_text(key: str, word: str) -> None:
    parsed = parse_setting(f" {key} = {word} ")
    assert parsed[0] == key
    assert parsed[1] == word or word in ("true", "false", "inf", "nan")


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_is_a_setting_or_is_refused(text: str) -> None:
    key, equals, _ = text.partition("=")
    if equals and key.strip():
        assert parse_setting(text)[0] == key.strip()
    else:
        with pytest.raises(BadInput, match="a setting has the form key=value"):
            parse_setting(text)


@given(st.text(st.characters(codec="utf-8"), max_size=20), VALUES)
def test_any_setting_makes_a_run_or_is_refused(key: str, value: Any) -> None:
    try:
        changed(TINY, [(key, value)])
    except BadInput as refused:
        assert str(refused)


@given(st.sampled_from(sorted(flatten(TINY.model_dump(mode="json")))), VALUES)
def test_any_value_of_a_known_key_makes_a_run_or_is_refused(key: str, value: Any) -> None:
    try:
        run = changed(TINY, [(key, value)])
    except BadInput as refused:
        assert key.rpartition(".")[2] in str(refused) or key.split(".")[0] in str(refused)
    else:
        assert parse(tomllib.loads(to_toml(run)), "run.toml") == run


def set_all(*settings: str) -> Run:
    return changed(TINY, [parse_setting(setting) for setting in settings])


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("steps=7", lambda run: run.training.steps == 7),
        ("training.steps=7", lambda run: run.training.steps == 7),
        ("lr=1e-4", lambda run: run.optim.lr == 1e-4),
        ("lr=.5", lambda run: run.optim.lr == 0.5),
        ("kind=muon", lambda run: run.optim.kind == "muon"),
        ("heads=4", lambda run: run.model.attention.heads == 4),
        ("attention.heads=4", lambda run: run.model.attention.heads == 4),
        ("head.tied=false", lambda run: run.model.head.tied is False),
        ("schedule=linear", lambda run: run.optim.schedule == Linear()),
        ("optim.schedule=wsd", lambda run: run.optim.schedule == WarmupStableDecay()),
        ("schedule.kind=onecycle", lambda run: run.optim.schedule == OneCycle()),
        ('optim.schedule={kind="linear", warmup=3}', lambda run: run.optim.schedule == Linear(warmup=3)),
        ("warmup=9", lambda run: run.optim.schedule == Cosine(warmup=9)),
        ("model.columns.user={size=40, kind='ids'}", lambda run: run.model.columns == {"user": IdColumn(size=40)}),
        ("mixer=gru", lambda run: run.model.mixer == "gru"),
        ('mixer=["gru", "attention"]', lambda run: run.model.mixers == ("gru", "attention")),
        ("data.digits=4", lambda run: run.data.digits == (1, 4)),
        ("seed=12", lambda run: run.seed == 12),
        ('sinks=["tensorboard"]', lambda run: run.training.sinks == ("tensorboard",)),
    ],
)
def test_a_setting_reaches_its_place(setting: str, read: Any) -> None:
    run = set_all(setting)
    assert read(run)
    assert run != TINY or setting == "schedule=cosine"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("dropot=0.1", 'unknown key "dropot"; did you mean "model.dropout"?'),
        ("model.dropot=0.1", 'unknown key "model.dropot"; did you mean "model.dropout"?'),
        ("wamup=3", 'unknown key "wamup"; did you mean "optim.schedule.warmup"?'),
        ("depht=3", 'unknown key "depht"; did you mean "data.depth" or "model.depth"?'),
        ("model.heads=3", 'unknown key "model.heads"; did you mean "model.attention.heads"?'),
        ("trainng.batch=3", 'unknown key "trainng.batch"; did you mean "training.batch"?'),
        ("schedule.pct_start=0.2", 'unknown key "schedule.pct_start"'),  # of another schedule than this run's
        ("steps.more=3", 'unknown key "steps.more"'),
        ("width=3", '"width" could be any of data.width, model.width, model.feedforward.width: say which'),
        ("steps=many", "training.steps is 'many', not an integer"),
        ("steps=2.5", "training.steps is 2.5, not an integer"),
        ("steps=0", "training.steps is 0; it has to be at least 1"),
        ("steps=true", "training.steps is no switch; it cannot be true"),
        ("model.width=4294967296", "model.width is 4294967296; it has to be at most 2147483647"),
        ("lr=true", "optim.lr is no switch; it cannot be true"),
        ("lr=-1", "optim.lr is -1; it has to be more than 0"),
        ("head.tied=maybe", "model.head.tied is 'maybe', not true or false"),
        ("optim.kind=lion", "optim.kind is 'lion'; it is one of 'adamw', 'muon' or 'sgd'"),
        ("betas=[0.9]", "optim.betas.1 is missing"),
        ("schedule.floor=2", "optim.schedule.floor is 2; it has to be at most 1"),
        ("schedule=sine", "'constant', 'cosine', 'linear', 'wsd', 'onecycle'"),
        ('optim.schedule={kind="wsd", dekay=1}', 'unknown key "optim.schedule.dekay"'),
        ("model.width=30", "rotary positions need an even head width, not 15"),
        ("accumulation=65", "a batch of 64 rows cannot be cut into 65 parts"),
        ("model={width=3, with=4}", 'unknown key "model.with"; did you mean "model.width"?'),
        ("format=3", "this linnet reads up to 2"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)) as refused:
        set_all(setting)
    assert str(refused.value).startswith("--set")


def test_settings_hold_together_not_one_by_one() -> None:
    run = set_all("model.width=30", "heads=3")
    assert run == set_all("heads=3", "model.width=30")
    assert run.model.head_width == 10
    with pytest.raises(BadInput, match="--set model.width=30: .* even head width"):
        set_all("model.width=30", "steps=7")


def test_a_schedule_and_its_settings_come_in_any_order() -> None:
    expected = Linear(warmup=3, floor=0.5)
    for order in (
        ("schedule=linear", "schedule.warmup=3", "floor=0.5"),
        ("warmup=3", "schedule.kind=linear", "schedule.floor=0.5"),
        ("optim.schedule.floor=0.5", "schedule.warmup=3", "optim.schedule=linear"),
    ):
        assert set_all(*order).optim.schedule == expected


def test_steps_and_epochs_replace_each_other() -> None:
    assert (set_all("epochs=2").training.steps, set_all("epochs=2").training.epochs) == (None, 2)
    both = set_all("epochs=2", "steps=9").training
    assert (both.steps, both.epochs) == (9, None)
    with pytest.raises(BadInput, match="--steps and --epochs exclude each other"):
        prepare("tiny-arithmetic", steps=3, epochs=1)
    assert prepare("tiny-arithmetic", epochs=1.5).training.epochs == 1.5
    assert prepare("tiny-arithmetic", steps=3).training.steps == 3


def test_validations_by_steps_and_by_epochs_replace_each_other() -> None:
    one, other = set_all("evals_per_epoch=2").training, set_all("evals_per_epoch=2", "eval_every=7").training
    assert (one.eval_every, one.evals_per_epoch) == (None, 2)
    assert (other.eval_every, other.evals_per_epoch) == (7, None)


def test_options_come_last() -> None:
    run = prepare("tiny-arithmetic", settings=["seed=3", "steps=4"], seed=9, steps=5, precision="float32")
    assert (run.seed, run.training.steps, run.precision) == (9, 5, "float32")


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(BadInput, match='there is no recipe "arithmetik"; did you mean "arithmetic"?'):
        prepare("arithmetik")


@given(RUNS)
def test_flat_keys_are_unique_and_reach_their_values(run: Run) -> None:
    tree = run.model_dump(mode="json")
    tree["model"]["columns"] = {}  # names of columns may have dots of their own
    for key, value in flatten(tree).items():
        branch = tree
        for part in key.split("."):
            branch = branch[part]
        assert branch == value


def test_a_whole_group_is_not_set_to_a_word() -> None:
    with pytest.raises(BadInput, match="optim is a group of settings; name one, such as optim.kind=muon"):
        prepare("tiny-text", settings=["optim=muon"])
