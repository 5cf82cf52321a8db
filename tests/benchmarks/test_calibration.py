"""What is made of calibrations and replays that took turns."""

from __future__ import annotations

from typing import Any

import pytest
from r1_bench.calibration import FIGURES, fit, judged


def calibrated(step_s: float) -> dict[str, Any]:
    """As `r1 calibrate --json` tells of a fleet of linear costs."""
    steps = [
        {"sequences": n, "cached": n * context, "seconds": step_s + 1e-3 * n + 1e-6 * n * context, "error": 0.0}
        for n in (1, 4, 16)
        for context in (100, 800)
    ]
    firsts = [{"prompt_tokens": n, "seconds": step_s + 0.01 + 1e-4 * n, "error": 0.0} for n in (40, 200, 800)]
    return {"steps": steps, "firsts": firsts, "besides": [{"prompt_tokens": 40, "seconds": 0.01}]}


def test_a_replay_is_simulated_on_what_was_measured_before_and_after_it() -> None:
    assert fit(calibrated(0.01)).linear.step_s == pytest.approx(0.01, rel=1e-6)
    both = fit(calibrated(0.01), calibrated(0.02))
    assert len(both.step_errors) == 12
    assert 0.01 < both.linear.step_s < 0.02


def row(load: float, throughput: float, tpot: float) -> dict[str, Any]:
    errors = dict.fromkeys(FIGURES, 0.0) | {"throughput": throughput, "tpot_p95": tpot}
    return {"load": load, **{name: {"error": error} for name, error in errors.items()}}


def test_a_load_is_judged_by_the_median_of_its_replays() -> None:
    rows = [row(0.4, 0.02, 0.1), row(0.7, 0.0, -0.2), row(0.4, 0.5, -0.1), row(0.7, 0.0, -0.16), row(0.4, -0.5, 0.12)]
    low, high = judged(rows)
    assert (low["load"], low["replays"], low["throughput"], low["tpot_p95"], low["kept"]) == (0.4, 3, 0.02, 0.1, True)
    assert (high["load"], high["tpot_p95"], high["kept"]) == (0.7, -0.18, False)
