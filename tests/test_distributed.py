"""Two processes under torchrun: the gradient, the weights and the resume of one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from linnet import workbench
from linnet.codecs import Codec
from linnet.data import Batch
from linnet.domains.places.generated import Process, generate, write_check_ins
from linnet.training.checkpoint import RunFolder
from linnet.training.distributed import Processes
from linnet.training.learner import Learner
from linnet.training.resolve import complete, settle
from linnet.training.run import Run
from linnet.workbench.prepare import prepare
from tiny_runs import TINY, bits, logged, tiny_run, train_tiny

TESTS = Path(__file__).parent
# Rates by which one rounding error of a gradient cannot grow: Adam divides small gradients by themselves.
SETTINGS = (
    "ema=0.9", "accumulation=3", "eps=1e-3", "schedule=constant", "init_std=0.1", "threads=1", "dropout=0.2",
    "r_drop=1",
)  # fmt: skip
STEPS = 40
# Every process asks for the gradients of a whole batch, of a short one, and of one with fewer rows than processes.
GRADIENTS = """
import sys
import torch
from safetensors.torch import save_file
from test_distributed import gradients
from linnet.training.distributed import Processes

torch.set_num_threads(1)
processes = Processes.join("cpu")
found = gradients(processes, sys.argv[2])
if processes.first:
    save_file(found, sys.argv[1])
