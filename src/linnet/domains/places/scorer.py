"""The scorer: attention over all known visits of a user, added up by place, and a small network over the sums.

Each of K kernels weighs every known visit by an exponential of its features (age, time of the day, weekday, where
the user came from, …): un-normalised attention with learned widths and decays. Summed by place and normalised this
is K copy distributions; their logarithms, counts, recency and other people's moves give each candidate its score.
Suggested places that the user never visited are scored apart, and one last option stands for everything else.
All candidates of a batch lie end to end; nothing is padded inside.
Legend: B = rows, E = entries of all rows (visits, then suggestions among them), C = candidates of all rows,
K = kernels, F = features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnet.domains.places.settings import ScorerConfig
from linnet.model.contract import Batch, Groups, Network, embedding_tables, grouped
from linnet.model.costs import Costs
from linnet.model.inputs import Inputs, Output
from linnet.model.layers import Dropout
from linnet.model.taps import Edit, Taps

DAY, HOUR, MINUTE = 86_400.0, 3_600.0, 60.0
SUGGESTION = 2
TINY = 1e-9
EVIDENCE, CONTEXT, ASIDE = 16, 13, 15  # features of a visit, of a row, of a candidate beside its kernels
SUGGESTED = 8  # features of a suggestion
FAR = 40.0  # kernels are exponentials of at most this
DECAYS, WIDTHS = (0.0, 1.0, 4.3, 12.0), (0.0, 0.55, 1.0, 5.0)  # per 30 days; of (minutes / 60)^2 / 10
SWITCHES = ((6, 0.25, 2.0), (7, 0.4, 3.0), (8, 0.5, 4.0), (9, 0.25, 3.0), (11, 0.3, 3.0))


@dataclass(frozen=True)
class Entries:
    """The real entries of a batch, flat, and the row of each."""

    owner: Tensor  # [E]
    ids: Tensor  # [E]
    fields: dict[str, Tensor]  # [E]
    rows: int
    last: Tensor  # [B] the entry where each row's user is now

    @classmethod
    def of(cls, inputs: Inputs) -> Entries:
        rows, width = inputs.ids.shape
        device = inputs.ids.device
        if inputs.lengths is None and rows == 1:
            fields = {name: column[0] for name, column in inputs.columns.items() if name != "ids"}
            nothing = torch.zeros_like(inputs.ids[0])
            return cls(nothing, inputs.ids[0], fields, 1, torch.tensor([width - 1], device=device))
        lengths = torch.full((rows,), width, device=device) if inputs.lengths is None else inputs.lengths
        place = torch.arange(width, device=device)[None] < lengths[:, None]
        real = place.view(-1).nonzero().squeeze(1)
        fields = {
            name: column.reshape(-1).index_select(0, real)
            for name, column in inputs.columns.items()
            if name != "ids"
        }
        return cls(
            real // width, inputs.ids.reshape(-1).index_select(0, real), fields, rows, lengths.cumsum(0) - 1
        )

    def now(self, name: str) -> Tensor:
        """[B]: a field of the last visit."""
        return self.fields[name][self.last]


@dataclass(frozen=True)
class Options:
    """Candidates [C] in the order of (row, place); `slot` sends entries to them."""

    owner: Tensor  # [C]
    place: Tensor  # [C] open label
    slot: Tensor  # [E]
    latest: Tensor  # [C] its latest entry
    suggested: Tensor  # bool [C]

    @classmethod
    def of(cls, entries: Entries) -> Options:
        place = entries.fields["place"]
        span = int(place.max()) + 1
        keys, slot = torch.unique(entries.owner * span + place, return_inverse=True)
        latest = torch.zeros_like(keys).scatter_reduce(
            0, slot, torch.arange(len(slot), device=slot.device), "amax", include_self=False
        )
        suggested = entries.fields["kind"][latest] == SUGGESTION
        return cls(keys // span, keys % span, slot, latest, suggested)

    def sums(self, values: Tensor) -> Tensor:
        """[C, …]: entries of each candidate, added up."""
        return values.new_zeros(len(self.place), *values.shape[1:]).index_add(0, self.slot, values)

    def row_sums(self, values: Tensor, rows: int) -> Tensor:
        return values.new_zeros(rows, *values.shape[1:]).index_add(0, self.owner, values)


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of the candidates of each row, and of a place that is none of them."""

    options: Options
    known: Tensor  # bool [C] the train part (or its cut) had seen the place
    logp: Tensor  # [C]
    elsewhere: Tensor  # [B] log-probability of any other place
    unseen: Tensor  # [B] logit of that other place being new to the train part

    def of_targets(self, place: Tensor, rows: int) -> Tensor:
        """[B]: the log-probability of these places; that of `elsewhere` where a place is no candidate."""
        hit = self.options.place == place[self.options.owner]
        found = self.logp.new_zeros(rows).index_add(0, self.options.owner[hit], self.logp[hit])
        listed = self.logp.new_zeros(rows).index_add(0, self.options.owner[hit], torch.ones_like(self.logp[hit]))
        return torch.where(listed > 0, found, self.elsewhere)

    def listed(self, place: Tensor, rows: int) -> Tensor:
        hit = self.options.place == place[self.options.owner]
        return torch.zeros(rows, device=place.device).index_add(0, self.options.owner, hit.float()) > 0

    def unseen_class(self, rows: int) -> Tensor:
        """[B]: the log-probability of the legacy class of all places that training did not see."""
        fresh = self.options.row_sums(torch.where(self.known, 0.0, self.logp.exp()), rows)
        return (fresh + (self.elsewhere + F.logsigmoid(self.unseen)).exp() + TINY).log()


