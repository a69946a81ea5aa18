"""The scorer: attention over all known visits of a user, added up by place, and a small network over the sums.

Each of K kernels weighs every known visit by an exponential of its features (age, time of the day, weekday, where
the user came from, …): un-normalised attention with learned widths and decays. Summed by place and normalised this
is K copy distributions; their logarithms, counts, recency and other people's moves give each candidate its score.
The visits of a candidate also tell what kind of place it is (when people come, how long it takes until they are
elsewhere): a profile of each candidate and that of the current place are read beside the sums.
Suggested places that the user never visited are scored apart, and one last option stands for everything else.
All candidates of a batch lie end to end; nothing is padded inside.
Legend: B = rows, E = entries of all rows (suggestions, then visits), C = candidates of all rows, K = kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.domains.places.features import RECENT, SEEN, SUGGESTION
from linnet.domains.places.settings import ScorerConfig
from linnet.domains.places.visits import DAY, MINUTE
from linnet.model.contract import Batch, Groups, Network, embedding_tables, grouped
from linnet.model.inputs import Inputs, Output
from linnet.model.layers import Dropout
from linnet.model.taps import Edit, Taps

TINY = 1e-9
EVIDENCE, CONTEXT, ASIDE = 16, 13, 15  # features of a visit, of a row, of a candidate beside its kernels
SUGGESTED = 8  # features of a suggestion
RHYTHM = 14  # features of a visit, whatever the time is now
WEEK = 7 * DAY
FAR = 40.0  # kernels are exponentials of at most this
DECAYS, WIDTHS = (0.0, 1.0, 4.3, 12.0), (0.0, 0.55, 1.0, 5.0)  # per 30 days; of (minutes / 60)^2 / 10
SWITCHES = ((6, 0.25, 2.0), (7, 0.4, 3.0), (8, 0.5, 4.0), (9, 0.25, 3.0), (11, 0.3, 3.0))
TAPS = {
    "hook_kernels": ("entry", "kernel"),
    "hook_shares": ("candidate", "kernel"),
    "hook_scores": ("candidate",),
}


@dataclass(frozen=True)
class Entries:
    """The real entries of a batch, flat, and the row of each."""

    owner: Tensor  # [E]
    columns: Mapping[str, Tensor]  # [E] each
    seen: Mapping[str, Tensor]  # float32 [E] each: SEEN
    last: Tensor  # [B] the entry where each row's user is now
    now: Tensor  # [B] seconds: the departure from there

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> Entries:
        lengths, width = batch["lengths"], batch["place"].shape[1]
        real = (torch.arange(width, device=lengths.device)[None] < lengths[:, None]).view(-1).nonzero().squeeze(1)
        columns = {
            name: column.flatten(0, 1).index_select(0, real)
            for name, column in batch.items()
            if column.ndim > 1 and name != "ids"
        }
        seen = dict(zip(SEEN, columns.pop("seen").unbind(1), strict=True))
        return cls(real // width, columns, seen, lengths.cumsum(0) - 1, batch["now"])

    @property
    def rows(self) -> int:
        return len(self.last)

    @property
    def real(self) -> Tensor:
        """float32 [E]: 1 for visits, 0 for suggestions."""
        return (self.columns["kind"] != SUGGESTION).float()

    @property
    def recent(self) -> Tensor:
        return (self.columns["kind"] == RECENT).float()

    def row_sums(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.rows).index_add(0, self.owner, values)


@dataclass(frozen=True)
class Options:
    """Candidates [C] in the order of (row, place); `slot` sends entries to them."""

    rows: int
    owner: Tensor  # [C]
    place: Tensor  # [C] open label
    slot: Tensor  # [E]
    latest: Tensor  # [C] its latest entry
    suggested: Tensor  # bool [C]
    known: Tensor  # bool [C] the train part (or its cut) had seen the place

    @classmethod
    def of(cls, entries: Entries) -> Options:
        place = entries.columns["place"]
        span = int(place.max()) + 1
        keys, slot = torch.unique(entries.owner * span + place, return_inverse=True)
        number = torch.arange(len(slot), device=slot.device)
        latest = torch.zeros_like(keys).scatter_reduce(0, slot, number, "amax", include_self=False)
        suggested, known = entries.columns["kind"][latest] == SUGGESTION, entries.columns["known"][latest].bool()
        return cls(entries.rows, keys // span, keys % span, slot, latest, suggested, known)

    def sums(self, values: Tensor) -> Tensor:
        """[C, …]: entries of each candidate, added up."""
        return values.new_zeros(len(self.place), *values.shape[1:]).index_add(0, self.slot, values)

    def row_sums(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.rows, *values.shape[1:]).index_add(0, self.owner, values)


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of the candidates of each row, and of a place that is none of them."""

    options: Options
    logp: Tensor  # [C]
    elsewhere: Tensor  # [B] log-probability of any other place
    unseen: Tensor  # [B] logit of that other place being new to the train part

    def of_targets(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """[B] each: the log-probability of these places, or of `elsewhere`; and which of them are candidates."""
        options = self.options
        hit = options.place == place[options.owner]
        found = self.logp.new_zeros(options.rows).index_add(0, options.owner[hit], self.logp[hit])
        listed = options.row_sums(hit.float()) > 0
        return torch.where(listed, found, self.elsewhere), listed

    def unseen_class(self) -> Tensor:
        """[B]: the log-probability of the legacy class of all places that training did not see."""
        fresh = self.options.row_sums(torch.where(self.options.known, 0.0, self.logp.exp()))
        return (fresh + (self.elsewhere + F.logsigmoid(self.unseen)).exp() + TINY).log()

    @classmethod
    def mean(cls, scored: tuple[Scored, ...]) -> Scored:
        """The mean of the probabilities."""
        if len(scored) == 1:
            return scored[0]

        def mean(values: list[Tensor]) -> Tensor:
            return torch.stack(values).logsumexp(0) - math.log(len(values))

        elsewhere = mean([one.elsewhere for one in scored])
        fresh = mean([one.elsewhere + F.logsigmoid(one.unseen) for one in scored]) - elsewhere
        unseen = fresh - torch.log(-torch.expm1(fresh.clamp(max=-1e-6)))
        return cls(scored[0].options, mean([one.logp for one in scored]), elsewhere, unseen)


def evidence(entries: Entries) -> Tensor:
    """float32 [E, EVIDENCE]: what kernels read of each entry."""
    s = entries.seen
    age, here, stay = s["age"], s["here"], s["stay"].log1p()
    unlike = torch.where(s["follows"] > 0, (s["before"].log1p() - stay[entries.last][entries.owner]).abs(), 1.0)
    week = (age - (age / 7).round() * 7).abs()
    columns = [
        age / 30, age.log1p(), s["rank"].log1p(), (s["apart"] / 60) ** 2 / 10, s["apart"] / 180,
        (s["arriving"] / 60) ** 2 / 10, s["weekday"], s["weekkind"], here, s["two"], s["near"], entries.recent,
        unlike, here * unlike, week.log1p(), s["follows"],
    ]  # fmt: skip
    return torch.stack(columns).T


def rhythm(entries: Entries) -> Tensor:
    """float32 [E, RHYTHM]: when in the week each visit began, how long it was, and how long until the next one."""
    s = entries.seen
    began = ((entries.now % WEEK)[entries.owner].float() - s["age"] * DAY) % WEEK
    turn, day = began % DAY / DAY * 2 * math.pi, (began.div(DAY, rounding_mode="floor") + 3) % 7
    followed = F.pad(s["follows"][1:], (0, 1))  # the entry behind it is the next visit
    until = F.pad((s["age"][:-1] - s["age"][1:]) * (DAY / MINUTE) - s["stay"][:-1], (0, 1))
    gap = until.clamp(min=0).log1p() / 5 * followed
    waves = [wave(n * turn) for n in (1, 2, 3) for wave in (torch.sin, torch.cos)]
    columns = [
        *waves, day >= 5, day == 4, day == 6, s["stay"].log1p() / 5, gap, gap**2, followed, s["follows"],
    ]  # fmt: skip
    return torch.stack([column.float() for column in columns]).T


def context(entries: Entries, options: Options) -> Tensor:
    """float32 [B, CONTEXT]: what all candidates of a row share."""
    s, real, inside, leave = entries.seen, entries.real, entries.recent, entries.now
    turn = (leave % DAY).float() / DAY * 2 * math.pi
    day = (leave.div(DAY, rounding_mode="floor") + 3) % 7
    window = entries.row_sums(inside).clamp(min=1)
    distinct = options.row_sums((options.sums(inside) > 0).float()) / window
    recent = torch.exp(-torch.expm1(s["age"].log1p()) / 14) * real
    number = torch.arange(len(options.slot), device=leave.device)
    earliest = torch.zeros_like(options.place).scatter_reduce(0, options.slot, number, "amin", include_self=False)
    is_first = (earliest[options.slot] == number) * real
    exploring = entries.row_sums(is_first * recent) / entries.row_sums(recent).clamp(min=TINY)
    columns = [
        s["stay"].log1p()[entries.last], turn.sin(), turn.cos(), (2 * turn).sin(), (2 * turn).cos(), day >= 5,
        day == 4, day == 6, window.log(), distinct, exploring, entries.row_sums(s["here"] * real).log1p(),
        entries.row_sums(real).log1p(),
    ]  # fmt: skip
    return torch.stack([column.float() for column in columns]).T


def aside(entries: Entries, options: Options) -> Tensor:
    """float32 [C, ASIDE]: counts, recency, stays, other people's moves and cells of each candidate."""
    s, owner, latest, real = entries.seen, options.owner, options.latest, entries.real
    count, window = options.sums(real), options.sums(entries.recent)
    total, in_window = options.row_sums(count)[owner], options.row_sums(window)[owner].clamp(min=1)
    since = (entries.last[owner] - latest).float()
    stay = options.sums(s["stay"].log1p() * real) / count.clamp(min=1)
    here = entries.columns["place"][entries.last][owner] == options.place
    columns = [
        count.log1p(), ((count + 0.5) / (total + 1)).log(), window.log1p(), window / in_window, since.log1p(),
        s["age"].log1p()[latest], stay, since == 0, since == 1, *_of_others(entries, options), here,
        *_cell_matches(entries, options),
    ]  # fmt: skip
    return torch.stack([column.float() for column in columns]).T


def _of_others(entries: Entries, options: Options) -> list[Tensor]:
    """Other people's moves from here to a candidate, and their visits there."""
    moved, left, visited = (entries.columns[name][options.latest].float() for name in ("moved", "left", "visited"))
    return [((moved + 0.1) / (left + 1)).log(), moved.log1p(), visited.log1p()]


def _cell_matches(entries: Entries, options: Options) -> list[Tensor]:
    """Whether a candidate lies in the same middle and in the same coarse cell as the user; 0 without cells."""
    cells = [entries.columns.get(name) for name in ("cell1", "cell0")]
    nowhere = torch.zeros_like(options.place)
    return [nowhere if c is None else c[options.latest] == c[entries.last][options.owner] for c in cells]


def suggestion_features(entries: Entries, options: Options) -> Tensor:
    """float32 [C, SUGGESTED]: what speaks for a place where the user has never been."""
    columns = [*_of_others(entries, options), *_cell_matches(entries, options)]
    for name in ("cell2", "cell1", "cell0"):  # the row's visits to the cell of each candidate
        if (cell := entries.columns.get(name)) is None:
            columns.append(torch.zeros_like(columns[0]))
            continue
        keys, number = torch.unique(entries.owner * (int(cell.max()) + 1) + cell, return_inverse=True)
        visits = entries.real.new_zeros(len(keys)).index_add(0, number, entries.real)
        columns.append(visits[number[options.latest]].log1p())
    return torch.stack([column.float() for column in columns]).T


@dataclass(frozen=True)
class Parts:
    """What all members read."""

    seen: Tensor  # [E, EVIDENCE]
    real: Tensor  # [E] 1 for visits, 0 for suggestions
    aside: Tensor  # [C, ASIDE]
    context: Tensor  # [B, CONTEXT]
    suggested: Tensor | None  # [C, SUGGESTED]; None where nothing is suggested
    distinct: Tensor  # [B] candidates that the user has visited
    rhythm: Tensor  # [E, RHYTHM]
    visits: Tensor  # [C] of the row's user
    here: Tensor  # [B] the candidate where the user is

    @classmethod
    def of(cls, entries: Entries, options: Options) -> Parts:
        suggested = suggestion_features(entries, options) if options.suggested.any() else None
        distinct = options.row_sums((~options.suggested).float())
        return cls(
            evidence(entries),
            entries.real,
            aside(entries, options),
            context(entries, options),
            suggested,
            distinct,
            rhythm(entries),
            options.sums(entries.real),
            options.slot[entries.last],
        )


class Member(nn.Module):
    """One scorer. An ensemble has several, which never meet before their probabilities are averaged."""

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        kernels, hidden = config.kernels, config.hidden
        weight, bias = first_kernels(kernels)
        self.kernel = nn.Parameter(weight)
        self.kernel_bias = nn.Parameter(bias)
        width = 3 * kernels + ASIDE + CONTEXT + 3 * config.profile
        self.profile = Profile(config.profile) if config.profile else None
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, hidden)
        self.score, self.linear = nn.Linear(hidden, 1), nn.Linear(width, 1)
        self.dropout = Dropout(config.dropout, entries=True)
        self.suggest = nn.Sequential(nn.Linear(SUGGESTED, 16), nn.GELU(), nn.Linear(16, 1))
        self.elsewhere = nn.Sequential(
            nn.Linear(CONTEXT + 3, 32), nn.GELU(), Dropout(config.dropout), nn.Linear(32, 3)
        )
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, options: Options, parts: Parts, taps: Taps, name: str) -> Scored:
        rows, owner = options.rows, options.owner
        weight = (parts.seen @ self.kernel + self.kernel_bias).clamp(max=FAR).exp() * parts.real[:, None]
        weight = taps.at(f"{name}.hook_kernels", weight)
        total = options.sums(weight)
        share = taps.at(f"{name}.hook_shares", total / (options.row_sums(total)[owner] + 1e-3))
        read = [(total + 0.03).log(), (share + 0.01).log(), share, parts.aside, parts.context[owner]]
        x = torch.cat(read if self.profile is None else [*read, self.profile(options, parts)], 1)
        hidden = self.dropout(F.gelu(self.first(x)))
        hidden = self.dropout(F.gelu(self.second(hidden)))
        own = taps.at(f"{name}.hook_scores", (self.score(hidden) + self.linear(x)).squeeze(1))
        own = torch.where(options.suggested, -torch.inf, own)
        best, whole = _row_softmax(own, owner, rows)
        hints = torch.stack(
            [parts.distinct.log1p(), best.detach().clamp(-10, 20) * 0.1, (whole - best).detach()], 1
        )
        fresh, unseen, outside = self.elsewhere(torch.cat([parts.context, hints], 1)).T
        some_new = whole + fresh
        norm = torch.logaddexp(whole, some_new)
        if parts.suggested is None:
            return Scored(options, own - norm[owner], some_new - norm, unseen)
        offered = torch.where(options.suggested, self.suggest(parts.suggested).squeeze(1), -torch.inf)
        _, any_offer = _row_softmax(offered, owner, rows, floor=outside)
        logp = torch.where(options.suggested, offered + (some_new - any_offer)[owner], own) - norm[owner]
        return Scored(options, logp, outside + some_new - any_offer - norm, unseen)


