"""A simulation's report: one HTML page that needs nothing else, Markdown, and JSON."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from r1_cluster.simulator import Report, SimulationError

from r1_serve.simulation.svg import plot

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1e293b}
table{border-collapse:collapse}td,th{padding:.2rem .9rem .2rem 0;text-align:right}td:first-child,th:first-child
{text-align:left}th{color:#64748b;font-weight:500}figure{margin:1rem 0;display:inline-block;width:34rem;max-width:100%}
figcaption{font-weight:600}svg{width:100%}svg text{font:11px system-ui,sans-serif;fill:#475569}.grid{stroke:#e2e8f0}
pre{background:#f1f5f9;padding:.8rem;white-space:pre-wrap}"""

ROWS = (
    ("ttft", "TTFT", 1.0, "s"),
    ("ttfa", "TTFA (first token of the answer)", 1.0, "s"),
    ("tpot", "TPOT", 1e3, "ms"),
    ("latency", "whole answer", 1.0, "s"),
    ("thinking_tokens", "thinking", 1.0, "tokens"),
)
COLUMNS = ("mean", "p50", "p90", "p95", "p99")


def write(folder: Path, report: Report, wall_seconds: float, *, command_line: str) -> None:
    """Write index.html, report.md and report.json into ``folder``, made if need be. Raises SimulationError."""
    told = {"command": command_line, **report.as_dict(wall_seconds)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data = {**told, "history": report.metrics.history}
        (folder / "report.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        (folder / "report.md").write_text(markdown(report, told), encoding="utf-8")
        (folder / "index.html").write_text(html(report, told), encoding="utf-8")
    except OSError as e:
        raise SimulationError(f"report {folder}: {e.strerror}: give a folder that can be written") from e


def facts(told: dict[str, Any]) -> list[tuple[str, str]]:
    slo = ", ".join(f"{name} {value:g} s" for name, value in told["slo"].items())
    served = f"{told['completed']:,} of {told['requests']:,}"
    lost = [f"{count:,} {reason}" for reason, count in told["refused"].items()]
    if told["unfinished"]:
        lost.append(f"{told['unfinished']:,} unfinished")
    return [
        ("throughput", f"{told['throughput']:,.0f} output tokens/s, {told['throughput_per_gpu']:,.0f} a GPU"),
        ("served", f"{served} requests, {told['requests_per_second']:.3g} a second"),
        ("not served", ", ".join(lost) or "none"),
        ("goodput", f"{told['goodput']:.3g} requests/s: {told['good_share']:.1%} within {slo}"),
        ("preemptions", f"{told['preemptions']:,}"),
        ("prompts cached", f"{told['cached_prompt_share']:.0%}"),
        ("thoughts cut by a budget", f"{told['thoughts_cut']:.1%}"),
        ("moved after a failure", f"{told['moved']:,}"),
        ("simulated", f"{told['simulated_seconds']:,.0f} s in {told['wall_seconds']:.1f} s"),
    ]


def title(report: Report) -> str:
    plan = report.plan
    pools = ", ".join(f"{pool.gangs} x {pool.layout}" for pool in plan.pools)
    return f"{plan.name} ({report.gpus} x {plan.fleet.accelerator}, {pools}) under {report.workload.name}"


def markdown(report: Report, told: dict[str, Any]) -> str:
    lines = [f"# {title(report)}", "", f"`{told['command']}`", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts(told)]
    lines += ["", f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {label}, {unit} | {' | '.join(_cells(told[key], scale))} |" for key, label, scale, unit in ROWS]
    return "\n".join([*lines, "", *(f"- {note}" for note in report.workload.notes), ""])


def html(report: Report, told: dict[str, Any]) -> str:
    metrics, slo = report.metrics, report.metrics.slo
    history = metrics.history
    figures = {
        "KV cache in use": plot({"": [(t, 100 * kv) for t, kv, _, _ in history]}, x="seconds", y="% of KV tokens"),
        "Requests running and waiting": plot(
            {"running": [(t, n) for t, _, n, _ in history], "waiting": [(t, q) for t, _, _, q in history]},
            x="seconds",
            y="requests",
        ),
        "The tail of thinking": plot(
            {"": metrics.thinking.tail()}, x="thinking tokens", y="share of thoughts longer", log_x=True, log_y=True
        ),
        f"Waiting for the first token (good: {slo.ttft:g} s) and for the answer": plot(
            {"TTFT": metrics.ttft.tail(), "TTFA": metrics.ttfa.tail()},
            x="seconds",
            y="share of requests that wait longer",
            log_x=True,
            log_y=True,
        ),
    }
    plots = "".join(f"<figure><figcaption>{escape(c)}</figcaption>{svg}</figure>" for c, svg in figures.items())
    named = "".join(f"<tr><td>{escape(n)}</td><td>{escape(v)}</td></tr>" for n, v in facts(told))
    head = "".join(f"<th>{c}</th>" for c in COLUMNS)
    times = "".join(
        f"<tr><td>{escape(label)}, {unit}</td>{''.join(f'<td>{c}</td>' for c in _cells(told[key], scale))}</tr>"
        for key, label, scale, unit in ROWS
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.workload.notes)
    plan = escape(report.plan.to_yaml())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title(report))}</title>'
        f"<style>{STYLE}</style><h1>{escape(title(report))}</h1><pre>{escape(told['command'])}</pre>"
        f"<table>{named}</table><h2>Times</h2><table><tr><th></th>{head}</tr>{times}</table>{plots}"
        f"<h2>Workload</h2><ul>{notes}</ul><details><summary>Plan</summary><pre>{plan}</pre></details></html>\n"
    )


def _cells(summary: dict[str, float | None], scale: float) -> list[str]:
    values = [summary[column] for column in COLUMNS]
    return ["–" if v is None else f"{v * scale:,.0f}" if v * scale >= 100 else f"{v * scale:.3g}" for v in values]
