"""The training loop: one page that reads from top to bottom. All of its state is in `LoopState` and `Learner`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import torch

from linnet.data import Batch, Plan, Prefetcher
from linnet.domains.contract import Material, Part
from linnet.machine import autocast
from linnet.model.contract import Network, evaluating
from linnet.records import ValidationRecord
from linnet.training.checkpoint import Checkpoint, LoopState, RunFolder, weights_of
from linnet.training.distributed import Processes
from linnet.training.guards import Stopped, out_of_memory_in_words, stop_signals
from linnet.training.learner import Learner
from linnet.training.log import Diverged, Log
from linnet.training.run import Run
from linnet.training.settings import without_unused
from linnet.training.snapshots import snapshot_steps

ENTROPY_ROWS = 16  # of the validation part, whose attention patterns are measured


def validation_steps(run: Run, plan: Plan, steps: int) -> int:
    """Steps between two validations."""
    training = run.training
    if training.eval_every is not None:
        return training.eval_every
    if training.evals_per_epoch is not None:
        return max(1, round(plan.steps_per_epoch / training.evals_per_epoch))
    return max(1, math.ceil(steps / 10))


def train(
    run: Run,
    material: Material,
    folder: RunFolder,
    processes: Processes,
    log: Log,
    start: Checkpoint | None = None,
) -> LoopState:
    """Train a resolved run to its end, from the beginning or from a checkpoint; returns the final state."""
    rows, steps, device = material.train.rows, run.training.steps, torch.device(run.device)
    assert steps is not None, "a resolved run has a number of steps"
    with out_of_memory_in_words(run):
        learner = Learner(run, material.codec, device, processes)
    if start is not None:
        learner.restore(start, str(folder.path))
    loop = LoopState(data=rows.fingerprint()) if start is None else start.loop
    plan = run.data.plan(rows, run)
    held = processes.own_rows(material.validation)
    targets = material.validation.rows.targets
    sample = run.data.plan(held.rows, run).batch(0).slice(slice(0, ENTROPY_ROWS)) if len(held.rows) else None
    every, kept = validation_steps(run, plan, steps), snapshot_steps(steps, run.training.snapshots)
    if loop.step == 0:
        introduce(run, learner.network, log)
        if start is not None:
            loss = validation_loss(run, learner, learner.network, held, targets)
            log.note(0, f"the weights to begin with have the validation loss {loss:.4f}")
    last = loop.step if has_stopped_early(run, loop) else steps
    batches = Prefetcher(plan, loop.step, last, run.training.prefetch, pin=device.type == "cuda")
    began = time.perf_counter()
    with stop_signals() as stop, out_of_memory_in_words(run), closing(batches), naming_last_good(folder):
        for batch in batches:
            if problem := learner.check(batch, loop.step):
                log.note(loop.step, f"steps are not compiled: {problem}")
            moved = learner.step(batch, loop.step, steps)
            if problem := learner.unrecorded():
                log.note(loop.step, f"steps are not recorded as CUDA graphs: {problem}")
            loop.step += 1
            tokens = int(batch["lengths"].sum())
            loop.tokens += tokens
            log.step(loop, moved, learner.rate, tokens, batches.waited)

            if loop.step in kept:
                keep_snapshot(learner, folder, loop.step, log)
            due = loop.step % every == 0 or loop.step == steps
            stopping = processes.any(stop.made, device)
            if due:
                log.flush()
                validate(run, learner, held, targets, sample, loop, log)
            if due or stopping:
                log.flush()
                refuse_overflow(learner, loop.step)
                loop.seconds, began = loop.seconds + time.perf_counter() - began, time.perf_counter()
                keep_checkpoint(run, learner, folder, processes, loop, log)
            if has_stopped_early(run, loop):
                log.note(loop.step, f"stopped early: {loop.worse} validations without a better loss")
                break
            if stopping and loop.step < steps:
                raise Stopped(f"stopped at step {loop.step} of {steps}; go on with: linnet resume {folder.path}")
    log.start()  # where no step was left to do
    return loop


def keep_checkpoint(
    run: Run, learner: Learner, folder: RunFolder, processes: Processes, loop: LoopState, log: Log
) -> None:
    """The first process writes it, and all wait until it is there."""
    if processes.first:
        loop.metrics_bytes = log.offset
        folder.save(learner.checkpoint(loop))
        folder.prune(run.training.keep, loop.step, loop.best_step)
    processes.wait()
    log.restart_clock()


def keep_snapshot(learner: Learner, folder: RunFolder, step: int, log: Log) -> None:
    """Write the weights that the run would be used with now."""
    log.flush()
    if learner.processes.first:
        folder.snapshots.save(step, weights_of(learner.averaged or learner.network))
    log.restart_clock()


def has_stopped_early(run: Run, loop: LoopState) -> bool:
    return run.training.patience is not None and loop.worse >= run.training.patience


def refuse_overflow(learner: Learner, step: int) -> None:
    """Weights too large to be squared give a finite loss behind a norm, and no gradient; they are not saved."""
    with torch.no_grad():
        norm = float(torch.nn.utils.get_total_norm(learner.network.parameters()))
    if not math.isfinite(norm):
        raise Diverged(f"the weights after step {step} have the norm {norm}")


@contextmanager
def naming_last_good(folder: RunFolder) -> Iterator[None]:
    """A run that diverges says where it was last in order."""
    try:
        yield
    except Diverged as error:
        good = folder.steps()
        kept = f"the last good checkpoint is {folder.at(good[-1])}" if good else "there is no checkpoint yet"
        raise Diverged(f"{error}; {kept}; a lower optim.lr or a longer warmup may help") from None


def introduce(run: Run, network: Network, log: Log) -> None:
    """Log once what was decided for this run."""
    for text in network.remarks(compiled=run.training.compiled):
        log.note(0, text)
    for name, share in (("token masking", run.augment.mask), ("document dropping", run.augment.drop)):
        if share:
            log.note(0, f"augmentation of the training data: {name}, {share:.0%}")
    terms = without_unused(run).get("model", {}).get("loss", {})
    if further := ", ".join(f"{name} {value:g}" for name, value in terms.items() if value):
        log.note(0, f"the training loss has further terms ({further}); validation is in plain nats")
    log.note(0, f"precision {run.precision}, {run.threads} thread{'s' if run.threads > 1 else ''}")


def validate(
    run: Run, learner: Learner, part: Part, targets: int, sample: Batch | None, loop: LoopState, log: Log
) -> None:
    """Loss over the whole validation part under raw and averaged weights; decides which checkpoint is the best."""
    if not targets:
        return
    loss = validation_loss(run, learner, learner.network, part, targets)
    averaged = learner.averaged
    ema_loss = None if averaged is None else validation_loss(run, learner, averaged, part, targets)
    chosen = loss if ema_loss is None else ema_loss
    shown = learner.processes.first and sample is not None
    entropy = attention_entropy(learner.network, sample) if shown and sample is not None else ()
    log.write(
        ValidationRecord(step=loop.step, loss=loss, ema_loss=ema_loss, tokens=targets, attention_entropy=entropy)
    )
    if not (math.isfinite(loss) and math.isfinite(chosen)):
        raise Diverged(f"the validation loss after step {loop.step} is {loss}")
    if loop.best_loss is None or chosen < loop.best_loss:
        loop.best_loss, loop.best_step, loop.worse = chosen, loop.step, 0
    else:
        loop.worse += 1


def validation_loss(run: Run, learner: Learner, network: Network, part: Part, targets: int) -> float:
    """Each process judges its own rows, and their mean weighs by the targets that they have."""
    processes, device = learner.processes, learner.device
    size, region, own = run.training.eval_batch, lambda: autocast(device, run.precision), part.rows.targets
    judged = run.data.judge(network, part, batch=size, region=region) if own else 0.0
    return judged if processes.world == 1 else processes.sum(judged * own, device) / targets


def attention_entropy(network: Network, batch: Batch) -> tuple[float, ...]:
    """Mean nats of the attention patterns of each attention layer, over the queries of a batch."""
    keep = tuple(name for name in network.taps() if name.endswith("hook_pattern"))
    if not keep:
        return ()
    some = batch.to(network.device)
    with evaluating(network):
        kept = network(some, keep=keep).kept
    found = []
    for name in keep:
        nats = torch.special.entr(kept[name].float()).sum(-1).mean(1)  # [B, T]
        inside = torch.arange(nats.shape[1], device=nats.device) < some["lengths"][:, None]
        found.append(float(nats[inside].mean()))
    return tuple(found)
