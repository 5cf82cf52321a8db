"""What the benchmark of the simulator's speed runs."""

from __future__ import annotations

import pytest
from r1_bench.scale import LONG, SIZES, combinations


def test_each_size_runs_with_each_refresh_and_the_long_run_with_the_oldest_forecasts() -> None:
    runs = combinations(list(SIZES), None, [1.0, 10.0])
    assert len(runs) == 2 * len(SIZES) + 1
    assert runs[-1] == (*LONG, 10.0)
    assert {run[:2] for run in runs[:-1]} == set(SIZES.items())


@pytest.mark.parametrize(
    ("sizes", "requests", "runs"),
    [
        ([8], None, [(8, 4_000, 5.0)]),
        ([16], None, [(16, 20_000, 5.0)]),
        ([8, 1_000], 300, [(8, 300, 5.0), (1_000, 300, 5.0)]),
    ],
)
def test_what_is_asked_for_is_run_and_nothing_else(
    sizes: list[int], requests: int | None, runs: list[tuple[int, int, float]]
) -> None:
    assert combinations(sizes, requests, [5.0]) == runs