def evidence(entries: Entries) -> Tensor:
    """float32 [E, EVIDENCE]: each visit seen from the moment its row asks about."""
    f, owner = entries.fields, entries.owner
    now = entries.now("leave")[owner]
    follows = f["follows"].bool()  # never the first entry of a row, so that rolling around is never seen

    def before(column: Tensor) -> Tensor:
        return torch.where(follows, column.roll(1), column)

    led = torch.where(follows, f["leave"].roll(1), f["start"])
    age = ((now - f["start"]).clamp(min=0) / DAY).float()
    rank = (entries.last[owner] - torch.arange(len(owner), device=owner.device)).float()
    apart, arriving = _around_the_clock(now - led), _around_the_clock(now - f["start"])
    day, led_day = _weekday(now), _weekday(led)
    here = follows & (f["place"].roll(1) == entries.now("place")[owner])
    earlier = torch.where(entries.last > 0, entries.last - 1, entries.last)
    two = here & follows.roll(1) & (f["place"].roll(2) == f["place"][earlier][owner])
    cell = f.get("cell1", f["place"])
    near = follows & (cell.roll(1) == cell[entries.last][owner])
    stay = torch.log1p((f["leave"] - f["start"]).float() / MINUTE)
    unlike = torch.where(follows, (before(stay) - stay[entries.last][owner]).abs(), 1.0)
    week = (age - (age / 7).round() * 7).abs()
    columns = [
        age / 30, age.log1p(), rank.log1p(), (apart / 60) ** 2 / 10, apart / 180, (arriving / 60) ** 2 / 10,
        day == led_day, (day >= 5) == (led_day >= 5), here, two, near, f["kind"] == 1, unlike, here * unlike,
        week.log1p(), follows,
    ]  # fmt: skip
    return torch.stack([column.float() for column in columns]).T


def _weekday(seconds: Tensor) -> Tensor:
    """0 = Monday."""
    return (seconds.div(int(DAY), rounding_mode="floor") + 3) % 7


def _around_the_clock(seconds: Tensor) -> Tensor:
    """Minutes between two times of the day, 0 to 720."""
    minutes = (seconds % int(DAY)).float() / MINUTE
    return torch.minimum(minutes, 1440 - minutes)


def context(entries: Entries, options: Options, seen: Tensor) -> Tensor:
    """float32 [B, CONTEXT]: what all candidates of a row share."""
    rows, owner, f = entries.rows, entries.owner, entries.fields
    real = (f["kind"] != SUGGESTION).float()
    inside = (f["kind"] == 1).float()

    def per_row(values: Tensor) -> Tensor:
        return values.new_zeros(rows).index_add(0, owner, values)

    leave = entries.now("leave")
    turn = (leave % int(DAY)).float() / DAY * 2 * math.pi
    day = _weekday(leave)
    stay = torch.log1p((leave - entries.now("start")).float() / MINUTE)
    window = per_row(inside).clamp(min=1)
    distinct = options.row_sums((options.sums(inside) > 0).float(), rows) / window
    recent = torch.exp(-torch.expm1(seen[:, 1]) / 14) * real
    is_first = _first_visits(entries, options).float()
    exploring = per_row(is_first * recent) / per_row(recent).clamp(min=TINY)
    here = per_row(seen[:, 8] * real)
    columns = [
        stay, turn.sin(), turn.cos(), (2 * turn).sin(), (2 * turn).cos(), day >= 5, day == 4, day == 6,
        window.log(), distinct, exploring, here.log1p(), per_row(real).log1p(),
    ]  # fmt: skip
    return torch.stack([column.float() for column in columns]).T