processes.wait()  # gloo aborts now and then where one process leaves while the other is busy
processes.leave()
"""


def ragged(batch: Batch, rows: int) -> Batch:
    """The first rows of a batch, with uneven masks: a process that weighs its own tokens alone gets it wrong."""
    weights = batch["weights"].clone()
    weights[: rows // 2, 3:] = 0.0
    return batch.replaced(weights=weights).slice(slice(0, rows))


def batches_of(recipe: str, data: str) -> tuple[Run, Codec, dict[str, Batch]]:
    """Batches of visits, each row of which has its own number of entries; or of sums."""
    if not recipe:
        run, batches = tiny_run(*SETTINGS)
        return run, run.data.codec(), {f"{rows} rows": ragged(batches[0], rows) for rows in (16, 5, 2, 1)}
    run = settle(prepare(recipe, data=data, steps=3, settings=["threads=1", "dropout=0.3", "accumulation=2"]))
    material = run.data.load(run.seed)
    run = complete(run, material)
    batch = run.data.plan(material.train.rows, run).batch(0)
    return run, material.codec, {f"{recipe}, {rows} rows": batch.slice(slice(0, rows)) for rows in (16, 5, 1)}


def gradients(processes: Processes, data: str) -> dict[str, torch.Tensor]:
    """The gradient and the loss of each batch, as this process sees them after the exchange."""
    found = {}
    for recipe in ("", "tiny-places", "places-gru", "places-transformer"):
        run, codec, batches = batches_of(recipe, data)
        for name, batch in batches.items():
            learner = Learner(run, codec, torch.device("cpu"), processes)
            loss = learner.gradients(batch, 0)
            grads = [p.grad.flatten() for p in learner.network.parameters() if p.grad is not None]
            found[name] = torch.cat([loss.reshape(1), *grads])
    return found


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent, os.environ.get("PYTHONPATH", "")))),
        "OMP_NUM_THREADS": "1",
    }


def torchrun(*words: str | Path) -> list[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [*launch, *map(str, words)]


def run_both(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(torchrun(*words), env=environment(), capture_output=True, text=True)


def training(out: Path) -> list[str | Path]:
    settings = [word for setting in (*TINY, *SETTINGS) for word in ("--set", setting)]
    return ["-m", "linnet", "train", "tiny-arithmetic", "--out", out, "--steps", str(STEPS), "--json", *settings]


def children_of(process: int) -> list[int]:
    """The processes that this one started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            _, _, after = stat.read_text().rpartition(")")
            if int(after.split()[1]) == process:
                found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    table = str(tmp_path / "visits.csv")
    write_check_ins(Path(table), generate(Process(users=6, visits=40, own=5, venues=60)))
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    done = run_both(script, tmp_path / "found.safetensors", table)
    assert done.returncode == 0, done.stderr
    both = load_file(tmp_path / "found.safetensors")
    alone = gradients(Processes(), table)
    assert both.keys() == alone.keys()
    for name, expected in alone.items():
        assert float(expected[1:].abs().max()) > 0.005, "the tolerance means something"
        assert float((both[name] - expected).abs().max()) <= 1e-6, name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nobody stopped."""
    out = tmp_path_factory.mktemp("both") / "run"
    done = run_both(*training(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"kind":"run"') == 1, "only the first process speaks"
    return out


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(tmp_path: Path, undisturbed: Path) -> None:
    train_tiny(tmp_path / "alone", *SETTINGS, steps=STEPS)
    ours, alone = RunFolder.open(undisturbed), RunFolder.open(tmp_path / "alone")
    assert ours.steps() == alone.steps()
    for name in ("weights.safetensors", "ema.safetensors"):
        mine, theirs = ours.tensors(STEPS, name), alone.tensors(STEPS, name)
        for parameter, value in theirs.items():
            assert float((mine[parameter] - value).abs().max()) <= 1e-6, (name, parameter)
    np.testing.assert_allclose(
        [record["loss"] for record in logged(undisturbed)],
        [record["loss"] for record in logged(tmp_path / "alone")],
        rtol=1e-5,
    )
    assert [record["step"] for record in logged(undisturbed)] == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_two_killed_processes_resume_with_the_bits_of_the_undisturbed_two(
    tmp_path: Path, undisturbed: Path
) -> None:
    if not Path("/proc/self/stat").is_file():
        pytest.skip("the processes that torchrun starts can only be found in /proc")
    out = tmp_path / "run"
    launcher = subprocess.Popen(
        torchrun(*training(out)), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = out / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_bytes().count(b'"kind":"step"') < 10:
        assert launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.01)
    workers = children_of(launcher.pid)
    for process in (launcher.pid, *workers):
        os.kill(process, signal.SIGKILL)
    launcher.communicate()
    assert len(workers) == 2
    assert not (out / "record.json").exists()
    shutil.copytree(out, tmp_path / "alone")
    done = run_both("-m", "linnet", "resume", out, "--json")
    assert done.returncode == 0, done.stderr
    assert bits(out) == bits(undisturbed)
    workbench.resume(tmp_path / "alone")  # on another number of processes: the same but for the order of sums
    mine, theirs = (
        RunFolder.open(path).tensors(STEPS, "weights.safetensors") for path in (tmp_path / "alone", out)
    )
    assert all(float((mine[name] - theirs[name]).abs().max()) <= 1e-6 for name in theirs)
    assert [(r["step"], r["loss"], r["grad_norm"]) for r in logged(out)] == [
        (r["step"], r["loss"], r["grad_norm"]) for r in logged(undisturbed)
    ]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 2, 3, 16])
def test_the_shares_of_all_processes_are_the_batch(world: int, rows: int) -> None:
    batch = tiny_run()[1][0].slice(slice(0, rows))
    shares = [Processes(rank, world).share(batch) for rank in range(world)]
    assert all(share.rows >= 1 for share in shares), "every process takes part in every exchange"
    assert sum(float(share["weights"].sum()) for share in shares) == float(batch["weights"].sum())
    counted = [share["ids"] for share in shares if float(share["weights"].sum())]
    assert torch.equal(torch.cat(counted), batch["ids"])


def test_a_process_alone_needs_no_group() -> None:
    alone = Processes.join("cpu")
    assert (alone.rank, alone.world, alone.first) == (0, 1, True)
    assert alone.agree(0.1, torch.device("cpu")) == 0.1
    assert alone.any(True, torch.device("cpu")) and not alone.any(False, torch.device("cpu"))
    alone.wait()
    alone.leave()
