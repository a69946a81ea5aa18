"""What a "final token accuracy" measures: the published metric of an expression model beside the exact match.

    python -m bench.teacher_forced RUN [--n 2000]

For problems of each bracket depth, and for one depth more than was trained, it prints three shares of one
model: exact match of the answer that the model itself writes; all answer tokens right when each is predicted
from the true ones before it (teacher forcing); and the last label alone right, which is the end token: whether
the model knows that the number is over once it has been told the number.
"""

from __future__ import annotations

import argparse

import torch

from linnet import workbench
from linnet.domains.arithmetic.data import ArithmeticData
from linnet.domains.contract import Question
from linnet.domains.tokens import answer
from linnet.evaluation import wilson
from linnet.model.inputs import Inputs
from linnet.workbench.open import Opened


@torch.inference_mode()
def forced(opened: Opened, question: Question) -> tuple[bool, bool]:
    """(all answer tokens right, end token right) when every token before is the true one."""
    prompt = opened.prompt(question.prompt)
    whole = (*opened.prompt(question.prompt + question.answer), opened.codec.end)
    ids = torch.tensor([whole])
    guesses = opened.model.head(opened.model(Inputs({"ids": ids[:, :-1]})).hidden)[0].argmax(-1)
    right = guesses[len(prompt) - 1 :] == ids[0, len(prompt) :]
    return bool(right.all()), bool(right[-1])


def share(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    return f"{hits / n:.4f} ({low:.4f} .. {high:.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--n", type=int, default=2000)
    asked = parser.parse_args()
    opened = workbench.load(asked.run)
    domain = opened.run.data
    assert isinstance(domain, ArithmeticData), "an arithmetic run is needed"
    known = domain.test_questions(asked.n, opened.run.seed)
    groups = {f"depth {depth}": [q for q in known if q.groups["depth"] == depth] for depth in range(3)}
    deeper = domain.out_of_distribution(asked.n, opened.run.seed)
    groups[f"depth {deeper[0].groups['depth']} (never trained)"] = list(deeper)
    print(
        "| problems | n | exact match | majority answer | all tokens, teacher forced | end token, teacher forced |"
    )
    print("|---|---|---|---|---|---|")
    for name, questions in groups.items():
        if not questions:
            continue
        answers = answer(opened.model, opened.codec, questions, batch=256, region=opened.region)
        exact = sum(domain.right(q, a) for q, a in zip(questions, answers, strict=True))
        told = [forced(opened, question) for question in questions]
        n, majority = len(questions), domain.baseline(questions)
        cells = (
            name,
            f"{n:,}",
            share(exact, n),
            f"{majority.value:.4f}",
            share(sum(whole for whole, _ in told), n),
            share(sum(last for _, last in told), n),
        )
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
