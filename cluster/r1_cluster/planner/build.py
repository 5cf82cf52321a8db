"""A chosen deployment as a Plan: what the workers, the router and the charts read."""

from __future__ import annotations

import math
import re

from r1_cluster.catalog import Architecture
from r1_cluster.perf.layout import Split
from r1_cluster.plan import Engine, Fleet, Layout, Limits, Model, Plan, Pool, Predicted, RankMemory
from r1_cluster.planner.load import GRAPHED, surged
from r1_cluster.planner.memory import UTILIZATION, Memory
from r1_cluster.planner.request import CPU, FleetSpec, Slo
from r1_cluster.planner.search import BATCHED_TOKENS, Candidate
from r1_cluster.routing.budget import BudgetRules

LONGEST_QUEUE = 300.0  # seconds, where no service level says less
FEWEST_QUEUED = 16
RAREST = 3.0  # standard deviations of what runs: one moment in 700
NANO_GIB = 0.5  # KV cache of a CPU rank: 58,000 tokens of r1-nano


def build(
    model: Architecture,
    fleet: FleetSpec,
    chosen: Candidate,
    slo: Slo,
    reasons: tuple[str, ...],
    *,
    price: float | None = None,
    checkpoint: str | None = None,
) -> Plan:
    """The Plan of ``chosen``. ``price``: of one GPU hour, in any currency."""
    deployment, demand = chosen.deployment, chosen.demand
    sequences = max_num_seqs(chosen)
    pools = [Pool(name="main", gangs=deployment.gangs, layout=layout(deployment.engine.split))]
    memories = [_rank_memory("main", deployment.memory)]
    if deployment.prefill and deployment.prefill_memory:
        pools = [
            Pool(
                name="prefill", role="prefill", gangs=deployment.prefill_gangs, layout=layout(deployment.prefill.split)
            ),
            Pool(name="decode", role="decode", gangs=deployment.gangs, layout=layout(deployment.engine.split)),
        ]
        memories = [_rank_memory("prefill", deployment.prefill_memory), _rank_memory("decode", deployment.memory)]
    wait = max(1.0, min(LONGEST_QUEUE, slo.ttft_p95 or slo.ttfa_p95 or LONGEST_QUEUE))
    budget, rules = chosen.budget, BudgetRules()
    if budget is not None:
        rules = BudgetRules(low=min(rules.low, budget), medium=min(rules.medium, budget), high=budget, ceiling=budget)
    return Plan(
        name=_name(model.name, str(fleet), deployment.label.replace(" x ", "x ")),
        model=Model(
            name=model.name,
            checkpoint=checkpoint or model.checkpoint,
            aliases=("deepseek-reasoner",) if model.experts else (),
        ),
        engine=Engine(
            max_model_len=demand.max_model_len,
            max_num_seqs=sequences,
            max_num_batched_tokens=BATCHED_TOKENS,
            gpu_memory_utilization=UTILIZATION,
            kv_cache_dtype="fp8" if deployment.engine.kv_dtype == "fp8" else None,
            num_speculative_tokens=deployment.drafts or None,
        ),
        fleet=Fleet(
            accelerator=fleet.name,
            accelerators_per_node=fleet.per_node,
            nvlink_domain=fleet.domain if fleet.domain > fleet.per_node else None,
        ),
        pools=tuple(pools),
        limits=Limits(
            default_max_tokens=demand.max_tokens,
            max_queued_requests=max(FEWEST_QUEUED, math.ceil(chosen.most.rate * wait)),
            max_queue_seconds=round(wait, 3),
            thinking=rules,
        ),
        reasons=reasons,
        memory=tuple(memories),
        predicted=predicted(chosen, price),
    )


