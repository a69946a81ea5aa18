"""Whether our training step learns like the plain GPT: the losses of both, step by step, on the same rows.

    python -m bench.loss_curve --data titles.txt.gz                      # 4 x 128, 200 steps
    python -m bench.loss_curve --data titles.txt.gz --shape 6x512 --compile

Both start from the same weights, read the same packed rows, and move with AdamW at one rate, without decay.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bench.plain_gpt import plain_copy
from bench.training import Shape
from bench.training_systems import PlainTrainer
from linnet.data import Packed
from linnet.domains.text.data import TextData
from linnet.domains.text.tokenizer_training import Tokenizing
from linnet.domains.tokens import decoder, rows_of
from linnet.training.distributed import Processes
from linnet.training.learner import Learner
from linnet.training.settings import changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--sample", type=int, default=20_000)
    parser.add_argument("--shape", default="4x128")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    data = TextData(paths=tuple(args.data), sample=args.sample, tokenizer=Tokenizing(vocabulary=4_000))
    material = data.load(1)
    sizes = {"vocabulary": len(material.codec.tokens), "heads": args.heads}
    shape = Shape.parse(args.shape, batch=args.batch, context=args.context, **sizes)
    run = shape.run(args.precision, "on" if args.compile else "off", args.threads)
    settings = [("schedule", "constant"), ("schedule.warmup", 0), ("weight_decay", 0.0), ("betas", [0.9, 0.999])]
    run = changed(run, [*settings, ("optim.lr", 1e-3), ("steps", args.steps)])
    torch.set_num_threads(run.threads)
    device = torch.device(run.device)
    ours = Learner(run, material.codec, device, Processes())
    plain = PlainTrainer(plain_copy(decoder(ours.network)), device, "float32", compiled=False)
    plan = Packed(rows_of(material.train), args.batch, args.context, 1)
    worst, tail = 0.0, []
    for step in range(args.steps):
        batch = plan.batch(step)
        mine = float(ours.step(batch, step, args.steps).loss)
        theirs = float(plain.step(batch["ids"], batch["next.ids"]))
        worst = max(worst, abs(mine - theirs))
        tail.append(mine - theirs)
        if (step + 1) % 20 == 0:
            print(f"step {step + 1:4}  ours {mine:.5f}  plain fp32 {theirs:.5f}", flush=True)
    last = sum(tail[-20:]) / len(tail[-20:])
    print(f"{run.precision}, compile {run.training.compile}: largest difference {worst:.5f} nats, ", end="")
    print(f"mean of the last {len(tail[-20:])} steps {last:+.5f}")


if __name__ == "__main__":
    main()
