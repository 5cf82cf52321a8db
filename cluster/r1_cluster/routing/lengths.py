"""The length forecast: how much a request will still think and answer, by tenant, model and budget class.

Levels lend to each other: a tenant's own history counts once there is some, before that the model's in the same class,
before that the model's, before that a prior. Thinking lengths are learnt as if no budget existed (a closed thought is a
censored one), so a budget's effect is applied, not learnt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from r1_cluster.routing.survival import EDGES, Curve, Floats, Histogram, bin_of, lognormal_hazards

Bools = NDArray[np.bool_]


class BudgetClass(StrEnum):
    """Budgets in four classes: what a user who sets such a budget asks differs."""

    MINIMAL = "minimal"  # up to 1,024 tokens
    LOW = "low"  # up to 4,096
    MEDIUM = "medium"  # up to 16,384
    HIGH = "high"  # above

    @classmethod
    def of(cls, tokens: int) -> BudgetClass:
        for limit, name in _LIMITS:
            if tokens <= limit:
                return name
        return cls.HIGH


_LIMITS = ((1024, BudgetClass.MINIMAL), (4096, BudgetClass.LOW), (16384, BudgetClass.MEDIUM))


class LengthKey(NamedTuple):
    tenant: str
    model: str
    budget_class: BudgetClass = BudgetClass.HIGH


class Outcome(NamedTuple):
    """How long a choice was, in tokens. ``closed``: its thought ended by itself; ``finished``: its answer did."""

    thinking_tokens: int
    answer_tokens: int
    closed: bool = True
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed of a model nobody has used yet: log-normal lengths, by median tokens and log spread."""

    thinking_median: float = 900.0
    answer_median: float = 350.0
    sigma: float = 1.1


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Survival of the thought, of the answer, and of both together."""

    thinking: Curve
    answer: Curve
    total: Curve
    _starts: dict[tuple[bool, int, int], Floats] = field(default_factory=dict, repr=False)
    _tokens: dict[tuple[float, int, int], int] = field(default_factory=dict, repr=False)
    _running: list[Floats] = field(default_factory=list, repr=False)

    def from_start(self, ahead: Floats, thinking: bool, budget: int, max_tokens: int) -> Floats:
        """Of one choice that has nothing yet: ``survival``, and below it the variance of being there. Always over the
        same ``ahead``: remembered."""
        furthest = int(ahead.item(-1))  # limits beyond it are all the same here
        budget, max_tokens = min(budget, furthest), min(max_tokens, furthest + 1)
        key = (thinking, budget, max_tokens)
        known = self._starts.get(key)
        if known is None:
            zero = np.zeros(1)
            alive = self.survival(
                ahead,
                generated=zero,
                answered=zero,
                thinking=np.array([thinking]),
                budget=np.array([float(budget)]),
                max_tokens=np.array([float(max_tokens)]),
            )[0]
            alive[0] = 1.0  # it is there now, whatever its limits say
            known = np.array((alive, alive * (1.0 - alive)))
            if len(self._starts) < 256:
                self._starts[key] = known
        return known

    def of_running(self, ahead: Floats) -> Floats:
        """The chance that a choice of which only is known that it runs goes on for ``ahead`` more tokens. It is met at
        any age that it reaches (the residual life of renewal theory). Always over the same ``ahead``: remembered."""
        if not self._running:
            alive = self.total.alive
            further = np.interp(EDGES + ahead[:, None], EDGES, alive, right=0.0)
            left: Floats = np.asarray(np.trapezoid(further, EDGES, axis=1) / np.trapezoid(alive, EDGES))
            self._running.append(left)
        return self._running[0]

    def survival(
        self, ahead: Floats, *, generated: Floats, answered: Floats, thinking: Bools, budget: Floats, max_tokens: Floats
    ) -> Floats:
        """For N choices where they stand now, the chance to be running after each of H more tokens: N by H.

        While a choice thinks, its total length decides up to the budget, and after that only an answer can follow.
        """
        left = np.maximum(0.0, budget - generated)[:, None]
        if thinking.all():
            alive = self.total.survival(generated[:, None], ahead)
        else:
            alive = np.empty((len(generated), len(ahead)))
            alive[thinking] = self.total.survival(generated[thinking, None], ahead)
            alive[~thinking] = self.answer.survival(answered[~thinking, None], ahead)
        cut = (ahead > left) & thinking[:, None]
        if cut.any():
            closed = self.answer.survival(
                0.0, np.broadcast_to(ahead, cut.shape)[cut] - np.broadcast_to(left, cut.shape)[cut]
            )
            alive[cut] = np.minimum(alive[cut], closed)
        return np.where(ahead < (max_tokens - generated)[:, None], alive, 0.0)

    def tokens(self, q: float, *, budget: int, max_tokens: int) -> int:
        """The length that a share ``q`` of new choices does not exceed, thought within ``budget`` and answer."""
        key = (q, budget, max_tokens)
        known = self._tokens.get(key)
        if known is None:
            bound = min(self.total.quantile(q), budget + self.answer.quantile(q))
            known = min(max_tokens, max(1, round(bound)))
            if len(self._tokens) < 256:
                self._tokens[key] = known
        return known


class _Level:
    """Histograms of one key, and its curves as last computed."""

    __slots__ = ("curves", "fresh_until", "histograms")

    def __init__(self, half_life: float) -> None:
        self.histograms = (Histogram(half_life), Histogram(half_life), Histogram(half_life))
        self.curves: Curves | None = None
        self.fresh_until = 0

    def observe(self, seen: Sequence[tuple[int, int, bool]]) -> None:
        """``seen``: of a histogram by number, a bin, and whether the length was censored."""
        histograms = self.histograms
        for which, place, censored in seen:
            histograms[which].count(place, censored)


class LengthForecast:
    """Learns from outcomes, tells curves. Memory is bounded: the least used tenants' own levels are forgotten."""

    def __init__(
        self,
        prior: Prior | None = None,
        *,
        half_life: float = 2000.0,
        strength: float = 2.0,
        max_keys: int = 1024,
    ) -> None:
        """``strength``: how many observations a level's parent counts as."""
        prior = prior or Prior()
        self._prior = (
            lognormal_hazards(prior.thinking_median, prior.sigma),
            lognormal_hazards(prior.answer_median, prior.sigma),
            lognormal_hazards(prior.thinking_median + prior.answer_median, prior.sigma),
        )
        self._half_life, self._strength, self._max_keys = half_life, strength, max_keys
        self._levels: OrderedDict[tuple[str, ...], _Level] = OrderedDict()
        self._unseen: dict[tuple[tuple[str, ...], ...], Curves] = {}  # of keys without a level, until something ends

    def __len__(self) -> int:
        return len(self._levels)

    def observe(self, key: LengthKey, outcome: Outcome) -> None:
        self._unseen.clear()
        thought, answer, closed, finished = outcome
        seen = [(0, bin_of(thought), not closed), (2, bin_of(thought + answer), not (closed and finished))]
        if answer or finished:
            seen.append((1, bin_of(answer), not finished))
        for name in _path(key):
            self._level(name).observe(seen)

    def merge(self, other: LengthForecast) -> None:
        """Take in what another router has learnt."""
        self._unseen.clear()
        for name, level in other._levels.items():
            own = self._level(name)
            for mine, theirs in zip(own.histograms, level.histograms, strict=True):
                mine.merge(theirs)
            own.fresh_until = 0

    def curves(self, key: LengthKey) -> Curves:
        """As of the last few observations: curves are computed anew when a level has grown by a sixteenth."""
        own = self._levels.get((key.model, key.budget_class, key.tenant))
        if own is not None and own.curves is not None and own.histograms[0].observations < own.fresh_until:
            return own.curves
        return self._curves(_path(key))

    def of_model(self, model: str) -> Curves:
        """Of all that ask it, whoever they are."""
        return self._curves(((model,),))

    def _curves(self, path: tuple[tuple[str, ...], ...]) -> Curves:
        own = self._levels.get(path[-1])
        if own is not None and own.curves is not None and own.histograms[0].observations < own.fresh_until:
            return own.curves
        if own is None and path in self._unseen:
            return self._unseen[path]
        hazards = list(self._prior)
        for name in path:
            level = self._levels.get(name)
            if level is not None:
                pairs = zip(level.histograms, hazards, strict=True)
                hazards = [histogram.hazards(above, self._strength) for histogram, above in pairs]
        thinking, answer, total = map(Curve.of, hazards)
        curves = Curves(thinking, answer, total)
        if own is not None:
            seen = own.histograms[0].observations
            own.curves, own.fresh_until = curves, seen + 1 + min(seen // 16, 64)
        elif len(self._unseen) < self._max_keys:
            self._unseen[path] = curves
        return curves

    def _level(self, name: tuple[str, ...]) -> _Level:
        level = self._levels.get(name)
        if level is None:
            level = self._levels[name] = _Level(self._half_life)
            if len(self._levels) > self._max_keys:
                self._levels.popitem(last=False)
        self._levels.move_to_end(name)
        return level


def _path(key: LengthKey) -> tuple[tuple[str, ...], ...]:
    """From the widest level to the key's own."""
    return (key.model,), (key.model, key.budget_class), (key.model, key.budget_class, key.tenant)