class Profile(nn.Module):
    """What kind of place each candidate is: by itself, where the user is now, and how one goes with the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.visit, self.place = nn.Linear(RHYTHM, width), nn.Linear(width, width)
        self.going = nn.Linear(width + CONTEXT, width)

    def forward(self, options: Options, parts: Parts) -> Tensor:
        """[C, 3 * width]"""
        visits = F.gelu(self.visit(parts.rhythm)) * parts.real[:, None]
        place = torch.tanh(self.place(options.sums(visits) / (parts.visits[:, None] + 1)))
        here = place[parts.here]
        going = self.going(torch.cat([here, parts.context], 1))
        return torch.cat([place, here[options.owner], place * going[options.owner]], 1)


def _row_softmax(scores: Tensor, owner: Tensor, rows: int, floor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(largest, log of the sum of exponentials) of each row; `floor` [B] is one more score of each row."""
    start = scores.new_full((rows,), -1e4) if floor is None else floor
    best = start.detach().scatter_reduce(0, owner, scores.detach(), "amax")
    total = (scores - best[owner]).exp()
    whole = total.new_zeros(rows).index_add(0, owner, total)
    whole = whole + (0.0 if floor is None else (floor - best).exp())
    return best, best + (whole + TINY).log()


def first_kernels(kernels: int) -> tuple[Tensor, Tensor]:
    """Kernels to begin with: random products of decays, widths and switches that people would try first."""
    weight, bias = 0.05 * torch.randn(EVIDENCE, kernels), torch.zeros(kernels)
    weight[0] -= torch.tensor(DECAYS)[torch.randint(0, len(DECAYS), (kernels,))]
    weight[3] -= torch.tensor(WIDTHS)[torch.randint(0, len(WIDTHS), (kernels,))]
    for feature, chance, strength in SWITCHES:
        on = (torch.rand(kernels) < chance).float() * strength
        weight[feature] += on
        bias -= on
    return weight, bias


