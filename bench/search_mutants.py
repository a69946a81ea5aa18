"""Mistakes in the mathematics of search that a test must notice: each is made in a copy, and the tests run there.

python -m bench.search_mutants [--only NAME]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
TESTS = ("tests/test_search_maxent.py", "tests/test_search_methods.py")


class Mutant(NamedTuple):
    """A mistake: in this file of linnet/search, these words for those."""

    file: str
    right: str
    wrong: str


MUTANTS = {
    "the law of a draw drops p": Mutant(
        "methods/maxent.py", "left = found.prior * found.unseen\n", "left = found.unseen.copy()\n"
    ),
    "exact mass drops p": Mutant(
        "tree.py",
        "np.exp(logprobs + self.gains(rewards) - self.shift)",
        "np.exp(self.gains(rewards) - self.shift)",
    ),
    "a sum for the mean of the root": Mutant(
        "methods/maxent.py",
        'return float(tree.nodes["weighted"][0]) / weight\n',
        'return float(tree.nodes["weighted"][0])\n',
    ),
    "a sum for the mean of DTS": Mutant("methods/diffusion.py", ".sum() / max(1, known.sum())", ".sum()"),
    "weights left out": Mutant("methods/maxent.py", "math.log(weight) + scale, scale", "scale, scale"),
    "no correction for what a wave has": Mutant(
        "methods/maxent.py", "scale = math.log(1 - taken) + math.log(unseen / left)", "scale = 0.0"
    ),
    "unseen mass of the wave's start": Mutant(
        "tree.py", "self.unseen - (np.cumsum(prior) - prior)", "self.unseen - 0 * prior"
    ),
    "a visited leaf stays unseen": Mutant("tree.py", 'self.nodes["seen"][at] = np.where(full, 1.0, seen)', "pass"),
    "unseen mass does not grow with p": Mutant(
        "tree.py", 'grown = grown * np.exp(self.nodes["prior"][at])', "grown = grown * 1.0"
    ),
    "sums are not rescaled": Mutant(
        "tree.py", 'self.nodes["weighted"][:] *= scale\n', 'self.nodes["weighted"][:] *= 1\n'
    ),
    "stale rows after advancing": Mutant(
        "pruning.py", 'nodes["row"][with_row] = np.arange(len(with_row))', "pass"
    ),
    "stale probabilities after advancing": Mutant(
        "pruning.py", 'nodes["logprob"][:] -= nodes["logprob"][0]', "pass"
    ),
    "stale children after advancing": Mutant(
        "nodes.py", "self.index, self.children = {}, {}", "self.children = {}"
    ),
    "the guide forgets the tilt": Mutant("methods/maxent.py", "tilted = left * found.mean", "tilted = left * 1.0"),
    "no defence": Mutant("methods/maxent.py", "numbers[:, -1] > defence", "numbers[:, -1] > 0"),
    "cut texts count": Mutant("tree.py", 'if self.step.target.cut == "excluded":', "if False:"),
    "rest draws may repeat what is kept": Mutant("nodes.py", "shares[kept] = 0\n", ""),
    "best-first forgets the prefix": Mutant(
        "methods/frontier.py", 'self._enter(float(tree.nodes["logprob"][node]) + share', "self._enter(share"
    ),
    "PUCT drops the prior": Mutant(
        "methods/bandits.py", "self.c * np.exp(arms.logprobs)", "self.c * np.ones(len(arms.logprobs))"
    ),
    "moves forget the lengths and gains": Mutant(
        "methods/particles.py", "< gains + np.log(lengths)", "< np.log(lengths)"
    ),
    "particles forget their weights": Mutant(
        "methods/particles.py", "(weights - potential).tolist(), scale", "weights.tolist(), scale"
    ),
    "halving visits all alike": Mutant("methods/bandits.py", "left = max(2, left // 2)", "left = left"),
    "ties of a prefix limit are not closed": Mutant("nodes.py", "if most <= least:", "if most < least:"),
    "bounds leave out the least reward": Mutant(
        "intervals.py", "np.logaddexp(log_mass, rest + least)", "np.logaddexp(log_mass, -np.inf)"
    ),
}


def killer(mutant: Mutant) -> str | None:
    """The first test that fails on this mutant."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src" / "linnet", source / "linnet", ignore=shutil.ignore_patterns("__pycache__"))
        path = source / "linnet" / "search" / mutant.file
        text = path.read_text()
        assert text.count(mutant.right) == 1, (mutant, text.count(mutant.right))
        path.write_text(text.replace(mutant.right, mutant.wrong))
        environment = {**os.environ, "PYTHONPATH": f"{source}:{os.environ.get('PYTHONPATH', '')}"}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split("::")[-1].split(" - ")[0] if failed else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only")
    given = parser.parse_args()
    survived = 0
    for name, mutant in MUTANTS.items():
        if given.only in (None, name):
            found = killer(mutant)
            survived += found is None
            print(f"{name}: {f'killed by {found}' if found else 'SURVIVED'}", flush=True)
    return survived


if __name__ == "__main__":
    raise SystemExit(main())