def _first_visits(entries: Entries, options: Options) -> Tensor:
    """bool [E]: the earliest known visit of its candidate."""
    place = torch.arange(len(options.slot), device=options.slot.device)
    earliest = torch.zeros_like(options.place).scatter_reduce(0, options.slot, place, "amin", include_self=False)
    return (earliest[options.slot] == place) & (entries.fields["kind"] != SUGGESTION)


def aside(entries: Entries, options: Options, seen: Tensor) -> Tensor:
    """float32 [C, ASIDE]: counts, recency, stays, other people's moves and cells of each candidate."""
    f, rows, owner, latest = entries.fields, entries.rows, options.owner, options.latest
    real, inside = (f["kind"] != SUGGESTION).float(), (f["kind"] == 1).float()
    count, window = options.sums(real), options.sums(inside)
    total, in_window = options.row_sums(count, rows)[owner], options.row_sums(window, rows)[owner].clamp(min=1)
    since = (entries.last[owner] - latest).float()
    stay = options.sums(torch.log1p((f["leave"] - f["start"]).float() / MINUTE) * real) / count.clamp(min=1)
    moved, left, visited = (f[name][latest].float() for name in ("moved", "left", "visited"))
    columns = [
        count.log1p(), ((count + 0.5) / (total + 1)).log(), window.log1p(), window / in_window, since.log1p(),
        seen[latest, 1], stay, since == 0, since == 1, ((moved + 0.1) / (left + 1)).log(), moved.log1p(),
        visited.log1p(), f["place"][entries.last][owner] == options.place, *_cell_matches(entries, options),
    ]  # fmt: skip
    return torch.stack([column.float() for column in columns]).T


def _cell_matches(entries: Entries, options: Options) -> list[Tensor]:
    """Whether a candidate lies in the same middle and in the same coarse cell as the user; 0 without cells."""
    matches = []
    for name in ("cell1", "cell0"):
        cell = entries.fields.get(name)
        if cell is None:
            matches.append(torch.zeros_like(options.place))
        else:
            matches.append(cell[options.latest] == cell[entries.last][options.owner])
    return matches


def suggestion_features(entries: Entries, options: Options) -> Tensor:
    """float32 [C, SUGGESTED]: what speaks for a place where the user has never been."""
    f, latest, owner = entries.fields, options.latest, options.owner
    moved, left, visited = (f[name][latest].float() for name in ("moved", "left", "visited"))
    real = (f["kind"] != SUGGESTION).float()
    columns = [
        ((moved + 0.1) / (left + 1)).log(),
        moved.log1p(),
        visited.log1p(),
        *_cell_matches(entries, options),
    ]
    for name in ("cell2", "cell1", "cell0"):
        cell = f.get(name)
        columns.append(
            torch.zeros_like(visited) if cell is None else _visits_in_cell(entries, cell, real, owner, latest)
        )
    return torch.stack([column.float() for column in columns]).T


def _visits_in_cell(entries: Entries, cell: Tensor, real: Tensor, owner: Tensor, latest: Tensor) -> Tensor:
    """[C]: log of one and the row's visits to the cell of each candidate."""
    span = int(cell.max()) + 1
    keys, number = torch.unique(entries.owner * span + cell, return_inverse=True)
    visits = real.new_zeros(len(keys)).index_add(0, number, real)
    return visits[number[latest]].log1p()


