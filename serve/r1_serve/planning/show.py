"""A plan on a terminal: what was asked, the choice, its rivals, what a budget does, and why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from r1_cluster.planner import Outcome, Request
from r1_cluster.planner.layouts import Rejected
from r1_cluster.planner.memory import gigabytes
from r1_cluster.planner.request import seconds
from r1_cluster.planner.search import Candidate
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from r1_serve.launch.show import shape

KV = {"bfloat16": "BF16", "fp8": "FP8", "float32": "FP32"}
ROWS = 10  # of the table of rivals
REFUSALS = 6


def show(outcome: Outcome, request: Request, console: Console, out: Path | None) -> None:
    """Everything a reader needs to believe the plan or not."""
    made, chosen = outcome.plan, outcome.chosen
    most = "up to " if request.smallest else ""
    rate = f", {request.rate:g} requests/s" if request.rate else ""
    console.print(
        Text(
            f"{request.model.name} on {most}{request.fleet} for {request.workload.name}{rate}; {_asked(request)}",
            style="dim",
        )
    )
    title = f"\n{shape(made)} on {made.accelerators}x{made.fleet.accelerator}"
    nodes = "" if made.fleet.accelerator == "cpu" else f", {_count(outcome.fleet.nodes, 'node')}"
    console.print(Text(title + nodes, style="bold"), Text(f"  plan {made.name}, hash {made.hash}\n", style="dim"))
    if chosen is not None:
        console.print(_figures(chosen, request.price))
        console.print(_memory(outcome))
    console.print(Text("Why", style="bold"))
    for reason in made.reasons:
        console.print(Padding(Text(f"· {reason}"), (0, 0, 0, 2)))
    if outcome.found is not None and chosen is not None:
        console.print(_rivals(outcome.found.candidates, outcome.found.front, chosen, request.price))
        console.print(_budgets(outcome.budgets, chosen))
        _refusals(outcome.found.rejected, console)
    if out is None:
        console.print(Text("Nothing was written: --out plan.yaml keeps it.", style="dim"))
        return
    verb = "rehearse" if made.fleet.accelerator == "cpu" else "serve"
    where = "" if verb == "rehearse" else " --address auto"
    console.print(f"Wrote {out}. Next: r1 {verb} {out}{where}, or --emit helm-values|vllm-command|sglang-command.")


def _asked(request: Request) -> str:
    slo = str(request.slo) or "no SLO"
    return f"{slo}; {'the fewest GPUs' if request.smallest else request.objective.value}"


def _figures(chosen: Candidate, price: float | None) -> Table:
    """The chosen deployment at the planned load, and at the most it carries."""
    table = Table("", "requests/s", "tokens/s", "a GPU", "TTFT p95", "TPOT p95", "TTFA mean", "TTFA p95", "KV used")
    for column in table.columns[1:]:
        column.justify = "right"
    rows = [("planned load", chosen.at)] if chosen.at is not chosen.most else []
    for name, at in (*rows, ("the most it carries", chosen.most)):
        latency = (seconds(at.ttft_p95), seconds(at.tpot_p95), seconds(at.ttfa_mean), seconds(at.ttfa_p95))
        speed = (f"{at.rate:.3g}", f"{at.tokens_per_second:,.0f}", f"{at.tokens_per_second / chosen.gpus:,.0f}")
        table.add_row(name, *speed, *latency, f"{at.kv_used:.0%}")
    table.caption_justify = "left"
    hours = chosen.gpu_hours_per_million_tokens
    table.caption = f"{hours:.3g} GPU hours a million output tokens at {'the planned load' if rows else 'that load'}"
    if price is not None:
        answer = hours * price * chosen.demand.output / 1e6
        table.caption += f" = {hours * price:,.2f} at {price:g} an hour; {answer:.4f} an answer"
    return table


def _memory(outcome: Outcome) -> Table:
    table = Table("bytes of a GPU", "weights", "workspace", "KV cache", "reserve", "total", "KV tokens a rank")
    for column in table.columns[1:]:
        column.justify = "right"
    for each in outcome.plan.memory:
        sizes = (each.weights, each.workspace, each.kv_cache, each.reserve, each.total)
        table.add_row(each.pool, *map(gigabytes, sizes), f"{each.kv_tokens:,}")
    return table


def _rivals(
    candidates: Iterable[Candidate], front: Iterable[Candidate], chosen: Candidate, price: float | None
) -> Table:
    """The front, and the best of the rest; ● the choice, ○ beaten by none in everything."""
    best = list(front)
    rest = [each for each in candidates if each not in best and each is not chosen]
    shown = ([chosen] if chosen not in best else []) + best
    shown = sorted(
        {id(each): each for each in (*shown[:ROWS], chosen, *rest[: max(0, ROWS - len(shown))])}.values(), key=_order
    )
    table = Table("", "layout", "KV", "GPUs", "most req/s", "tok/s/GPU", "TPOT p95", "TTFA p95", "GPU h/Mtok")
    table.columns[1].no_wrap = True
    table.title = "What was looked at"
    table.title_justify = table.caption_justify = "left"
    for column in table.columns[3:]:
        column.justify = "right"
    if price is not None:
        table.add_column("cost/Mtok", justify="right")
    for each in shown:
        mark = "●" if each is chosen else "○" if each in best else ""
        hours = each.gpu_hours_per_million_tokens
        cells = (each.deployment.label, KV[each.deployment.engine.kv_dtype], str(each.gpus), f"{each.most.rate:.3g}")
        times = (f"{each.per_gpu:,.0f}", seconds(each.at.tpot_p95), seconds(each.at.ttfa_p95), f"{hours:.3g}")
        cost = () if price is None else (f"{hours * price:,.2f}",)
        table.add_row(mark, *cells, *times, *cost, style="bold" if each is chosen else "")
    table.caption = "● chosen  ○ no other is better in tokens/s/GPU, TTFA and GPUs at once. "
    if any(each.separate for each in shown):
        table.caption += "Prefill + decode pools: for --emit only, r1 serve runs unified pools."
    return table


def _order(each: Candidate) -> tuple[bool, float]:
    return each.separate, -each.per_gpu


def _budgets(rows: Iterable[tuple[int | None, Candidate | Rejected]], chosen: Candidate) -> Table:
    table = Table(
        "thinking budget", "requests/s", "tokens an answer", "TTFA p95", "GPU h/1,000 answers", "thoughts cut"
    )
    table.title = f"What a budget does to {chosen.deployment.label}"
    table.title_justify = table.caption_justify = "left"
    for column in table.columns[1:]:
        column.justify = "right"
    for budget, row in rows:
        name = "none" if budget is None else f"{budget:,}"
        if isinstance(row, Rejected):
            table.add_row(name, "-", "", "breaks the SLO", "", "")
            continue
        hours = row.gpus / row.most.rate / 3.6
        cells = (f"{row.most.rate:.3g}", f"{row.demand.output:,.0f}", seconds(row.most.ttfa_p95), f"{hours:.3g}")
        table.add_row(name, *cells, f"{row.demand.cut:.1%}", style="bold" if budget == chosen.budget else "")
    table.caption = "At the most it carries. What cutting thoughts costs in accuracy is yours to measure."
    return table


def _refusals(rejected: Iterable[Rejected], console: Console) -> None:
    told = list(dict.fromkeys(each.reason for each in sorted(rejected, key=lambda each: each.missing)))
    if not told:
        return
    console.print(Text("Ruled out", style="bold"))
    for reason in told[:REFUSALS]:
        console.print(Padding(Text(f"· {reason}"), (0, 0, 0, 2)))
    if len(told) > REFUSALS:
        console.print(Text(f"  and {len(told) - REFUSALS} more: --json lists them", style="dim"))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
