"""``r1 plan``: options in; a page for people, one JSON object, or another tool's words out."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from r1_cluster.catalog import model as find_model
from r1_cluster.perf.constants import KvDtype, fitted
from r1_cluster.plan import MOST_DRAFTS, Plan
from r1_cluster.planner import Objective, Outcome, PlanningError, Request, parse_budget, parse_fleet, parse_slo, plan
from r1_cluster.workload import load

MOST = 1024  # GPUs that --min-gpus looks among, where --gpus gives no count


class Emit(StrEnum):
    HELM = "helm-values"
    VLLM = "vllm-command"
    SGLANG = "sglang-command"


class Kv(StrEnum):
    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FP8 = "fp8"


class PoolKind(StrEnum):
    UNIFIED = "unified"
    SEPARATE = "separate"
    ANY = "any"


KV_DTYPES: dict[Kv, tuple[KvDtype, ...]] = {
    Kv.AUTO: ("bfloat16", "fp8"),
    Kv.BFLOAT16: ("bfloat16",),
    Kv.FP8: ("fp8",),
}


def command(
    model: Annotated[
        str, typer.Option(help="deepseek-r1, r1-0528, r1-zero, a distill such as r1-distill-qwen-32b, nano")
    ],
    gpus: Annotated[str, typer.Option(help="16xH200; H200 with --nodes or --min-gpus; 2xcpu for r1-nano")],
    workload: Annotated[str, typer.Option(help="chat, math, agent, a YAML file, or a trace to fit one to")] = "chat",
    nodes: Annotated[int | None, typer.Option(help="how many nodes the GPUs are in")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="default: 8, GB200 4")] = None,
    slo: Annotated[str | None, typer.Option(help="95th percentiles: ttfa_p95=60s,tpot_p95=50ms,ttft_p95=2s")] = None,
    objective: Annotated[Objective, typer.Option(help="what the best layout is best at")] = Objective.THROUGHPUT,
    rate: Annotated[float | None, typer.Option(help="requests/s to carry; default: the workload's")] = None,
    budget: Annotated[
        str, typer.Option(help="thinking budget: auto (none, tightened only for an SLO), none, 16k, 8k, 4k, tokens")
    ] = "auto",
    kv_cache_dtype: Annotated[Kv, typer.Option(help="auto looks at both")] = Kv.AUTO,
    drafts: Annotated[
        str, typer.Option(help="tokens drafted a step by R1's MTP layer: none, 1 to 8, or any (none or 1)")
    ] = "none",
    acceptance: Annotated[
        float, typer.Option(help="of a drafted token, if those before it were accepted")
    ] = fitted().serving.acceptance,
    pools: Annotated[PoolKind, typer.Option(help="prefill and decode on the same ranks or apart")] = PoolKind.UNIFIED,
    max_context: Annotated[int | None, typer.Option(min=1, help="tokens; default: what the workload needs")] = None,
    price_per_gpu_hour: Annotated[float | None, typer.Option(help="in your currency; adds cost")] = None,
    min_gpus: Annotated[bool, typer.Option("--min-gpus", help="the fewest GPUs that hold --slo at the rate")] = False,
    checkpoint: Annotated[str | None, typer.Option(help="where the weights lie; default: the hub's name")] = None,
    out: Annotated[Path | None, typer.Option(help="write the plan here")] = None,
    emit: Annotated[Emit | None, typer.Option(help="print the plan for another tool instead")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Plan a fleet: which layout, how many GPUs, what to expect of it, and why."""
    for name, value in (("--rate", rate), ("--price-per-gpu-hour", price_per_gpu_hour)):
        if value is not None and not 0 < value < float("inf"):
            raise PlanningError(f"{name} is {value}: give a number above 0")
    if not 0 <= acceptance <= 1:
        raise PlanningError(f"--acceptance is {acceptance}: give a share from 0 to 1")
    if emit and as_json:
        raise PlanningError("--emit and --json both want stdout: give one of them")
    try:
        architecture = find_model(model)
    except ValueError as e:
        raise PlanningError(f"--model: {e}") from None
    count = "" if gpus[:1].isdigit() or nodes or not min_gpus else f"{MOST}x"
    request = Request(
        model=architecture,
        fleet=parse_fleet(f"{count}{gpus}", nodes=nodes, per_node=gpus_per_node),
        workload=load(workload),
        slo=parse_slo(slo),
        objective=objective,
        kv_dtypes=KV_DTYPES[kv_cache_dtype],
        drafts=_drafts(drafts),
        acceptance=acceptance,
        pools=pools.value,
        rate=rate,
        price=price_per_gpu_hour,
        max_context=max_context,
        checkpoint=checkpoint,
        smallest=min_gpus,
        **({} if budget == "auto" else {"budgets": (parse_budget(budget),)}),
    )
    outcome = plan(request)
    if out is not None:
        _write(outcome.plan, out)
    if emit is not None:
        from r1_serve.planning.emit import emit as render

        print(render(emit.value, outcome.plan, outcome.fleet), end="")
    elif as_json:
        print(json.dumps(as_dict(outcome), indent=1))
    else:
        from rich.console import Console

        from r1_serve.planning.show import show

        show(outcome, request, Console(width=None if sys.stdout.isatty() else 150, highlight=False), out)


def _drafts(text: str) -> tuple[int, ...]:
    counts = {"none": (0,), "any": (0, 1), **{str(n): (n,) for n in range(MOST_DRAFTS + 1)}}
    try:
        return counts[text.strip().lower()]
    except KeyError:
        raise PlanningError(f"--drafts {text}: give none, any, or 1 to {MOST_DRAFTS} tokens a step") from None


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """The Plan's fields, and beside them the layout in words and numbers, bytes of a GPU, KV tokens, rivals.

    ``bytes_per_gpu`` and ``layout`` are those of the pool that decodes. ``kv_tokens`` are the whole fleet's.
    """
    made = outcome.plan
    pool, memory = made.pools[-1], made.memory[-1]
    parts = memory.model_dump(exclude={"pool", "kv_tokens"})
    found = outcome.found
    return {
        **made.model_dump(mode="json"),
        "hash": made.hash,
        "layout": {**pool.layout.model_dump(), "gangs": pool.gangs, "text": str(pool.layout)},
        "gpus": made.accelerators,
        "nodes": outcome.fleet.nodes,
        "bytes_per_gpu": {**parts, "total": memory.total},
        "kv_tokens": memory.kv_tokens * pool.layout.data_parallel_size * pool.gangs,
        "kv_tokens_per_rank": memory.kv_tokens,
        "front": [] if found is None else [_row(each) for each in found.front],
        "rejected": []
        if found is None
        else [{"layout": each.layout, "reason": each.reason} for each in found.rejected],
    }


def _row(each: Any) -> dict[str, Any]:
    return {
        "layout": each.deployment.layout,
        "gpus": each.gpus,
        "kv_cache_dtype": each.deployment.engine.kv_dtype,
        "drafts": each.deployment.drafts,
        "max_requests_per_second": each.most.rate,
        "output_tokens_per_second_per_gpu": each.per_gpu,
        "ttfa_p95": each.at.ttfa_p95,
        "tpot_p95": each.at.tpot_p95,
        "ttft_p95": each.at.ttft_p95,
    }


def _write(made: Plan, out: Path) -> None:
    try:
        out.write_text(made.to_yaml(), encoding="utf-8")
    except OSError as e:
        raise PlanningError(f"--out {out}: cannot be written: {e.strerror}") from e