def rehearsal(model: Architecture, fleet: FleetSpec) -> Plan:
    """r1-nano on CPU ranks: a replica a rank, since one holds the whole model. Nothing is predicted: no CPU profile."""
    gangs = fleet.count
    per_token = model.kv_bytes_per_token("float32")
    kv_tokens = int(NANO_GIB * (1 << 30)) // per_token
    return Plan(
        name=_name(model.name, str(fleet), "TP1"),
        model=Model(
            name=model.name,
            checkpoint=model.checkpoint,
            aliases=("deepseek-r1", "deepseek-reasoner"),
            dtype="float32",
        ),
        engine=Engine(
            max_model_len=model.max_position_embeddings,
            max_num_seqs=64,
            max_num_batched_tokens=2048,
            enforce_eager=True,
            gpu_memory_utilization=0.1,
            enable_prefix_caching=False,
        ),
        fleet=Fleet(accelerator=CPU, accelerators_per_node=fleet.per_node, kv_cache_gib_per_rank=NANO_GIB),
        pools=(Pool(gangs=gangs),),
        limits=Limits(default_max_tokens=1536),
        reasons=(
            f"one CPU rank holds the whole model ({model.weight_bytes / 1e6:.0f} MB of weights): {gangs} of them",
            f"{NANO_GIB} GiB of KV / {per_token:,} bytes a token (float32) = {kv_tokens:,} tokens",
            "nothing is predicted: there is no performance profile of this machine",
        ),
        memory=(
            RankMemory(
                pool="main",
                weights=model.weight_bytes,
                workspace=0,
                kv_cache=int(NANO_GIB * (1 << 30)),
                reserve=0,
                kv_tokens=kv_tokens,
            ),
        ),
    )


def max_num_seqs(chosen: Candidate) -> int:
    """A rank's admission limit: what runs on it in a surge at the most it carries, and at least a share of what runs on
    the fleet in the rarest, so that hardly any request waits for a seat."""
    ranks = chosen.deployment.engine.split.data * chosen.deployment.gangs
    each = chosen.most.running * chosen.deployment.gangs / ranks
    rarest = each + RAREST * math.sqrt(chosen.most.dispersion * each / ranks)
    return max(1, min(GRAPHED, math.ceil(max(surged(each, chosen.demand), rarest))))


def layout(split: Split) -> Layout:
    return Layout(
        tensor_parallel_size=split.tensor,
        pipeline_parallel_size=split.pipeline,
        data_parallel_size=split.data,
        expert_parallel_size=split.ranks if split.expert > 1 else 1,
    )


def predicted(chosen: Candidate, price: float | None) -> Predicted:
    at, demand = chosen.at, chosen.demand
    hours = chosen.gpu_hours_per_million_tokens
    cost = None if price is None else hours * price

    def figure(value: float) -> float:
        return float(f"{value:.4g}")

    return Predicted(
        requests_per_second=figure(at.rate),
        max_requests_per_second=figure(chosen.most.rate),
        output_tokens_per_second=figure(at.tokens_per_second),
        output_tokens_per_second_per_gpu=figure(at.tokens_per_second / chosen.gpus),
        running_requests=figure(at.running * chosen.deployment.gangs),
        ttft_mean=figure(at.ttft_mean),
        ttft_p95=figure(at.ttft_p95),
        tpot_mean=figure(at.tpot_mean),
        tpot_p95=figure(at.tpot_p95),
        ttfa_mean=figure(at.ttfa_mean),
        ttfa_p95=figure(at.ttfa_p95),
        kv_used=figure(at.kv_used),
        thoughts_cut=figure(demand.cut),
        gpu_hours_per_million_tokens=figure(hours),
        cost_per_million_tokens=None if cost is None else figure(cost),
        cost_per_answer=None if cost is None else figure(cost * demand.output / 1e6),
    )


def _rank_memory(pool: str, found: Memory) -> RankMemory:
    return RankMemory(
        pool=pool,
        weights=found.weights,
        workspace=found.workspace,
        kv_cache=found.kv_cache,
        reserve=found.reserve,
        kv_tokens=found.kv_tokens,
    )


def _name(*parts: str) -> str:
    """A plan's name: lower case letters, digits and dashes, at most 63."""
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower()).strip("-")[:63].rstrip("-")