class Member(nn.Module):
    """One scorer. An ensemble has several, which never meet before their probabilities are averaged."""

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        kernels, hidden = config.kernels, config.hidden
        weight, bias = first_kernels(kernels)
        self.kernel = nn.Parameter(weight)
        self.kernel_bias = nn.Parameter(bias)
        width = 3 * kernels + ASIDE + CONTEXT
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, hidden)
        self.score, self.linear = nn.Linear(hidden, 1), nn.Linear(width, 1)
        self.dropout = Dropout(config.dropout)
        self.suggest = nn.Sequential(nn.Linear(SUGGESTED, 16), nn.GELU(), nn.Linear(16, 1))
        self.elsewhere = nn.Sequential(
            nn.Linear(CONTEXT + 3, 32), nn.GELU(), Dropout(config.dropout), nn.Linear(32, 3)
        )
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(
        self, entries: Entries, options: Options, parts: Parts, taps: Taps, name: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(log-probabilities of candidates, of elsewhere, logit of unseen)."""
        rows, owner = entries.rows, options.owner
        weight = (parts.seen @ self.kernel + self.kernel_bias).clamp(max=FAR).exp() * parts.real[:, None]
        weight = taps.at(f"{name}.hook_kernels", weight)
        total = options.sums(weight)
        share = taps.at(f"{name}.hook_shares", total / (options.row_sums(total, rows)[owner] + 1e-3))
        x = torch.cat([(total + 0.03).log(), (share + 0.01).log(), share, parts.aside, parts.context[owner]], 1)
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
            return own - norm[owner], some_new - norm, unseen
        offered = torch.where(options.suggested, self.suggest(parts.suggested).squeeze(1), -torch.inf)
        _, any_offer = _row_softmax(offered, owner, rows, floor=outside)
        logp = torch.where(options.suggested, offered + (some_new - any_offer)[owner], own) - norm[owner]
        return logp, outside + some_new - any_offer - norm, unseen


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
class Parts:
    """What all members read."""

    seen: Tensor  # [E, EVIDENCE]
    real: Tensor  # [E] 1 for visits, 0 for suggestions
    aside: Tensor  # [C, ASIDE]
    context: Tensor  # [B, CONTEXT]
    suggested: Tensor | None  # [C, SUGGESTED]; None where nothing is suggested
    distinct: Tensor  # [B] candidates that the user has visited

    @classmethod
    def of(cls, entries: Entries, options: Options) -> Parts:
        seen = evidence(entries)
        real = (entries.fields["kind"] != SUGGESTION).float()
        visited = (~options.suggested).float()
        return cls(
            seen,
            real,
            aside(entries, options, seen),
            context(entries, options, seen),
            suggestion_features(entries, options) if options.suggested.any() else None,
            options.row_sums(visited, entries.rows),
        )


@dataclass(frozen=True)
class MemberScores(Output):
    """What each member says; `hidden` has the log-probabilities of the candidates [members, C]."""

    members: tuple[Scored, ...]


TAPS = {
    "hook_kernels": ("entry", "kernel"),
    "hook_shares": ("candidate", "kernel"),
    "hook_scores": ("candidate",),
}


class Scorer(Network):
    """`predict(inputs)` gives the mean of the members' probabilities; `loss` adds their losses."""

    config: ScorerConfig

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(Member(config) for _ in range(config.members))

    def costs(self) -> Costs:
        costs = self.config.costs()
        assert costs is not None, "a scorer has no open sizes"
        return costs

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
        taps = Taps(self.taps, keep, edit)
        entries = Entries.of(Inputs.of(inputs))
        options = Options.of(entries)
        parts = Parts.of(entries, options)
        known = entries.fields["known"][options.latest].bool()
        scored = tuple(
            Scored(options, known, *member(entries, options, parts, taps, f"members.{n}"))
            for n, member in enumerate(self.members)
        )
        return MemberScores(torch.stack([one.logp for one in scored]), None, taps.kept, scored)

    def predict(self, inputs: Inputs | Batch) -> Scored:
        scored = self(inputs).members
        options = scored[0].options
        if len(scored) == 1:
            return scored[0]
        mean = lambda values: torch.stack(values).logsumexp(0) - math.log(len(values))  # noqa: E731
        elsewhere = mean([one.elsewhere for one in scored])
        fresh = mean([one.elsewhere + F.logsigmoid(one.unseen) for one in scored]) - elsewhere
        unseen = fresh - torch.log(-torch.expm1(fresh.clamp(max=-1e-6)))
        return Scored(options, scored[0].known, mean([one.logp for one in scored]), elsewhere, unseen)

    def loss(self, output: Output, batch: Batch) -> Tensor:
        """Nats of the true place, and of its legacy class; summed over rows, and over members while training."""
        assert isinstance(output, MemberScores)
        scored, weights = output.members, batch["weights"]
        row = torch.arange(len(weights), device=weights.device)
        at = weights.argmax(1)
        place, known = batch["next.place"][row, at], batch["next.known"][row, at].bool()
        losses = [self._nats(one, place, known) for one in scored]
        return (torch.stack(losses).mean(0) * weights[row, at]).sum() * (len(scored) if self.training else 1)

    def _nats(self, scored: Scored, place: Tensor, known: Tensor) -> Tensor:
        rows = len(place)
        true = scored.of_targets(place, rows)
        listed = scored.listed(place, rows)
        seen = torch.where(listed, true, scored.elsewhere + F.logsigmoid(-scored.unseen))
        legacy = torch.where(known, seen, scored.unseen_class(rows))
        return -true - self.config.legacy_weight * legacy
