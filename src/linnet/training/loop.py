"""The training loop: one page that reads from top to bottom. All of its state is in `LoopState` and `Learner`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import torch

from linnet.data import Masked, Packed, Padded, Plan, Prefetcher
from linnet.domains import Material, Part
from linnet.domains.places.codec import PlacesCodec
from linnet.domains.places.data import PlacesData
from linnet.domains.places.features import VisitRows
from linnet.evaluation import nats, windows
from linnet.model.attention import choose
from linnet.model.inputs import Inputs
from linnet.model.model import Model
from linnet.model.places.batches import VisitPlan
from linnet.model.places.config import FULL_IS_NOT_READ
from linnet.model.places.published import CopyModel
from linnet.model.places.ranking import shortfall
from linnet.model.taps import expand
from linnet.records import ValidationRecord
from linnet.sequences import Sequences
from linnet.training.checkpoint import Checkpoint, LoopState, RunFolder
from linnet.training.distributed import Processes
from linnet.training.guards import Stopped, out_of_memory_in_words, stop_signals
from linnet.training.learner import Learner, autocast
from linnet.training.log import Diverged, Log
from linnet.training.networks import Network
from linnet.training.run import Run
from linnet.training.sinks import JsonLines, Sink


def plan_of(run: Run, sequences: Sequences | VisitRows) -> Plan:
    """Which rows make up which step; a row that is longer than the context is read in pieces.

    Compiled steps are padded to one length, so that they compile once.
    """
    if isinstance(sequences, VisitRows):
        return VisitPlan(sequences, run.training.batch, run.seed)
    batch, context, drop = run.training.batch, run.model.context, run.augment.drop
    plan: Plan
    if run.training.packing != "padded":
        plan = Packed(sequences, batch, context, run.seed, apart=run.training.packing == "apart", drop=drop)
    else:
        fixed = context if run.training.compile == "on" else None
        plan = Padded(windows(sequences, context)[0], batch, run.seed, context=context, fixed=fixed, drop=drop)
    if not run.augment.mask:
        return plan
    return Masked(plan, run.augment.mask, run.model.vocabulary, run.seed)


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
    *,
    start: Checkpoint | None = None,
    metrics: JsonLines | None = None,
    sinks: Sequence[Sink] = (),
) -> LoopState:
    """Train a resolved run to its end, from the beginning or from a checkpoint; returns the final state."""
    rows, steps, device = material.train.rows, run.training.steps, torch.device(run.device)
    assert steps is not None, "a resolved run has a number of steps"
    with out_of_memory_in_words(run):
        learner = Learner(run, device, processes)
    if isinstance(learner.network, CopyModel) and isinstance(material.codec, PlacesCodec):
        learner.network.adopt(material.codec)
    loop = LoopState(data=rows.fingerprint())
    if start is not None:
        learner.restore(start, str(folder.path))
        loop = start.loop
    plan = plan_of(run, rows)
    every = validation_steps(run, plan, steps)
    log = Log(run, device, metrics, sinks)
    if loop.step == 0:
        introduce(run, log)
    last = loop.step if has_stopped_early(run, loop) else steps
    batches = Prefetcher(plan, loop.step, last, run.training.prefetch)
    began = time.perf_counter()

    with stop_signals() as stop, out_of_memory_in_words(run), closing(batches), naming_last_good(folder):
        for batch in batches:
            moved = learner.step(batch, loop.step, steps)
            loop.step += 1
            tokens = int(batch.lengths.sum())
            loop.tokens += tokens
            log.step(loop, moved, learner.optims[-1].param_groups[0]["lr"], tokens, batches.waited)

            due = loop.step % every == 0 or loop.step == steps
            stopping = processes.any(stop.made, device)
            if due:
                log.flush()
                validate(run, learner, material.validation, loop, log)
            if due or stopping:
                log.flush()
                refuse_overflow(learner, loop.step)
                loop.seconds, began = loop.seconds + time.perf_counter() - began, time.perf_counter()
                if processes.first:
                    loop.metrics_bytes = log.offset
                    folder.save(learner.checkpoint(loop))
                    folder.prune(run.training.keep, loop.step, loop.best_step)
                processes.wait()
                log.restart_clock()
            if has_stopped_early(run, loop):
                log.note(loop.step, f"stopped early: {loop.worse} validations without a better loss")
                break
            if stopping and loop.step < steps:
                raise Stopped(f"stopped at step {loop.step} of {steps}; go on with: linnet resume {folder.path}")
    return loop


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


def introduce(run: Run, log: Log) -> None:
    """Say once what was decided for this run."""
    if "attention" in run.model.mixers and run.next_place is None:
        compiling, tokens = run.training.compile == "on", run.model.context
        device, dropout = torch.device(run.device), run.model.dropout
        kernel = choose(device, tokens, tokens, compiling=compiling, dropout=dropout)
        log.note(0, f"attention at {tokens} tokens: {kernel}")
    if isinstance(run.data, PlacesData) and run.data.reads == "history" and run.data.information == "full":
        log.note(0, FULL_IS_NOT_READ)
    for name, share in (("token masking", run.augment.mask), ("document dropping", run.augment.drop)):
        if share:
            log.note(0, f"augmentation of the training data: {name}, {share:.0%}")
    terms = {name: value for name, value in run.loss.model_dump().items() if value}
    if terms:
        said = ", ".join(f"{name} {value:g}" for name, value in terms.items())
        log.note(0, f"the training loss has further terms ({said}); validation is in plain nats")
    log.note(0, f"precision {run.precision}, {run.threads} thread{'s' if run.threads > 1 else ''}")


def validate(run: Run, learner: Learner, part: Part, loop: LoopState, log: Log) -> None:
    """Loss over the whole validation part under raw and averaged weights; decides which checkpoint is the best."""
    if len(part.rows) == 0:
        return
    processes, device = learner.processes, learner.device

    def measure(model: Network) -> float:
        return processes.agree(loss_of(run, model, part, device) if processes.first else 0.0, device)

    loss = measure(learner.network)
    ema_loss = None if learner.averaged is None else measure(learner.averaged)
    chosen = loss if ema_loss is None else ema_loss
    model, tokens = learner.network, part.rows.targets
    entropy: tuple[float, ...] = ()
    if processes.first and isinstance(model, Model):
        entropy = attention_entropy(model, part.sequences)
    log.write(
        ValidationRecord(step=loop.step, loss=loss, ema_loss=ema_loss, tokens=tokens, attention_entropy=entropy)
    )
    if not (math.isfinite(loss) and math.isfinite(chosen)):
        raise Diverged(f"the validation loss after step {loop.step} is {loss}")
    if loop.best_loss is None or chosen < loop.best_loss:
        loop.best_loss, loop.best_step, loop.worse = chosen, loop.step, 0
    else:
        loop.worse += 1
    loop.last_loss = chosen


def loss_of(run: Run, model: Network, part: Part, device: torch.device) -> float:
    """What a checkpoint is judged by: nats per target, or the share of places that it does not name."""
    region, size = lambda: autocast(device, run.precision), run.training.eval_batch
    if isinstance(model, Model):
        return nats(model, part.sequences, rows=size, region=region).mean
    assert part.visits is not None and isinstance(run.data, PlacesData)
    return shortfall(model, part.visits, run.data.select, size, region)


def attention_entropy(model: Model, sequences: Sequences, rows: int = 16) -> tuple[float, ...]:
    """Mean nats of the attention patterns of each attention layer, over a few validation rows."""
    layers = [layer for layer, mixer in enumerate(model.config.mixers) if mixer == "attention"]
    if not layers:
        return ()
    ids = [
        torch.from_numpy(sequences.row(row)[: model.config.context]) for row in range(min(rows, len(sequences)))
    ]
    keep = expand(model.config, [f"blocks.{layer}.attn.hook_pattern" for layer in layers])
    trained = model.training
    model.eval()
    sums, queries = [0.0] * len(layers), 0
    with torch.inference_mode():
        for row in ids:
            fields = {
                name: torch.from_numpy(values[: len(row)])[None].to(model.device)
                for name, values in sequences.fields.items()
            }
            kept = model(Inputs(row[None].to(model.device), fields=fields), keep=keep).kept
            queries += len(row)
            for place, name in enumerate(keep):
                pattern = kept[name][0].float()
                sums[place] += float(torch.special.entr(pattern).sum() / len(pattern))
    model.train(trained)
    return tuple(total / queries for total in sums)
