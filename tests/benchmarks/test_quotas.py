"""What the quotas benchmark makes of the answers it counted."""

from __future__ import annotations

from typing import Any

import pytest
from r1_bench.quotas import RUSH_S, Served, share, table, worst


def row(setup: str, over: float, apart: float | None) -> dict[str, Any]:
    granted = {"large": 1.02, "small": 0.99}
    shares = {"heavy": 300, "light": 100, "over_weight": over}
    return {
        "setup": setup,
        "granted_over_quota": granted,
        "steady_over_quota": granted,
        "shares": shares,
        "shares_apart": None if apart is None else {**shares, "over_weight": apart},
    }


def test_shares_are_counted_after_the_rush_and_while_both_still_ask() -> None:
    served = Served([(RUSH_S - 1, "light", 900), (5.0, "heavy", 330), (6.0, "light", 100), (40.1, "light", 900)])
    assert share(served, 40.0) == {"heavy": 330, "light": 100, "over_weight": 1.1}


def test_the_worst_is_the_farthest_from_exact_of_either_kind() -> None:
    far = worst([row("one router", 1.01, None), row("two routers", 0.99, 0.9)])
    assert far["share"] == pytest.approx(0.1)
    assert far["quota"] == pytest.approx(0.02)


def test_the_table_leaves_open_what_a_setup_has_not() -> None:
    environment = {"command": "x", "date": "2026-01-01", "hardware": "a laptop", "versions": {}}
    rows = [row("one router", 1.0, None), row("two routers", 0.99, 0.9)]
    lines = table({"environment": environment, "seconds": 40.0, "rows": rows}).splitlines()
    assert lines[-2:] == [
        "| one router | 1.02 | 0.99 | 1.02 | 0.99 | 1 | – |",
        "| two routers | 1.02 | 0.99 | 1.02 | 0.99 | 0.99 | 0.9 |",
    ]
