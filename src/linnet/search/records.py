"""Records of searches: what was found, the tree, and methods beside each other. No torch here."""

from __future__ import annotations

from typing import Any, Literal

from linnet.records import Record


class SearchedText(Record):
    """A text that was scored: the generated part, its reward, its log-probability under the p of the target."""

    text: str
    ids: tuple[int, ...]
    reward: float
    logprob: float


class SearchStatistics(Record):
    """What a tree looks like, and the texts that it has scored; None: there is no such text.

    `distinct` is the share of different n-grams of tokens, n = 1, 2, 3; `length` is in characters; `perplexity` is
    that of the searched law, a token; `bytes` are those of nodes and of what may follow them.
    """

    texts: int
    nodes: int
    depth: int
    branching: float  # mean children of the nodes that have any
    distinct: tuple[float | None, ...]
    length: float | None
    perplexity: float | None
    best_reward: float | None
    mean_reward: float | None
    bytes: int


class SearchTreeRecord(Record):
    """The tree of a search as columns over its nodes, the root first; a parent stands before its children."""

    kind: Literal["tree"] = "tree"
    prompt: str
    parent: tuple[int, ...]  # -1 for the root
    text: tuple[str, ...]  # what the token of a node writes
    prior: tuple[float, ...]  # the probability of the token after its parent
    visits: tuple[int, ...]
    mean: tuple[float | None, ...]  # reward of the rollouts through a node
    reward: tuple[float | None, ...]  # of a scored text
    ending: tuple[Literal["", "end", "cut", "closed"], ...]
    left_out: int = 0  # nodes that are not here, those with the fewest visits


class SearchRecord(Record):
    """What `search` found after one prompt. `value` is (1/lam) log E_p[exp(lam r)], `low` to `high` its interval.

    `value_error` is half the width of that interval, None where it has no end. `unseen` is the mass under p of all
    texts that were not scored.
    """

    kind: Literal["search"] = "search"
    prompt: str
    method: str
    settings: dict[str, Any]  # of the method, lam among them
    reward: str
    target: dict[str, Any]  # the law p: temperature, truncation, max_tokens, whether a cut text counts
    seed: int
    rollouts: int
    forward_tokens: int
    prompt_tokens: int
    reward_calls: int
    seconds: float
    best: SearchedText | None
    value: float | None
    value_error: float | None
    low: float | None
    high: float | None
    log_partition: float | None
    unseen: float
    samples: tuple[SearchedText, ...]
    statistics: SearchStatistics
    notes: tuple[str, ...] = ()
    branches: SearchTreeRecord | None = None  # what most rollouts passed through
    tree: str | None = None  # the folder where all of it was saved


class SearchedMethod(Record):
    """One row of a comparison: means over prompts and seeds, and the lead over the first row."""

    method: str
    reward_best: float
    low: float
    high: float
    lead: float | None  # None for the first row
    lead_low: float | None
    lead_high: float | None
    rollouts: float
    forward_tokens: float
    reward_calls: float
    seconds: float
    unseen: float


class SearchComparisonRecord(Record):
    """Methods of search at one budget, the same prompts and seeds for each; all have the same cache."""

    kind: Literal["comparison"] = "comparison"
    reward: str
    budget: dict[str, Any]
    prompts: int
    seeds: int
    n: int  # units of the intervals: prompts, or their seeds where there are few prompts
    methods: tuple[SearchedMethod, ...]
    notes: tuple[str, ...] = ()
