"""A random forest on moments and spectra: the classifier that a person would try before any network.

Legend: n = cases, C = channels, T = steps, F = features, K = classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linnet.domains.series.neighbours import complete, lengths_of

BANDS = 15
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def features(cases: np.ndarray) -> np.ndarray:
    """[n, F]: of each channel its moments, quantiles, steps, and the power in bands of equal width."""
    lengths = lengths_of(cases).tolist()
    return np.stack([_features(complete(case, length)) for case, length in zip(cases, lengths, strict=True)])


def _features(case: np.ndarray) -> np.ndarray:
    mean, spread = case.mean(-1), case.std(-1)
    centred = case - mean[:, None]
    unit = centred / np.where(spread > 0, spread, 1)[:, None]
    steps = np.abs(np.diff(case, axis=-1)).mean(-1) if case.shape[1] > 1 else np.zeros(len(case))
    moments = [mean, spread, (unit**3).mean(-1), (unit**4).mean(-1), case.min(-1), case.max(-1), steps]
    quantiles = np.quantile(case, QUANTILES, axis=-1)
    power = np.square(np.abs(np.fft.rfft(centred, axis=-1)))[:, 1:]
    edges = np.linspace(0, power.shape[1], BANDS + 1).round().astype(int)
    sums = np.concatenate([np.zeros((len(case), 1)), power.cumsum(-1)], -1)
    bands = np.log((sums[:, edges[1:]] - sums[:, edges[:-1]]) / case.shape[1] + 1e-8)
    return np.concatenate([*moments, quantiles.ravel(), bands.ravel()])


@dataclass(frozen=True)
class Tree:
    """Nodes as arrays: a case goes left where its feature is at most the threshold; leaves have feature -1."""

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    shares: np.ndarray  # [nodes, K]

    def probabilities(self, table: np.ndarray) -> np.ndarray:
        """[n, K] of features [n, F]."""
        node, rows = np.zeros(len(table), np.int64), np.arange(len(table))
        while (inner := self.feature[node] >= 0).any():
            goes_left = table[rows, self.feature[node]] <= self.threshold[node]
            node = np.where(inner, np.where(goes_left, self.left[node], self.right[node]), node)
        return np.asarray(self.shares[node])


@dataclass(frozen=True)
class Forest:
    """Trees on bootstrap samples; each split is the best one among the square root of all features."""

    trees: int = 100
    seed: int = 0

    def fit(self, cases: np.ndarray, classes: np.ndarray, count: int) -> FittedForest:
        table, rng = features(cases), np.random.default_rng(self.seed)
        return FittedForest(tuple(grown(table, classes, count, rng) for _ in range(self.trees)))


@dataclass(frozen=True)
class FittedForest:
    trees: tuple[Tree, ...]

    def probabilities(self, cases: np.ndarray) -> np.ndarray:
        table = features(cases)
        return np.asarray(np.mean([tree.probabilities(table) for tree in self.trees], 0))


def grown(table: np.ndarray, classes: np.ndarray, count: int, rng: np.random.Generator) -> Tree:
    """One tree on a bootstrap sample, grown until its leaves are pure."""
    marks = np.eye(count)[classes]
    chosen = max(1, round(table.shape[1] ** 0.5))
    open_nodes = [(0, rng.integers(0, len(table), len(table)))]
    nodes: list[tuple[int, float, int, int]] = [(-1, 0.0, 0, 0)]
    shares = [np.zeros(count)]
    while open_nodes:
        node, rows = open_nodes.pop()
        shares[node] = marks[rows].mean(0)
        if shares[node].max() == 1:
            continue
        candidates = rng.permutation(table.shape[1])[:chosen]
        found = best_split(table[np.ix_(rows, candidates)], marks[rows])
        if found is None:
            continue
        column, threshold = found
        below = table[rows, candidates[column]] <= threshold
        nodes[node] = (int(candidates[column]), threshold, len(nodes), len(nodes) + 1)
        for part in (rows[below], rows[~below]):
            open_nodes.append((len(nodes), part))
            nodes.append((-1, 0.0, 0, 0))
            shares.append(np.zeros(count))
    feature, threshold_of, left, right = zip(*nodes, strict=True)
    return Tree(np.array(feature), np.array(threshold_of), np.array(left), np.array(right), np.array(shares))


def best_split(table: np.ndarray, marks: np.ndarray) -> tuple[int, float] | None:
    """The column and threshold with the least Gini impurity; None where all rows are alike."""
    order = table.argsort(0, kind="stable")
    values = np.take_along_axis(table, order, 0)
    below = marks[order].cumsum(0)[:-1]  # [rows - 1, columns, K]
    above = marks.sum(0) - below
    size = np.arange(1, len(table))[:, None]
    purity = np.square(below).sum(-1) / size + np.square(above).sum(-1) / (len(table) - size)
    purity[values[1:] <= values[:-1]] = -1  # no threshold lies between equal values
    row, column = np.unravel_index(int(purity.argmax()), purity.shape)
    if purity[row, column] < 0:
        return None
    low, high = values[row, column], values[row + 1, column]
    middle = float(low + (high - low) / 2)
    return int(column), middle if middle < high else float(low)
