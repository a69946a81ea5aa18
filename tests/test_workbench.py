"""Runs as a person meets them: what is logged, saved, shown and reported, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from linnet import workbench
from linnet.errors import BadInput, RunFailed
from linnet.evaluation import nats
from linnet.machine import compiler_at_hand
from linnet.model.kernels import attention_form
from linnet.model.model import Model
from linnet.training.checkpoint import RunFolder, load_weights
from linnet.training.settings import parse
from linnet.untrusted import read_toml
from tiny_runs import TINY, Killed, Watching, bits, logged, tiny_run, train_tiny

AVERAGED = ("ema=0.8", "dropout=0.1")


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that keeps averaged weights."""
    out = tmp_path_factory.mktemp("averaged") / "run"
    train_tiny(out, *AVERAGED)
    return out


# What a run writes.


def test_every_step_logs_what_it_did(averaged: Path) -> None:
    run, batches = tiny_run(*AVERAGED)
    steps = logged(averaged)
    assert [record["step"] for record in steps] == list(range(1, 19))
    for record in steps:
        assert record["loss"] > 0 and record["grad_norm"] > 0
        assert record["lr"] == pytest.approx(run.optim.lr * run.optim.schedule.factor(record["step"] - 1, 18))
        assert record["ms"] > 0 and record["memory_mb"] > 10
        assert record["tokens_per_second"] == pytest.approx(1e3 * record["tokens"] / record["ms"])
        assert 0 <= record["data_wait"] <= 1, "the share of the step that was spent waiting for its batch"
    assert [record["tokens"] for record in steps[:10]] == [int(batch["lengths"].sum()) for batch in batches]
    record = json.loads((averaged / "record.json").read_text())
    assert record["tokens"] == sum(step["tokens"] for step in steps)


def test_the_use_of_a_gpu_that_is_not_known_is_not_logged() -> None:
    """Without NVIDIA's library, or without a GPU, torch raises; a run goes on."""
    from linnet.training.log import gpu_use

    use = gpu_use()
    assert use is None or 0 <= use <= 1


def weights_at(run: Path, step: int, name: str) -> Model:
    settings = parse(read_toml(run / "run.toml"), "run.toml")
    model = Model(settings.model)
    load_weights(model, load_file(RunFolder(run).at(step) / name), name)
    return model.eval()


def test_raw_and_averaged_weights_are_validated_and_saved(averaged: Path) -> None:
    """The logged losses are those of the saved weights over the whole validation part."""
    run, _ = tiny_run(*AVERAGED)
    rows = run.data.load(run.seed).validation.rows
    validations = {record["step"]: record for record in logged(averaged, "validation")}
    assert sorted(validations) == [4, 8, 12, 16, 18]
    for step in RunFolder(averaged).steps():
        record = validations[step]
        raw = nats(weights_at(averaged, step, "weights.safetensors"), rows).mean
        ema = nats(weights_at(averaged, step, "ema.safetensors"), rows).mean
        assert (record["loss"], record["ema_loss"]) == (pytest.approx(raw), pytest.approx(ema))
        assert raw != pytest.approx(ema)
        assert record["tokens"] == rows.targets


def test_attention_entropy_is_logged_at_validation(averaged: Path) -> None:
    """Mean nats of the attention patterns, by hand."""
    run, _ = tiny_run(*AVERAGED)
    rows = run.data.load(run.seed).validation.rows
    step = RunFolder(averaged).steps()[-1]
    model = weights_at(averaged, step, "weights.safetensors")
    total, queries = 0.0, 0
    with torch.inference_mode():
        for row in range(min(16, len(rows))):
            ids = torch.from_numpy(rows.row(row)[: run.model.context])[None]
            pattern = model(ids, keep=("blocks.0.attn.hook_pattern",)).kept["blocks.0.attn.hook_pattern"].double()
            total += float(-(pattern * pattern.clamp(min=1e-30).log()).sum(-1).mean(1).sum())
            queries += ids.shape[1]
    logged_entropy = logged(averaged, "validation")[-1]["attention_entropy"]
    assert logged_entropy == [pytest.approx(total / queries, rel=1e-4)]
    assert 0 < logged_entropy[0] < math.log(run.model.context)


def test_later_verbs_take_the_averaged_weights(averaged: Path) -> None:
    opened = workbench.load(averaged)
    ema = load_file(RunFolder(averaged).at(opened.step) / "ema.safetensors")
    assert all(torch.equal(value, ema[name]) for name, value in opened.model.named_parameters())
    assert not opened.model.training


