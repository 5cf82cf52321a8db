"""What one deployment does at a load: open arrivals at a steady rate, from the performance model's steps.

With R sequences running in an engine that writes L tokens a request, a decode step takes step(R), brings each of them
t tokens (1, or more with drafts), and every request brings one prompt's prefill, s seconds:

    TPOT = step(R) / t + R / L x s    each step ends R t / L requests and brings as many new prompts, which share it
    rate = R / (L x TPOT)             Little's law

so everything follows from R. Requests come and go independently: R spreads as a Poisson number does, and 95 % of the
time at most R + 1.645 sqrt(R) run (the M/G/infinity queue; clumped arrivals spread more). More running make each slower
and so last longer: with TPOT as R^e the variance is R / (1 - e) (processor sharing, whose states have the weights
(rate x L)^n TPOT(1) ... TPOT(n) / n!). TPOT's p95 is that of the surge, and of a short request that meets more prompts
than others. Prompts that arrive during a
prefill share the next one. A prompt waits for the step in progress (half of it on average), and for the backlog as in
G/G/1 by Kingman's formula, whose tail is taken to be exponential.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

from r1_cluster.perf.batch import Batch
from r1_cluster.perf.serving import Station, Workload, station, transfer_seconds
from r1_cluster.perf.step import Engine
from r1_cluster.planner.demand import Demand
from r1_cluster.planner.memory import Memory

Z95 = 1.645
ROUNDS = 5  # of the fixed point of prompts that share a prefill
MARGIN = 0.07  # on TPOT's p95, and
CLUMPED = (
    0.03  # on TPOT for each squared variation of arrivals above Poisson's: what the simulator shows beyond the sums
)
BATCHES = 0.9  # on TTFT's p95 where prompts share whole steps of a prefill pool, times its load: likewise
WIDEST = 0.9  # spread of prompts that is counted with, a share of their mean
GRAPHED = 512  # sequences of a rank that vLLM captures CUDA graphs for by default


@dataclass(frozen=True)
class Deployment:
    """``gangs`` equal engines that decode, and prefill too unless ``prefill`` engines do."""

    engine: Engine
    memory: Memory
    gangs: int
    prefill: Engine | None = None
    prefill_memory: Memory | None = None
    prefill_gangs: int = 0

    @property
    def gpus(self) -> int:
        return self.gangs * self.engine.split.gpus + (
            self.prefill_gangs * self.prefill.split.gpus if self.prefill else 0
        )

    @property
    def layout(self) -> str:
        each = _times(self.gangs, str(self.engine.split))
        return f"{_times(self.prefill_gangs, str(self.prefill.split))} prefill + {each}" if self.prefill else each

    @property
    def drafts(self) -> int:
        """Tokens that a step drafts for each running sequence."""
        return self.engine.width - 1

    @property
    def label(self) -> str:
        return f"{self.layout}, {drafted(self.drafts)}" if self.drafts else self.layout


@dataclass(frozen=True)
class Point:
    """One operating point. ``running``: sequences of one decoding gang; rates and tokens/s of the whole deployment.

    ``cached``: tokens of a mean prompt found in prefix caches. ``dispersion``: variance over mean of what runs.
    """

    running: float
    rate: float
    tokens_per_second: float
    ttft_mean: float
    ttft_p95: float
    tpot_mean: float
    tpot_p95: float
    ttfa_mean: float
    ttfa_p95: float
    prefill_load: float
    kv_used: float
    cached: float
    dispersion: float


def point(deployment: Deployment, demand: Demand, running: float) -> Point:
    """The steady state with ``running`` sequences in each decoding gang."""
    engine, prefill = deployment.engine, deployment.prefill
    now = _steady(deployment, demand, running)
    dispersion = demand.dispersion / (1 - _elasticity(deployment, demand, running, now.tpot))
    most = _steady(deployment, demand, running + Z95 * math.sqrt(dispersion * running)).tpot - now.tpot
    beside = running / demand.output * (_clumps(deployment, demand) + demand.prompt_square) / demand.short
    uneven = Z95 * now.ahead.service * math.sqrt(beside) * (prefill is None)
    added = (prefill or engine).overheads
    fixed = added.ttft + now.step / 2 + added.balance * now.tpot * (engine.split.data > 1)
    if prefill:
        fixed += added.handover + transfer_seconds(prefill, demand.prompt) + added.wide_prefill * prefill.wide
    elif added.mixed:
        fixed += now.step
    backlog = now.load * now.each / (1 - now.load) if now.load < 1 else math.inf
    backlog *= (_clumps(deployment, demand) + demand.prompt_square) / 2
    tail = backlog / now.load * math.log(now.load / 0.05) if 0.05 < now.load < 1 else backlog
    hit = now.cached if now.cached > 0.95 * demand.cached else 0.0  # else the slowest twentieth are not cached
    longest = station(prefill or engine, _prompt(demand.prompt_p95, demand, hit), 1.0, now.beside)
    ttft = fixed + now.ahead.together * (1 + now.occupied / 2) + backlog
    slow = max(now.ahead.together, longest.together) + now.ahead.together * (now.occupied > 0.05)
    ttft_p95 = fixed + (slow + max(backlog, tail)) * (1 + BATCHES * now.load * (prefill is not None))
    return Point(
        running=running,
        rate=now.rate * deployment.gangs,
        tokens_per_second=now.rate * deployment.gangs * demand.output,
        ttft_mean=ttft,
        ttft_p95=ttft_p95,
        tpot_mean=now.tpot,
        tpot_p95=(now.tpot + math.hypot(most, uneven)) * (1 + MARGIN),
        ttfa_mean=ttft + demand.thinking * now.tpot,
        ttfa_p95=max(ttft_p95, ttft + demand.thinking_p95 * now.tpot),
        prefill_load=now.load,
        kv_used=running / engine.split.data * demand.context / max(1, deployment.memory.kv_tokens),
        cached=now.cached,
        dispersion=dispersion,
    )


def _elasticity(deployment: Deployment, demand: Demand, running: float, tpot: float) -> float:
    """d ln TPOT / d ln running, below 1 where there is a steady state."""
    return min(0.8, math.log(_steady(deployment, demand, running * 1.1).tpot / tpot) / math.log(1.1))


def most_running(deployment: Deployment, demand: Demand) -> float:
    """Sequences a gang may run on average so that surges fit its KV cache and its CUDA graphs 95 % of the time.

    n sequences of a rank hold n c tokens, with a spread of sqrt(n c2) where c2 is the mean square of a context.
    """
    wide = Z95 * math.sqrt(demand.dispersion)
    kv, spread = deployment.memory.kv_tokens, wide * math.sqrt(demand.context_square)
    root = (-spread + math.sqrt(spread**2 + 4 * demand.context * kv)) / (2 * demand.context)
    graphs = (-wide + math.sqrt(wide**2 + 4 * GRAPHED)) / 2
    return min(root**2, graphs**2) * deployment.engine.split.data


def surged(running: float, demand: Demand) -> float:
    """How many run at most, 95 % of the time, where ``running`` do on average."""
    return running + Z95 * math.sqrt(demand.dispersion * running)


@dataclass(frozen=True)
class _Steady:
    """One decoding gang, in steady state: requests/s, its decode step, and the station its prompts pass.

    ``load``: share of the prefill capacity in use; ``occupied``: of the time that prompts are in a step; ``each``:
    seconds a prompt takes when as many as fit share a step. ``cached``: tokens of a prompt found in prefix caches.
    """

    rate: float
    tpot: float
    step: float
    ahead: Station
    each: float
    load: float
    occupied: float
    beside: Batch | None
    cached: float


def _steady(deployment: Deployment, demand: Demand, running: float) -> _Steady:
    engine, ended = deployment.engine, running / demand.output
    token = engine.decode_seconds(running, demand.context)
    step, arriving = token * engine.tokens_per_step, ended * engine.tokens_per_step
    cached = demand.hits(_free(deployment, demand, running))
    prompts = _prompts(demand, cached)
    if deployment.prefill is None:  # `arriving` prompts share each step, or a step in 1 / `arriving` has one
        beside = engine.decodes(running, demand.context)
        full = _uneven(engine, prompts, math.inf, beside)
        ahead = _uneven(engine, prompts, arriving, beside)
        tpot = (token + ended * ahead.service) * (1 + CLUMPED * (_clumps(deployment, demand) - 1))
        rate, occupied = ended / tpot, min(1.0, arriving)
        each = min(full.service, ahead.service)
        return _Steady(rate, tpot, step, ahead, each, max(rate * each, arriving / full.count), occupied, beside, cached)
    rate = ended / token
    load = rate * deployment.gangs / deployment.prefill_gangs  # requests/s of one prefill engine
    full = _uneven(deployment.prefill, prompts, math.inf)
    together = 1.0
    for _ in range(ROUNDS):  # those that arrive during a prefill share the next
        ahead = _uneven(deployment.prefill, prompts, together)
        together = min(full.count, max(1.0, load * ahead.together))
    each, occupied = min(full.service, ahead.service), min(1.0, load * ahead.service)
    return _Steady(rate, token, step, ahead, each, load * each, occupied, None, cached)


def _clumps(deployment: Deployment, demand: Demand) -> float:
    """Squared variation of the gaps between one gang's arrivals: the fleet's, thinned out by its gangs."""
    return 1 + 2 * (demand.dispersion - 1) / deployment.gangs


def _free(deployment: Deployment, demand: Demand, running: float) -> float:
    """KV tokens that nothing running holds, on all ranks that prefill."""
    prefill, memory = deployment.prefill, deployment.prefill_memory
    if prefill and memory:
        return float(memory.kv_tokens * prefill.split.data * deployment.prefill_gangs)
    held = running * demand.context
    return max(0.0, deployment.memory.kv_tokens * deployment.engine.split.data - held) * deployment.gangs


def _prompts(demand: Demand, cached: float) -> tuple[Workload, ...]:
    """Two prompts with the mean and the variance of all: attention grows with the square of a prompt."""
    spread = min(WIDEST, math.sqrt(demand.prompt_square))
    return tuple(_prompt(demand.prompt * share, demand, cached) for share in {1 - spread, 1 + spread})


def _uneven(engine: Engine, prompts: tuple[Workload, ...], queue: float, beside: Batch | None = None) -> Station:
    """The mean station of ``prompts``."""
    each = [station(engine, prompt, queue, beside) for prompt in prompts]
    count, service = fmean(one.count for one in each), fmean(one.service for one in each)
    return Station(fmean(one.together for one in each), service, count)


def _prompt(tokens: float, demand: Demand, cached: float) -> Workload:
    whole = max(2, round(tokens))
    share = cached / demand.prompt if demand.prompt else 0.0
    return Workload(whole, max(1, round(demand.output)), 1, min(whole - 1, int(whole * share)))


def _times(count: int, layout: str) -> str:
    return f"{count} x {layout}" if count > 1 else layout


def drafted(count: int) -> str:
    return "1 draft" if count == 1 else f"{count} drafts"
