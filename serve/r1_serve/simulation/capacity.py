"""``r1 capacity``: how much load each plan takes within its service level, and what thinking budgets do to that."""

from __future__ import annotations

import json
import shlex
import sys
from html import escape
from pathlib import Path
from typing import Annotated, Any

import typer
from r1_cluster.plan import Plan
from r1_cluster.planner.request import seconds
from r1_cluster.simulator import SimulationError
from r1_cluster.simulator.capacity import Capacity, capacity
from r1_cluster.simulator.options import load_profile, parse_budgets, parse_slo
from r1_cluster.workload import load
from rich.console import Console
from rich.table import Table

from r1_serve.simulation.pages import STYLE, about_gpus
from r1_serve.simulation.svg import plot

HEADS = ("plan", "GPUs", "budget", "requests/s", "tokens/s/GPU", "TTFT", "TTFA", "TPOT", "GPU s an answer", "cost")


def command(
    plan: Annotated[list[str], typer.Option(help="a plan to look at; may be given again")],
    workload: Annotated[str, typer.Option(help="chat, math, agent, a YAML file, or a trace to fit one to")] = "chat",
    slo: Annotated[str, typer.Option(help="95 of 100 requests keep it: ttft=10s,ttfa=60s,tpot=100ms")] = "",
    budgets: Annotated[str, typer.Option(help="thinking budgets to compare: none,16k,8k,4k")] = "none",
    requests: Annotated[
        int | None, typer.Option(min=100, help="to simulate at each load; default: what fills the fleet five times")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    price_per_gpu_hour: Annotated[float | None, typer.Option(help="in your currency; adds cost")] = None,
    profile: Annotated[Path | None, typer.Option(help="YAML of measured step times instead of the model's")] = None,
    report: Annotated[Path | None, typer.Option(help="write capacity.html, .md and .json here")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Sweep the load until the service level breaks: best fleet for each load, and what a budget is worth."""
    if price_per_gpu_hour is not None and not 0 < price_per_gpu_hour < float("inf"):
        raise SimulationError(f"--price-per-gpu-hour is {price_per_gpu_hour}: give a number above 0")
    plans, asked, service = [Plan.load(name) for name in plan], load(workload), parse_slo(slo)
    measured = load_profile(profile) if profile else None
    found: list[Capacity] = []
    with Console(stderr=True).status("") as status:
        for each in plans:
            for budget in parse_budgets(budgets):
                one = capacity(
                    each,
                    asked,
                    slo=service,
                    budget=budget,
                    requests=requests,
                    seed=seed,
                    profile=measured,
                    told=status.update,
                )
                found.append(one)
    told = {
        "command": shlex.join(["r1", *sys.argv[1:]]),
        "workload": asked.name,
        "slo": {name: value for name in ("ttft", "tpot", "ttfa") if (value := getattr(service, name)) != float("inf")},
        "results": [one.as_dict(price_per_gpu_hour) for one in found],
        "notes": [*asked.notes, *about_gpus(plans)],
    }
    if report is not None:
        _write(report, told)
    if as_json:
        print(json.dumps(told))
        return
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    table = Table(*HEADS, box=None, header_style="dim")
    for cells in _rows(told):
        table.add_row(*cells)
    console.print(f"[bold]{asked.name}[/], 95 of 100 requests within {told['slo']}")
    console.print(table)
    if report is not None:
        console.print(f"report: {report / 'capacity.html'}")


def _rows(told: dict[str, Any]) -> list[list[str]]:
    rows = []
    for one in told["results"]:
        best, cost, each = one["at_max"], one["cost_per_answer"], one["gpu_seconds_per_answer"]
        budget = "none" if one["budget"] is None else f"{one['budget']:,}"
        cells = [one["plan"], f"{one['gpus']} x {one['accelerator']}", budget]
        if best is None:
            rows.append([*cells, "never holds", *[""] * 6])
            continue
        times = [f"{best['ttft']:.2f} s", f"{best['ttfa']:.1f} s", f"{best['tpot'] * 1e3:.0f} ms"]
        cells += [f"{best['rate']:.3g}", f"{best['throughput_per_gpu']:,.0f}", *times, f"{each:.3g}"]
        rows.append([*cells, "–" if cost is None else f"{cost:.3g}"])
    return rows


def _write(folder: Path, told: dict[str, Any]) -> None:
    names = [f"{one['plan']}, budget {one['budget'] or 'none'}" for one in told["results"]]
    frontier = {
        name: [(p["tpot"] * 1e3, p["throughput_per_gpu"]) for p in one["points"] if p["tpot"]]
        for name, one in zip(names, told["results"], strict=True)
    }
    good = {
        name: [(p["rate"], 100 * p["good_share"]) for p in one["points"]]
        for name, one in zip(names, told["results"], strict=True)
    }
    figures = {
        "Throughput against latency": plot(frontier, x="TPOT p95, ms", y="output tokens/s a GPU", marks=True),
        "Where the service level breaks": plot(good, x="requests/s", y="% of requests within it", marks=True),
    }
    plots = "".join(f"<figure><figcaption>{escape(c)}</figcaption>{svg}</figure>" for c, svg in figures.items())
    rows = _rows(told)
    head = "".join(f"<th>{escape(h)}</th>" for h in HEADS)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in told["notes"])
    slo = ", ".join(f"{name.upper()} {seconds(value)}" for name, value in told["slo"].items())
    title = f"Capacity under {told['workload']}"
    intro = f"The most requests/s at which 95 of 100 keep {slo}; times are 95th percentiles at that load. Simulated."
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
        f"<h1>{escape(title)}</h1><pre>{escape(told['command'])}</pre><p>{escape(intro)}</p>"
        f"<table><tr>{head}</tr>{body}</table>{plots}<h2>Where the numbers come from</h2><ul>{notes}</ul></html>\n"
    )
    lines = [f"# {title}", "", f"`{told['command']}`", "", intro, "", "| " + " | ".join(HEADS) + " |"]
    lines += ["|---" * len(HEADS) + "|", *("| " + " | ".join(row) + " |" for row in rows), ""]
    lines += [*(f"- {note}" for note in told["notes"]), ""]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "capacity.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        (folder / "capacity.md").write_text("\n".join(lines), encoding="utf-8")
        (folder / "capacity.html").write_text(page, encoding="utf-8")
    except OSError as e:
        raise SimulationError(f"report {folder}: {e.strerror}: give a folder that can be written") from e
