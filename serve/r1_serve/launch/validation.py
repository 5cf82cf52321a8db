"""How ``r1 validate`` shows its report."""

from __future__ import annotations

from r1_cluster.perf.validate import QUEUE_BOUND_TTFT, Report, Row, Summary
from rich.console import Console
from rich.table import Table


def show(report: Report, console: Console) -> None:
    """Each row, then the errors by group, then what the columns mean."""
    console.print(_rows(report))
    table = Table("group", *("rows", "TPOT mean", "median", "tok/s/GPU mean", "median", "TTFT rows", "mean", "median"))
    for name, summary in report.groups.items():
        table.add_row(name, *_cells(summary))
    table.add_section()
    table.add_row("all", *_cells(report.overall))
    if report.suspects.rows:
        table.add_row("suspected speculative, apart", *_cells(report.suspects))
    console.print(table)
    console.print(
        f"Absolute errors. TTFT: rows measured below {QUEUE_BOUND_TTFT:g} s; above, it is queueing (marked q). "
        "Marked s: probably ran with speculative decoding, predicted with it."
    )


def _rows(report: Report) -> Table:
    table = Table("group", "layout", "in/out", "conc", "", "TPOT ms", "model", "error", "TTFT ms", "model", "error")
    for name in ("tok/s/GPU", "model", "error"):
        table.add_column(name)
    for column in table.columns[3:]:
        column.justify = "right"
    for row in report.rows:
        table.add_row(*_line(row))
    return table


def _line(row: Row) -> tuple[str, ...]:
    run, load, found = row.run, row.run.workload, row.estimate
    marks = ("s" if run.speculative else "") + ("q" if row.queue_bound else "")
    where = (run.group, run.layout, f"{load.prompt}/{load.output}", f"{load.concurrency:g}", marks)
    tpot = (f"{run.tpot * 1e3:.1f}", f"{found.tpot * 1e3:.1f}", f"{row.tpot_error:+.0%}")
    ttft = (f"{run.ttft * 1e3:.0f}", f"{found.ttft * 1e3:.0f}", f"{row.ttft_error:+.0%}")
    return (*where, *tpot, *ttft, f"{run.throughput:.1f}", f"{row.throughput:.1f}", f"{row.throughput_error:+.0%}")


def _cells(summary: Summary) -> tuple[str, ...]:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    return (
        str(summary.rows),
        *(share(value) for value in (summary.tpot_mape, summary.tpot_median_ape)),
        *(share(value) for value in (summary.throughput_mape, summary.throughput_median_ape)),
        str(summary.ttft_rows),
        *(share(value) for value in (summary.ttft_mape, summary.ttft_median_ape)),
    )
