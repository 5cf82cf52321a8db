"""A simulation's result on a terminal."""

from __future__ import annotations

from pathlib import Path

from r1_cluster.simulator import Report
from rich.console import Console
from rich.table import Table

from r1_serve.simulation.pages import pools


def show(report: Report, wall_seconds: float, console: Console, folder: Path | None = None) -> None:
    told = report.as_dict(wall_seconds)
    plan, rate = report.plan, report.workload.arrivals.rate
    console.print(
        f"[bold]{plan.name}[/] ({report.gpus} x {plan.fleet.accelerator}) under [bold]{report.workload.name}[/], "
        + (f"{rate:g} requests/s" if rate else "a closed loop")
        + f", {report.requests:,} requests"
    )
    table = Table("", "mean", "p50", "p90", "p95", "p99", box=None, header_style="dim")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, label, scale, unit in (
        ("ttft", "TTFT", 1, "s"),
        ("ttfa", "TTFA", 1, "s"),
        ("tpot", "TPOT", 1e3, "ms"),
        ("latency", "whole answer", 1, "s"),
        ("thinking_tokens", "thinking", 1, "tokens"),
    ):
        cells = [_number(told[name][column], scale) for column in ("mean", "p50", "p90", "p95", "p99")]
        table.add_row(f"{label} [dim]{unit}[/]", *cells)
    console.print(table)
    slo = ", ".join(f"{name} {value:g} s" for name, value in told["slo"].items())
    console.print(
        f"{told['throughput']:,.0f} output tokens/s ({told['throughput_per_gpu']:,.0f} a GPU), "
        f"{told['requests_per_second']:.3g} requests/s, {told['good_share']:.1%} good ({slo}): "
        f"{told['goodput']:.3g} requests/s"
    )
    console.print(
        f"{told['preemptions']:,} preemptions, {told['cached_prompt_share']:.0%} of prompts cached, "
        f"{told['thoughts_cut']:.1%} of thoughts cut by a budget"
        + (f", {told['moved']:,} moved after failures" if told["moved"] else "")
    )
    if report.prefill_busy is not None:
        console.print(f"[yellow]prefill pool {pools(report.prefill_busy)}[/]")
    lost = [f"{count:,} {reason}" for reason, count in told["refused"].items()]
    if told["unfinished"]:
        lost.append(f"{told['unfinished']:,} unfinished")
    if lost:
        console.print(f"[yellow]not served: {', '.join(lost)}[/]")
    console.print(f"[dim]{told['simulated_seconds']:,.0f} s simulated in {wall_seconds:.1f} s[/]")
    if folder is not None:
        console.print(f"report: {folder / 'index.html'}")


def _number(value: float | None, scale: float) -> str:
    if value is None:
        return "–"
    value *= scale
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
