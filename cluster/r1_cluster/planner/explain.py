"""Why a deployment was chosen, as sentences with the numbers to redo the sum by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator

from r1_cluster.perf.batch import Speculation
from r1_cluster.perf.constants import unmeasured
from r1_cluster.planner.demand import Demand
from r1_cluster.planner.layouts import Rejected
from r1_cluster.planner.load import Point, drafted, surged
from r1_cluster.planner.memory import Memory, gigabytes
from r1_cluster.planner.request import FleetSpec, Slo, seconds
from r1_cluster.planner.search import BATCHED_TOKENS, Candidate, Search, at_rate, drafting


def reasons(chosen: Candidate, search: Search, fleet: FleetSpec, slo: Slo, acceptance: float) -> tuple[str, ...]:
    """Memory, load, latency, rivals and limits of ``chosen``, a sentence each. ``acceptance``: of a drafted token."""
    return (
        *_memory(chosen),
        *_load(chosen, slo),
        *_rivals(chosen, search),
        *_drafts(chosen, slo, acceptance),
        *_thinking(chosen),
        *_idle(chosen, fleet),
        *filter(None, (unmeasured(fleet.name),)),
        "estimates: vLLM's constants are kernel tables and priors, not fitted on end-to-end runs "
        "(docs/performance-model.md): measure before you promise the p95 to anyone",
    )


def _memory(chosen: Candidate) -> Iterator[str]:
    deployment = chosen.deployment
    yield _room(deployment.memory, chosen)
    if deployment.prefill and deployment.prefill_memory:
        found = deployment.prefill_memory
        yield f"prefill {deployment.prefill.split}: {gigabytes(found.weights)} of weights a GPU"


def _room(found: Memory, chosen: Candidate) -> str:
    engine = chosen.deployment.engine
    return (
        f"{engine.split} on {engine.gpu.name}: {gigabytes(found.usable)} usable a GPU - "
        f"{gigabytes(found.weights)} weights - {gigabytes(found.workspace)} workspace (steps of "
        f"{BATCHED_TOKENS:,} tokens) = {gigabytes(found.kv_cache)} of KV; / {engine.kv_bytes_per_token():,} bytes a "
        f"token ({engine.kv_dtype}) = {found.kv_tokens:,} tokens a rank"
    )


def _load(chosen: Candidate, slo: Slo) -> Iterator[str]:
    demand, most, at, data = chosen.demand, chosen.most, chosen.at, chosen.deployment.engine.split.data
    each = most.running / data
    surge = surged(each, demand)
    yield (
        f"a request brings {demand.prompt:,.0f} prompt tokens{_cached(chosen)}, thinks "
        f"{demand.thinking:,.0f} and writes {demand.output:,.0f} in all; while it runs it holds {demand.context:,.0f} "
        "tokens of KV on average, long thoughts counting longer"
    )
    yield (
        f"at most {each:,.0f} run a rank on average, {surge:,.0f} in a surge ({_surge(demand)}): "
        f"{each * demand.context:,.0f} of {chosen.deployment.memory.kv_tokens:,} KV tokens; beyond that "
        f"{'the KV cache overflows' if not _bound(most, slo) else 'an SLO breaks'}"
    )
    yield (
        f"{most.running:,.0f} x {chosen.deployment.gangs} running / ({demand.output:,.0f} tokens x "
        f"{seconds(most.tpot_mean)}) = {most.rate:.3g} requests/s, {most.tokens_per_second:,.0f} tokens/s"
    )
    yield (
        f"TTFA p95 = TTFT {seconds(at.ttft_mean)} + {demand.thinking_p95:,.0f} thinking tokens x "
        f"{seconds(at.tpot_mean)} = {seconds(at.ttfa_p95)}"
    )


def _cached(chosen: Candidate) -> str:
    """How many are found in prefix caches, which have what running requests leave of the KV cache."""
    asked, found = chosen.demand.cached, chosen.most.cached
    if not asked:
        return ""
    return f" ({found:,.0f} of them in prefix caches, {asked:,.0f} if those had no bounds)"


def _bound(most: Point, slo: Slo) -> bool:
    """Whether a service level, not memory, ends the load: a point within 2 % of one."""
    return any(limit is not None and getattr(most, name) > 0.98 * limit for name, limit in vars(slo).items())


def _surge(demand: Demand) -> str:
    return (
        "n + 1.645 sqrt n" if demand.dispersion == 1 else f"n + 1.645 sqrt({demand.dispersion:g} n), clumped arrivals"
    )


def _rivals(chosen: Candidate, search: Search) -> Iterator[str]:
    """What else was there: another layout, a full-precision cache, and the other kind of pools."""
    mine = [each for each in search.candidates if each.separate == chosen.separate]
    others = [each for each in search.candidates if each.separate != chosen.separate]
    layouts = [each for each in mine if each.deployment.layout != chosen.deployment.layout]
    fp8 = chosen.deployment.engine.kv_dtype == "fp8"
    plain = [each for each in mine if fp8 and each.deployment.engine.kv_dtype != "fp8"]
    pools = "the best unified fleet" if chosen.separate else "separate prefill and decode pools"
    for name, rivals in (("the next layout", layouts), ("the best with a BF16 KV cache", plain), (pools, others)):
        if rivals:
            rival = rivals[0]
            yield (
                f"{name}, {rival.deployment.label} ({rival.deployment.engine.kv_dtype} KV, {rival.gpus} GPUs): at most "
                f"{rival.most.tokens_per_second / chosen.most.tokens_per_second:.0%} of the tokens/s, "
                f"TTFA p95 {seconds(rival.at.ttfa_p95)}"
            )
    if fp8:
        yield "an FP8 KV cache may cost accuracy on long thoughts: measure it, or take --kv-cache-dtype bfloat16"


def _drafts(chosen: Candidate, slo: Slo, acceptance: float) -> Iterator[str]:
    """The same deployment with a draft a step, or without its own."""
    engine, drafts = chosen.deployment.engine, chosen.deployment.drafts
    if not engine.model.mtp_layers:
        return
    if drafts:
        yield (
            f"{drafted(drafts)} a step by the MTP layer, {acceptance:.0%} of them taken"
            f"{' where those before were' if drafts > 1 else ''} (--acceptance: measure it): "
            f"{engine.tokens_per_step:.3g} tokens a step"
        )
    name = "without drafts" if drafts else f"with a draft a step, {acceptance:.0%} of them taken (--drafts 1)"
    other = drafting(chosen, None if drafts else Speculation(1, acceptance), slo)
    if isinstance(other, Rejected):
        yield f"{name}: {other.reason}"
        return
    at = at_rate(other, min(chosen.at.rate, other.most.rate))
    yield (
        f"{name} the same layout carries {other.most.tokens_per_second / chosen.most.tokens_per_second:.0%} of the "
        f"tokens/s, TTFA p95 {seconds(at.ttfa_p95)} at {at.rate:.3g} requests/s"
    )


def _thinking(chosen: Candidate) -> Iterator[str]:
    demand = chosen.demand
    by = "what max_tokens leaves them" if chosen.budget is None else f"the budget of {chosen.budget:,} tokens"
    many = f"{demand.cut:.1%} of" if demand.cut > 0.0005 else "hardly any"
    yield f"{many} thoughts reach {by}; they are closed there and answered from what was thought"


def _idle(chosen: Candidate, fleet: FleetSpec) -> Iterator[str]:
    gang = chosen.deployment.engine.split.gpus
    idle = fleet.count - chosen.gpus
    if idle:
        yield f"{idle} of {fleet.count} GPUs stay free: more gangs of {gang} are not needed or do not fit"
    nodes = math.ceil(gang / fleet.per_node)
    where = f"spans {nodes} nodes" if nodes > 1 else "stays in a node"
    share = gang / chosen.gpus
    yield f"a gang of {gang} GPUs {where}; a dead GPU takes its whole gang, {share:.0%} of the fleet, until it restarts"
