"""Steps of models that remember what they have read: the same bookkeeping for every kind of model.

The prompt is computed once. The nodes of one call of `extend` are rows of one batch, which goes on as long as each
call continues rows of the call before: rows that are left out leave the batch. Another call reads what is known of
its parents from a cache of nodes (`node_cache`) into a new batch. So a fork copies memory and computes nothing,
and what the cache had to give up is read again by the model and counted.
Legend: R = rows of the batch, n = nodes of a call, T = tokens, K = children kept, M = numbers of a token, V =
vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from linnet.decoding.requests import Sampling
from linnet.decoding.sampling import cut, inverse
from linnet.errors import BadInput, RunFailed
from linnet.search.largest import largest
from linnet.search.node_cache import ROOT, NodeCache
from linnet.search.steps import WIDTH, Rows, Step, Target

MEMORY = 768 << 20  # bytes of keys and values, one half of them in the running batch

Ids = Sequence[Sequence[int]]


class Batch(ABC):
    """Rows that run together, each of which has read the prompt and some tokens after it."""

    @abstractmethod
    def read(self, ids: Ids, before: Ids) -> Tensor:
        """Each row reads its ids, at least one: logits [R, V] after the last of them.

        `before` are the tokens after the prompt that it has read already, for a reader that `reads_before`.
        """

    @abstractmethod
    def keep(self, rows: np.ndarray) -> None:
        """Only these rows go on; each stays where it is or comes from behind those that stay."""

    @abstractmethod
    def fork(self, rows: np.ndarray) -> None:
        """Copies of these rows go on, in this order; a row may be named many times."""

    @abstractmethod
    def memory(self, rows: np.ndarray, depths: np.ndarray) -> Tensor:
        """What is remembered [n, M] of the token at each depth (1 is the first after the prompt) of each row."""


class Reader(ABC):
    """A model that makes batches."""

    vocabulary: int
    device: torch.device
    context: int  # most tokens that it can read
    whole: bool = True  # all tokens of a row can be stored later; else only the last one, right after it was read
    reads_before: bool = False

    @abstractmethod
    def begin(self, ids: Sequence[int]) -> Tensor:
        """Read the prompt, which all batches share: logits [1, V]."""

    @property
    @abstractmethod
    def token_memory(self) -> tuple[int, torch.dtype]:
        """How many numbers a token is remembered by, and of which type."""

    @abstractmethod
    def open(self, memory: Tensor, lengths: np.ndarray) -> Batch:
        """Rows that remember the prompt and the first `lengths` [R] of these tokens, [R, T, M]."""

    def fault(self) -> str:
        """Why logits may not be numbers."""
        return "activations overflow"


@dataclass(frozen=True)
class Texts:
    """How ids are written: those of a prompt, and generated ones after the ids of their prompt."""

    prompt: Callable[[Sequence[int]], str]
    answer: Callable[[Sequence[int], Sequence[int]], str]


@dataclass
class Running:
    """The batch of the last call: of each row the node it has read last, its tokens, and how many are stored."""

    batch: Batch
    tips: np.ndarray
    read: np.ndarray
    stored: np.ndarray

    def arrange(self, rows: np.ndarray) -> None:
        self.tips, self.read, self.stored = self.tips[rows], self.read[rows], self.stored[rows]


class CachedStep(Step):
    """A step over any model that is a `Reader`."""

    def __init__(
        self,
        reader: Reader,
        target: Target,
        *,
        ends: Collection[int] = (),
        texts: Texts,
        width: int = WIDTH,
        memory: int = MEMORY,
    ) -> None:
        self.reader, self.target, self.ends = reader, target, frozenset(ends)
        self.vocabulary, self.width, self.texts = reader.vocabulary, min(width, reader.vocabulary), texts
        wrong = next((end for end in sorted(self.ends) if not 0 <= end < self.vocabulary), None)
        if wrong is not None:
            raise BadInput(f"end id {wrong} is outside the vocabulary of the model (0..{self.vocabulary - 1})")
        self.sampling = Sampling(target.temperature, target.top_k, target.top_p, target.min_p)
        numbers, dtype = reader.token_memory
        row = numbers * dtype.itemsize * target.max_tokens
        self.widest = memory // 2 // row
        if not self.widest:
            raise BadInput(
                f"a row of {target.max_tokens} tokens needs {2 * row:,} bytes of memory, and there are {memory:,}"
            )
        self.cache = NodeCache(numbers, dtype, reader.device, memory // 2)
        self.running: Running | None = None
        self.root: tuple[int, ...] = ()

    def begin(self, root: Sequence[int]) -> Rows:
        self._check(root)
        self.root, self.running, self.prompt = tuple(root), None, self.texts.prompt(root)
        self.cache.clear()
        self.prompt_tokens, self.forward_tokens = len(root), 0
        with torch.inference_mode():
            return self._rows(self.reader.begin(root), np.array([ROOT]), np.zeros(1, np.int64))

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> Rows:
        above, read = np.asarray(parents, np.int64), np.asarray(tokens, np.int64)
        try:
            with torch.inference_mode():
                return self._extended(above, read)
        except BaseException:
            self.running = None  # an interrupt may have left it half read
            raise

    def recall(self, parents: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        return self.cache.add(np.asarray(parents, np.int64), np.asarray(tokens, np.int64))

    def row(self, handle: int) -> np.ndarray:
        with torch.inference_mode():
            if handle == ROOT:
                self.prompt_tokens += len(self.root)
                return self._row(self.reader.begin(self.root))
            self._store_all()
            tips = np.array([handle])
            return self._row(self._read(self._opened(self.cache.parent[tips]), tips))

    def release(self, handles: Collection[int]) -> None:
        self._store_all()
        self.running = None
        self.cache.release(handles)

    def text(self, ids: Sequence[int]) -> str:
        return self.texts.answer(self.root, ids)

    def _check(self, root: Sequence[int]) -> None:
        if not root:
            raise BadInput("the prompt is empty, and this model has no begin token to start from")
        wrong = next((token for token in root if not 0 <= token < self.vocabulary), None)
        if wrong is not None:
            raise BadInput(f"token {wrong} of the prompt is outside the vocabulary (0..{self.vocabulary - 1})")
        if root[-1] in self.ends:
            raise BadInput("the prompt ends with an end token, so there is nothing to search for after it")
        if len(root) + self.target.max_tokens - 1 > self.reader.context:
            raise BadInput(
                f"the prompt has {len(root)} tokens and an answer up to {self.target.max_tokens}, and the context "
                f"of this model is {self.reader.context}; use fewer max tokens"
            )

    def _extended(self, parents: np.ndarray, tokens: np.ndarray) -> Rows:
        running, order = self._ready(parents)
        handles = self.cache.add(parents, tokens)
        tips = np.empty_like(handles)
        tips[order] = handles
        logits = self._read(running, tips)
        if not self.reader.whole:
            self._store(running, np.arange(len(tips)))
        return self._rows(logits, handles, order)

    def _ready(self, parents: np.ndarray) -> tuple[Running, np.ndarray]:
        """A batch with a row for each of these nodes, and the row of each."""
        running = self.running
        if running is not None:
            sorter = np.argsort(running.tips)
            found = np.searchsorted(running.tips, parents, sorter=sorter)
            rows = sorter[np.minimum(found, len(sorter) - 1)]
            if (running.tips[rows] == parents).all():
                if len(np.unique(rows)) == len(rows):
                    return running, self._shrink(running, rows)
                self._store_all()
                running.batch.fork(rows)
                running.arrange(rows)
                return running, np.arange(len(rows))
            self._store_all()
        self.running = self._opened(parents)
        return self.running, np.arange(len(parents))

    def _shrink(self, running: Running, rows: np.ndarray) -> np.ndarray:
        """Only these rows go on; where each of them is then."""
        n = len(rows)
        if n == len(running.tips):
            return rows
        left = np.ones(len(running.tips), bool)
        left[rows] = False
        self._store(running, np.flatnonzero(left))
        arranged = np.arange(n)
        arranged[left[:n]] = np.flatnonzero(~left[n:]) + n
        running.batch.keep(arranged)
        running.arrange(arranged)
        where = np.empty(len(left), np.int64)
        where[arranged] = np.arange(n)
        return where[rows]

    def _opened(self, nodes: np.ndarray) -> Running:
        """A new batch whose rows remember as much of the paths to these nodes as is stored."""
        paths = self.cache.paths(nodes)
        stored = np.minimum(self.cache.remembered(paths), self.cache.depth[nodes])
        paths = paths[:, : int(stored.max(initial=0))]
        return Running(self.reader.open(self.cache.read(paths), stored), nodes, stored, stored.copy())

    def _read(self, running: Running, tips: np.ndarray) -> Tensor:
        """Each row reads up to its new tip: logits [R, V] after it."""
        cache, depths = self.cache, self.cache.depth[tips]
        before: Ids = ()
        if self.reader.reads_before or (depths - running.read > 1).any():
            paths = cache.token[cache.paths(tips)].tolist()
            spans = list(zip(paths, running.read.tolist(), depths.tolist(), strict=True))
            ids: Ids = [path[begun:end] for path, begun, end in spans]
            before = [path[:begun] for path, begun, _ in spans]
        else:
            ids = cache.token[tips][:, None].tolist()
        self.forward_tokens += int((depths - running.read).sum())
        running.tips, running.read = tips, depths
        return running.batch.read(ids, before)

    def _store_all(self) -> None:
        if self.running is not None:
            self._store(self.running, np.arange(len(self.running.tips)))

    def _store(self, running: Running, rows: np.ndarray) -> None:
        """Keep what these rows have read since they were last stored."""
        read, stored = running.read[rows], running.stored[rows]
        if not (read > stored).any():
            return
        paths = self.cache.paths(running.tips[rows])
        depth = np.arange(1, paths.shape[1] + 1)
        first = stored if self.reader.whole else read - 1
        row, column = np.nonzero((depth > first[:, None]) & (depth <= read[:, None]))
        handles = paths[row, column]
        kept = self.cache.vacancy(handles)
        if len(kept):
            numbers = running.batch.memory(rows[row[kept]], depth[column[kept]])
            self.cache.write(handles[kept], numbers)
        running.stored[rows] = read

    def _rows(self, logits: Tensor, handles: np.ndarray, order: np.ndarray) -> Rows:
        """The children of these nodes, whose logits are at the rows `order`."""
        scores, width = self._scores(logits), self.width
        ids, values = largest(scores, width)
        shares, most = scores.softmax(-1), ids[:, :1]
        total = values[:, :1] - shares.gather(1, most).log()
        self._check_numbers(total)
        logprobs = (values - total).cpu().numpy()
        shares.scatter_(1, ids, 0)  # from here on those of the rest alone
        mass = shares.sum(-1).double().cpu().numpy()
        with np.errstate(divide="ignore"):
            rest = np.log(mass)

        def full(index: int) -> np.ndarray:
            return self._minus(scores[order[index]], total[order[index]])

        def others(which: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            rows = torch.from_numpy(order[which]).to(scores.device)
            left = shares if len(rows) == len(shares) and bool((rows[1:] > rows[:-1]).all()) else shares[rows]
            tokens = inverse(left, torch.from_numpy(uniform).to(scores.device))
            return tokens.cpu().numpy(), (scores[rows, tokens] - total[rows, 0]).cpu().numpy()

        return Rows(handles, ids.int().cpu().numpy()[order], logprobs[order], rest[order], full, others)

    def _scores(self, logits: Tensor) -> Tensor:
        """Logits [R, V] of the target."""
        scores, chosen = logits.float(), self.sampling
        if chosen.temperature != 1:
            scores = scores / chosen.temperature
        if chosen.top_k is not None or chosen.top_p is not None or chosen.min_p is not None:
            scores = cut((scores - scores.amax(-1, keepdim=True)).exp(), chosen).log()
        return scores

    def _check_numbers(self, sums: Tensor) -> None:
        if not bool(sums.isfinite().all()):
            raise RunFailed(f"the probabilities of the next token are not numbers (NaN): {self.reader.fault()}")

    def _row(self, logits: Tensor) -> np.ndarray:
        scores = self._scores(logits)
        total = scores.logsumexp(-1, keepdim=True)
        self._check_numbers(total)
        return self._minus(scores[0], total[0])

    @staticmethod
    def _minus(scores: Tensor, total: Tensor) -> np.ndarray:
        found: np.ndarray = (scores - total).cpu().numpy()
        return found
