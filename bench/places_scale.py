"""What many visits cost: seconds and memory of ingestion, and what an epoch of the scorer costs, at several sizes.

    python -m bench.places_scale --out DIR [--users 1000 3000 10000] [--visits 100] [--steps 60]

Each size is measured in a process of its own. An epoch is the mean cost of its steps, taken at the same places of
the epoch at every size, times their number; processor seconds are printed because they do not depend on what else
the machine does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from pathlib import Path

import torch

from bench.places import prepared
from linnet.domains.places.answers import VisitPlan
from linnet.domains.places.data import PlacesData, visit_rows
from linnet.domains.places.generated import Process, generate, write_check_ins
from linnet.training.distributed import Processes
from linnet.training.learner import Learner

WARM = 3  # steps before the clock starts


def measure(file: Path, steps: int, answers: multiprocessing.SimpleQueue[tuple[float, ...]]) -> None:
    torch.set_num_threads(1)
    began, worked = time.perf_counter(), time.process_time()
    table = PlacesData(paths=(str(file),)).table()
    ingested, work = time.perf_counter() - began, time.process_time() - worked
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    visits = len(table.visits)
    run, material = prepared([file], [("threads", 1)], "places")
    rows = visit_rows(material.train)
    plan, learner = (
        VisitPlan(rows, run.training.batch, run.seed),
        Learner(run, rows.codec, torch.device("cpu"), Processes()),
    )
    places = [number * (plan.steps_per_epoch // steps) for number in range(steps)]
    for number in places[:WARM]:
        learner.step(plan.batch(number), number, plan.steps_per_epoch)
    worked = time.process_time()
    for number in places:
        learner.step(plan.batch(number), number, plan.steps_per_epoch)
    step = (time.process_time() - worked) / steps
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answers.put((visits, ingested, work, memory, plan.steps_per_epoch, step, whole))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--users", type=int, nargs="*", default=[1000, 3000, 10_000])
    parser.add_argument("--visits", type=int, default=100)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print("| visits | users | ingestion, split, samples (s) | processor s | peak MB | steps an epoch | "
          "processor ms a step | epoch, processor s | microseconds a visit | peak MB with training |")  # fmt: skip
    print("|---" * 10 + "|")
    context = multiprocessing.get_context("spawn")
    for users in arguments.users:
        file = arguments.out / f"check-ins-{users}.csv"
        if not file.exists():
            write_check_ins(file, generate(Process(users=users, visits=arguments.visits, venues=10 * users)))
        answers: multiprocessing.SimpleQueue[tuple[float, ...]] = context.SimpleQueue()
        process = context.Process(target=measure, args=(file, arguments.steps, answers))
        process.start()
        visits, ingested, work, memory, steps, step, whole = answers.get()
        process.join()
        epoch = steps * step
        cells = (f"{visits:,.0f}", f"{users:,}", f"{ingested:.1f}", f"{work:.1f}", f"{memory:.0f}",
                 f"{steps:,.0f}",
                 f"{1000 * step:.1f}", f"{epoch:.0f}", f"{1e6 * epoch / visits:.0f}", f"{whole:.0f}")  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
