"""Fit what engines add to their kernels on end-to-end runs: ``python -m r1_bench.perf.runs --runs FILE.csv``.

Starts from the operators' shares (r1_bench.perf.operators) and priors of physical size; each constant is pulled to its
prior by a residual of one TPOT noise a sigma, so what the runs do not show stays where it was. Cross-validation leaves
out a deployment (system x backend x mode x layout), then a workload, and fits the rest anew. ``--write`` stores the
constants in r1_cluster/perf/constants.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from r1_cluster.perf.constants import FILE, Constants
from r1_cluster.perf.runs import Run, read
from r1_cluster.perf.validate import Report, Row, predict

from r1_bench import results
from r1_bench.perf.least_squares import Vector, fit
from r1_bench.perf.tables import markdown, peer_rows

NOISE = 0.06  # of log TPOT between identical runs
TTFT_WEIGHT = 0.3  # TTFT repeats three times worse than TPOT
WRONG = 0.08  # a residual beyond this is more likely a wrongly recorded configuration
# name: prior, its spread in logarithm, lower and upper bound. Seconds, shares, factors.
PRIORS: dict[str, tuple[float, float, float, float]] = {
    "routing.skew": (0.6, 0.2, 0.2, 1.1),
    "routing.hot": (0.05, 0.4, 0.005, 0.3),
    "serving.burst_unified": (0.1, 0.5, 0.02, 0.6),
    "serving.burst_separate": (0.1, 0.5, 0.02, 0.6),
    "serving.align": (0.7, 0.3, 0.2, 1.0),
    "collectives.network_fixed": (3e-5, 0.4, 5e-6, 1e-4),
    "collectives.exchange_fixed": (1.2e-5, 0.3, 5e-6, 4e-5),
    "frameworks.trtllm.balance": (100.0, 0.5, 5.0, 300.0),
    "frameworks.trtllm.wide_prefill": (5.0, 0.5, 0.1, 20.0),
} | {
    f"frameworks.{framework}.{name}": prior
    for framework in ("trtllm", "sglang")
    for name, prior in {
        "layer": (6e-5, 0.7, 5e-6, 3e-4),
        "data_parallel": (2e-5, 0.7, 1e-6, 2e-4),
        "decode_compute": (0.8, 0.25, 0.3, 0.95),
        "experts": (1.0, 0.15, 0.6, 1.6),
        "prefill": (1.0, 0.15, 0.5, 2.0),
        "eager": (0.01, 0.7, 1e-3, 0.1),
        "ttft": (0.15, 0.7, 0.02, 1.0),
        "handover": (0.35, 0.7, 0.02, 2.0),
    }.items()
}


def constants(values: Vector) -> Constants:
    """The shipped constants with ``values`` in the places PRIORS names."""
    document = json.loads(FILE.read_text(encoding="utf-8"))
    for name, value in zip(PRIORS, values, strict=True):
        *path, last = name.split(".")
        place = document
        for step in path:
            place = place[step]
        place[last] = float(f"{value:.4g}")
    return Constants.model_validate(document)


def fit_runs(runs: Sequence[Run], start: Sequence[float] | Vector | None = None) -> Vector:
    prior, spread, low, high = (np.array(column) for column in zip(*PRIORS.values(), strict=True))

    def residuals(values: Vector) -> Vector:
        tried = constants(values)
        rows = [predict(run, tried) for run in runs]
        tpot = [np.log1p(row.tpot_error) for row in rows]
        ttft = [TTFT_WEIGHT * np.log1p(row.ttft_error) for row in rows]
        return np.concatenate([tpot, ttft, NOISE * np.log(values / prior) / spread])

    return fit(residuals, prior if start is None else start, low, high, scale=WRONG)


def cross_validate(runs: Sequence[Run], start: Vector, key: Callable[[Run], Hashable]) -> tuple[Row, ...]:
    """Every run predicted by constants fitted without the runs of its key."""
    found: list[Row] = []
    for held in dict.fromkeys(map(key, runs)):
        tried = constants(fit_runs([run for run in runs if key(run) != held], start))
        found += [predict(run, tried) for run in runs if key(run) == held]
    return tuple(found)


def deployment(run: Run) -> Hashable:
    return run.group, run.layout


def workload(run: Run) -> Hashable:
    return run.group, run.workload.prompt, run.workload.output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--peer", type=Path, help="what peer_aiconfigurator.py wrote")
    parser.add_argument("--write", action="store_true", help="store the constants")
    arguments = parser.parse_args()
    every = read(arguments.runs)
    plain = [run for run in every if not run.speculative]
    values = fit_runs(plain)
    fitted = constants(values)
    reports = {
        "in sample": Report(tuple(predict(run, fitted) for run in every)),
        "deployment held out": Report(cross_validate(plain, values, deployment)),
        "workload held out": Report(cross_validate(plain, values, workload)),
    }
    if arguments.peer:
        document = json.loads(arguments.peer.read_text(encoding="utf-8"))
        reports[f"AIConfigurator {document['version']}"] = Report(peer_rows(every, document["estimates"]))
    if arguments.write:
        document = fitted.model_dump(mode="json")
        FILE.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    moved = {
        name: {"prior": PRIORS[name][0], "fitted": float(f"{v:.4g}")} for name, v in zip(PRIORS, values, strict=True)
    }
    found: dict[str, Any] = {"environment": results.environment(), "constants": moved}
    for name, report in reports.items():
        found[name] = report.as_dict()
        if name != "in sample":
            del found[name]["predictions"]
    print(results.write("perf_runs_hopper", found, markdown(found["environment"], moved, reports)).read_text())


if __name__ == "__main__":
    main()
