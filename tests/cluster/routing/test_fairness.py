"""Weighted fair queueing over tokens."""

from __future__ import annotations

from collections import Counter

import pytest
from r1_cluster.routing.fairness import FairQueue


def serve(queue: FairQueue[str], rounds: int, cost: dict[str, float], weight: dict[str, float]) -> Counter[str]:
    """Tokens by tenant, where every tenant always has another request."""
    served: Counter[str] = Counter()
    for _ in range(rounds):
        tenant = queue.heads()[0]
        queue.take(tenant, cost[tenant], weight[tenant])
        served[tenant] += int(cost[tenant])
        queue.put(tenant, tenant)
    return served


def test_tenants_share_tokens_not_requests() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.put("thinker", "thinker")
    queue.put("agent", "agent")
    served = serve(queue, 2000, {"thinker": 8000, "agent": 50}, {"thinker": 1, "agent": 1})
    assert served["thinker"] == pytest.approx(served["agent"], abs=8000)


def test_weights_are_shares() -> None:
    queue: FairQueue[str] = FairQueue()
    for tenant in ("a", "b"):
        queue.put(tenant, tenant)
    served = serve(queue, 4000, {"a": 100, "b": 100}, {"a": 3, "b": 1})
    assert served["a"] / served["b"] == pytest.approx(3, rel=0.01)


def test_within_a_tenant_priority_then_order() -> None:
    queue: FairQueue[str] = FairQueue()
    for item, priority in (("late", 5), ("first", 0), ("second", 0), ("urgent", -1)):
        queue.put("a", item, priority)
    taken = []
    for _ in range(4):
        taken += queue.heads()
        queue.take("a", 1, 1)
    assert taken == ["urgent", "first", "second", "late"]
    assert queue.heads() == []


def test_priority_does_not_reach_into_another_tenants_share() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.put("a", "a1", -100)
    queue.put("b", "b1", 100)
    queue.take("a", 10, 1)
    queue.put("a", "a2", -100)
    assert queue.heads() == ["b1", "a2"]


def test_idling_saves_nothing_up() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.put("busy", "busy")
    serve(queue, 100, {"busy": 1000}, {"busy": 1})
    queue.put("back", "back")
    served = serve(queue, 100, {"busy": 1000, "back": 1000}, {"busy": 1, "back": 1})
    assert served["back"] == pytest.approx(served["busy"], abs=1000)


def test_what_was_not_used_is_given_back_and_more_is_charged() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.put("a", "a1")
    queue.take("a", 1000, 2)
    assert queue.virtual("a") == 500
    queue.correct("a", -400, 2)
    assert queue.virtual("a") == 300
    queue.correct("a", 100, 2)
    assert queue.virtual("a") == 350
    queue.correct("nobody", 100, 1)
    assert queue.virtual("nobody") == 0


def test_withdrawn_items_never_come_up_and_cost_no_memory() -> None:
    gone: set[str] = set()
    queue: FairQueue[str] = FairQueue(withdrawn=gone.__contains__)
    queue.put("a", "stays")
    for number in range(10_000):
        queue.put("a", f"g{number}", priority=1)
        gone.add(f"g{number}")
    assert queue.heads() == ["stays"]
    assert list(queue) == ["stays"]
    assert len(queue._lines["a"].heap) <= 128
