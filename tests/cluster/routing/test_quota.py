"""Tenants' accounts and the fleet's drain rate."""

from __future__ import annotations

import pytest
from r1_cluster.routing.drain import Drain
from r1_cluster.routing.quota import Accounts
from r1_cluster.routing.tenants import Quota

QUOTA = Quota(tokens_per_minute=6000)


def test_a_minutes_quota_may_be_used_at_once_and_then_refills() -> None:
    accounts = Accounts()
    assert accounts.wait_for("a", 6000, QUOTA, 0.0) == 0
    accounts.reserve("a", 6000, QUOTA, 0.0)
    assert accounts.wait_for("a", 1000, QUOTA, 0.0) == pytest.approx(10)
    assert accounts.wait_for("a", 1000, QUOTA, 4.0) == pytest.approx(6)
    assert accounts.wait_for("a", 1000, QUOTA, 10.0) == 0


def test_what_is_given_back_may_be_used_again_but_not_saved_up() -> None:
    accounts = Accounts()
    accounts.reserve("a", 6000, QUOTA, 0.0)
    accounts.reserve("a", -5000, QUOTA, 0.0)
    assert accounts.wait_for("a", 5000, QUOTA, 0.0) == 0
    accounts.reserve("a", -90_000, QUOTA, 0.0)
    accounts.reserve("a", 6000, QUOTA, 0.0)
    assert accounts.wait_for("a", 100, QUOTA, 0.0) > 0


def test_a_request_above_a_minutes_quota_waits_for_a_full_minute_and_leaves_a_debt() -> None:
    accounts = Accounts()
    assert accounts.wait_for("a", 50_000, QUOTA, 0.0) == 0
    accounts.reserve("a", 12_000, QUOTA, 0.0)
    assert accounts.wait_for("a", 50_000, QUOTA, 0.0) == pytest.approx(120)


def test_tenants_do_not_share_and_no_quota_means_no_limit() -> None:
    accounts = Accounts()
    accounts.reserve("a", 6000, QUOTA, 0.0)
    assert accounts.wait_for("b", 6000, QUOTA, 0.0) == 0
    accounts.reserve("a", 1e9, Quota(), 0.0)
    assert accounts.wait_for("a", 1e9, Quota(), 0.0) == 0


def test_the_drain_rate_is_known_after_the_second_end_and_is_tokens_a_second() -> None:
    drain = Drain(window_s=60)
    assert drain.rate(0.0) is None
    drain.freed(1000, 0.0)
    assert drain.rate(5.0) is None
    for second in range(1, 300):
        drain.freed(500, float(second))
    assert drain.rate(299.0) == pytest.approx(500, rel=0.02)


def test_the_rate_falls_while_nothing_ends() -> None:
    drain = Drain(window_s=60)
    for second in range(100):
        drain.freed(500, float(second))
    before, after = drain.rate(100.0), drain.rate(160.0)
    assert before is not None
    assert after is not None
    assert after < before / 2