def test_without_averaging_the_weights_are_taken(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_tiny(out, "mixer=gru", steps=4)
    opened = workbench.load(out)
    raw = load_file(RunFolder(out).at(opened.step) / "weights.safetensors")
    assert all(torch.equal(value, raw[name]) for name, value in opened.model.named_parameters())
    (validation,) = logged(out, "validation")
    assert validation["ema_loss"] is None
    assert validation["attention_entropy"] == [], "a recurrent layer attends to nothing"
    assert not list(out.rglob("ema.safetensors"))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("eval_every=5", [5, 10, 15, 18]),
        ("evals_per_epoch=2", [4, 8, 12, 16, 18]),
        ("evals_per_epoch=0.5", [14, 18]),
    ],
)
def test_validations_come_every_so_many_steps_or_times_an_epoch(
    tmp_path: Path, setting: str, expected: list[int]
) -> None:
    """Seven steps make an epoch."""
    train_tiny(tmp_path / "run", setting)
    assert [record["step"] for record in logged(tmp_path / "run", "validation")] == expected


def test_the_newest_checkpoints_and_the_best_stay(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_tiny(out, "lr=0.2", "schedule=constant", "eval_every=2", "keep=2", steps=12)
    losses = {record["step"]: record["loss"] for record in logged(out, "validation")}
    best = min(losses, key=lambda step: losses[step])
    assert best not in (10, 12), "the test wants a best checkpoint that is not among the newest"
    assert RunFolder(out).steps() == sorted({best, 10, 12})
    assert workbench.load(out).step == workbench.show(out).best == best
    assert workbench.load(out, checkpoint=12).step == 12
    with pytest.raises(BadInput, match=rf"has no checkpoint of step 11; there is {best}, 10, 12"):
        workbench.load(out, checkpoint=11)


def test_the_whole_resolved_run_is_written_first(tmp_path: Path) -> None:
    """Before the first step, with everything that was decided for it."""
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train_tiny(out, progress=Watching(1), steps=None, epochs=2)
    run = parse(read_toml(out / "run.toml"), "run.toml")
    assert (run.device, run.precision, run.training.compile) == ("cpu", "float32", "off")
    assert run.threads == torch.get_num_threads()
    assert (run.training.steps, run.training.epochs) == (14, None)
    assert run.model.vocabulary > 0 and run.model.context > 0
    assert (out / "codec.json").is_file()
    shown = workbench.show(out)
    assert (shown.state, shown.step, shown.steps) == ("empty", 0, 14)
    with pytest.raises(BadInput, match=f"{out} has no checkpoint yet; go on with: linnet resume {out}"):
        workbench.load(out)
    texts = [note["text"] for note in logged(out, "note")]
    tokens, dropout = run.model.context, run.model.dropout
    form = attention_form(torch.device("cpu"), tokens, tokens, compiled=False, dropout=dropout)
    assert any(text.startswith("attention at ") and text.endswith(f": {form}") for text in texts)
    assert any(text.startswith(f"precision float32, {run.threads} thread") for text in texts)
    why = (
        "by estimate it saves 0 s of the whole run and takes 30" if compiler_at_hand("cpu") else "there is no C++"
    )
    assert any(text.startswith(f"compile off: {why}") for text in texts)


def test_rows_longer_than_the_context_are_counted_and_read_in_pieces(tmp_path: Path) -> None:
    """They are named before training starts, and every one of their answers is still learnt from once an epoch."""
    out = tmp_path / "run"
    settings = ("data.padded=false", "model.context=7", "positions=learned", "supervise=all")
    train_tiny(out, *settings, steps=None, epochs=1)
    run, _ = tiny_run(*settings)
    rows = run.data.load(run.seed).train.rows
    longer = rows.longer_than(7)
    assert 0 < len(longer) < len(rows)
    note = next(n for n in logged(out, "note") if "training rows" in n["text"])
    assert note["step"] == 0
    assert f"{len(longer)} of {len(rows)} training rows are longer than the context of 7 tokens" in note["text"]
    assert f"the first has {rows.lengths[longer[0]] - 1} tokens and begins '" in note["text"]
    _, batches = tiny_run(*settings)
    assert max(batch["ids"].shape[1] for batch in batches) <= 8

    plan = run.data.plan(rows, run)
    asked = sum(float(plan.batch(step)["weights"].sum()) for step in range(plan.steps_per_epoch))
    assert asked == rows.targets


def test_scores_do_not_depend_on_the_batch(averaged: Path) -> None:
    one = workbench.evaluate(averaged, settings=["batch=7", "n=60"]).scores
    other = workbench.evaluate(averaged, settings=["batch=256", "n=60"]).scores
    for mine, theirs in zip(one, other, strict=True):
        assert (mine.name, mine.n) == (theirs.name, theirs.n)
        assert mine.value == pytest.approx(theirs.value, rel=1e-6)


# What is shown.


def test_show_tells_what_a_run_holds_and_costs(averaged: Path) -> None:
    shown = workbench.show(averaged)
    opened = workbench.load(averaged)
    assert (shown.state, shown.step, shown.steps) == ("finished", 18, 18)
    assert shown.parameters == sum(parameter.numel() for parameter in opened.model.parameters())
    assert shown.kv_bytes_per_token == 2 * 16 * 4, "keys and values of one layer of width 16 in float32"
    assert shown.flops_per_token > 2 * shown.parameters
    assert shown.training_bytes > 20 * shown.parameters
    assert shown.checkpoints == tuple(RunFolder(averaged).steps())
    assert shown.settings["optim"]["ema"] == 0.8
    assert [score.name for score in shown.scores][0] == "exact"
    assert shown.scores == workbench.resume(averaged).scores


def test_the_report_is_a_page_with_every_score_and_setting(averaged: Path) -> None:
    report = (averaged / "report.md").read_text()
    record = workbench.resume(averaged)
    assert report.startswith("# tiny-arithmetic\n")
    assert f"{record.parameters:,} parameters, 18 steps, {record.tokens:,} tokens" in report
    for score in record.scores:
        row = next(line for line in report.splitlines() if line.startswith(f"| {score.name} |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1:5] == [
            f"{score.value:.4f}",
            f"{score.low:.4f} .. {score.high:.4f}",
            f"{score.n:,}",
            f"{score.baseline.value:.4f} ({score.baseline.name})",
        ]
    assert "- `optim.ema` = 0.8" in report
    assert "- `model.attention.heads` = 2" in report


# What is refused, and what fails.


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_exists_stays_without_force(tmp_path: Path, averaged: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(averaged, out)
    before = everything(out)
    with pytest.raises(BadInput, match="exists; choose another name, or replace it with --force"):
        train_tiny(out)
    assert everything(out) == before
    train_tiny(out, force=True, steps=4)
    assert RunFolder(out).steps() == [4]
    assert len(logged(out)) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "has no rows"), ("1+1=2\nnonsense\n", "nonsense"), ("1+1=2\n", "at least two different problems")],
    ids=["empty", "nonsense", "one row"],
)
@pytest.mark.parametrize("force", [False, True])
def test_data_that_cannot_be_read_replace_nothing(
    tmp_path: Path, averaged: Path, content: str, said: str, force: bool
) -> None:
    """With --force too: the old run goes only when the new data are there."""
    out, data = tmp_path / "run", tmp_path / "sums.txt"
    data.write_text(content)
    if force:
        shutil.copytree(averaged, out)
    before = everything(tmp_path)
    with pytest.raises(BadInput, match=said):
        train_tiny(out, data=[data], force=force)
    assert everything(tmp_path) == before
    assert out.exists() == force


