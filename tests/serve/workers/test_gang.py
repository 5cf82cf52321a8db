"""Which accelerators a rank claims, decided without Ray."""

from __future__ import annotations

import asyncio

import pytest
from r1_serve.workers import gang
from r1_serve.workers.gang import bundles_by_node, share


def test_bundles_of_one_node_lie_together_and_rank_zeros_node_leads() -> None:
    node_of = {0: "b", 1: "a", 2: "b", 3: "a"}
    assert bundles_by_node(node_of, first_node="b") == (0, 2, 1, 3)
    assert bundles_by_node(node_of, first_node="a") == (1, 3, 0, 2)


def test_every_bundle_belongs_to_exactly_one_rank_and_no_rank_straddles_nodes() -> None:
    node_of = {index: f"node{index % 4}" for index in range(32)}
    order = bundles_by_node(node_of, first_node="node2")
    shares = [share(order, rank, 8) for rank in range(4)]
    assert sorted(index for mine in shares for index in mine) == list(range(32))
    assert [len({node_of[index] for index in mine}) for mine in shares] == [1, 1, 1, 1]
    assert {node_of[index] for index in shares[0]} == {"node2"}


async def test_a_gang_whose_rank_zero_never_speaks_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gang, "MEETING_TIMEOUT_S", 0.01)
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", lambda key: None)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(gang._await_announcement("lost"), 5)


def test_a_free_port_can_be_bound() -> None:
    import socket

    with socket.socket() as s:
        s.bind(("", gang._free_port()))
