"""``plan``: search, choose, explain. Pure; a few seconds at most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from r1_cluster.catalog import Architecture
from r1_cluster.perf.batch import Speculation
from r1_cluster.perf.constants import KvDtype, fitted
from r1_cluster.plan import Plan
from r1_cluster.planner.build import build, rehearsal
from r1_cluster.planner.demand import Demand, demand
from r1_cluster.planner.explain import reasons
from r1_cluster.planner.layouts import Rejected
from r1_cluster.planner.request import FleetSpec, Objective, PlanningError, Slo
from r1_cluster.planner.search import Candidate, Search, evaluate, search
from r1_cluster.workload import Workload

BUDGETS = (None, 16384, 8192, 4096)  # loosest first: a budget costs accuracy, so it is tightened only for an SLO
NO_SLO = Slo()
SHOWN = 2  # layouts that an error names
PoolChoice = Literal["unified", "separate", "any"]


@dataclass(frozen=True)
class Request:
    """What to plan. ``budgets``: thinking budgets allowed, the first that works is taken. ``price``: of a GPU hour.
    ``drafts``: tokens a step that the MTP layer may draft, each accepted with probability ``acceptance``.

    ``smallest``: the fewest GPUs that hold the service levels at the rate; the fleet is then what there may be at most.
    """

    model: Architecture
    fleet: FleetSpec
    workload: Workload
    slo: Slo = NO_SLO
    objective: Objective = Objective.THROUGHPUT
    budgets: tuple[int | None, ...] = BUDGETS
    kv_dtypes: tuple[KvDtype, ...] = ("bfloat16", "fp8")
    drafts: tuple[int, ...] = (0,)
    acceptance: float = field(default_factory=lambda: fitted().serving.acceptance)
    pools: PoolChoice = "unified"
    rate: float | None = None
    price: float | None = None
    max_context: int | None = None
    checkpoint: str | None = None
    smallest: bool = False

    @property
    def speculations(self) -> tuple[Speculation | None, ...]:
        return tuple(Speculation(count, self.acceptance) if count else None for count in self.drafts)


@dataclass(frozen=True)
class Outcome:
    """A plan, the part of the fleet it uses, and how it came about. On CPU only the plan is there.

    ``budgets``: the same deployment under each thinking budget; a Rejected where it holds no service level.
    """

    plan: Plan
    fleet: FleetSpec
    chosen: Candidate | None = None
    found: Search | None = None
    budgets: tuple[tuple[int | None, Candidate | Rejected], ...] = ()


def plan(request: Request) -> Outcome:
    """The best plan. Raises PlanningError, with the nearest misses, where there is none."""
    fleet = request.fleet
    if fleet.gpu is None:
        return Outcome(_on_cpu(request), fleet)
    if not request.model.mtp_layers:
        if 0 not in request.drafts:
            raise PlanningError(f"{request.model.name} has no layer that drafts tokens: leave --drafts out")
        request = replace(request, drafts=(0,))
    tried: dict[int | None, Search] = {}
    best: list[Candidate] = []
    for budget in request.budgets:
        tried[budget] = _search(request, budget)
        chosen = next((each for each in tried[budget].candidates if _wanted(each, request)), None)
        best += [chosen] if chosen else []
        if chosen and chosen.most.rate >= (_rate(request) or 0.0):
            break
    if not best:
        raise PlanningError(_why_none(request, tried))
    chosen = max(best, key=lambda each: each.most.rate)
    found = tried[chosen.budget]
    used = fleet.resized(chosen.gpus)
    given = used if request.smallest else fleet
    why = (*_about_budget(request, chosen), *reasons(chosen, found, given, request.slo, request.acceptance))
    made = build(request.model, used, chosen, request.slo, why, price=request.price, checkpoint=request.checkpoint)
    return Outcome(made, used, chosen, found, _budgets(request, chosen))


def _rate(request: Request) -> float | None:
    """Requests/s that the workload brings, at its peak."""
    return demand(request.workload, request.model, None, rate=request.rate, max_context=request.max_context).rate


def _about_budget(request: Request, chosen: Candidate) -> Iterator[str]:
    """Why thoughts are cut, and whether the workload's own rate is carried."""
    rate, wanted = _rate(request), str(request.slo) or "the load"
    if chosen.budget is not None and chosen.budget != request.budgets[0]:
        looser = ", ".join("none" if each is None else f"{each:,}" for each in request.budgets if _looser(each, chosen))
        load = "" if rate is None else f" at {rate:.3g} requests/s"
        yield f"thinking budget {chosen.budget:,}: with {looser} no layout holds {wanted}{load}"
    if rate is not None and chosen.most.rate < rate:
        yield (
            f"carries {chosen.most.rate:.3g} of the workload's {rate:.3g} requests/s within {wanted}: "
            "--min-gpus says how many GPUs would carry all"
        )