def test_force_does_not_replace_a_run_that_holds_the_data(tmp_path: Path, averaged: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(averaged, out)
    data = out / "rows.txt"
    data.write_text("12+34=46\n" * 30)
    before = everything(out)
    with pytest.raises(BadInput, match=r"holds files that linnet did not write \(rows.txt\)"):
        train_tiny(out, data=[data], force=True)
    assert everything(out) == before
    data = data.rename(out / "metrics.jsonl")
    before = everything(out)
    with pytest.raises(BadInput, match=rf"would be replaced, and {data}, which is to be read, lies in it"):
        train_tiny(out, data=[data], force=True)
    assert everything(out) == before


def test_force_does_not_replace_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(BadInput, match="is not a run, so --force does not replace it"):
            train_tiny(path, force=True)
    assert everything(tmp_path) == {str(tmp_path / "thesis.txt"): b"all of it"}


def test_a_run_without_a_name_gets_the_next_free_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/tiny-arithmetic-001").mkdir(parents=True)
    record = workbench.train("tiny-arithmetic", settings=TINY, steps=2)
    assert record.path == "runs/tiny-arithmetic-002"
    assert Path(record.path, "record.json").is_file()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=f"cannot write into {tmp_path}/file/run: {tmp_path}/file is not a folder"):
        train_tiny(tmp_path / "file" / "run")


@pytest.mark.parametrize("allocation", ["torch", "the machine"])
def test_running_out_of_memory_names_the_dials(tmp_path: Path, allocation: str) -> None:
    """In a real step: torch's own error, and what it raises for memory that no machine has."""

    class Greedy(Watching):
        def write(self, record: object) -> None:
            if record.kind == "step" and record.step == 3:
                if allocation == "torch":
                    raise torch.OutOfMemoryError("CUDA out of memory")
                torch.empty(1 << 50)

    context = tiny_run()[0].model.context
    with pytest.raises(RunFailed) as failed:
        train_tiny(tmp_path / "run", "accumulation=2", progress=Greedy())
    assert str(failed.value) == (
        f"out of memory with training.batch=16, training.accumulation=2, rows of {context} steps: "
        "lower training.batch, raise training.accumulation, or lower model.context"
    )
    assert failed.value.exit_code == 1


