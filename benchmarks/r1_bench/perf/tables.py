"""Markdown of the fit's results, and a peer's estimates as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from r1_cluster.perf.runs import Run
from r1_cluster.perf.serving import Estimate
from r1_cluster.perf.validate import Report, Row, Summary


def peer_rows(runs: Sequence[Run], estimates: Mapping[str, Any]) -> tuple[Row, ...]:
    """A peer's TTFT and TPOT as rows; throughput by the measurements' own formula. Rows it refused are left out."""
    found = []
    for run in runs:
        told = estimates.get(run.id, {})
        if "tpot_ms" not in told:
            continue
        ttft, tpot, load = told["ttft_ms"] / 1e3, told["tpot_ms"] / 1e3, run.workload
        through = load.concurrency * load.output / (ttft + tpot * (load.output - 1))
        found.append(Row(run, Estimate(ttft, tpot, through, batch=0, prefill_load=0, slots_load=0)))
    return tuple(found)


def _line(name: str, summary: Summary) -> str:
    cells = [summary.tpot_mape, summary.tpot_median_ape, summary.throughput_mape, summary.throughput_median_ape]
    cells += [summary.ttft_mape, summary.ttft_median_ape]
    shown = ["-" if value is None else f"{value:.1%}" for value in cells]
    return f"| {name} | {summary.rows} | {' | '.join(shown[:4])} | {summary.ttft_rows} | {' | '.join(shown[4:])} |"


HEAD = (
    "| | rows | TPOT mean | median | tok/s/GPU mean | median | TTFT rows | mean | median |",
    "|---|---|---|---|---|---|---|---|---|",
)


def markdown(environment: Mapping[str, Any], moved: Mapping[str, Any], reports: Mapping[str, Report]) -> str:
    lines = ["# The performance model against end-to-end runs", ""]
    lines += [f"`{environment['command']}`, {environment['date']}, {environment['hardware']}", ""]
    lines += ["Absolute errors over rows not suspected of speculation; TTFT over rows measured below 3 s.", "", *HEAD]
    lines += [_line(name, report.overall) for name, report in reports.items()]
    for name, report in reports.items():
        lines += ["", f"## {name}", "", *HEAD]
        lines += [_line(group, summary) for group, summary in report.groups.items()]
        if report.suspects.rows:
            lines.append(_line("suspected speculative, apart", report.suspects))
    lines += ["", "## Constants", "", "| constant | prior | fitted |", "|---|---|---|"]
    lines += [f"| {name} | {each['prior']:g} | {each['fitted']:g} |" for name, each in moved.items()]
    return "\n".join(lines) + "\n"