def _looser(budget: int | None, chosen: Candidate) -> bool:
    return budget is None or (chosen.budget is not None and budget > chosen.budget)


def _demand(request: Request, budget: int | None) -> Demand:
    """For throughput the workload's own rate is no bound, only one that was asked for."""
    asked = demand(request.workload, request.model, budget, rate=request.rate, max_context=request.max_context)
    saturate = request.objective is Objective.THROUGHPUT and request.rate is None and not request.smallest
    return replace(asked, rate=None) if saturate else asked


def _search(request: Request, budget: int | None) -> Search:
    return search(
        request.model,
        request.fleet,
        _demand(request, budget),
        request.slo,
        request.objective,
        budget=budget,
        kv_dtypes=request.kv_dtypes,
        speculations=request.speculations,
        separate=not request.smallest,
        smallest=request.smallest,
    )


def _wanted(candidate: Candidate, request: Request) -> bool:
    return request.pools == "any" or candidate.separate == (request.pools == "separate")


def _budgets(request: Request, chosen: Candidate) -> tuple[tuple[int | None, Candidate | Rejected], ...]:
    """What each budget does to the chosen deployment, at the most it then carries."""
    rows = []
    for budget in dict.fromkeys((*BUDGETS, chosen.budget)):
        asked = replace(_demand(request, budget), rate=None)
        rows.append((budget, evaluate(chosen.deployment, asked, budget, request.slo)))
    return tuple(sorted(rows, key=lambda row: -(row[0] or 1 << 30)))


def _on_cpu(request: Request) -> Plan:
    if request.model.name != "r1-nano":
        raise PlanningError(
            f"{request.model.name} on {request.fleet}: only r1-nano runs on CPU: give GPUs, such as --gpus 16xH200"
        )
    if 0 not in request.drafts:
        raise PlanningError("on CPU nothing is predicted of drafts: leave --drafts out, or see the plan nano-mtp")
    if request.slo != NO_SLO or request.smallest:
        raise PlanningError(
            "on CPU nothing is predicted, so no SLO can be held against it: leave --slo and --min-gpus out"
        )
    return rehearsal(request.model, request.fleet)


def _why_none(request: Request, tried: dict[int | None, Search]) -> str:
    """The last search's refusals that came nearest, in one line."""
    last = list(tried.values())[-1]
    wanted = f"{'at most ' if request.smallest else ''}{request.fleet}"
    if last.candidates:
        return f"no {request.pools} layout on {wanted} holds {request.slo}, others do: see --pools any"
    nearest = sorted(last.rejected, key=lambda each: each.missing)
    fitting = [each for each in nearest if each.fits]
    if not fitting:
        why = nearest[0].reason if nearest else "no layout divides it over these GPUs"
        return f"{request.model.name} does not fit {wanted}: {why}: give more or larger GPUs"
    tightest = list(tried)[-1]
    under = "" if tightest is None else f", even with thoughts cut at {tightest:,} tokens"
    told = "; ".join(dict.fromkeys(each.reason for each in fitting[:SHOWN]))
    return (
        f"no plan for {request.model.name} on {wanted} holds {str(request.slo) or 'the load'}{under}. Nearest: {told}. "
        "Relax --slo, lower the rate, or give more or faster GPUs"
    )
