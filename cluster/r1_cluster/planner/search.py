"""From a fleet, a model and a workload to every deployment that holds the service levels, and the best of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from r1_cluster.catalog import Architecture, LatentAttention
from r1_cluster.perf.batch import Speculation
from r1_cluster.perf.constants import KvDtype
from r1_cluster.perf.step import Engine
from r1_cluster.planner.demand import Demand
from r1_cluster.planner.layouts import Rejected, splits
from r1_cluster.planner.load import Deployment, Point, most_running, point
from r1_cluster.planner.memory import BLOCK, memory, overflow
from r1_cluster.planner.request import FleetSpec, Objective, Slo, seconds

BATCHED_TOKENS = 8192  # prompt tokens of a step: the chunk that the performance model's constants hold for
SEQUENCES = 256  # for sizing the workspace before the admission limit is known
FRAMEWORK = "vllm"
FP8_KV = ("H100", "H200", "H800", "H20", "B200", "GB200")  # vLLM's MLA kernels with an FP8 cache need Hopper or newer
BISECTIONS = 12
SPARE = 4  # gangs more than the most of a full fleet says, for the fewest that carry a rate
LATENCY_SHARE = 0.25  # of what the best layout carries: the common load latencies are compared at, without a rate
BEST_PREFILL = 1  # prefill layouts tried beside each decode layout
TIE = 0.05  # closer than this the model cannot tell layouts apart, and what is simpler is taken


@dataclass(frozen=True)
class Candidate:
    """A deployment that holds the service levels: at its ``most``, and at the load it is planned ``at``."""

    deployment: Deployment
    demand: Demand
    budget: int | None
    most: Point
    at: Point

    @property
    def gpus(self) -> int:
        return self.deployment.gpus

    @property
    def per_gpu(self) -> float:
        """Output tokens/s/GPU at the most it carries."""
        return self.most.tokens_per_second / self.gpus

    @property
    def gpu_hours_per_million_tokens(self) -> float:
        """At the planned load: GPUs that idle cost as much."""
        return self.gpus / self.at.tokens_per_second * 1e6 / 3600

    @property
    def separate(self) -> bool:
        return self.deployment.prefill is not None


@dataclass(frozen=True)
class Search:
    """What came of it. ``candidates`` best first; ``front`` those that no other beats in everything."""

    candidates: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]


def search(
    model: Architecture,
    fleet: FleetSpec,
    demand: Demand,
    slo: Slo,
    objective: Objective,
    *,
    budget: int | None = None,
    separate: bool = True,
    kv_dtypes: Iterable[KvDtype] = ("bfloat16", "fp8"),
    speculations: Iterable[Speculation | None] = (None,),
    smallest: bool = False,
) -> Search:
    """Look at every deployment on up to ``fleet.count`` GPUs. ``smallest``: only as many gangs as the rate needs."""
    units, rejected = _units(model, fleet, demand, kv_dtypes, speculations)
    fewest = smallest or (objective is Objective.COST and demand.rate is not None)
    looked: list[Candidate | Rejected] = []
    for unit in units:
        looked += _unified(fleet, unit, demand, budget, slo, whole=not smallest, fewest=fewest)
    if separate:
        looked += (evaluate(each, demand, budget, slo) for each in _separate(fleet, demand, units))
    found = [each for each in looked if isinstance(each, Candidate)]
    rejected += (each for each in looked if isinstance(each, Rejected))
    if objective is Objective.LATENCY and demand.rate is None and found:
        rate = LATENCY_SHARE * max(each.most.rate for each in found)
        found = [replace(each, at=at_rate(each, rate)) for each in found if each.most.rate >= rate]
    ranked = rank(found, objective, smallest=smallest)
    return Search(tuple(ranked), tuple(_front(ranked)), tuple(rejected))


def rank(found: Iterable[Candidate], objective: Objective, *, smallest: bool = False) -> list[Candidate]:
    """Best first. Those within ``TIE`` of the best count as equal: then fewer GPUs, a full-precision KV cache, no
    drafts, a smaller gang, which loses less when a GPU dies, and less tensor parallelism, which holds KV more than
    once, go first."""
    key: dict[Objective, Callable[[Candidate], float]] = {
        Objective.THROUGHPUT: lambda each: 1 / each.most.tokens_per_second,
        Objective.LATENCY: lambda each: each.at.ttfa_p95,
        Objective.COST: lambda each: each.gpu_hours_per_million_tokens,
    }
    of = (lambda each: float(each.gpus)) if smallest else key[objective]
    ranked = sorted(found, key=lambda each: (of(each), each.at.ttfa_p95))
    if not ranked:
        return []
    best = of(ranked[0])
    tied = [each for each in ranked if of(each) <= best * (1 + TIE)]
    tied.sort(key=lambda each: (each.gpus, each.separate, *_plainness(each.deployment.engine), of(each)))
    return tied + ranked[len(tied) :]


def _plainness(engine: Engine) -> tuple[bool, int, int, int]:
    return engine.kv_dtype == "fp8", engine.width, engine.split.gpus, engine.split.tensor


def at_rate(candidate: Candidate, rate: float) -> Point:
    """The operating point of a candidate that carries ``rate`` requests/s, at most its own most."""
    low, high = 0.0, candidate.most.running
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if point(candidate.deployment, candidate.demand, middle).rate < rate:
            low = middle
        else:
            high = middle
    return point(candidate.deployment, candidate.demand, high)


def _units(
    model: Architecture,
    fleet: FleetSpec,
    demand: Demand,
    kv_dtypes: Iterable[KvDtype],
    speculations: Iterable[Speculation | None],
) -> tuple[list[Deployment], list[Rejected]]:
    """Gangs whose weights and one longest request fit, and the rest with the sum that does not come out."""
    if fleet.gpu is None:
        raise ValueError("nothing is predicted on CPU ranks")
    allowed, rejected = splits(model, fleet)
    units = []
    for split, speculation in product(allowed, speculations):
        for kv_dtype in kv_dtypes:
            if kv_dtype == "fp8" and isinstance(model.attention, LatentAttention) and fleet.gpu.name not in FP8_KV:
                continue
            engine = Engine.of(model, fleet.gpu, split, FRAMEWORK, kv_dtype=kv_dtype, speculation=speculation)
            made = _unit(engine, demand)
            if isinstance(made, Deployment):
                units.append(made)
                continue
            rejected.append(made)
            if made.missing:
                break  # the weights do not fit: the KV cache's type changes nothing
    return units, rejected


def _unit(engine: Engine, demand: Demand) -> Deployment | Rejected:
    """One gang, or why its weights or one longest request do not fit."""
    found = memory(engine, batched_tokens=BATCHED_TOKENS, max_num_seqs=SEQUENCES)
    split, kv_dtype = engine.split, engine.kv_dtype
    if found.short:
        return Rejected(str(split), overflow(engine, found), missing=found.short / found.usable)
    if found.kv_tokens < demand.max_model_len + BLOCK:
        return Rejected(
            f"{split}, {kv_dtype} KV",
            f"{split}: room for {found.kv_tokens:,} KV tokens a rank in {kv_dtype} < one request of "
            f"{demand.max_model_len:,}",
            missing=0.0,
        )
    return Deployment(engine, found, gangs=1)


def _unified(
    fleet: FleetSpec, unit: Deployment, demand: Demand, budget: int | None, slo: Slo, *, whole: bool, fewest: bool
) -> Iterator[Candidate | Rejected]:
    """A gang as often as the fleet holds it (``whole``), and only as often as the rate needs it (``fewest``)."""
    room = fleet.count // unit.gpus
    every = evaluate(replace(unit, gangs=room), demand, budget, slo)
    if whole or isinstance(every, Rejected):
        yield every
    if fewest and isinstance(every, Candidate):
        # Each gang has its own requests, but prefixes are found in the caches of all: fewer may need one more.
        needed = 1 if demand.rate is None else math.ceil(demand.rate / every.most.rate * room - 1e-9)
        for gangs in range(max(1, needed), room + (not whole)):
            found = evaluate(replace(unit, gangs=gangs), demand, budget, slo)
            if isinstance(found, Candidate) or gangs >= needed + SPARE:
                yield found
                break


def _separate(fleet: FleetSpec, demand: Demand, units: list[Deployment]) -> Iterator[Deployment]:
    """Prefill gangs beside decode gangs of the same KV type and drafts, in every proportion that fills the fleet."""
    for kind in dict.fromkeys((unit.engine.kv_dtype, unit.drafts) for unit in units):
        same = [unit for unit in units if (unit.engine.kv_dtype, unit.drafts) == kind]
        for first in sorted(same, key=lambda unit: unit.gpus / _prefill_speed(unit.engine, demand))[:BEST_PREFILL]:
            for unit in same:
                for count in _counts((fleet.count - unit.gpus) // first.gpus):
                    gangs = (fleet.count - count * first.gpus) // unit.gpus
                    yield replace(
                        unit,
                        gangs=gangs,
                        prefill=first.engine,
                        prefill_memory=first.memory,
                        prefill_gangs=count,
                    )


def _counts(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... up to ``most``: proportions, not every number."""
    return [n for n in range(1, most + 1) if n & (n - 1) == 0 or (n % 3 == 0 and (n // 3) & (n // 3 - 1) == 0)]


def _prefill_speed(engine: Engine, demand: Demand) -> float:
    new = max(1.0, demand.prompt - demand.cached)
    return 1 / engine.prefill_seconds(new, past=demand.cached, count=engine.split.data, ranks=engine.split.data)


def evaluate(deployment: Deployment, demand: Demand, budget: int | None, slo: Slo) -> Candidate | Rejected:
    """``deployment`` at the most it carries within ``slo`` and at the demand's rate, or what it breaks."""
    return _judge(deployment, demand, budget, _most(deployment, demand, slo))


def drafting(candidate: Candidate, speculation: Speculation | None, slo: Slo) -> Candidate | Rejected:
    """The same deployment with other drafts, at the most that carries within ``slo``."""
    other, demand = candidate.deployment, replace(candidate.demand, rate=None)
    unit = _unit(replace(other.engine, speculation=speculation), demand)
    if isinstance(unit, Rejected):
        return unit
    other = replace(other, engine=unit.engine, memory=unit.memory)
    if other.prefill:
        first = _unit(replace(other.prefill, speculation=speculation), demand)
        if isinstance(first, Rejected):
            return first
        other = replace(other, prefill=first.engine, prefill_memory=first.memory)
    return evaluate(other, demand, candidate.budget, slo)


def _judge(deployment: Deployment, demand: Demand, budget: int | None, most: Point | _Broken) -> Candidate | Rejected:
    name = f"{deployment.label}, {deployment.engine.kv_dtype} KV"
    if isinstance(most, _Broken):
        return Rejected(name, f"{deployment.label}: {most.reason}", fits=True, missing=most.missing)
    candidate = Candidate(deployment, demand, budget, most, most)
    if demand.rate is None:
        return candidate
    if most.rate < demand.rate:
        return Rejected(
            name,
            f"{deployment.label}: carries {most.rate:.3g} requests/s "
            f"({most.tokens_per_second:,.0f} tokens/s), not {demand.rate:.3g}",
            fits=True,
            missing=demand.rate / most.rate - 1,
        )
    return replace(candidate, at=at_rate(candidate, demand.rate))


def _most(deployment: Deployment, demand: Demand, slo: Slo) -> Point | _Broken:
    """The largest load at which everything holds, or why not even the smallest does."""
    room = most_running(deployment, demand)
    if room < 1:
        return _Broken(
            f"KV cache of {deployment.memory.kv_tokens:,} tokens a rank holds no typical request and its surges"
        )
    lowest = point(deployment, demand, min(1.0, room))
    fault = _broken(lowest, slo, demand)
    if fault:
        return fault
    highest = point(deployment, demand, room)
    if not _broken(highest, slo, demand):
        return highest
    low, high, best = lowest.running, room, lowest
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        now = point(deployment, demand, middle)
        if _broken(now, slo, demand):
            high = middle
        else:
            low, best = middle, now
    return best


@dataclass(frozen=True)
class _Broken:
    """What does not hold, and by how much."""

    reason: str
    missing: float = float("inf")


def _broken(now: Point, slo: Slo, demand: Demand) -> _Broken | None:
    """The service level that ``now`` misses by most, with its sum."""
    if now.prefill_load >= 1:
        return _Broken(f"prompts alone take {now.prefill_load:.2g} of its time")
    answer = f"{seconds(now.ttft_mean)} + {demand.thinking_p95:,.0f} thinking tokens x {seconds(now.tpot_mean)} = "
    faults = [
        _Broken(
            f"{name.replace('_', ' ').upper().replace('P95', 'p95')} {answer * (name == 'ttfa_p95')}"
            f"{seconds(getattr(now, name))} > {seconds(limit)} with {now.running:.3g} running a gang",
            getattr(now, name) / limit - 1,
        )
        for name, limit in vars(slo).items()
        if limit is not None and getattr(now, name) > limit
    ]
    return max(faults, key=lambda fault: fault.missing, default=None)


def _front(candidates: Iterable[Candidate]) -> Iterator[Candidate]:
    """Those that no other is at least as good as in tokens/s/GPU, TTFA p95 and GPUs, and better in one."""
    pool = list(candidates)
    values = [(-each.per_gpu, each.at.ttfa_p95, each.gpus) for each in pool]
    for each, mine in zip(pool, values, strict=True):
        if not any(all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in values):
            yield each