def test_other_errors_are_not_put_into_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="some defect"):
        train_tiny(tmp_path / "run", progress=Watching(3, RuntimeError("some defect")))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that has room for two checkpoints of a run and not for three."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=220k", "tmpfs", str(place)]
    mounted = subprocess.run(words, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_loses_nothing_and_the_run_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    out = small_disk / "run"
    settings = ("ema=0.8", "keep=9", "eval_every=3")
    with pytest.raises(RunFailed, match="No space left on device") as failed:
        train_tiny(out, *settings)
    assert failed.value.exit_code == 1
    folder = RunFolder(out)
    steps = folder.steps()
    assert steps and steps[-1] < 18, "the disk holds some checkpoints and not all"
    assert str(folder.at(steps[-1])) in str(failed.value) or "metrics.jsonl" in str(failed.value)
    assert folder.newest(pytest.fail).loop.step == steps[-1]
    assert not [path for path in out.rglob(".*")]
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    workbench.resume(out)
    train_tiny(tmp_path / "whole", *settings)
    assert bits(out) == bits(tmp_path / "whole")
    assert [record["step"] for record in logged(out)] == list(range(1, 19))


def test_metrics_that_cannot_be_written_end_the_run_in_words(small_disk: Path) -> None:
    out = small_disk / "run"
    filler = small_disk / "filler"

    class Filling(Watching):
        def write(self, record: object) -> None:
            if record.kind == "step" and record.step == 2:
                with filler.open("wb", buffering=0) as file:
                    for block in (1 << 12, 1):
                        try:
                            while True:
                                file.write(bytes(block))
                        except OSError:
                            continue

    with pytest.raises(RunFailed, match=r"could not write .*metrics.jsonl: No space left on device"):
        train_tiny(out, "eval_every=18", progress=Filling())
    filler.unlink()
    workbench.resume(out)
    assert [record["step"] for record in logged(out)] == list(range(1, 19))


def test_a_device_that_is_not_there_is_named(tmp_path: Path, averaged: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(BadInput, match="there is no CUDA device here"):
        train_tiny(tmp_path / "run", device="cuda")
    with pytest.raises(BadInput, match="float16 needs a CUDA device"):
        train_tiny(tmp_path / "run", precision="float16")
    assert not (tmp_path / "run").exists()
    out = tmp_path / "from elsewhere"
    shutil.copytree(averaged, out)
    (out / "record.json").unlink()
    settings = out / "run.toml"
    settings.write_text(settings.read_text().replace('device = "cpu"', 'device = "cuda"'))
    with pytest.raises(BadInput, match="there is no CUDA device here"):
        workbench.resume(out)
    assert workbench.load(out).step > 0, "what was trained elsewhere can be used here"


def test_broken_folders_are_named(tmp_path: Path, averaged: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(averaged, out)
    with pytest.raises(BadInput, match=f"there is no folder {tmp_path}/nowhere"):
        workbench.load(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=f"there is no run .no run.toml. in {tmp_path}"):
        workbench.show(tmp_path)
    (out / "record.json").write_text("{")
    for use in (workbench.show, workbench.resume):
        with pytest.raises(BadInput, match=r"record.json is not what was written"):
            use(out)
    (out / "codec.json").write_text("{")
    with pytest.raises(BadInput, match="codec.json is not JSON"):
        workbench.load(out)
    (out / "codec.json").unlink()
    with pytest.raises(BadInput, match="has no codec.json"):
        workbench.load(out)
    shutil.copy(averaged / "codec.json", out)
    best = workbench.show(averaged).best
    (RunFolder(out).at(best) / "ema.safetensors").write_bytes(b"")
    with pytest.raises(
        BadInput, match=rf"{best:06d} is broken .ema.safetensors is not what was written.*--checkpoint"
    ):
        workbench.load(out)
    (out / "run.toml").write_text("recipe = ")
    with pytest.raises(BadInput, match="run.toml is not valid TOML"):
        workbench.load(out)


def test_settings_of_a_verb_are_checked(averaged: Path) -> None:
    for setting, said in (
        ("bach=7", 'unknown key "bach"; did you mean "batch"'),
        ("batch=0", "batch must be at least 1"),
        ("batch=x", "batch needs a whole number"),
        ("batch=true", "batch needs a whole number"),
    ):
        with pytest.raises(BadInput, match=said):
            workbench.evaluate(averaged, settings=[setting])