@dataclass(frozen=True)
class MemberScores(Output):
    """The scores of each member; `hidden` has the log-probabilities of the candidates [members, C]."""

    members: tuple[Scored, ...]


class Scorer(Network):
    """One or several members over batches of `VisitRows`."""

    config: ScorerConfig

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(Member(config) for _ in range(config.members))

    def taps(self) -> Mapping[str, tuple[str, ...]]:
        return {f"members.{n}.{name}": axes for n in range(self.config.members) for name, axes in TAPS.items()}

    def groups(self) -> Groups:
        return grouped(self, embedding_tables(self), {})

    def forward(
        self,
        inputs: Inputs | Tensor | Batch,
        state: Any = None,
        *,
        keep: tuple[str, ...] = (),
        edit: tuple[tuple[str, Edit], ...] = (),
    ) -> MemberScores:
        assert isinstance(inputs, Mapping), "the scorer reads batches of visits"
        taps = Taps(self.taps, keep, edit)
        entries = Entries.of(inputs)
        options = Options.of(entries)
        parts = Parts.of(entries, options)
        scored = tuple(member(options, parts, taps, f"members.{n}") for n, member in enumerate(self.members))
        return MemberScores(torch.stack([one.logp for one in scored]), None, taps.kept, scored)

    def predict(self, batch: Batch) -> Scored:
        """The mean of the members' probabilities."""
        return Scored.mean(self(batch).members)

    def loss(self, output: Output, batch: Batch) -> Tensor:
        """Nats of the true place, and of its legacy class; summed over rows, and over members while training."""
        assert isinstance(output, MemberScores)
        losses = [self._nats(one, batch["next.place"], batch["next.known"].bool()) for one in output.members]
        times = len(losses) if self.training else 1
        return (torch.stack(losses).mean(0) * batch["weights"]).sum() * times

    def _nats(self, scored: Scored, place: Tensor, known: Tensor) -> Tensor:
        true, listed = scored.of_targets(place)
        seen = torch.where(listed, true, scored.elsewhere + F.logsigmoid(-scored.unseen))
        return -true - self.config.legacy_weight * torch.where(known, seen, scored.unseen_class())
