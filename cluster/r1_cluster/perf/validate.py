"""Predictions against measured runs: what ``r1 validate`` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from r1_cluster.perf.constants import Constants
from r1_cluster.perf.runs import Run, read
from r1_cluster.perf.serving import Estimate, estimate

QUEUE_BOUND_TTFT = 3.0  # seconds: a measured TTFT from here on is taken to be queueing, whatever the model says


@dataclass(frozen=True)
class Row:
    """A run and its estimate."""

    run: Run
    estimate: Estimate

    @property
    def throughput(self) -> float:
        """Predicted output tokens/s/GPU."""
        return self.estimate.throughput / self.run.gpus

    @property
    def queue_bound(self) -> bool:
        return self.run.ttft >= QUEUE_BOUND_TTFT

    # Signed relative errors: 0.12 is a prediction 12 % too high.

    @property
    def tpot_error(self) -> float:
        return self.estimate.tpot / self.run.tpot - 1

    @property
    def ttft_error(self) -> float:
        return self.estimate.ttft / self.run.ttft - 1

    @property
    def throughput_error(self) -> float:
        return self.throughput / self.run.throughput - 1

    def as_dict(self) -> dict[str, Any]:
        run = self.run
        return {
            "id": run.id,
            "group": run.group,
            "layout": run.layout,
            "isl": run.workload.prompt,
            "osl": run.workload.output,
            "conc": run.workload.concurrency,
            "speculative_suspect": run.speculative,
            "queue_bound": self.queue_bound,
            "predicted_queue_bound": self.estimate.queue_bound,
            "tpot_ms": {"measured": run.tpot * 1e3, "predicted": self.estimate.tpot * 1e3, "error": self.tpot_error},
            "ttft_ms": {"measured": run.ttft * 1e3, "predicted": self.estimate.ttft * 1e3, "error": self.ttft_error},
            "otps_gpu": {"measured": run.throughput, "predicted": self.throughput, "error": self.throughput_error},
        }


@dataclass(frozen=True)
class Summary:
    """Mean and median absolute errors as fractions; None over no rows. TTFT over rows that are not queue-bound."""

    rows: int
    tpot_mape: float | None
    tpot_median_ape: float | None
    throughput_mape: float | None
    throughput_median_ape: float | None
    ttft_rows: int
    ttft_mape: float | None
    ttft_median_ape: float | None

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Summary:
        rows = tuple(rows)
        calm = tuple(row for row in rows if not row.queue_bound)

        def over(chosen: tuple[Row, ...], error: Callable[[Row], float]) -> tuple[float | None, float | None]:
            sizes = [abs(error(row)) for row in chosen]
            return (fmean(sizes), median(sizes)) if sizes else (None, None)

        tpot, through = over(rows, lambda row: row.tpot_error), over(rows, lambda row: row.throughput_error)
        ttft = over(calm, lambda row: row.ttft_error)
        return cls(len(rows), *tpot, *through, len(calm), *ttft)


@dataclass(frozen=True)
class Report:
    """Every row's prediction; the summaries leave out rows that probably ran with speculative decoding."""

    rows: tuple[Row, ...]

    @property
    def plain(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.run.speculative)

    @property
    def overall(self) -> Summary:
        return Summary.of(self.plain)

    @property
    def suspects(self) -> Summary:
        return Summary.of(row for row in self.rows if row.run.speculative)

    @property
    def groups(self) -> dict[str, Summary]:
        """By system/backend/mode, in the file's order."""
        names = dict.fromkeys(row.run.group for row in self.plain)
        return {name: Summary.of(row for row in self.plain if row.run.group == name) for name in names}

    def as_dict(self) -> dict[str, Any]:
        """What ``--json`` prints. ``rows`` is their number, as in every group; ``predictions`` has each."""
        return {
            **vars(self.overall),
            "queue_bound_rule": f"measured TTFT of {QUEUE_BOUND_TTFT:g} s or more",
            "groups": {name: vars(summary) for name, summary in self.groups.items()},
            "speculative_suspect": vars(self.suspects),
            "predictions": [row.as_dict() for row in self.rows],
        }


def predict(run: Run, constants: Constants | None = None) -> Row:
    return Row(run, estimate(run.pools(constants), run.workload))


def validate(path: str | Path, constants: Constants | None = None) -> Report:
    """Predict every run of a CSV file. Raises RunsError (a ValueError) that names line and column."""
    return Report(tuple(predict(run, constants) for run in read(path)))
